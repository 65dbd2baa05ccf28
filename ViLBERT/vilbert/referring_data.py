"""Referring expressions (RefCOCO+): texts that mean one region of an image.

`refs(unc).p` is a pickled list of references with their sentences and splits, `instances.json` has
the boxes, as in COCO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import TypedDict

from common.errors import DataError
from common.pickles import read_pickle
from common.reading import checked, read_json, short

SOURCE = "https://github.com/lichengunc/refer"
SPLITS = ("train", "val", "testA", "testB")
REFS, INSTANCES = "refs(unc).p", "instances.json"


class RefSentence(TypedDict):
    """One text of a reference."""

    sent_id: int
    raw: str


class Ref(TypedDict):
    """A reference: an annotated object, and what was said of it."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: list[RefSentence]


class InstanceImage(TypedDict):
    """An image of `instances.json`."""

    id: int
    width: int
    height: int


class InstanceAnnotation(TypedDict):
    """An object: x, y, width and height in pixels."""

    id: int
    image_id: int
    bbox: list[float]


class Instances(TypedDict):
    """`instances.json`, as far as it is read."""

    images: list[InstanceImage]
    annotations: list[InstanceAnnotation]


@dataclass(frozen=True)
class Referring:
    """A text, and the box that it means.

    Attributes:
        sentence_id: of the text.
        image_id: COCO's number.
        text: as it was typed.
        box: x1, y1, x2, y2 in pixels.
        width, height: of the image.
    """

    sentence_id: int
    image_id: str
    text: str
    box: tuple[float, float, float, float]
    width: int
    height: int


def read_referring(folder: Path, split: str) -> list[Referring]:
    """The texts of a split, in the order of the file.

    Args:
        folder: of the two files.
        split: one of `SPLITS`.

    Raises:
        DataError: a file is missing, damaged or wants to run something; the split is empty; a
            reference is to an object or image that is not there, to an object of another image, or
            to a box outside its image; names file, reference and value.
    """
    path, boxes = folder / REFS, folder / INSTANCES
    instances = read_json(boxes, SOURCE, schema=Instances)
    images = {image["id"]: image for image in instances["images"]}
    objects = {each["id"]: each for each in instances["annotations"]}
    refs = checked(read_pickle(path), list[Ref], str(path), f"fetch it again from {SOURCE}")
    found: list[Referring] = []
    for number, ref in enumerate(refs, 1):
        if ref["split"] not in SPLITS:
            raise DataError(
                f"{path}: reference {number}: split {short(ref['split'])}: expected one of "
                f"{', '.join(SPLITS)}"
            )
        if ref["split"] != split:
            continue
        where = f"{path}: reference {ref['ref_id']}"
        if ref["image_id"] not in images:
            raise DataError(f"{where}: image {ref['image_id']} is not in {boxes}")
        target, image = objects.get(ref["ann_id"]), images[ref["image_id"]]
        if target is None or target["image_id"] != image["id"]:
            what = "is not in" if target is None else f"is of image {target['image_id']} in"
            raise DataError(
                f"{where}: object {ref['ann_id']} of image {image['id']} {what} {boxes}"
            )
        box = _corners(f"{boxes}: object {target['id']}", target["bbox"], image)
        found += [
            Referring(
                said["sent_id"], str(image["id"]), said["raw"], box, image["width"], image["height"]
            )
            for said in ref["sentences"]
        ]
    if not found:
        raise DataError(f"{path}: no text of split {split!r}; it may be {', '.join(SPLITS)}")
    return found


def _corners(
    where: str, box: Sequence[float], image: InstanceImage
) -> tuple[float, float, float, float]:
    if len(box) != 4:
        raise DataError(f"{where}: bbox {short(box)}: expected x, y, width and height")
    x, y, width, height = box
    # Annotators' boxes may stand out by less than a pixel.
    inside = (
        x > -1 and y > -1 and x + width < image["width"] + 1 and y + height < image["height"] + 1
    )
    if not (inside and width > 0 and height > 0):
        raise DataError(
            f"{where}: bbox {short(list(box))}: not in its image of {image['width']} x "
            f"{image['height']} pixels"
        )
    return x, y, x + width, y + height
