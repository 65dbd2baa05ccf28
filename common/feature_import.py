"""Import region features of other systems into a store (`common.features`).

    python -m common.feature_import --tsv data/mscoco_imgfeat/train2014_obj36.tsv

LXMERT's TSV (https://github.com/airsplay/lxmert): no header, ten tab-separated columns, the last
six but `num_boxes` base64 of little-endian buffers: ids int64 (n,), confidences float32 (n,),
boxes float32 (n, 4) in pixels, features float32 (n, C). NPZ: one file per image, as the
bottom-up-attention extractors write them. An import that was stopped goes on where it was.
"""

import argparse
import binascii
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import AdaptiveError, DataError
from common.feature_writer import RegionFeatureWriter
from common.features import BOX_TOLERANCE, RegionFeatures
from common.files import exclusive

try:
    from pybase64 import b64decode  # optional: makes an import twice as fast
except ImportError:
    from base64 import b64decode

COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf",
    "num_boxes", "boxes", "features",
)  # fmt: skip
# column of the TSV -> array of the store, dtype in the TSV
OPTIONAL_COLUMNS = {
    "objects_id": ("object_ids", torch.int64),
    "objects_conf": ("object_conf", torch.float32),
    "attrs_id": ("attribute_ids", torch.int64),
    "attrs_conf": ("attribute_conf", torch.float32),
}
NPZ_KEYS = {
    "features": ("features", "x"),
    "boxes": ("boxes", "bbox"),
    "width": ("width", "image_w"),
    "height": ("height", "image_h"),
}
SHOWN_BAD_ROWS = 5


