"""Small file helpers: writing whole or not at all, checksums, locks, living processes."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

CHUNK = 1 << 22
STEM = 150


def checkout() -> Path | None:
    """The checkout this package is imported from, or None if it was installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def repository_root() -> Path:
    """The checkout this package is imported from; the working folder if there is none."""
    return checkout() or Path.cwd()


def file_stem(text: str) -> str:
    """A text as the name of a file: its words with - between them, the same for the same text.

    Long ones are cut to `STEM` bytes and end with a checksum of the whole.
    """
    words = re.sub(r"\W+", "-", text).strip("-")
    if len(words.encode()) <= STEM:
        return words
    kept = words.encode()[: STEM - 9].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any, indent: int | None = None) -> None:
    """Write JSON atomically (see `write_bytes`)."""
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def text_digest(text: str) -> str:
    """A short checksum of a text, 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256(path: Path | str, progress: tqdm | None = None) -> str:
    """Hex SHA-256 of a file; the same digits as `sha256sum FILE`."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress.update(len(chunk))
    return digest.hexdigest()


@contextmanager
def exclusive(path: Path | str) -> Iterator[None]:
    """Hold the lock file `path`; other processes that ask for it wait.

    Several processes of one job may find the same data missing; one of them makes it.
    Where the system has no `flock`, nothing is locked.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_running(pid: int) -> bool:
    """Whether a process of this machine has the number `pid` (1 or more), whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
