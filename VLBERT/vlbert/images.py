"""Image files of COCO and of easy-VQA, in folders or ZIP archives."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from common.errors import DataError
from common.features.archives import open_files
from common.features.pictures import decode_picture


def part_of(image_id: str) -> str:
    """`train2014` of COCO_train2014_000000000042."""
    return image_id.split("_")[1] if image_id.count("_") == 2 else ""


def number_of(image_id: str) -> str:
    """`42` of COCO_train2014_000000000042."""
    number = image_id.rsplit("_", 1)[-1]
    return str(int(number)) if number.isdecimal() else number


class ImageFiles:
    """Images by their key, each part of the data in a folder or archive of its own.

    Safe to share between threads, forked and spawned workers; see `common.features.archives`.
    """

    def __init__(self, places: Mapping[str, Path], suffix: str = ".jpg") -> None:
        """Open folders or archives.

        Args:
            places: Part of the data (`train2014`) -> its folder or ZIP archive.
            suffix: End of the names of the files; the rest is the key.

        Raises:
            DataError: One of them is not there.
        """
        self.suffix = suffix
        self.files = {part: open_files(path) for part, path in places.items()}

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no file, in their order."""
        names = {part: set(files.names()) for part, files in self.files.items()}
        return [i for i in image_ids if f"{i}{self.suffix}" not in names.get(part_of(i), ())]

    def read(self, image_id: str) -> Image.Image:
        """An image, in RGB.

        Raises:
            DataError: It is not there, or cannot be decoded.
        """
        files = self.files.get(part_of(image_id))
        if files is None:
            raise DataError(
                f"image {image_id!r}: no image files of part {part_of(image_id)!r} are "
                f"open, only of {', '.join(self.files)}"
            )
        name = f"{image_id}{self.suffix}"
        return decode_picture(io.BytesIO(files.read(name)), files.where(name))
