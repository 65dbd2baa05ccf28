"""The image that a model is asked about: a picture file, or a record of region features.

Features must come from the detector that the checkpoint was trained with: it is run here, or its
features were extracted or imported before.
Shape legend: R regions, C channels.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from PIL import Image

from common.data.datasets import open_features
from common.detector.extracting import image_id as image_id_of
from common.detector.extracting import is_picture
from common.detector.names import RegionNames
from common.detector.opening import detector_origin
from common.detector.pixels import PixelDetector
from common.detector.regions import Detector
from common.errors import ConfigError, DataError, named
from common.features.origin import ALLOW, origin_differences, origin_notes, origin_of, origin_text
from common.features.pictures import read_picture
from common.features.sources import features_there
from common.features.store import RegionFeatures, Regions
from common.runs.backbones import OpenedRun, find_backbone

SHOWN_IDS = 5


@dataclass
class AskedImage:
    """An image with its regions.

    Attributes:
        name: how it was asked for: a file, or an image id.
        regions: boxes (R, 4) in pixels and features (R, C).
        detector: name of what found them.
        file: its picture, if there is one.
        picture: RGB, of the size of the regions' image or in proportion to it; None without a file.
        notes: what the user should know.
        names: of the detector's classes and attributes, as far as they are known.
    """

    name: str
    regions: Regions
    detector: str
    file: Path | None = None
    picture: Image.Image | None = None
    notes: list[str] = field(default_factory=list)
    names: RegionNames = field(default_factory=RegionNames)


def find_image(
    run: OpenedRun,
    file: Path | None,
    image_id: str | None,
    store: Path | None = None,
    data_root: Path | None = None,
    detector: Detector | None = None,
    any_detector: bool = False,
) -> AskedImage:
    """The image that the command line names.

    Args:
        run: whose detector the features must be of.
        file: a picture; its features are computed, unless `image_id` says where they are.
        image_id: of a record of features.
        store: folder of the record; default the features of the run's data set.
        data_root: folder of VQA v2's files.
        detector: that computes features of a picture; default the pixel detector. Of a record
            it gives names.
        any_detector: the features may be of another detector than the run's.

    Raises:
        ConfigError: neither file nor id, or a store without id.
        DataError: a picture or record that cannot be read, or features of another detector.
    """
    if image_id is not None:
        found = image_of_record(run, image_id, file, store, data_root, any_detector)
        if detector is not None and detector.name == found.detector:
            found.names = detector.names
        return found
    if store is not None:
        raise ConfigError(f"--features {store}: say which image of it with --image-id ID")
    if file is None:
        raise ConfigError(
            "no image: give a picture with --image FILE, or a record of region "
            "features with --image-id ID"
        )
    return image_of_file(run, file, detector, any_detector)


def image_of_file(
    run: OpenedRun, file: Path, detector: Detector | None = None, any_detector: bool = False
) -> AskedImage:
    """A picture file with its regions; see `image_of_picture`.

    Raises:
        DataError: as there, and where the file cannot be read.
    """
    changes: list[str] = []
    picture = read_picture(file, changes)
    found = image_of_picture(run, picture, str(file), detector, any_detector)
    return replace(found, file=file, notes=[f"{file}: {x}" for x in changes] + found.notes)


def image_of_picture(
    run: OpenedRun,
    picture: Image.Image,
    name: str,
    detector: Detector | None = None,
    any_detector: bool = False,
) -> AskedImage:
    """A picture with the regions that a detector finds in it.

    Args:
        run: that is asked about it.
        picture: RGB.
        name: of the picture, for errors.
        detector: by default the pixel detector.
        any_detector: it need not be the one that the run was trained with.

    Raises:
        DataError: the run was trained with another detector, or the picture cannot be used.
    """
    notes = check_detector(run, detector, any_detector, name)
    detector = detector or PixelDetector()
    with named(name, DataError):
        found = detector.detect(picture)
    # In half precision, as the store of the training images has them: the same answers.
    regions = Regions(
        name,
        *picture.size,
        found.features.half().float(),
        boxes=found.boxes,
        object_ids=found.object_ids,
        object_conf=found.object_conf,
        attribute_ids=found.attribute_ids,
        attribute_conf=found.attribute_conf,
    )
    doubts = detector.doubts(found, picture).items()
    said = [f"{what} is {number:.3g}: {detector.doubt}" for what, number in doubts]
    return AskedImage(name, regions, detector.name, None, picture, notes + said, detector.names)


def check_detector(
    run: OpenedRun, detector: Detector | None, any_detector: bool, name: str
) -> list[str]:
    """Refuse a detector that a run was not trained with; returns what is worth saying of it.

    Raises:
        DataError: names both, and the way out.
    """
    trained = run.meta["features"]
    origin = detector_origin(detector or PixelDetector())
    differ = list(origin_differences(trained, origin, any_detector and detector is not None))
    if differ and detector is None:
        raise DataError(
            f"{name}: {run.checkpoint} was trained with features of {origin_text(trained)}. Name "
            "that detector with --detector FOLDER; or extract the regions of the picture with it "
            "(python -m common.features extract --images FOLDER --detector FOLDER --out STORE "
            f'--name "{trained["detector"]}"), or import them (python -m common.features --tsv '
            f'FILE or --npz FOLDER, --out STORE --detector "{trained["detector"]}"), and ask with '
            f"--features STORE --image-id ID --image {name}; without --features, --image-id finds "
            "the images of the run's data set"
        )
    if differ:
        raise DataError(
            f"{name}: --detector gives features of {origin_text(origin)}, {run.checkpoint} was "
            f"trained with those of {origin_text(trained)}. Name the checkpoint's detector, ask a "
            f"run that was trained with this one, or add {ALLOW} (features have to be as wide)"
        )
    return [f"{run.checkpoint}: {note}" for note in origin_notes(trained, origin)]


def image_of_record(
    run: OpenedRun,
    image_id: str,
    file: Path | None = None,
    store: Path | None = None,
    data_root: Path | None = None,
    any_detector: bool = False,
) -> AskedImage:
    """A record of region features, with its picture where there is one.

    Raises:
        DataError: no such record, a store of another detector, a picture of another shape, or none
            for a run that reads pixels.
    """
    stores = [RegionFeatures.open(store)] if store is not None else run_stores(run, data_root)
    said = {each.path: check_store(run, each, any_detector) for each in stores}
    holder = next((each for each in stores if image_id in each), None)
    if holder is None:
        raise DataError(_unknown_id(image_id, stores))
    regions = holder.get(image_id)
    file = file or _picture_of(image_id, stores)
    changes: list[str] = []
    picture = None if file is None else read_picture(file, changes)
    notes = said[holder.path] + [f"{file}: {change}" for change in changes]
    if picture is None and run.reads_pictures:
        raise DataError(
            f"image {image_id!r}: {run.checkpoint} reads the pixels of the picture, and there is "
            f"none beside its regions ({holder.path.parent / 'images'}): give it with --image FILE"
        )
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
    return AskedImage(image_id, regions, holder.meta["detector"], file, picture, notes)


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


def check_store(run: OpenedRun, store: RegionFeatures, any_detector: bool) -> list[str]:
    """Refuse features of another detector than the checkpoint's; returns what is worth saying.

    Raises:
        DataError: names both.
    """
    found, trained = origin_of(store.width, store.meta), run.meta["features"]
    if list(origin_differences(trained, found, any_detector)):
        raise DataError(
            f"{store.path} and {run.checkpoint} do not belong together: the store has "
            f"features of {origin_text(found)}, the checkpoint was trained with those "
            f"of {origin_text(trained)}. Import features of the checkpoint's detector, "
            f"ask a run that was trained with these, or add {ALLOW} (features have to be as wide)"
        )
    return [f"{run.checkpoint}: {note}" for note in origin_notes(trained, found)]


def size_text(size: tuple[int, int]) -> str:
    """`640 x 480`."""
    return f"{size[0]} x {size[1]}"


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other, scaled; up to the rounding to whole pixels."""
    scale = max(other) / max(size)
    return all(abs(a * scale - b) <= max(1.0, scale) for a, b in zip(size, other, strict=True))


def _picture_of(image_id: str, stores: Iterable[RegionFeatures]) -> Path | None:
    """The picture in a folder `images` beside a store, or somewhere below."""
    name = glob.escape(image_id)
    for folder in dict.fromkeys(store.path.parent / "images" for store in stores):
        for pattern in (f"{name}.*", f"*/{name}.*", f"**/{name}.*"):
            for path in sorted(folder.glob(pattern)):
                if is_picture(path.name) and image_id_of(path.name) == image_id:
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
