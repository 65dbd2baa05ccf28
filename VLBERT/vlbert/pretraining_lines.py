"""Text files that are read line by line, in any order, without being in memory."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import DataError

EVERY = 32  # lines of which one has its place remembered


class LineFile:
    """The lines of a file that are not blank, by number.

    Only the place of every 32nd line is kept: a quarter of a byte for a line. Safe to share between
    threads and forked workers; a spawned one opens the file itself.
    """

    def __init__(self, path: Path | str, progress: bool = True) -> None:
        """Read the file once.

        Args:
            path: of the file.
            progress: show a bar.

        Raises:
            DataError: it cannot be read, or all of its lines are blank.
        """
        self.path = Path(path)
        self._starts, self._rows = array("q"), array("q")
        self._count, self._size = 0, 0
        try:
            self._scan(progress)
            self._file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not self._count:
            raise DataError(f"{self.path}: no line with text in it")

    def _scan(self, progress: bool) -> None:
        with (
            open(self.path, "rb") as file,
            tqdm(
                total=os.path.getsize(self.path),
                desc=self.path.name,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=not progress,
            ) as bar,
        ):
            for row, line in enumerate(file, 1):
                if not line.isspace():
                    if self._count % EVERY == 0:
                        self._starts.append(self._size)
                        self._rows.append(row)
                        bar.update(self._size - bar.n)
                    self._count += 1
                self._size += len(line)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._file = os.open(self.path, os.O_RDONLY)

    def __len__(self) -> int:
        """Lines that are not blank."""
        return self._count

    def __getitem__(self, index: int) -> str:
        """A line, without blanks around it.

        Raises:
            DataError: it is not in UTF-8, or the file has changed.
        """
        block, place = divmod(index, EVERY)
        for _, row, line in self._block(block, place):
            return self._decode(line, row)
        raise IndexError(index)

    def where(self, index: int) -> str:
        """File and row of a line, for errors; rows count from 1, with blank lines."""
        block, place = divmod(index, EVERY)
        return next(f"{self.path}, row {row}" for _, row, _ in self._block(block, place))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Place (file and row) and text of every line, in order."""
        for block in range(len(self._starts)):
            for _, row, line in self._block(block):
                yield f"{self.path}, row {row}", self._decode(line, row)

    def _block(self, block: int, place: int = 0) -> Iterator[tuple[int, int, bytes]]:
        """Number, row and content of the lines of a block, from one of them on."""
        if block >= len(self._starts):
            raise IndexError(f"{self.path}: {self._count} lines")
        start = self._starts[block]
        end = self._starts[block + 1] if block + 1 < len(self._starts) else self._size
        content = os.pread(self._file, end - start, start)
        if len(content) < end - start:
            raise DataError(f"{self.path}: became shorter while it was being read; start again")
        number = block * EVERY
        for row, line in enumerate(content.split(b"\n"), self._rows[block]):
            if line and not line.isspace():
                if number >= block * EVERY + place:
                    yield number, row, line
                number += 1

    def _decode(self, line: bytes, row: int) -> str:
        try:
            return line.decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}, row {row}: not UTF-8 ({error.reason} at byte "
                f"{error.start} of the row): convert the file"
            ) from None
