"""Write a region-feature store image by image (the format is described in `common.features.store`).

The store grows in a folder `NAME.partial` and gets its name when it is complete. A journal line
is written after the rows of an image, so a writer that was killed can be opened again: it knows
which images it has, and cuts off a record that was written by half.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError
from common.features.store import (
    CLASSES,
    FORMAT,
    IMAGES,
    OPTIONAL,
    VERSION,
    RegionFeatures,
    record_checksum,
)
from common.files import sha256, write_json
from common.reading import parse_json, read_json, short

HEADER = 128
LINE_OF_EARLIER = 4  # values in a line of the journal of earlier versions, which has no checksum
LONGEST_SIDE = 10_000_000  # pixels of an image
LARGEST_ID = 2**31 - 1
SHARE_TOLERANCE = 1e-3  # of float16 and of softmax in it, above 1
SHARES = ("object_conf", "attribute_conf", CLASSES)
DTYPES = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
Rows = Tensor | np.ndarray


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """A .npy version 1.0 header of a fixed length, so that the row count can be filled in later."""
    text = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    start = np.lib.format.magic(1, 0) + (HEADER - 10).to_bytes(2, "little")
    return start + f"{text}".encode().ljust(HEADER - 11) + b"\n"


@dataclass(frozen=True)
class Entry:
    """An image in the journal: regions, size in pixels, checksum of its rows, and a stamp of what
    it was read from. Journals of earlier versions lack the last two."""

    count: int
    width: int
    height: int
    checksum: int | None = None
    stamp: int | None = None


@dataclass(frozen=True)
class Record:
    """The regions of one image, checked and in the types of the store; see `prepare`."""

    image_id: str
    entry: Entry
    rows: dict[str, Tensor]


class _RowFile:
    """One growing .npy file whose rows are appended."""

    def __init__(self, path: Path, dtype: str, tail: tuple[int, ...]) -> None:
        self.dtype, self.tail = dtype, tail
        self.row_bytes = int(np.prod(tail, dtype=int)) * np.dtype(dtype).itemsize
        self.file: BinaryIO = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        if self.file.seek(0, os.SEEK_END) < HEADER:
            self.finish(0)

    def rows(self) -> int:
        """Complete rows in the file."""
        return (self.file.seek(0, os.SEEK_END) - HEADER) // self.row_bytes

    def cut(self, rows: int) -> None:
        """Keep the first rows, and append behind them."""
        self.file.truncate(HEADER + rows * self.row_bytes)
        self.file.seek(0, os.SEEK_END)

    def append(self, values: Tensor) -> None:
        self.file.write(values.contiguous().numpy().data)
        self.file.flush()

    def finish(self, rows: int) -> None:
        """Write the header for so many rows, to the disk."""
        self.file.seek(0)
        self.file.write(_npy_header(self.dtype, (rows, *self.tail)))
        self.file.flush()
        os.fsync(self.file.fileno())


class RegionFeatureWriter:
    """Streaming writer of a store; use it in a `with` block and call `finish` at its end."""

    def __init__(
        self,
        path: Path | str,
        width: int,
        dtype: str = "float16",
        detector: str = "unknown",
        box_policy: str = "unknown",
        optional: Sequence[str] = (),
        source: str = "",
        overwrite: bool = False,
        classes: int | None = None,
        image_features: bool = False,
    ) -> None:
        """Start a store, or go on with the part that a killed writer left.

        Args:
            path: Folder of the finished store.
            width: C, numbers per feature vector.
            dtype: float16 or float32, of the features.
            detector: What made boxes and features; kept in meta.json.
            box_policy: How many boxes per image and how they were chosen; kept in meta.json.
            optional: Those of `features.OPTIONAL` that every image will have.
            source: Where the regions come from; kept in meta.json.
            overwrite: Replace a finished store; otherwise one that is there is an error.
            classes: K, for the optional array class_probabilities.
            image_features: Every image also has a feature of the image as a whole.

        Raises:
            DataError: A finished store is there, or a partial one with other settings.
        """
        if dtype not in ("float16", "float32") or set(optional) - set(OPTIONAL):
            raise DataError(
                f"{path}: dtype {dtype!r} must be float16 or float32, optional arrays "
                f"{sorted(optional)} must be among {sorted(OPTIONAL)}"
            )
        if (CLASSES in optional) != (classes is not None):
            raise DataError(f"{path}: {classes} classes: belongs to the optional array {CLASSES}")
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise DataError(f"{self.path}: is there already: delete it to make it anew")
        self.partial = self.path.with_name(self.path.name + ".partial")
        self.width, self.dtype, self.optional = width, dtype, sorted(optional)
        self._spec = {
            "width": width,
            "dtype": dtype,
            "detector": detector,
            "box_policy": box_policy,
            "optional": self.optional,
            "source": source,
        }
        self._spec |= {} if classes is None else {"classes": classes}
        self._spec |= {IMAGES: True} if image_features else {}
        self._ids: dict[str, Entry] = {}
        self.partial.mkdir(parents=True, exist_ok=True)
        check_spec(self.partial, self._spec)
        kinds: dict[str, tuple[str, tuple[int, ...]]] = {
            "features": (dtype, (width,)),
            "boxes": ("float32", (4,)),
        }
        kinds |= {name: (OPTIONAL[name], ()) for name in self.optional}
        if classes is not None:
            kinds[CLASSES] = (OPTIONAL[CLASSES], (classes,))
        self._files = {n: _RowFile(self.partial / f"{n}.npy", *k) for n, k in kinds.items()}
        # One row per image, not per region.
        self._image_file = (
            _RowFile(self.partial / f"{IMAGES}.npy", dtype, (width,)) if image_features else None
        )
        self._journal = open(self.partial / "journal.jsonl", "a+b")  # noqa: SIM115
        self._recover()

    def _recover(self) -> None:
        """Find the images whose records are complete, and cut off what is behind them."""
        complete = min(file.rows() for file in self._files.values())
        images = None if self._image_file is None else self._image_file.rows()
        self._journal.seek(0)
        kept = rows = 0
        for line in self._journal.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            image_id, entry = _read_entry(line, str(self.partial / "journal.jsonl"))
            if not 0 < entry.width <= LONGEST_SIDE or not 0 < entry.height <= LONGEST_SIDE:
                break  # an earlier version took it, but no store can have it
            if rows + entry.count > complete or len(self._ids) == images:
                break
            self._ids[image_id] = entry
            rows += entry.count
            kept += len(line)
        self._journal.truncate(kept)
        for file in self._files.values():
            file.cut(rows)
        if self._image_file is not None:
            self._image_file.cut(len(self._ids))

    def __len__(self) -> int:
        """Number of images written so far."""
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._ids

    def ids(self) -> list[str]:
        """Ids of the images written so far, in order."""
        return list(self._ids)

    def stamp(self, image_id: str) -> int | None:
        """What `add` was given for an image; None where an earlier version wrote it."""
        return self._ids[image_id].stamp

    def __enter__(self) -> RegionFeatureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; without `finish` the part written so far stays, to go on with."""
        for file in self._row_files().values():
            file.file.close()
        self._journal.close()

    def _row_files(self) -> dict[str, _RowFile]:
        """Every array by name."""
        return self._files | ({} if self._image_file is None else {IMAGES: self._image_file})

    def add(
        self,
        image_id: str,
        width: int,
        height: int,
        boxes: Rows,
        features: Rows,
        image_feature: Rows | None = None,
        stamp: int | None = None,
        **optional: Rows,
    ) -> None:
        """Append the regions of one image; arguments and errors as `prepare`."""
        self.append(
            self.prepare(image_id, width, height, boxes, features, image_feature, stamp, **optional)
        )

    def prepare(
        self,
        image_id: str,
        width: int,
        height: int,
        boxes: Rows,
        features: Rows,
        image_feature: Rows | None = None,
        stamp: int | None = None,
        **optional: Rows,
    ) -> Record:
        """Check the regions of one image, strongest first, for `append`.

        Args:
            image_id: Key of the image.
            width: Of the image, pixels.
            height: Of the image, pixels.
            boxes: (R, 4) x1, y1, x2, y2 in pixels.
            features: (R, C).
            image_feature: (C,), of the image as a whole, where the constructor was told so.
            stamp: of what they were read from, for `stamp`.
            **optional: (R,) each, class_probabilities (R, K); exactly those named in the
                constructor.

        Raises:
            DataError: The image is there already, its id cannot be stored, its size is none, or an
                array has another shape than stated or holds values that are not finite (in the
                store's dtype), or ids or shares outside their range.
        """
        if image_id in self._ids:
            raise DataError(f"image {image_id!r} is there already: image ids must be unique")
        if not image_id or not image_id.isprintable():
            raise DataError(f"image {short(image_id)}: an id has to be a text of printable signs")
        if not (0 < width <= LONGEST_SIDE and 0 < height <= LONGEST_SIDE):
            raise DataError(
                f"image {image_id!r}: size {width} x {height}: expected 1 to {LONGEST_SIDE:,} "
                "pixels a side"
            )
        if sorted(optional) != self.optional:
            raise DataError(
                f"image {image_id!r}: optional arrays {sorted(optional)}, the store has "
                f"{self.optional}"
            )
        if (image_feature is None) != (self._image_file is None):
            raise DataError(
                f"image {image_id!r}: feature of the whole image: all images have one, or none"
            )
        given = {"features": features, "boxes": boxes} | optional
        if tuple(boxes.shape[1:]) != (4,):
            raise DataError(
                f"image {image_id!r}: array 'boxes' has shape {tuple(boxes.shape)}, expected one "
                "row of 4 numbers per region"
            )
        count = len(boxes)
        ready = {name: self._cast(image_id, name, rows, count) for name, rows in given.items()}
        if image_feature is not None:
            row = torch.as_tensor(image_feature)[None]
            ready[IMAGES] = self._cast(image_id, IMAGES, row, 1)
        ready = {name: ready[name].contiguous() for name in self._row_files()}
        checksum = record_checksum(ready.values())
        return Record(image_id, Entry(count, int(width), int(height), checksum, stamp), ready)

    def append(self, record: Record) -> None:
        """Append what `prepare` made."""
        files = self._row_files()
        for name, rows in record.rows.items():
            files[name].append(rows)
        entry = record.entry
        values = [record.image_id, *astuple(entry)]
        self._journal.write(json.dumps([*values, line_checksum(values)]).encode() + b"\n")
        self._journal.flush()
        self._ids[record.image_id] = entry

    def _cast(self, image_id: str, name: str, rows: Rows, count: int) -> Tensor:
        """Rows in the dtype of their file, checked."""
        file = self._row_files()[name]
        given = values = _as_numbers(image_id, name, rows)
        expected = (count, *file.tail)
        if count < 1 or values.shape != expected:
            raise DataError(
                f"image {image_id!r}: array {name!r} has shape {tuple(values.shape)}, expected "
                f"{expected} with one region at least"
            )
        if file.dtype.startswith("int"):
            _check_range(image_id, name, values, 0, LARGEST_ID)
            if bool((values.floor() if values.is_floating_point() else values).ne(values).any()):
                raise DataError(f"image {image_id!r}: array {name!r}: ids have to be whole numbers")
        values = values.to(DTYPES[file.dtype])
        if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
            bad = given[~torch.isfinite(values)][0].item()
            raise DataError(
                f"image {image_id!r}: array {name!r} holds {bad:g}, which is not a finite number "
                f"in {file.dtype}"
            )
        if name in SHARES:
            _check_range(image_id, name, values, 0, 1 + SHARE_TOLERANCE)
        return values

    def finish(self, **extra: Any) -> RegionFeatures:
        """Write index, checksums and meta.json, give the folder its name, and open it.

        Args:
            **extra: Further JSON values for meta.json.

        Raises:
            DataError: No image was written.
        """
        if not self._ids:
            raise DataError(f"{self.partial}: no image was written: nothing to finish")
        entries = list(self._ids.values())
        counts = np.array([entry.count for entry in entries], dtype=np.int64)
        checksums = [entry.checksum for entry in entries if entry.checksum is not None]
        known: dict[str, Any] = (
            {"crc": np.array(checksums, np.uint32)} if len(checksums) == len(entries) else {}
        )
        for name, rows in self._row_files().items():
            rows.finish(len(self) if name == IMAGES else int(counts.sum()))
        self.close()
        with open(self.partial / "index.npz", "wb") as file:
            np.savez(
                file,
                ids=np.array([i.encode() for i in self._ids], dtype=np.bytes_),
                first=np.cumsum(counts) - counts,
                count=counts,
                sizes=np.array([(e.width, e.height) for e in entries], dtype=np.int32),
                **known,
            )
            os.fsync(file.fileno())
        meta = {
            "format": FORMAT,
            "version": VERSION,
            **self._spec,
            "images": len(self),
            "regions": int(counts.sum()),
            "regions_per_image": [int(counts.min()), int(counts.max())],
            **extra,
            "checksums": self._checksums(),
        }
        write_json(self.partial / "meta.json", meta, indent=1)
        replace_folder(self.partial, self.path)
        for name in ("journal.jsonl", "writer.json"):
            (self.path / name).unlink(missing_ok=True)
        return RegionFeatures.open(self.path)

    def _checksums(self) -> dict[str, str]:
        paths = [self.partial / f"{name}.npy" for name in self._row_files()]
        paths.append(self.partial / "index.npz")
        total = sum(path.stat().st_size for path in paths)
        with tqdm(total=total, unit="B", unit_scale=True, desc="checksums", delay=2) as bar:
            return {path.name: sha256(path, bar) for path in paths}


