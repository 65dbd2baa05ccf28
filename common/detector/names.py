"""What a detector's classes and attributes are called, where files beside its weights say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.reading import read_text

OBJECTS, ATTRIBUTES = "objects_vocab.txt", "attributes_vocab.txt"


@dataclass(frozen=True)
class RegionNames:
    """Names by id; empty where they are not known."""

    objects: Sequence[str] = ()
    attributes: Sequence[str] = ()

    def of(self, kind: str, number: int) -> str | None:
        """The name of an `object` or `attribute`; None where it is not known."""
        known = self.objects if kind == "object" else self.attributes
        return known[number] if known else None


def read_names(folder: Path, classes: int, attributes: int) -> RegionNames:
    """The names in `objects_vocab.txt` and `attributes_vocab.txt`, as far as these are there.

    Line n, from 0, is id n; what stands behind a comma are other names of the same.

    Args:
        folder: of the detector's files.
        classes, attributes: so many lines there have to be.

    Raises:
        DataError: a file has another number of lines.
    """
    found = []
    for name, count in ((OBJECTS, classes), (ATTRIBUTES, attributes)):
        path = folder / name
        lines = read_text(path).splitlines() if path.is_file() else []
        if path.is_file() and len(lines) != count:
            raise DataError(
                f"{path}: {len(lines)} lines, the detector has {count:,} ids: it is of another "
                "detector; move it away, and ids are shown"
            )
        found.append([line.split(",")[0].strip() for line in lines])
    return RegionNames(*found)