def import_tsv(
    path: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    skip_bad: bool = False,
    limit: int | None = None,
) -> RegionFeatures:
    """Import an LXMERT TSV, line by line.

    Args:
        path: The TSV.
        out: Folder of the store.
        width: C, numbers per feature vector in the TSV.
        dtype: float16 (half the size; rounding 2^-11) or float32, in the store.
        skip_bad: Leave out rows that cannot be read, and say how many; otherwise an error.
        limit: Read only the first so many rows.

    Raises:
        DataError: A row cannot be read: file, row number, image id, column and value or shape.
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with exclusive(out.with_name(f".{out.name}.lock")):
        if out.exists():
            return _opened(out, width)
        writer = RegionFeatureWriter(
            out, width, dtype, detector="Faster R-CNN bottom-up attention (LXMERT TSV)",
            box_policy="as in the TSV, by descending object confidence",
            optional=[name for name, _ in OPTIONAL_COLUMNS.values()],
            source=path.name if limit is None else f"{path.name}, first {limit} rows",
        )  # fmt: skip
        with writer:
            bad = _copy_rows(path, writer, skip_bad, limit)
            store = writer.finish(skipped_rows=len(bad))
    if bad:
        shown = bad[:SHOWN_BAD_ROWS] + (["..."] if len(bad) > SHOWN_BAD_ROWS else [])
        total = len(store) + len(bad)
        print(f"{path}: skipped {len(bad)} bad rows of {total}:", *shown, sep="\n  ")
    return store


def _opened(out: Path, width: int) -> RegionFeatures:
    print(f"{out}: is there already (delete it to import again)")
    return RegionFeatures.open(out, width)


def _copy_rows(
    path: Path, writer: RegionFeatureWriter, skip_bad: bool, limit: int | None
) -> list[str]:
    """Append the rows of the TSV that are not in the store yet; returns what was wrong."""
    done, seen, bad = set(writer.ids()), set(), []
    for number, line in _lines(path, limit):
        image_id = line.split(b"\t", 1)[0].decode(errors="replace")
        try:
            if image_id in seen:
                raise DataError(f"image {image_id!r}: column 'img_id': an earlier row has it too")
            seen.add(image_id)
            if image_id not in done:
                _add_row(writer, line)
        except DataError as error:
            if not skip_bad:
                raise DataError(
                    f"{path}: row {number}: {error}; fetch the file again, or leave such rows "
                    "out with --skip-bad"
                ) from None
            bad.append(f"row {number}: {error}")
    return bad


def _lines(path: Path, limit: int | None) -> Iterator[tuple[int, bytes]]:
    """Row numbers from 1 and lines without their end, with a progress bar over the bytes."""
    with (
        open(path, "rb", buffering=1 << 20) as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name) as bar,
    ):
        for number, line in enumerate(file, 1):
            if limit is not None and number > limit:
                break
            bar.update(len(line))
            yield number, line.rstrip(b"\r\n")


def _add_row(writer: RegionFeatureWriter, line: bytes) -> None:
    cells = line.split(b"\t")
    image_id = cells[0].decode(errors="replace")
    if len(cells) != len(COLUMNS) or not image_id:
        raise DataError(
            f"image {image_id!r}: {len(cells)} columns, expected {len(COLUMNS)} "
            f"({', '.join(COLUMNS)}), none of them empty"
        )
    row = dict(zip(COLUMNS, cells))
    count, width, height = (_integer(image_id, row, k) for k in ("num_boxes", "img_w", "img_h"))
    boxes = _decode(image_id, row, "boxes", torch.float32, count, 4)
    limits = torch.tensor([width, height, width, height]) * (1 + BOX_TOLERANCE)
    outside = (boxes < -BOX_TOLERANCE * limits) | (boxes > limits)
    if bool(outside.any()):
        box = boxes[outside.any(1)][0].tolist()
        raise DataError(
            f"image {image_id!r}: column 'boxes': {box} lies outside the image of "
            f"{width} x {height} pixels"
        )
    optional = {
        name: _decode(image_id, row, column, dtype, count)
        for column, (name, dtype) in OPTIONAL_COLUMNS.items()
    }
    features = _decode(image_id, row, "features", torch.float32, count, writer.width)
    writer.add(image_id, width, height, boxes, features, **optional)


def _integer(image_id: str, row: dict[str, bytes], column: str) -> int:
    text = row[column].decode(errors="replace")
    if not text.isdecimal() or int(text) < 1:
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


def import_npz(
    folder: Path | str, out: Path | str, width: int = 2048, dtype: str = "float16"
) -> RegionFeatures:
    """Import a folder with one `<image id>.npz` per image, in the order of their names.

    Each file has features (`features` or `x`), boxes in pixels (`boxes` or `bbox`), and the size
    of the image (`width`, `height` or `image_w`, `image_h`). Nothing pickled is read.

    Raises:
        DataError: A file cannot be read or lacks an array: file, image id, column, shape.
    """
    folder, out = Path(folder), Path(out)
    if not (paths := sorted(folder.glob("*.npz"))):
        raise DataError(f"{folder}: no .npz files in it")
    with exclusive(out.with_name(f".{out.name}.lock")):
        if out.exists():
            return _opened(out, width)
        writer = RegionFeatureWriter(
            out, width, dtype, detector="as in the NPZ files", box_policy="as in the NPZ files",
            source=f"{folder.name}/*.npz",
        )  # fmt: skip
        with writer:
            for path in tqdm(paths, desc=folder.name):
                if path.stem not in writer:
                    _add_npz(writer, path)
            return writer.finish()


def _add_npz(writer: RegionFeatureWriter, path: Path) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {
                name: file[next(k for k in keys if k in file)] for name, keys in NPZ_KEYS.items()
            }
        size = (int(found["width"]), int(found["height"]))
    except StopIteration:
        wanted = "; ".join(" or ".join(keys) for keys in NPZ_KEYS.values())
        raise DataError(f"{path}: an array is missing; needed are {wanted}") from None
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as NPZ without pickles ({error})") from None
    try:
        writer.add(path.stem, *size, found["boxes"], found["features"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m common.feature_import",
        description="Turn the region features of other systems into a memory-mapped store. "
        "A stopped import goes on where it was.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tsv", type=Path, metavar="FILE", help="an LXMERT *_obj36.tsv")
    source.add_argument("--npz", type=Path, metavar="DIR", help="a folder of <image id>.npz")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the store (default: the name without .tsv)"
    )
    parser.add_argument("--width", type=int, default=2048, help="numbers per feature vector")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out, count them")
    parser.add_argument("--limit", type=int, help="only the first so many rows")
    args = parser.parse_args(argv)
    try:
        if args.tsv:
            out = args.out or args.tsv.with_suffix("")
            store = import_tsv(args.tsv, out, args.width, args.dtype, args.skip_bad, args.limit)
        else:
            out = args.out or args.npz.with_name(args.npz.name + "_features")
            store = import_npz(args.npz, out, args.width, args.dtype)
    except (AdaptiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{store.path}: {len(store)} images, {store.meta['regions']} regions x {store.width}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