def check_spec(partial: Path, spec: dict[str, Any]) -> None:
    """Keep the settings of a writer in its unfinished folder, or compare them with those there.

    Raises:
        DataError: the folder was begun with others.
    """
    path = partial / "writer.json"
    if not path.exists():
        write_json(path, spec)
    elif (found := read_json(path, schema=dict[str, Any])) != spec:
        keys = [*spec, *(k for k in found if k not in spec)]
        key = next(k for k in keys if found.get(k) != spec.get(k))
        raise DataError(
            f"{partial}: was started with {key} = {short(found.get(key))}, now "
            f"{spec.get(key)!r} is asked for: use the same, or delete the folder"
        )


def _read_entry(line: bytes, where: str) -> tuple[str, Entry]:
    """A line of the journal, also of an earlier version."""
    values = parse_json(line, where)
    if isinstance(values, list) and len(values) > LINE_OF_EARLIER:
        *values, checksum = values
        if checksum != line_checksum(values):
            values = None
    numbers = values[1:] if isinstance(values, list) else []
    plain = all(isinstance(v, int) and not isinstance(v, bool) for v in numbers[:3])
    rest = all(v is None or (isinstance(v, int) and v >= 0) for v in numbers[3:])
    if len(numbers) not in (3, 5) or not (plain and rest and isinstance(values[0], str)):
        raise DataError(
            f"{where}: {short(values)} is no entry of it: it is damaged; delete its folder to "
            "start again"
        )
    return values[0], Entry(*numbers)


