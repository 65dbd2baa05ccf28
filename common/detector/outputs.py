"""Where extracted regions go: a store, LXMERT's TSV, one NPZ or one VL-BERT JSON per picture.

Each output grows in `NAME.partial` and gets its name when it is complete, as the store does:
content first, then a line in the journal, so that a writer that was killed knows what it has.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

from common.detector.regions import Detector, FoundRegions
from common.errors import DataError
from common.features.importing import Writer, extraction_path
from common.features.lxmert_tsv import encode_row
from common.features.npz import encode_npz
from common.features.store import CLASSES
from common.features.vlbert_json import encode_record
from common.features.writer import RegionFeatureWriter, check_spec, line_checksum, replace_folder
from common.files import write_json
from common.reading import parse_json, short

IDS = ("object_ids", "object_conf", "attribute_ids", "attribute_conf")
JOURNAL = "journal.jsonl"
LINE = 4  # values in a line of the journal: id, stamp, bytes, checksum


@dataclass(frozen=True)
class Picture:
    """A picture with its regions, to be written.

    Attributes:
        image_id: its name without ending.
        width, height: of the picture, pixels.
        stamp: of its file.
        found: its regions.
    """

    image_id: str
    width: int
    height: int
    stamp: int
    found: FoundRegions

    def ids(self) -> dict[str, Any]:
        return {name: getattr(self.found, name) for name in IDS}


class Output(Protocol):
    """Writes pictures in one format."""

    @property
    def writer(self) -> Writer:
        """What appends the records."""

    def add(self, picture: Picture) -> Any:
        """The record of a picture, checked, for the writer to append.

        Raises:
            DataError: regions that the format cannot hold.
        """


class StoreOutput:
    """The store that all backbones read."""

    def __init__(
        self, path: Path, detector: Detector, spec: dict[str, Any], dtype: str, classes: bool
    ) -> None:
        count = detector.classes if classes else None
        self.writer = RegionFeatureWriter(
            path,
            detector.width,
            dtype,
            optional=[*IDS, *([CLASSES] if count is not None else [])],
            classes=count,
            **spec,
        )
        self._classes = count is not None

    def add(self, picture: Picture) -> Any:
        found = picture.found
        more = {}
        if self._classes and found.class_probabilities is not None:
            more[CLASSES] = found.class_probabilities
        return self.writer.prepare(
            picture.image_id,
            picture.width,
            picture.height,
            found.boxes,
            found.features,
            stamp=picture.stamp,
            **picture.ids(),
            **more,
        )


@dataclass(frozen=True)
class Encoded:
    """A picture as bytes of a format."""

    image_id: str
    stamp: int
    content: bytes


class PlainWriter:
    """Writes rows of one file, or one file per image; a `Writer`."""

    def __init__(self, path: Path, spec: dict[str, Any], suffix: str = "") -> None:
        """Start, or go on with the part that a killed writer left.

        Args:
            path: of the finished file or folder.
            spec: settings, which have to be the same to go on.
            suffix: of the files, one per image; without it rows are written in one file.

        Raises:
            DataError: begun with other settings, or its journal is damaged.
        """
        self.path, self._spec, self._suffix = path, spec, suffix
        self.partial = path.with_name(f"{path.name}.partial")
        self._rows = self.partial / "rows"
        self._files = self.partial / "files"
        self._files.mkdir(parents=True, exist_ok=True)
        check_spec(self.partial, spec)
        self._stamps: dict[str, int] = {}
        self._journal: BinaryIO = open(self.partial / JOURNAL, "a+b")  # noqa: SIM115
        self._file: BinaryIO = open(self._rows, "a+b")  # noqa: SIM115
        self._recover()

    def _recover(self) -> None:
        """Find the images that are complete, and cut off what is behind them."""
        there = self._rows.stat().st_size
        self._journal.seek(0)
        kept = end = 0
        for line in self._journal.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            image_id, stamp, size = _entry(line, str(self.partial / JOURNAL))
            if self._suffix:
                path = self._files / f"{image_id}{self._suffix}"
                if not path.is_file() or path.stat().st_size != size:
                    break
            elif end + size > there:
                break
            self._stamps[image_id] = stamp
            kept, end = kept + len(line), end + size
        self._journal.truncate(kept)
        self._file.truncate(0 if self._suffix else end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._journal.close()
        self._file.close()

    def __len__(self) -> int:
        return len(self._stamps)

    def ids(self) -> list[str]:
        return list(self._stamps)

    def stamp(self, image_id: str) -> int | None:
        return self._stamps[image_id]

    def append(self, record: Encoded) -> None:
        if record.image_id in self._stamps:
            raise DataError(f"image {record.image_id!r} is there already: ids must be unique")
        if self._suffix:
            path = self._files / f"{record.image_id}{self._suffix}"
            path.write_bytes(record.content)
        else:
            self._file.write(record.content)
            self._file.flush()
        values = [record.image_id, record.stamp, len(record.content)]
        self._journal.write(json.dumps([*values, line_checksum(values)]).encode() + b"\n")
        self._journal.flush()
        self._stamps[record.image_id] = record.stamp

    def finish(self, **told: Any) -> None:
        """Give file or folder its name; beside it `NAME_extraction.json` says what made it.

        Raises:
            DataError: no image was written.
        """
        if not self._stamps:
            raise DataError(f"{self.partial}: no image was written: nothing to finish")
        os.fsync(self._file.fileno())
        self._journal.close()
        self._file.close()
        meta = {**self._spec, "images": len(self), **told}
        write_json(extraction_path(self.path), meta, indent=1)
        if self._suffix:
            replace_folder(self._files, self.path)
        else:
            os.replace(self._rows, self.path)
        shutil.rmtree(self.partial)


def _entry(line: bytes, where: str) -> tuple[str, int, int]:
    values = parse_json(line, where)
    right = isinstance(values, list) and len(values) == LINE
    if not right or values[-1] != line_checksum(values[:-1]):
        raise DataError(
            f"{where}: {short(values)} is no entry of it: it is damaged; delete its folder to "
            "start again"
        )
    return values[0], values[1], values[2]


class PlainOutput:
    """A format whose pictures are bytes of their own."""

    def __init__(self, writer: PlainWriter, encode: Callable[[Picture], bytes], width: int) -> None:
        self.writer, self._encode, self._width = writer, encode, width

    def add(self, picture: Picture) -> Encoded:
        name, found = picture.image_id, picture.found
        if not name.isprintable() or "/" in name or name in ("", ".", ".."):
            raise DataError(f"image {short(name)}: an id has to be a name of printable signs")
        numbers = (found.features.sum() + found.boxes.sum()).item()
        if found.features.shape[1] != self._width or numbers != numbers:
            raise DataError(f"image {name!r}: features {tuple(found.features.shape)} of no use")
        return Encoded(name, picture.stamp, self._encode(picture))


def tsv_row(picture: Picture) -> bytes:
    """A row as LXMERT reads it."""
    found = picture.found
    return encode_row(
        picture.image_id,
        picture.width,
        picture.height,
        found.boxes,
        found.features,
        **picture.ids(),
    )


def npz_file(picture: Picture) -> bytes:
    """An NPZ file with what the store has."""
    found = picture.found
    return encode_npz(
        picture.width, picture.height, boxes=found.boxes, features=found.features, **picture.ids()
    )


def json_file(picture: Picture) -> bytes:
    """A JSON file as VL-BERT reads it, with the probabilities of classes and attributes."""
    found = picture.found
    return encode_record(
        picture.image_id,
        picture.width,
        picture.height,
        found.boxes,
        found.features,
        found.class_probabilities,
        found.attribute_probabilities,
    )


# format -> ending of a file per picture ("": rows of one file), and what writes a picture
PLAIN: dict[str, tuple[str, Callable[[Picture], bytes]]] = {
    "tsv": ("", tsv_row),
    "npz": (".npz", npz_file),
    "vlbert-json": (".json", json_file),
}
FORMATS = ("store", *PLAIN)


def open_output(
    form: str, path: Path, detector: Detector, spec: dict[str, Any], dtype: str, classes: bool
) -> Output:
    """Where pictures go.

    Args:
        form: one of `FORMATS`.
        path: of the finished store, file or folder.
        detector: what finds the regions.
        spec: detector's name, box policy and source, for meta.json.
        dtype: of a store's features.
        classes: whether a store keeps class probabilities.
    """
    if form == "store":
        return StoreOutput(path, detector, spec, dtype, classes)
    suffix, encode = PLAIN[form]
    whole = spec | {"format": form, "width": detector.width}
    return PlainOutput(PlainWriter(path, whole, suffix), encode, detector.width)
