"""Rows of LXMERT's feature TSV, one at a time.

The format (https://github.com/airsplay/lxmert): no header, ten tab-separated columns. img_h, img_w
and num_boxes (n) are decimal numbers; the last six others are base64 of little-endian buffers: ids
int64 (n,), confidences float32 (n,), boxes float32 (n, 4) x1 y1 x2 y2 in pixels, features float32
(n, C).
"""

import binascii
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError
from common.features.importing import BadRows, Earlier, detector_of, import_records
from common.features.store import BOX_TOLERANCE, RegionFeatures
from common.features.writer import Record, RegionFeatureWriter
from common.reading import short

try:
    from pybase64 import b64decode, b64encode  # optional: makes an import twice as fast
except ImportError:
    from base64 import b64decode, b64encode

COLUMNS = (
    "img_id",
    "img_h",
    "img_w",
    "objects_id",
    "objects_conf",
    "attrs_id",
    "attrs_conf",
    "num_boxes",
    "boxes",
    "features",
)
# column of the TSV -> array of the store, dtype in the TSV
OPTIONAL_COLUMNS = {
    "objects_id": ("object_ids", torch.int64),
    "objects_conf": ("object_conf", torch.float32),
    "attrs_id": ("attribute_ids", torch.int64),
    "attrs_conf": ("attribute_conf", torch.float32),
}
# A row of 36 boxes has 0.4 MB. Without a limit a file without line ends would fill the memory.
BOM = b"\xef\xbb\xbf"
MAX_ROW_BYTES = 1 << 26


def read_rows(path: Path, limit: int | None, progress: bool) -> Iterator[tuple[int, bytes]]:
    """Row numbers from 1 and lines without their end, with a progress bar over the bytes.

    Of a line longer than `MAX_ROW_BYTES` only so much is given; `add_row` refuses it.
    """
    with (
        open(path, "rb", buffering=1 << 20) as file,
        tqdm(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=path.name,
            disable=not progress,
        ) as bar,
    ):
        number = 0
        while (limit is None or number < limit) and (line := file.readline(MAX_ROW_BYTES)):
            number += 1
            bar.update(len(line))
            rest = line
            while len(rest) == MAX_ROW_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_ROW_BYTES)
                bar.update(len(rest))
            line = line.rstrip(b"\r\n").removeprefix(BOM if number == 1 else b"")
            if line or file.tell() < path.stat().st_size:  # an empty last line is no row
                yield number, line


def row_image(line: bytes) -> str:
    """Image id of a row, shortened where it is none."""
    return line[:200].split(b"\t", 1)[0].decode(errors="replace")


def read_row(writer: RegionFeatureWriter, line: bytes) -> Record:
    """Check a row, for the writer to append.

    Raises:
        DataError: With image id, column and value or shape.
    """
    image_id = row_image(line)
    if len(line) >= MAX_ROW_BYTES:
        raise DataError(f"image {image_id!r}: the row is longer than {MAX_ROW_BYTES >> 20} MiB")
    if "\ufffd" in image_id and b"\xef\xbf\xbd" not in line[:200]:
        raise DataError(f"image {short(line[:60])}: column 'img_id': not UTF-8 text")
    cells = line.split(b"\t")
    if len(cells) != len(COLUMNS) or not image_id:
        raise DataError(
            f"image {image_id!r}: {len(cells)} columns, expected {len(COLUMNS)} "
            f"({', '.join(COLUMNS)}), none of them empty"
        )
    row = dict(zip(COLUMNS, cells, strict=False))
    count, width, height = (_integer(image_id, row, k) for k in ("num_boxes", "img_w", "img_h"))
    boxes = _decode(image_id, row, "boxes", torch.float32, count, 4)
    check_boxes(image_id, "column 'boxes'", boxes, width, height)
    optional = {
        name: _decode(image_id, row, column, dtype, count)
        for column, (name, dtype) in OPTIONAL_COLUMNS.items()
    }
    features = _decode(image_id, row, "features", torch.float32, count, writer.width)
    return writer.prepare(
        image_id, width, height, boxes, features, stamp=zlib.crc32(line), **optional
    )


def encode_row(
    image_id: str, width: int, height: int, boxes: Tensor, features: Tensor, **ids: Tensor
) -> bytes:
    """A row as `read_row` reads it, with its line end; `ids`: those of `OPTIONAL_COLUMNS`."""
    columns = {"boxes": (boxes, torch.float32), "features": (features, torch.float32)}
    columns |= {c: (ids[name], dtype) for c, (name, dtype) in OPTIONAL_COLUMNS.items()}
    row = {"img_id": image_id, "img_h": height, "img_w": width, "num_boxes": len(boxes)}
    cells = {name: f"{value}".encode() for name, value in row.items()}
    cells |= {name: encode_base64(x, dtype) for name, (x, dtype) in columns.items()}
    return b"\t".join(cells[column] for column in COLUMNS) + b"\n"


