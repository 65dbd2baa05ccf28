"""Captions of images (Flickr30k and COCO), and images that are easily taken for each other.

`all_data_final_train_2014.jsonline` has one image a line with its captions; `hard_negative.pkl` has
for every training image the hundred that look most like it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypedDict

from common.errors import DataError
from common.files import write_bytes
from common.pickles import read_pickle
from common.reading import read_json_lines, short

SOURCE = "the jsonline files of the original's data"
POOL, LISTED = "train_hard_pool", "train_image_list"
NEIGHBOURS = 100  # of an image, itself included
BLOCK = 1024  # images that are compared at a time


class CaptionLine(TypedDict):
    """An image with its captions."""

    img_path: str
    sentences: list[str]
    id: NotRequired[int]


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what is said of it."""

    image_id: str
    captions: tuple[str, ...]


def read_captions(path: Path, by_id: bool = False) -> list[CaptionedImage]:
    """The images of a file in its order.

    Args:
        path: JSON lines.
        by_id: images are known by the field `id` (COCO), else by the number that their file is
            called by (Flickr30k).

    Raises:
        DataError: the file is missing, a line is cut off, an image has no number or is there twice,
            or a caption is empty; with file, line and value.
    """
    found: dict[str, CaptionedImage] = {}
    for number, line in read_json_lines(path, CaptionLine, SOURCE):
        where = f"{path}: line {number}"
        image_id = _image_id(where, line, by_id)
        if image_id in found:
            raise DataError(f"{where}: image {image_id} was in an earlier line")
        if not line["sentences"] or not all(text.strip() for text in line["sentences"]):
            raise DataError(f"{where}: image {image_id}: it has no caption, or an empty one")
        found[image_id] = CaptionedImage(image_id, tuple(line["sentences"]))
    return list(found.values())


def _image_id(where: str, line: CaptionLine, by_id: bool) -> str:
    if by_id:
        if "id" not in line:
            raise DataError(f"{where}: field 'id' is missing")
        return str(line["id"])
    stem = Path(line["img_path"]).stem
    if not (stem.isascii() and stem.isdecimal()):
        raise DataError(
            f"{where}: field 'img_path' is {short(line['img_path'])}, expected a number with .jpg"
        )
    return str(int(stem))


@dataclass(frozen=True)
class HardNegatives:
    """For every image those that look like it, the most alike first.

    Attributes:
        images: ids.
        pool: (N, K) places in `images`; the first of a row is the image itself.
    """

    images: tuple[str, ...]
    pool: NDArray[np.int64]

    def of(self) -> dict[str, tuple[str, ...]]:
        """The others by image."""
        rows = zip(self.images, self.pool.tolist(), strict=True)
        return {image: tuple(self.images[n] for n in row[1:]) for image, row in rows}

    def write(self, path: Path) -> None:
        """Write it as the original has it."""
        import pickle  # writing runs nothing

        content = {POOL: self.pool, LISTED: list(self.images)}
        write_bytes(path, pickle.dumps(content, 4))


def read_hard_negatives(path: Path, needed: Iterable[str] = ()) -> HardNegatives:
    """Read `hard_negative.pkl`.

    Args:
        path: the file.
        needed: images that must be in it.

    Raises:
        DataError: it is missing, wants to run something, is empty, has places outside its list of
            images, or lacks an image; with file and value.
    """
    found = read_pickle(path)
    if not isinstance(found, dict) or not {POOL, LISTED} <= found.keys():
        raise DataError(f"{path}: {short(found)}: expected {POOL} and {LISTED}")
    listed, pool = found[LISTED], found[POOL]
    if not isinstance(pool, np.ndarray):
        raise DataError(f"{path}: {POOL} is {short(pool)}: expected an array")
    if not isinstance(listed, list) or not all(type(name) in (int, str) for name in listed):
        raise DataError(f"{path}: {LISTED} is {short(listed)}: expected a list of image ids")
    images = [str(name) for name in listed]
    if not images or pool.ndim != 2 or pool.shape[1] < 2:
        raise DataError(
            f"{path}: {POOL} has shape {pool.shape} for {len(images)} images: every image needs "
            "itself and a neighbour"
        )
    if pool.dtype.kind not in "iu" or len(pool) != len(images):
        raise DataError(
            f"{path}: {POOL} is {pool.shape} of {pool.dtype} for {len(images)} images: expected "
            "whole numbers, a row for each image"
        )
    wrong = pool[(pool < 0) | (pool >= len(images))]
    if len(wrong):
        raise DataError(f"{path}: {POOL} names place {wrong[0]}: there are {len(images)} images")
    if missing := sorted(set(needed) - set(images)):
        raise DataError(f"{path}: image {missing[0]} is not in it, and {len(missing) - 1} others")
    return HardNegatives(tuple(images), pool.astype(np.int64))


def find_hard_negatives(
    images: Sequence[str], features: Tensor, neighbours: int = NEIGHBOURS
) -> HardNegatives:
    """The images whose mean features are nearest, each image itself first.

    Args:
        images: N ids.
        features: (N, C), mean features of the regions of each.
        neighbours: K, at most N.

    Raises:
        DataError: fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} images: a hard negative is another image")
    count = min(neighbours, len(images))
    rows = []
    for start in range(0, len(images), BLOCK):
        apart = torch.cdist(features[start : start + BLOCK].float(), features.float())
        own = torch.arange(start, start + len(apart))
        apart[torch.arange(len(apart)), own] = -1.0
        rows.append(apart.topk(count, largest=False).indices)
    return HardNegatives(tuple(images), torch.cat(rows).numpy())
