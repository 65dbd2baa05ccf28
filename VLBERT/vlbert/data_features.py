"""Region features that are filed under other names than their images have elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from common.errors import DataError
from common.features.sources import FeatureSources, is_store
from common.features.store import RegionBatch, RegionFeatures
from common.features.vlbert_json import JsonFeatures, import_json, json_store
from vlbert.images import number_of, part_of


class Renamed(ABC):
    """A store whose images are asked for by other ids than they have in it."""

    def __init__(self, store: RegionFeatures | JsonFeatures) -> None:
        """Rename the images of a store."""
        self.store = store
        self.path, self.width = store.path, store.width
        self.meta: dict[str, Any] = store.meta

    @abstractmethod
    def inner(self, image_id: str) -> str | None:
        """The id in the store; None where such an image cannot be in it."""

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no record here, in their order."""
        asked = [(i, self.inner(i)) for i in image_ids]
        absent = set(self.store.missing(name for _, name in asked if name is not None))
        return [i for i, name in asked if name is None or name in absent]

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and not self.missing([image_id])

    def __len__(self) -> int:
        return len(self.store)

    @property
    def counts(self) -> tuple[int, int] | None:
        """As of the store."""
        return self.store.counts

    def read(
        self,
        image_ids: Sequence[str],
        max_regions: int | None = None,
        classes: bool = False,
        half: bool = False,
    ) -> RegionBatch:
        """Regions of B images, as `RegionFeatures.read`."""
        batch = self.store.read([self.inner(i) or i for i in image_ids], max_regions, classes, half)
        return replace(batch, image_ids=list(image_ids))


class ByNumber(Renamed):
    """A store with image `42`, read as one with image COCO_train2014_000000000042.

    The feature files of VL-BERT hold the images of two parts of COCO, and say of neither which.
    """

    def __init__(self, store: RegionFeatures | JsonFeatures, parts: Iterable[str]) -> None:
        """Rename the images of a store.

        Args:
            store: With numbers as ids.
            parts: Those parts of COCO whose images it has.
        """
        super().__init__(store)
        self.parts = frozenset(parts)

    def inner(self, image_id: str) -> str | None:
        return number_of(image_id) if part_of(image_id) in self.parts else None


class InFolder(Renamed):
    """A store with image `00000042`, read as one with image `train_frcnn/00000042`."""

    def __init__(self, store: RegionFeatures | JsonFeatures, folder: str) -> None:
        """Put the name of a folder in front of the ids."""
        super().__init__(store)
        self.folder = folder

    def inner(self, image_id: str) -> str | None:
        folder, _, name = image_id.rpartition("/")
        return name if folder == self.folder else None


def joined(stores: Sequence[Renamed]) -> FeatureSources:
    """Renamed stores that read like one.

    Raises:
        DataError: None given, or their features differ in width.
    """
    # They have all of `RegionFeatures` that `FeatureSources` uses.
    return FeatureSources(cast(Sequence[RegionFeatures], stores))


def find_features(name: Path) -> Path | None:
    """A store, folder or archive of this name; the store that was made of it comes first."""
    archive = name.with_name(f"{name.name}.zip")
    for path in (json_store(name), name):
        if is_store(path):
            return path
    return name if name.is_dir() else archive if archive.is_file() else None


def open_features(
    name: Path, parts: Iterable[str], wanted: bool = True, progress: bool = True
) -> ByNumber:
    """Open features of COCO images; see `open_records`.

    Args:
        name: Path of their folder; of their archive, without its ending.
        parts: Of COCO, whose images they are of.
        wanted, progress: as in `open_records`.

    Raises:
        DataError: There are none, or they are damaged.
    """
    return ByNumber(open_records(name, wanted, progress), parts)


def open_records(
    name: Path, wanted: bool = True, progress: bool = True
) -> RegionFeatures | JsonFeatures:
    """Open features; import them first where they are still JSON files.

    Args:
        name: Path of their folder; of their archive, without its ending.
        wanted: Import them; otherwise they are read from the JSON files each time.
        progress: Show a bar while importing.

    Raises:
        DataError: There are none, or they are damaged.
    """
    path = find_features(name)
    if path is None:
        raise DataError(f"{name}: no such features (neither that folder nor {name.name}.zip)")
    if is_store(path):
        return RegionFeatures.open(path)
    if not wanted:
        return JsonFeatures(path)
    store = json_store(path)
    print(
        f"{store}: not there yet: importing {path.name} (once; DATASET.IMPORT_FEATURES: false "
        "reads the files each time instead)"
    )
    return import_json(path, store, None, progress=progress)
