"""Region features in an LMDB, one pickled record per image.

    python -m common.features --lmdb data/coco/COCO_trainval_resnext152_faster_rcnn_genome.lmdb

The key of a record is the image id. A record is a dict in one of two forms: a row of a TSV, whose
fields are texts (image_id, image_w, image_h, num_boxes (n), and base64 of little-endian float32:
boxes (n, 4) x1 y1 x2 y2 in pixels, features (n, C), and sometimes cls_prob (n, K)); or the same
with numbers and arrays. The entry `keys` is the pickled list of all keys, in their order.

Pickles are read by `common.pickles`, which runs nothing that is in them, and the file's pages are
compared (`lmdb_pages`) before the C library follows them.
"""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError, named
from common.features.importing import HOPELESS_ROWS, BadRows, Earlier, import_records
from common.features.lmdb_pages import check_pages
from common.features.lxmert_tsv import b64decode, check_boxes
from common.features.store import CLASSES, RegionFeatures
from common.features.writer import LONGEST_SIDE, Record, RegionFeatureWriter
from common.pickles import parse_pickle
from common.reading import short

if TYPE_CHECKING:
    import lmdb

LMDB_DETECTOR = "Faster R-CNN ResNet-101 bottom-up attention (ViLBERT LMDB)"
SUFFIX = ".lmdb"
DATA = "data.mdb"
LIST = b"keys"
# A record of 100 boxes has 1.5 MB, two instructions per field, and twenty per array.
MAX_RECORD_BYTES, MAX_RECORD_INSTRUCTIONS = 1 << 26, 10_000
# field -> its names in a record
NAMES = {
    "image id": ("image_id", "img_id"),
    "width": ("image_w", "img_w"),
    "height": ("image_h", "img_h"),
    "count": ("num_boxes",),
    "boxes": ("boxes",),
    "features": ("features",),
}
PROBABILITIES = "cls_prob"


@dataclass
class LmdbRecord:
    """The regions of one image, as they are in its entry."""

    width: int
    height: int
    """In pixels."""
    boxes: Tensor
    """(n, 4): x1, y1, x2, y2 in pixels."""
    features: Tensor
    """(n, C)."""
    classes: Tensor | None
    """(n, K)."""


class Records:
    """The entries of an LMDB that is open for reading."""

    def __init__(self, path: Path, transaction: lmdb.Transaction, entries: int) -> None:
        self.path, self._transaction, self._entries = path, transaction, entries

    def keys(self) -> list[bytes]:
        """Keys of the records, in the order of the LMDB's own list, else in that of the tree.

        Raises:
            DataError: The list is none, or lacks images that are there; or there is no record.
        """
        there = [bytes(key) for key in self._transaction.cursor().iternext(values=False)]
        listed = self._transaction.get(LIST)
        if listed is not None:
            there = self._ordered(there, bytes(listed))
        if not there:
            raise DataError(f"{self.path}: no image in it")
        return there

    def _ordered(self, there: list[bytes], pickled: bytes) -> list[bytes]:
        where = f"{self.path}: entry {LIST.decode()!r}"
        found = parse_pickle(pickled, where, limit=1000 + 8 * len(there))
        if not isinstance(found, list | tuple):
            raise DataError(f"{where}: is {short(found)}: expected the list of all keys")
        wrong = [key for key in found if not isinstance(key, bytes | str)]
        if wrong:
            raise DataError(f"{where}: {short(wrong[0])} in it is no key: expected bytes")
        # Python 2 wrote texts. What is listed twice was extracted twice; the last one is there.
        keys = dict.fromkeys(key if isinstance(key, bytes) else key.encode() for key in found)
        unlisted = [key for key in there if key != LIST and key not in keys]
        if unlisted:
            raise DataError(
                f"{where}: lists {len(keys)} images, but {len(unlisted)} others are there, such as "
                f"{shown(unlisted[0])!r}: the LMDB was not written to its end; write it again"
            )
        return list(keys)

    def count(self) -> int:
        """Entries of all kinds."""
        return self._entries

    def has(self, key: bytes) -> bool:
        return self._transaction.get(key) is not None

    def where(self, key: bytes) -> str:
        """An entry, for errors."""
        return f"{self.path}: entry {short(shown(key))}"

    def value(self, key: bytes) -> bytes:
        """The pickled record of an image.

        Raises:
            DataError: There is none, or it is too large for one.
        """
        found = self._transaction.get(key)
        if found is None:
            raise DataError(f"{self.where(key)}: is in {LIST.decode()!r}, but not there itself")
        if len(found) > MAX_RECORD_BYTES:
            raise DataError(
                f"{self.where(key)}: {len(found):,} bytes: more than {MAX_RECORD_BYTES:,} are not "
                "read"
            )
        return bytes(found)

    def first(self, keys: Sequence[bytes], width: int) -> LmdbRecord | None:
        """The first record of so many that can be read; the others are reported in their turn."""
        for key in keys[:HOPELESS_ROWS]:
            try:
                return read_record(self.value(key), key, self.where(key), width)
            except DataError:
                continue
        return None


