"""The image that a model is asked about: a picture file, or a record of region features.

Features must come from the detector that the checkpoint was trained with. That of plain shapes
(`common.detector.pixels`) is run here; those of all others are extracted or imported before.
Shape legend: R regions, C channels.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image

from common.data.datasets import open_features
from common.detector.pixels import PixelDetector
from common.errors import ConfigError, DataError, named
from common.features.pictures import read_picture
from common.features.sources import features_there
from common.features.store import RegionFeatures, Regions
from common.runs.backbones import OpenedRun, find_backbone

ENDINGS = (".png", ".jpg", ".jpeg")
SHOWN_IDS = 5


@dataclass
class AskedImage:
    """An image with its regions.

    Attributes:
        name: how it was asked for: a file, or an image id.
        regions: boxes (R, 4) in pixels and features (R, C) of the checkpoint's detector.
        file: its picture, if there is one.
        picture: RGB, of the size of the regions' image or in proportion to it; None without a file.
        notes: what the user should know.
    """

    name: str
    regions: Regions
    file: Path | None = None
    picture: Image.Image | None = None
    notes: list[str] = field(default_factory=list)


def find_image(
    run: OpenedRun,
    file: Path | None,
    image_id: str | None,
    store: Path | None = None,
    data_root: Path | None = None,
) -> AskedImage:
    """The image that the command line names.

    Args:
        run: whose detector the features must be of.
        file: a picture; its features are computed, unless `image_id` says where they are.
        image_id: of a record of features.
        store: folder of the record; default the features of the run's data set.
        data_root: folder of VQA v2's files.

    Raises:
        ConfigError: neither file nor id, or a store without id.
        DataError: a picture or record that cannot be read, or features of another detector.
    """
    if image_id is not None:
        return image_of_record(run, image_id, file, store, data_root)
    if store is not None:
        raise ConfigError(f"--features {store}: say which image of it with --image-id ID")
    if file is None:
        raise ConfigError(
            "no image: give a picture with --image FILE, or a record of region "
            "features with --image-id ID"
        )
    return image_of_file(run, file)


def image_of_file(run: OpenedRun, file: Path) -> AskedImage:
    """A picture, with its regions as the pixel detector sees them.

    Raises:
        DataError: the run was trained with another detector, or the picture cannot be used.
    """
    trained, detector = run.meta["features"], PixelDetector()
    if trained["detector"] != detector.name or trained["width"] != detector.width:
        raise DataError(
            f"{file}: {run.checkpoint} was trained with features of {described(trained)}. From a "
            f"picture file alone only those of {detector.name!r} are computed. Extract the regions "
            "of the picture with the checkpoint's detector (python -m common.features extract "
            f'--images FOLDER --detector FOLDER --out STORE --name "{trained["detector"]}"), or '
            "import them (python -m common.features --tsv FILE or --npz FOLDER, --out STORE "
            f'--detector "{trained["detector"]}"), and ask with --features STORE --image-id ID '
            f"--image {file}; without --features, --image-id finds the images of the run's data set"
        )
    notes: list[str] = []
    picture = read_picture(file, notes)
    with named(file, DataError):
        found = detector.detect(picture)
    # In half precision, as the store of the training images has them: the same answers.
    regions = Regions(
        str(file),
        *picture.size,
        found.features.half().float(),
        boxes=found.boxes,
        object_ids=found.object_ids,
        object_conf=found.object_conf,
        attribute_ids=found.attribute_ids,
        attribute_conf=found.attribute_conf,
    )
    said = [f"{file}: {note}" for note in notes]
    said += [
        f"no plain background: {share:.0%} of the picture differ from its most frequent "
        "colour. The pixel detector is made for plain shapes; it says nothing on photographs, "
        "so this answer means nothing"
        for share in detector.doubts(found, picture).values()
    ]
    return AskedImage(str(file), regions, file, picture, said)


def image_of_record(
    run: OpenedRun,
    image_id: str,
    file: Path | None = None,
    store: Path | None = None,
    data_root: Path | None = None,
) -> AskedImage:
    """A record of region features, with its picture where there is one.

    Raises:
        DataError: no such record, a store of another detector, or a picture of another shape.
    """
    stores = [RegionFeatures.open(store)] if store is not None else run_stores(run, data_root)
    for each in stores:
        check_detector(run, each)
    holder = next((each for each in stores if image_id in each), None)
    if holder is None:
        raise DataError(_unknown_id(image_id, stores))
    regions = holder.get(image_id)
    file = file or _picture_of(image_id, stores)
    changes: list[str] = []
    picture = None if file is None else read_picture(file, changes)
    notes = [f"{file}: {change}" for change in changes]
    if picture is None:
        notes.append(
            f"no picture of {image_id} beside its features "
            f"({holder.path.parent / 'images'}): the boxes are drawn on an empty canvas; "
            "--image FILE shows it"
        )
    elif not _same_shape(picture.size, (regions.width, regions.height)):
        raise DataError(
            f"{file}: {size_text(picture.size)} pixels, but the image {image_id!r} "
            f"in {holder.path} has {size_text((regions.width, regions.height))}: not "
            "the same picture"
        )
    return AskedImage(image_id, regions, file, picture, notes)


def run_stores(run: OpenedRun, data_root: Path | None = None) -> list[RegionFeatures]:
    """The region features of the data set that a run was finetuned on.

    Raises:
        DataError: they are not there; says how to give other ones.
    """
    try:
        with redirect_stdout(sys.stderr):
            dataset = find_backbone(run.meta["backbone"]).dataset(run, data_root)
            splits = [
                name
                for name, split in dataset.kind.splits.items()
                if name not in dataset.kind.optional
                or all(features_there(dataset.folder / path) for path in split.features)
            ]
            return open_features(dataset, ",".join(splits)).stores
    except DataError as error:
        raise DataError(
            f"{error}\n(or name a store of this detector with --features STORE, or "
            "the folder of the data set with --data)"
        ) from error


def check_detector(run: OpenedRun, store: RegionFeatures) -> None:
    """Refuse features of another detector than the checkpoint's.

    Raises:
        DataError: names both.
    """
    found = {"detector": store.meta["detector"], "width": store.width}
    trained = run.meta["features"]
    if found != {key: trained[key] for key in found}:
        raise DataError(
            f"{store.path} and {run.checkpoint} do not belong together: the store has "
            f"features of {described(found)}, the checkpoint was trained with those "
            f"of {described(trained)}. Import features of the checkpoint's detector, "
            "or ask a run that was trained with these"
        )


def described(features: dict[str, Any]) -> str:
    """`'detector', 2048 numbers wide`."""
    return f"{features['detector']!r}, {features['width']} numbers wide"


def size_text(size: tuple[int, int]) -> str:
    """`640 x 480`."""
    return f"{size[0]} x {size[1]}"


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other, scaled; up to the rounding to whole pixels."""
    scale = max(other) / max(size)
    return all(abs(a * scale - b) <= max(1.0, scale) for a, b in zip(size, other, strict=True))


def _picture_of(image_id: str, stores: Iterable[RegionFeatures]) -> Path | None:
    """The picture in a folder `images` beside a store, or in one of its subfolders."""
    name = glob.escape(image_id)
    for folder in dict.fromkeys(store.path.parent / "images" for store in stores):
        for pattern in (f"{name}.*", f"*/{name}.*"):
            for path in sorted(folder.glob(pattern)):
                if path.suffix.lower() in ENDINGS:
                    return path
    return None


def _unknown_id(image_id: str, stores: list[RegionFeatures]) -> str:
    ids = [known for store in stores for known in store.ids()]
    near = [
        known
        for known in ids
        if image_id.isdecimal() and known.rpartition("_")[2].lstrip("0") == image_id.lstrip("0")
    ]
    near = near[:SHOWN_IDS] or get_close_matches(image_id, ids, n=SHOWN_IDS, cutoff=0.5)
    shown = f"nearest: {', '.join(near)}" if near else f"the first ones: {', '.join(ids[:3])}"
    where = ", ".join(str(store.path) for store in stores)
    return (
        f"no image {image_id!r} in {where} ({len(ids):,} images; {shown}); give another "
        "--image-id, or the store that has it with --features"
    )
