"""Region features as a folder of NPZ files, one per image, as bottom-up-attention extractors write.

Shape legend: R regions, C channels.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import DataError
from common.features.importing import BadRows, import_records
from common.features.lxmert_tsv import check_boxes
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter

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
    detector: str = NPZ_DETECTOR,
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
        "detector": detector,
        "box_policy": "as in the NPZ files",
        "source": f"{folder.name}/*.npz",
    }

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        for number, path in enumerate(tqdm(paths, desc=folder.name, disable=not progress), 1):
            try:
                if path.stem not in writer:
                    _add_npz(writer, path)
            except DataError as error:
                bad.add(number, path.stem, error, len(writer))
        return {}

    return import_records(Path(out), settings, BadRows(folder, skip_bad, "file"), copy)


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
        boxes = torch.as_tensor(found["boxes"])
        check_boxes(path.stem, "array 'boxes'", boxes, *size)
        writer.add(path.stem, *size, boxes, found["features"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def npz_store(folder: Path) -> Path:
    """Where the store of a folder of NPZ files is made."""
    return folder.with_name(f"{folder.name}_features")
