"""Conceptual Captions as VL-BERT has them: one JSON object a line, images and features beside it.

    {"image": "train_image.zip@/00000001.jpg", "frcnn": "train_frcnn.zip@/00000001.json",
     "caption": ["a", "dog", "runs"]}

What is named inside an archive may as well be in a folder: of `train_frcnn.zip@/…` the archive
`train_frcnn.zip` is read, the folder `train_frcnn/`, or the store that was made of one of them.
The archives of the original come in parts (`train_frcnn.0.zip`), whose files may be in one folder.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image
from tqdm import tqdm

from common.errors import DataError
from common.features.archives import Files, open_files
from common.features.pictures import decode_picture
from common.features.sources import FeatureSources
from vlbert.data_features import InFolder, find_features, joined, open_records
from vlbert.pretraining_captions import Caption
from vlbert.pretraining_lines import LineFile

ARCHIVE, PART = ".zip@", re.compile(r"\.\d$")
CHUNK = 4096  # captions whose images are looked up at once


def split_path(text: str) -> tuple[str, str]:
    """Folder or archive (without .zip) of a path, and the name of the file in it.

    `train_image.zip@/7.jpg` and `train_image/7.jpg` both give `train_image` and `7.jpg`.
    """
    folder, archive, name = text.partition(ARCHIVE)
    if archive:
        return folder, name.strip("/")
    path = PurePosixPath(text)
    return str(path.parent), path.name


def names_of(folder: str) -> list[str]:
    """Names that a folder or archive may have: its own, or that of the whole it is a part of."""
    return list(dict.fromkeys([folder, PART.sub("", folder)]))


class ConceptualCaptions:
    """The captions of one file, by number; their texts are not in memory."""

    def __init__(self, path: Path, progress: bool = True) -> None:
        """Open and check the file.

        Raises:
            DataError: a row that is no JSON, or lacks a field; with file and row.
        """
        self.lines = LineFile(path, progress)
        self.statements = len(self.lines)
        self.progress = progress
        folders: dict[str, None] = {}
        images: dict[str, None] = {}
        for where, text in self._each("checked"):
            caption = read_caption(text, where)
            folders[caption.regions.rpartition("/")[0]] = None
            images[split_path(caption.image)[0]] = None
        self.feature_folders, self.image_folders = list(folders), list(images)

    def _each(self, what: str) -> tqdm:
        return tqdm(
            self.lines,
            total=len(self.lines),
            unit="caption",
            leave=False,
            desc=f"{self.lines.path.name} {what}",
            disable=not self.progress,
        )

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Caption:
        text = self.lines[index]
        return read_caption(text, f"{self.lines.path}, caption {index + 1}")

    def check(self, features: FeatureSources, images: ImagesByPath | None) -> None:
        """Make sure that every caption has regions and, where images are read, an image file.

        Raises:
            DataError: one has none; with file and row.
        """
        chunk: list[tuple[str, Caption]] = []
        for where, text in self._each("looked up"):
            chunk.append((where, read_caption(text, where)))
            if len(chunk) == CHUNK:
                self._look_up(chunk, features, images)
                chunk = []
        self._look_up(chunk, features, images)

    def _look_up(
        self,
        chunk: Sequence[tuple[str, Caption]],
        features: FeatureSources,
        images: ImagesByPath | None,
    ) -> None:
        absent = set(features.missing(caption.regions for _, caption in chunk))
        for where, caption in chunk:
            if caption.regions in absent:
                stores = ", ".join(str(store.path) for store in features.stores)
                raise DataError(
                    f"{where}: no region features {caption.regions}.json in {stores}: "
                    "get all parts of them, or remove the row"
                )
            if images is not None and caption.image not in images:
                raise DataError(
                    f"{where}: no image file {caption.image}: get all images, or "
                    "remove the row (the original trains on a black image)"
                )


def read_caption(text: str, where: str) -> Caption:
    """One row.

    Raises:
        DataError: no JSON, or a field is missing or of another kind.
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error}): expected an object with image, frcnn "
            "and caption in each line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: {text[:40]!r}: expected an object with image, frcnn and caption")
    for key in ("image", "frcnn", "caption"):
        if key not in row:
            raise DataError(f"{where}: field {key!r} is missing (it has {', '.join(row)})")
    words = row["caption"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: field 'caption': {words!r:.60}: expected a list of words")
    if not "".join(words).strip():
        raise DataError(f"{where}: field 'caption': {words!r:.60}: is empty: remove this line")
    for key in ("image", "frcnn"):
        if not isinstance(row[key], str) or not all(split_path(row[key])):
            raise DataError(
                f"{where}: field {key!r}: {row[key]!r:.60}: expected a path such as "
                f"train_{key}.zip@/00000001.{'json' if key == 'frcnn' else 'jpg'}"
            )
    folder, name = split_path(row["frcnn"])
    return Caption(" ".join(words), f"{folder}/{name.removesuffix('.json')}", row["image"])


def open_caption_features(
    base: Path, folders: Sequence[str], wanted: bool, progress: bool
) -> FeatureSources:
    """Region features of captions.

    Args:
        base: DATASET_PATH.
        folders: that the captions name.
        wanted: import JSON files into a store; otherwise they are read each time.

    Raises:
        DataError: there are none, or they are damaged.
    """
    stores = []
    for folder in folders:
        there = [base / name for name in names_of(folder) if find_features(base / name)]
        store = open_records((there or [base / folder])[0], wanted, progress)
        stores.append(InFolder(store, folder))
    return joined(stores)


class ImagesByPath:
    """Image files by the path that a caption gives."""

    def __init__(self, base: Path, folders: Sequence[str], zipped: bool) -> None:
        """Open folders or archives.

        Args:
            base: DATASET_PATH.
            folders: that the captions name.
            zipped: take the archive where both are there; otherwise the folder.

        Raises:
            DataError: there is neither.
        """
        self.files: dict[str, Files] = {}
        for folder in folders:
            there = [
                path
                for name in names_of(folder)
                for path in (base / name, base / f"{name}.zip")
                if path.exists()
            ]
            if not there:
                raise DataError(
                    f"{base / folder} and {folder}.zip: neither is there: the images "
                    "of the captions"
                )
            archives = [path for path in there if path.suffix == ".zip"]
            self.files[folder] = open_files((archives if zipped and archives else there)[0])
        self._names = {folder: frozenset(files.names()) for folder, files in self.files.items()}

    def __contains__(self, path: object) -> bool:
        folder, name = split_path(str(path))
        return name in self._names.get(folder, ())

    def read(self, path: str) -> Image.Image:
        """An image, in RGB.

        Raises:
            DataError: it is not there, or cannot be decoded.
        """
        folder, name = split_path(path)
        files = self.files[folder]
        return decode_picture(io.BytesIO(files.read(name)), files.where(name))
