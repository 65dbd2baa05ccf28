"""Small file helpers: JSON in and out with errors that say where, checksums, locks."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import DataError

CHUNK = 1 << 22


def checkout() -> Path | None:
    """The checkout this package is imported from, or None if it was installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


def repository_root() -> Path:
    """The checkout this package is imported from; the working folder if there is none."""
    return checkout() or Path.cwd()


def read_json(
    path: Path | str, hint: str = "", replace: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse a JSON file.

    Args:
        path: The file.
        hint: Where the file comes from; added to the error when it is missing.
        replace: Called with every object as soon as it is read; what it returns takes its place.

    Raises:
        DataError: The file is missing, or is no JSON (with line and column), for example because
            a download broke off.
    """
    return parse_json(read_text(path, hint, "a JSON file"), str(path), replace)


def read_text(path: Path | str, hint: str = "", kind: str = "a text file") -> str:
    """The content of a file of UTF-8 text, without a byte order mark.

    Args:
        path: The file.
        hint: Where the file comes from; added to the error when it is missing.
        kind: What it should be.

    Raises:
        DataError: The file is missing, cannot be read, or is no such text.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{'; ' + hint if hint else ''}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 text: not {kind}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): {kind} was expected") from None


def parse_json(
    text: str | bytes, where: str, replace: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """The value of a JSON text; `where` names it in errors, which are `DataError`s."""
    try:
        return json.loads(text, object_hook=replace)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            "the file is truncated or damaged: fetch or write it again"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8 text: not a JSON file") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply for data: not a file of this kind") from None
    except ValueError as error:  # e.g. a number of thousands of digits
        raise DataError(f"{where}: not readable as JSON ({error})") from None


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