def line_checksum(values: list[Any]) -> int:
    """Of the values in a line of a journal."""
    return zlib.crc32(json.dumps(values).encode())


def _as_numbers(image_id: str, name: str, rows: Rows) -> Tensor:
    """Rows as a tensor; text, complex numbers, objects and truth values are no rows."""
    if isinstance(rows, np.ndarray):
        if rows.dtype.kind not in "fiu":
            raise DataError(f"image {image_id!r}: array {name!r} is of {rows.dtype}, not numbers")
        if rows.dtype.kind == "f" and rows.dtype.itemsize > 8:
            rows = rows.astype(np.float64)
        if rows.dtype.kind == "u" and rows.dtype.itemsize > 1:
            if rows.size and rows.max() > np.iinfo(np.int64).max:
                raise DataError(f"image {image_id!r}: array {name!r}: {rows.max()} is too large")
            rows = rows.astype(np.int64)
        rows = np.asarray(rows, dtype=rows.dtype.newbyteorder("="), order="C")
    values = torch.as_tensor(rows)
    if values.is_complex() or values.dtype == torch.bool:
        raise DataError(f"image {image_id!r}: array {name!r} is of {values.dtype}, not numbers")
    return values


def _check_range(image_id: str, name: str, values: Tensor, low: float, high: float) -> None:
    wrong = (values < low) | (values > high)
    if bool(wrong.any()):
        raise DataError(
            f"image {image_id!r}: array {name!r} holds {values[wrong][0].item():g}, expected "
            f"{low:g} to {high:g}"
        )


def replace_folder(new: Path, target: Path) -> None:
    """Give folder `new` the name `target`; what had the name is deleted after the change."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