@contextmanager
def open_records(path: Path, check: bool = True) -> Iterator[Records]:
    """Open an LMDB for reading, after its pages were checked.

    Args:
        path: The folder with `data.mdb`, or the file.
        check: False: they were already.

    Raises:
        DataError: It is not there, no LMDB or damaged; also where that shows on reading.
    """
    file = path / DATA if path.is_dir() else path
    if not file.is_file():
        what = f"no {DATA} in it" if path.is_dir() else "no such file or folder"
        raise DataError(f"{path}: {what}: an LMDB is a folder with {DATA}, or one file")
    if check:
        check_pages(file)
    import lmdb  # late: a machine that only measures may lack it

    try:
        with (
            lmdb.open(
                str(path),
                subdir=path.is_dir(),
                readonly=True,
                lock=False,
                readahead=False,
                meminit=False,
                max_readers=1,
            ) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            yield Records(path, transaction, environment.stat()["entries"])
    except (lmdb.Error, OSError) as error:
        raise DataError(f"{path}: cannot be read as an LMDB ({error})") from None


def read_record(data: bytes, key: bytes, where: str, width: int) -> LmdbRecord:
    """Read and check the record of an image.

    Args:
        data: The pickle.
        key: Of the entry: the image id.
        where: Names the entry.
        width: C.

    Raises:
        DataError: It is no pickle of plain data, or a field is missing, of the wrong size, or no
            number; with entry, field and value.
    """
    record = parse_pickle(data, where, MAX_RECORD_INSTRUCTIONS)
    if not isinstance(record, dict):
        raise DataError(f"{where}: is {short(record)}: expected a record with boxes and features")
    image_id = _field(where, record, "image id")
    if isinstance(image_id, bytes):
        image_id = image_id.decode(errors="replace")
    if not isinstance(image_id, str | int | np.integer) or str(image_id).encode() != key:
        name = _name(record, "image id")
        raise DataError(
            f"{where}: field {name!r}: {short(image_id)}: expected the entry's key: records are "
            "mixed up"
        )
    image_w, image_h, count = (_whole(where, record, k) for k in ("width", "height", "count"))
    boxes = _rows(where, record, "boxes", count, 4)
    features = _rows(where, record, "features", count, width)
    classes = None
    if record.get(PROBABILITIES) is not None:
        classes = _rows(where, record, PROBABILITIES, count, None)
    return LmdbRecord(image_w, image_h, boxes, features, classes)


def shown(key: bytes) -> str:
    """The image id that a key says."""
    return key.decode(errors="replace")


def _name(record: dict[Any, Any], field: str) -> str:
    """What a field is called in this record."""
    names = NAMES.get(field, (field,))
    return next((name for name in names if name in record), names[0])


def _field(where: str, record: dict[Any, Any], field: str) -> Any:
    name = _name(record, field)
    if name not in record:
        raise DataError(
            f"{where}: field {name!r} is missing (it has {short(', '.join(map(str, record)))})"
        )
    return record[name]


def _whole(where: str, record: dict[Any, Any], field: str) -> int:
    """A field that counts, from 1; a text of digits, or a number."""
    value = _field(where, record, field)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and value.dtype.kind in "fiu":
        value = value.item()
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10:
        value = int(value)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not 1 <= value <= LONGEST_SIDE or value % 1:
        raise DataError(
            f"{where}: field {_name(record, field)!r}: {short(value)}: expected a whole number, 1 "
            f"to {LONGEST_SIDE:,}"
        )
    return int(value)


def _rows(where: str, record: dict[Any, Any], field: str, count: int, width: int | None) -> Tensor:
    """An array field, or one in base64, as (count, width); None: as wide as it is."""
    value, name = _field(where, record, field), _name(record, field)
    if isinstance(value, str | bytes):
        value = _decoded(where, name, value, count)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        kind = value.dtype if isinstance(value, np.ndarray) else short(value)
        raise DataError(f"{where}: field {name!r} is {kind}: expected numbers, or base64 of them")
    expected = (count, value.shape[-1] if width is None and value.ndim == 2 else width)
    if value.shape != expected or not value.size:
        raise DataError(
            f"{where}: field {name!r} has shape {value.shape}, expected {count} x "
            f"{'classes' if width is None else width}"
        )
    return torch.from_numpy(value if value.dtype.kind == "f" else value.astype(np.float64))


def _decoded(where: str, name: str, text: str | bytes, count: int) -> np.ndarray:
    """The numbers (count, …) of a base64 field."""
    try:
        if isinstance(text, str):
            text = text.encode("ascii")
        data = b64decode(text.translate(None, b"\r\n"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise DataError(
            f"{where}: field {name!r}: not base64 ({short(str(error))}): {text[:20]!r}..."
        ) from None
    if not data or len(data) % (4 * count):
        raise DataError(
            f"{where}: field {name!r} holds {len(data) / 4:g} numbers: not equally many for each "
            f"of {count} boxes"
        )
    return np.frombuffer(data, "<f4").reshape(count, -1).astype(np.float32)


def lmdb_store(path: Path) -> Path:
    """Where the store of an LMDB is made."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}_features")


def is_lmdb(path: Path) -> bool:
    """Whether there is an LMDB: a folder with its file, or the file alone."""
    return path.is_file() or (path / DATA).is_file()


def import_lmdb(
    path: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    detector: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    progress: bool = True,
) -> RegionFeatures:
    """Import an LMDB, record by record, in the order of its list `keys` or else of the keys.

    Class probabilities are kept if the first record that can be read has them; then all must.
    The arguments are as in `common.features.lxmert_tsv.import_tsv`.

    Raises:
        DataError: It is no LMDB, damaged or empty; a record cannot be read, wants to run something,
            or has a wrong field: file, entry, field and value.
    """
    path = Path(path)
    with open_records(path) as records:
        keys = records.keys()[:limit]
        first = records.first(keys, width)
        classes = None if first is None or first.classes is None else first.classes.shape[1]
        settings = {
            "width": width,
            "dtype": dtype,
            "detector": detector or LMDB_DETECTOR,
            "box_policy": "as in the LMDB",
            "optional": [] if classes is None else [CLASSES],
            "classes": classes,
            "source": path.name if limit is None else f"{path.name}, first {limit}",
        }

        def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
            earlier = Earlier(writer, path)
            for number, key in enumerate(tqdm(keys, desc=path.name, disable=not progress), 1):
                image_id = shown(key)
                try:
                    data = records.value(key)
                    stamp = zlib.crc32(data)
                    if not earlier.has(image_id, stamp):
                        where = records.where(key)
                        record = read_record(data, key, where, width)
                        earlier.append(_prepared(writer, image_id, record, where, classes, stamp))
                except DataError as error:
                    bad.add(number, image_id, _without(path, error), len(writer))
            earlier.check_all_there()
            return {"limit": limit}

        return import_records(Path(out), settings, BadRows(path, skip_bad, "record"), copy)


def _without(path: Path, error: DataError) -> DataError:
    """An error that does not name the file, which the report names anyway."""
    return DataError(str(error).removeprefix(f"{path}: "))


def _prepared(
    writer: RegionFeatureWriter,
    image_id: str,
    record: LmdbRecord,
    where: str,
    classes: int | None,
    stamp: int,
) -> Record:
    """A record for the writer to append."""
    found = None if record.classes is None else record.classes.shape[1]
    if found != classes:
        raise DataError(
            f"{where}: field {PROBABILITIES!r}: {found or 'no'} class probabilities per box, the "
            f"first record has {classes or 'none'}: all must be alike"
        )
    extra = {} if record.classes is None else {CLASSES: record.classes}
    with named(where, DataError):
        check_boxes(image_id, "field 'boxes'", record.boxes, record.width, record.height)
        return writer.prepare(
            image_id,
            record.width,
            record.height,
            record.boxes,
            record.features,
            stamp=stamp,
            **extra,
        )
