"""Region features as a folder of NPZ files, one per image, as bottom-up-attention extractors write.

Shape legend: R regions, C channels.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError, named
from common.features.archives import Folder
from common.features.importing import BadRows, Earlier, detector_of, import_records
from common.features.lxmert_tsv import check_boxes
from common.features.store import RegionFeatures
from common.features.writer import Record, RegionFeatureWriter
from common.reading import read_npz, short

# array -> its names in a file; width and height are of the image, in pixels
NPZ_KEYS = {
    "features": ("features", "x"),
    "boxes": ("boxes", "bbox"),
    "width": ("width", "image_w"),
    "height": ("height", "image_h"),
}


NPZ_DETECTOR = "as in the NPZ files"


def import_npz(
    folder: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    detector: str | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> RegionFeatures:
    """Import a folder with one `<image id>.npz` per image, in the order of their names.

    Each file has features (`features` or `x`, (R, C)), boxes in pixels (`boxes` or `bbox`,
    (R, 4)), and the size of the image (`width`, `height` or `image_w`, `image_h`). Nothing
    pickled is read. The other arguments are as in `import_tsv`.

    Raises:
        DataError: A file cannot be read or lacks an array: file, image id, column, shape.
    """
    folder = Path(folder)
    if not (paths := sorted(folder.glob("*.npz"))):
        raise DataError(f"{folder}: no .npz files in it")
    settings = {
        "width": width,
        "dtype": dtype,
        "detector": detector_of(folder, detector, NPZ_DETECTOR),
        "box_policy": "as in the NPZ files",
        "source": f"{folder.name}/*.npz",
    }

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        earlier, files = Earlier(writer, folder), Folder(folder)
        for number, path in enumerate(tqdm(paths, desc=folder.name, disable=not progress), 1):
            try:
                stamp = files.stamp(path.name)
                if not earlier.has(path.stem, stamp):
                    earlier.append(_read_regions(writer, path, stamp))
            except DataError as error:
                bad.add(number, path.stem, error, len(writer))
        earlier.check_all_there()
        return {}

    return import_records(Path(out), settings, BadRows(folder, skip_bad, "file"), copy)


def _read_regions(writer: RegionFeatureWriter, path: Path, stamp: int) -> Record:
    names = [name for keys in NPZ_KEYS.values() for name in keys]
    arrays = read_npz(path, str(path), names)
    found = {}
    for name, keys in NPZ_KEYS.items():
        there = [key for key in keys if key in arrays]
        if not there:
            wanted = "; ".join(" or ".join(keys) for keys in NPZ_KEYS.values())
            raise DataError(f"{path}: an array is missing; needed are {wanted}")
        found[name] = arrays[there[0]]
    width, height = (_side(path, name, found[name]) for name in ("width", "height"))
    with named(path, DataError):
        if found["boxes"].dtype.kind in "fiu":
            boxes = torch.as_tensor(np.asarray(found["boxes"], dtype=np.float64))
            check_boxes(path.stem, "array 'boxes'", boxes, width, height)
        return writer.prepare(
            path.stem, width, height, found["boxes"], found["features"], stamp=stamp
        )


def encode_npz(width: int, height: int, **arrays: Tensor) -> bytes:
    """A file as `import_npz` reads it: boxes, features and whatever else there is."""
    content = io.BytesIO()
    plain: dict[str, Any] = {name: x.numpy() for name, x in arrays.items()}
    np.savez(content, width=np.int64(width), height=np.int64(height), **plain)
    return content.getvalue()


def _side(path: Path, name: str, value: np.ndarray) -> int:
    """A side of the image, in pixels."""
    if value.size == 1 and value.dtype.kind in "fiu":
        number = value.reshape(-1)[0].item()
        if math.isfinite(number) and number == int(number):
            return int(number)
    raise DataError(f"{path}: array {name!r} is {short(value)}: expected a whole number of pixels")


def npz_store(folder: Path) -> Path:
    """Where the store of a folder of NPZ files is made."""
    return folder.with_name(f"{folder.name}_features")