def encode_base64(values: Tensor, dtype: torch.dtype = torch.float32) -> bytes:
    """Base64 of the little-endian buffer of a tensor."""
    array = values.to(dtype).contiguous().numpy()
    return b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def check_boxes(image_id: str, name: str, boxes: Tensor, width: int, height: int) -> None:
    """Refuse boxes (R, 4), in pixels, that leave their image by more than rounding, that have no
    area, and boxes that are given as shares of the image.

    Raises:
        DataError: With image id, the `name` of the array and the box. Other shapes are let
            through: the writer refuses them.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        return
    if min(width, height) > 2 and bool((boxes.abs() <= 1).all()):
        raise DataError(
            f"image {image_id!r}: {name}: all of them lie within one pixel ({boxes[0].tolist()}): "
            "they are shares (0..1) of the image; multiply them by its width and height"
        )
    limits = torch.tensor([width, height, width, height]) * (1 + BOX_TOLERANCE)
    outside = (boxes < -BOX_TOLERANCE * limits) | (boxes > limits)
    if bool(outside.any()):
        box = boxes[outside.any(1)][0].tolist()
        raise DataError(
            f"image {image_id!r}: {name}: {box} lies outside the image of {width} x {height} pixels"
        )
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bool(flat.any()):
        raise DataError(
            f"image {image_id!r}: {name}: {boxes[flat][0].tolist()} has no area: expected x1, y1, "
            "x2, y2 with x1 < x2 and y1 < y2 (not x, y, width, height)"
        )


def _integer(image_id: str, row: dict[str, bytes], column: str) -> int:
    text = row[column].decode(errors="replace")
    if not (text.isascii() and text.isdecimal() and len(text) <= 10) or int(text) < 1:
        raise DataError(f"image {image_id!r}: column {column!r}: {text[:40]!r} is not a count")
    return int(text)


def _decode(
    image_id: str, row: dict[str, bytes], column: str, dtype: torch.dtype, *shape: int
) -> Tensor:
    """One base64 column as a tensor of the given shape."""
    try:
        data = b64decode(row[column], validate=True)
    except binascii.Error as error:
        raise DataError(
            f"image {image_id!r}: column {column!r}: not base64 ({error}): "
            f"{row[column][:20].decode(errors='replace')!r}..."
        ) from None
    if len(data) != int(np.prod(shape)) * dtype.itemsize:
        numbers = len(data) / dtype.itemsize
        raise DataError(
            f"image {image_id!r}: column {column!r} holds {numbers:g} numbers, expected "
            f"{' x '.join(map(str, shape))} ({numbers / shape[0]:g} per box)"
        )
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


TSV_DETECTOR = "Faster R-CNN bottom-up attention (LXMERT TSV)"


def import_tsv(
    path: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    skip_bad: bool = False,
    limit: int | None = None,
    detector: str | None = None,
    progress: bool = True,
) -> RegionFeatures:
    """Import an LXMERT TSV, line by line.

    Args:
        path: The TSV.
        out: Folder of the store.
        width: C, numbers per feature vector in the TSV.
        dtype: float16 (half the size; rounding 2^-11) or float32, in the store.
        skip_bad: Leave out rows that cannot be read, and report them; otherwise an error.
        limit: Read only the first so many rows.
        detector: What made the features; by default what extracted them here, if that did, else
            the original's. A checkpoint takes features of its own detector only, so features of the
            same detector are imported under the same name.
        progress: Show a bar.

    Raises:
        DataError: A row cannot be read: file, row number, image id, column and value or shape;
            or the disk is full.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    settings = {
        "width": width,
        "dtype": dtype,
        "detector": detector_of(path, detector, TSV_DETECTOR),
        "box_policy": "as in the TSV, by descending object confidence",
        "optional": [name for name, _ in OPTIONAL_COLUMNS.values()],
        "source": path.name if limit is None else f"{path.name}, first {limit} rows",
    }

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        rows = _copy_rows(writer, bad, limit, progress)
        return {"rows": rows, "limit": limit}

    return import_records(Path(out), settings, BadRows(path, skip_bad, "row"), copy)


def _copy_rows(writer: RegionFeatureWriter, bad: BadRows, limit: int | None, progress: bool) -> int:
    """Append the rows of the TSV that are not in the store yet; returns how many rows it has."""
    earlier, seen, number = Earlier(writer, bad.source), set(), 0
    for number, line in read_rows(bad.source, limit, progress):
        image_id = row_image(line)
        try:
            if image_id in seen:
                raise DataError(f"image {image_id!r}: column 'img_id': an earlier row has it too")
            seen.add(image_id)
            if not earlier.has(image_id, zlib.crc32(line)):
                earlier.append(read_row(writer, line))
        except DataError as error:
            bad.add(number, image_id, error, len(writer))
    earlier.check_all_there()
    return number
