"""Conceptual Captions as the original prepared it: an LMDB of records, and the captions in JSON.

The LMDB is that of tensorpack's `LMDBSerializer`: keys 00000000, 00000001, … and `__keys__`, each
record a msgpack list of features (n, F), class probabilities (n, K), boxes (n, 4) in pixels, number
of boxes, height and width of the image, its id and its caption; arrays are maps as the package
msgpack-numpy writes them. Records are read one by one where they lie, never all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from common.errors import DataError, named
from common.features.lmdb_records import Records, open_records
from common.features.lxmert_tsv import check_boxes
from common.features.store import RegionBatch
from common.reading import read_json, short

KEYS = b"__keys__"
FIELDS = ("features", "cls_prob", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")
WHOLE, PARTS = "{}_feat_all.lmdb", "{}_feat_part_*.lmdb"
SOURCE = "the script of the original that extracts Conceptual Captions"
MOST_REGIONS = 1000
KINDS = "fiu"  # of numbers in an array
PROBABILITY_TOLERANCE = 1e-2  # of a sum, of half-precision probabilities


@dataclass(frozen=True)
class CaptionRecord:
    """An image with its caption.

    Attributes:
        features: (n, F) float32.
        classes: (n, K) float32, probabilities.
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels.
        width, height: of the image in pixels.
        image_id, caption: texts.
    """

    features: Tensor
    classes: Tensor
    boxes: Tensor
    width: int
    height: int
    image_id: str
    caption: str


class ConceptualCaptions:
    """Records of one LMDB, or of several that are parts of one data set.

    A file is open once in a process, until `close`.
    """

    def __init__(self, files: Sequence[Path], width: int | None = None) -> None:
        """Open them.

        Args:
            files: of the records.
            width: F that the model expects; None: that of the first record.

        Raises:
            DataError: a file is missing, damaged, or was not written to its end.
        """
        self.files = list(files)
        self._opened: tuple[int, list[Records]] | None = None
        self._stack = ExitStack()
        self._expected: tuple[int | None, int | None] = (width, None)
        try:
            self.counts = [_count(records) for records in self._records(check=True)]
            if not sum(self.counts):
                raise DataError(f"{self.files[0]}: no record in it")
            first = self.read(0)
        except DataError:
            self.close()
            raise
        self.width, self.classes = first.features.shape[1], first.classes.shape[1]
        self._expected = (self.width, self.classes)

    def __len__(self) -> int:
        return sum(self.counts)

    def close(self) -> None:
        """Close the files; they are opened again where they are read."""
        self._stack.close()
        self._opened = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ConceptualCaptions, (self.files, self.width)

    def _records(self, check: bool = False) -> list[Records]:
        """The open files; a process that reads opens them for itself."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._stack = ExitStack()
            found = [self._stack.enter_context(open_records(f, check)) for f in self.files]
            self._opened = os.getpid(), found
        return self._opened[1]

    def read(self, place: int) -> CaptionRecord:
        """A record.

        Raises:
            DataError: it is no such record; with file, key, field and value.
        """
        for records, count in zip(self._records(), self.counts, strict=True):
            if place < count:
                key = b"%08d" % place
                return parse_record(records.value(key), records.where(key), *self._expected)
            place -= count
        raise IndexError(place)

    def batch(self, places: Sequence[int]) -> tuple[RegionBatch, list[str]]:
        """Regions, with class probabilities, and captions of some records."""
        found = [self.read(place) for place in places]
        longest = max(len(record.features) for record in found)
        rows: dict[str, list[Tensor]] = {"features": [], "boxes": [], "classes": []}
        for record in found:
            for name, values in rows.items():
                value = getattr(record, name)
                padding = value.new_zeros(longest - len(value), value.shape[1])
                values.append(torch.cat([value, padding]))
        counts = torch.tensor([len(record.features) for record in found])
        regions = RegionBatch(
            [record.image_id for record in found],
            torch.stack(rows["features"]),
            torch.stack(rows["boxes"]),
            torch.arange(longest) < counts[:, None],
            torch.tensor([[float(record.width), float(record.height)] for record in found]),
            class_probabilities=torch.stack(rows["classes"]),
        )
        return regions, [record.caption for record in found]


def _count(records: Records) -> int:
    """Records of a file that was written to its end."""
    entries = records.count()
    if not records.has(KEYS):
        raise DataError(
            f"{records.path}: entry {KEYS.decode()!r} is missing: it was not written to its end; "
            f"write it again with {SOURCE}"
        )
    return entries - 1


