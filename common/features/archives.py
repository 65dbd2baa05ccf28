"""Files in a folder or in a ZIP archive, read alike, from any thread or process.

A member of an archive is read at its place in the archive (`pread`), which moves no shared file
position; so a reader can be used by threads and forked workers at the same time, and a spawned
worker, to which it is pickled, opens its own. The list of members is read once, and is what
forked workers share.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.reading import short

SEPARATOR = ".zip@/"
ENCRYPTED = 0x1  # in the flags of a member
MAX_MEMBER_BYTES = 1 << 30
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, of the extra field


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a member is in its archive, and how it is kept."""

    start: int
    size: int
    method: int
    checksum: int
    plain_size: int


class Archive:
    """A ZIP archive, opened for reading."""

    def __init__(self, path: Path | str) -> None:
        """Read the list of members.

        Raises:
            DataError: No such file, or it is no ZIP archive (for example cut off).
        """
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as file:
                members = [info for info in file.infolist() if not info.is_dir()]
                again = [m.filename for m in members if file.getinfo(m.filename) is not m]
        except FileNotFoundError:
            raise DataError(f"{self.path}: no such file") from None
        except MemoryError:
            raise
        except Exception as error:  # zipfile fails in many ways on damaged bytes
            reason = short(str(error) or type(error).__name__)
            raise DataError(
                f"{self.path}: not a ZIP archive, or cut off ({reason}); fetch it again"
            ) from None
        if again:
            raise DataError(
                f"{self.path}: has {short(again[0])} twice: it is damaged, or was packed wrongly; "
                "pack or fetch it again"
            )
        secret = [m.filename for m in members if m.flag_bits & ENCRYPTED]
        if secret:
            raise DataError(f"{self.path}: {short(secret[0])} is encrypted: pack it without")
        self._top = _common_top(info.filename for info in members)
        self._places = {
            info.filename.removeprefix(self._top): _Place(
                info.header_offset, info.compress_size, info.compress_type, info.CRC, info.file_size
            )
            for info in members
        }
        self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return Archive, (self.path,)

    def names(self) -> list[str]:
        """Paths of the members, without the one folder that all of them may be in."""
        return list(self._places)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._known(name) in self._places

    def _known(self, name: str) -> str:
        return name if name in self._places else name.removeprefix(self._top)

    def where(self, name: str) -> str:
        """A member, for errors."""
        return f"{self.path}@/{self._top}{self._known(name)}"

    def stamp(self, name: str) -> int:
        """A number that another content of the member would not have."""
        return self._places[self._known(name)].checksum

    def read(self, name: str) -> bytes:
        """The content of a member; its path with or without the folder that all are in.

        Raises:
            DataError: No such member, or it is damaged.
        """
        place = self._places.get(self._known(name))
        if place is None:
            raise DataError(f"{self.path}@/{name}: no such file in the archive")
        if place.plain_size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{self.where(name)}: {place.plain_size:,} bytes: more than {MAX_MEMBER_BYTES:,} "
                "are not read"
            )
        total = os.fstat(self._file).st_size
        if not 0 <= place.start <= place.start + place.size <= total:
            raise DataError(f"{self.where(name)}: damaged archive (it lies outside the file)")
        header = os.pread(self._file, LOCAL_HEADER.size, place.start)
        if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise DataError(f"{self.where(name)}: damaged archive; fetch it again")
        _, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = place.start + LOCAL_HEADER.size + name_length + extra_length
        content = _read_fully(self._file, place.size, start)
        if place.method == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                    content, place.plain_size + 1
                )
            except zlib.error as error:
                raise DataError(
                    f"{self.where(name)}: damaged ({error}); fetch the archive again"
                ) from None
        elif place.method != zipfile.ZIP_STORED:
            raise DataError(
                f"{self.where(name)}: compression method {place.method}: only stored "
                "and deflated members can be read; pack the archive again"
            )
        if len(content) != place.plain_size or zlib.crc32(content) != place.checksum:
            raise DataError(
                f"{self.where(name)}: damaged (checksum differs); fetch the archive again"
            )
        return content


def _read_fully(file: int, size: int, start: int) -> bytes:
    """`pread` gives less than asked for where a member has gigabytes, or the file ends."""
    parts, left = [], size
    while left and (part := os.pread(file, left, start + size - left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _common_top(names: Iterator[str]) -> str:
    """`train2014/` where all members are in that one folder, else nothing."""
    tops = {name.split("/", 1)[0] + "/" if "/" in name else "" for name in names}
    return tops.pop() if len(tops) == 1 else ""


class Folder:
    """A folder, with the interface of `Archive`."""

    def __init__(self, path: Path | str, deep: bool = False) -> None:
        """Open a folder.

        Args:
            path: Of the folder.
            deep: `names` looks into the folders in it as well.

        Raises:
            DataError: No such folder.
        """
        self.path, self.deep = Path(path), deep
        if not self.path.is_dir():
            raise DataError(f"{self.path}: no such folder")

    def names(self) -> list[str]:
        """Paths of the files in it; of those in its subfolders too if it is `deep`.

        Every folder is looked into once, by its own path rather than that of a symbolic link to it;
        a link to a folder that holds this one is left alone.

        Raises:
            DataError: A folder that cannot be read.
        """
        above = self.path.resolve().parents if self.deep else ()
        seen = {_identity(folder) for folder in above}
        folders, links = deque([(self.path, "")]), deque[tuple[Path, str]]()
        found = list[str]()
        while folders or links:
            folder, prefix = (folders or links).popleft()
            try:
                if (own := _identity(folder)) in seen:
                    continue
                seen.add(own)
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        name = f"{prefix}{entry.name}"
                        if entry.is_file():
                            found.append(name)
                        elif self.deep and entry.is_dir():
                            place = links if entry.is_symlink() else folders
                            place.append((folder / entry.name, f"{name}/"))
            except OSError as error:
                raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self.path / name).is_file()

    def where(self, name: str) -> str:
        """A file, for errors."""
        return str(self.path / name)

    def stamp(self, name: str) -> int:
        """A number that another content of the file would hardly have: checksum of its size and
        its first 64 KiB."""
        path = self.path / name
        try:
            with open(path, "rb") as file:
                return zlib.crc32(file.read(1 << 16), path.stat().st_size & 0xFFFFFFFF)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DataError: No such file.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read ({error.strerror})") from None


def _identity(folder: Path) -> tuple[int, int]:
    """What a folder and a link to it have in common."""
    status = folder.stat()
    return status.st_dev, status.st_ino


Files = Archive | Folder


def open_files(path: Path | str, deep: bool = False) -> Files:
    """Open a folder or a ZIP archive.

    Args:
        path: Of either.
        deep: Find the files in subfolders of a folder too, as in an archive.

    Raises:
        DataError: There is neither.
    """
    path = Path(path)
    return Folder(path, deep) if path.is_dir() else Archive(path)


@lru_cache(maxsize=16)
def _opened(path: str) -> Archive:
    """One reader per archive, which forked processes share."""
    return Archive(path)


def read_path(path: Path | str) -> bytes:
    """The content of a file, which may be in an archive: `train2014.zip@/COCO_1.jpg`.

    Raises:
        DataError: It is not there, or damaged.
    """
    text = str(path)
    if SEPARATOR not in text:
        whole = Path(text)
        return Folder(whole.parent).read(whole.name)
    archive, name = text.split(SEPARATOR, 1)
    return _opened(f"{archive}.zip").read(name)