def find_records(path: Path, part: str) -> list[Path]:
    """The LMDBs of a part of the data.

    Args:
        path: a file, or the folder of `training_feat_all.lmdb` or of
            `training_feat_part_0.lmdb`, ….
        part: `training` or `validation`.

    Raises:
        DataError: there is none.
    """
    whole = path / WHOLE.format(part)
    if path.suffix == ".lmdb" and path.exists():
        return [path]
    if whole.exists():
        return [whole]
    parts = sorted(path.glob(PARTS.format(part)), key=lambda p: (len(p.name), p.name))
    if not parts:
        raise DataError(
            f"{path}: no {WHOLE.format(part)} and no {PARTS.format(part)} in it: make them with "
            f"{SOURCE}, or use the embedded images with --dataset easy_vqa"
        )
    for number, found in enumerate(parts):
        if found != path / PARTS.format(part).replace("*", str(number)):
            raise DataError(
                f"{path}: {PARTS.format(part).replace('*', str(number))} is missing, {found.name} "
                f"is there: fetch all parts, from 0, or make them again with {SOURCE}"
            )
    return parts


def read_caption_list(path: Path) -> list[str]:
    """All captions of `caption_train.json`, which maps image ids to captions.

    Raises:
        DataError: it is missing, damaged, or has fewer than two captions.
    """
    found = read_json(path, SOURCE, schema=dict[str, str])
    captions = list(found.values())
    if len(set(captions)) < 2:
        raise DataError(
            f"{path}: {len(captions)} captions: a wrong caption is one of another image"
        )
    return captions


def parse_record(
    data: bytes, where: str, width: int | None = None, classes: int | None = None
) -> CaptionRecord:
    """Read and check a record.

    Args:
        data: as it is in the LMDB.
        where: file and key, for errors.
        width, classes: F and K that are expected; None: any.

    Raises:
        DataError: it is no msgpack, no record, wants to run something, or a field is wrong.
    """
    try:
        found = msgpack.unpackb(data, object_hook=_array, strict_map_key=False)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    except Exception as error:  # of several libraries and kinds
        raise DataError(
            f"{where}: no msgpack ({type(error).__name__}: {short(str(error))}): it is damaged; "
            f"write it again with {SOURCE}"
        ) from None
    if not isinstance(found, list) or len(found) != len(FIELDS):
        raise DataError(f"{where}: {short(found)}: expected a list of {', '.join(FIELDS)}")
    record = dict(zip(FIELDS, found, strict=True))
    count = _whole(where, "num_boxes", record["num_boxes"], MOST_REGIONS)
    height = _whole(where, "image_h", record["image_h"])
    across = _whole(where, "image_w", record["image_w"])
    features = _rows(where, "features", record["features"], count, width)
    shares = _rows(where, "cls_prob", record["cls_prob"], count, classes)
    boxes = _rows(where, "boxes", record["boxes"], count, 4)
    sums = shares.sum(1)
    if bool((shares < 0).any()) or bool(((sums - 1).abs() > PROBABILITY_TOLERANCE).any()):
        raise DataError(f"{where}: field 'cls_prob': rows that are no probabilities")
    image_id, caption = record["image_id"], record["caption"]
    if isinstance(image_id, bytes):
        image_id = image_id.decode(errors="replace")
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"{where}: field 'caption' is {short(caption)}: expected a text")
    with named(where, DataError):
        check_boxes(str(image_id), "field 'boxes'", boxes, across, height)
    return CaptionRecord(features, shares, boxes, across, height, str(image_id), caption)


def _array(value: dict[Any, Any]) -> Any:
    """A map of msgpack-numpy as an array or a number; other maps as they are."""
    named = {k.decode(errors="replace") if isinstance(k, bytes) else k: v for k, v in value.items()}
    if "nd" not in named or "data" not in named:
        return value
    kind = named.get("type")
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else kind
    try:
        dtype = np.dtype(kind) if isinstance(kind, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in KINDS:
        raise DataError(f"an array of type {short(kind)}: only numbers are read")
    data = named["data"]
    if not isinstance(data, bytes) or len(data) % dtype.itemsize:
        raise DataError(f"an array whose data are {short(data)}: it is cut off")
    numbers = np.frombuffer(data, dtype)
    shape = named.get("shape", [])
    whole = all(type(n) is int and n >= 0 for n in shape)
    if not whole or int(np.prod(shape, dtype=object)) != len(numbers):
        raise DataError(f"an array of shape {short(shape)} with {len(numbers)} numbers")
    return numbers.reshape(shape) if named["nd"] else numbers[0]


def _whole(where: str, field: str, value: Any, most: int = 10_000_000) -> int:
    if isinstance(value, str | bytes) and value.isdigit():
        value = int(value)
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not 0 < value <= most:
        raise DataError(
            f"{where}: field {field!r} is {short(value)}: expected a whole number from 1 to {most}"
        )
    return value


def _rows(where: str, field: str, value: Any, count: int, width: int | None) -> Tensor:
    """(count, width) float32."""
    if not isinstance(value, np.ndarray):
        raise DataError(f"{where}: field {field!r} is {short(value)}: expected an array")
    shape = value.shape
    if len(shape) != 2 or shape[0] != count or not shape[1] or width not in (None, shape[1]):
        raise DataError(
            f"{where}: field {field!r} has shape {shape}: expected {count} rows of "
            f"{width or 'any number of'} numbers"
        )
    rows = torch.from_numpy(value.astype(np.float32))
    if not bool(torch.isfinite(rows).all()):
        raise DataError(f"{where}: field {field!r}: a number that is not finite")
    return rows
