"""Small versions of ViLBERT's tasks from the embedded images, in the files of the real ones.

Nothing is added to easy-VQA: what is said of an image are the answers to its own questions. In
data/easy_vqa_tasks/ there are, for training (the images of easy-VQA's splits train and nominival)
and for validation (minival):

    VCR/            a question about an image with four answers, and the right answer with four
                    rationales that it fits, of which the image decides
    retrieval/      captions that name colour and shape; eight images of every description for
                    validation
    referExpression/refcoco+/   pictures of four images, and which of the shapes is meant
    features/, mosaics/         region features of the images, and of the pictures of four
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.data.annotations import Example
from common.data.datasets import Dataset, load_split, open_features, resolve_dataset
from common.data.easy_vqa.build import COLOURS, PREFIX, SHAPES, share
from common.data.easy_vqa.captions import TEMPLATES, described
from common.data.easy_vqa.regions import LAYOUT
from common.errors import DataError
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures, Regions
from common.features.writer import RegionFeatureWriter, replace_folder
from common.files import exclusive, repository_root, write_bytes, write_json
from common.reading import read_json
from vilbert.caption_data import find_hard_negatives
from vilbert.hard_negatives import mean_features
from vilbert.referring_data import INSTANCES, REFS
from vilbert.tasks import TaskEntry

VERSION = 1
PLACE = "data/easy_vqa_tasks"
META = "meta.json"
SOURCES = {"train": "train,nominival", "val": "minival"}
TEST_OFFSET = 1_000_000  # of numbers of minival's images, as in VCR
NO_SHAPE = "no shape"
SIDE, GRID = 64, 2  # pixels of an image; images in a row of a picture of four
TILE_REGIONS = 3
MOSAICS = {"train": 1500, "val": 400}
OF_A_DESCRIPTION = 8  # images for validation of retrieval
FULL = [t for t in TEMPLATES if "{colour}" in t and "{shape}" in t]
REGION_LIMIT, TOKEN_LIMIT = 20, 40


@dataclass(frozen=True)
class Described:
    """An image whose colour and shape are known.

    Attributes:
        key: in the store of easy-VQA.
        number: among the images of these tasks.
        colour, shape: of what it shows.
        questions: about it that begin with `what`.
    """

    key: str
    number: int
    colour: str
    shape: str
    questions: tuple[Example, ...]


def describe(examples: Sequence[Example]) -> list[Described]:
    """The images of some questions that are fully described by their answers."""
    asked: dict[str, list[Example]] = {}
    for example in examples:
        if example.question.lower().startswith("what"):
            asked.setdefault(example.image_id, []).append(example)
    found = []
    for key, known in described(examples).items():
        if {"colour", "shape"} <= known.keys():
            _, part, number = key.split("_")
            offset = TEST_OFFSET if part == "test" else 0
            found.append(
                Described(
                    key,
                    int(number) + offset,
                    known["colour"],
                    known["shape"],
                    tuple(asked.get(key, ())),
                )
            )
    return found


def vcr_lines(images: Sequence[Described], split: str) -> Iterator[dict[str, Any]]:
    """Questions with four answers, and four rationales that the answers do not tell apart."""
    for image in images:
        for example in image.questions:
            answer = next(iter(example.answers or {}))
            said = set(example.question.rstrip("?").lower().split())
            if answer not in (image.colour, image.shape) or said & {image.colour, image.shape}:
                continue  # the question itself would tell the rationale
            of_colour = answer == image.colour
            draw = f"{example.question_id}"
            if of_colour:
                answers = [answer, *_others(COLOURS, answer, draw, 3)]
                # The answer excludes the fourth, so that the texts leave three.
                reasons = [(image.colour, shape) for shape in SHAPES]
                reasons.sort(key=lambda r: r[1] != image.shape)
                reasons.append((_others(COLOURS, answer, f"{draw} r", 1)[0], image.shape))
            else:
                answers = [answer, *_others(SHAPES, answer, draw, 2), NO_SHAPE]
                colours = [image.colour, *_others(COLOURS, image.colour, f"{draw} r", 3)]
                reasons = [(colour, image.shape) for colour in colours]
            rationales = [f"the {shape} is {colour}" for colour, shape in reasons]
            places = [int(4 * share(f"{draw} {what}")) for what in ("answer", "rationale")]
            yield {
                "annot_id": f"{split}-{example.question_id}",
                "img_id": f"{split}-{image.number % TEST_OFFSET}",
                "img_fn": f"{image.key}.png",
                "metadata_fn": "easy_vqa.json",
                "question": [*example.question.rstrip("?").split(), "?"],
                "answer_choices": [a.split() for a in _moved(answers, places[0])],
                "answer_label": places[0],
                "rationale_choices": [r.split() for r in _moved(rationales, places[1])],
                "rationale_label": places[1],
            }


def _others(words: Sequence[str], word: str, draw: str, count: int) -> list[str]:
    """So many of the other words."""
    return sorted((w for w in words if w != word), key=lambda w: share(f"{draw} {w}"))[:count]


def _moved(texts: Sequence[str], place: int) -> list[str]:
    """The first text at another place."""
    return [*texts[1 : place + 1], texts[0], *texts[place + 1 :]]


def caption_lines(images: Sequence[Described]) -> Iterator[dict[str, Any]]:
    """An image with its full captions."""
    for image in images:
        captions = [t.format(colour=image.colour, shape=image.shape) for t in FULL]
        yield {"img_path": f"{image.number}.png", "sentences": captions}


def of_every_description(images: Sequence[Described]) -> list[Described]:
    """As many images of every colour and shape, the first ones."""
    return [
        image
        for colour, shape in product(COLOURS, SHAPES)
        for image in [i for i in images if (i.colour, i.shape) == (colour, shape)][
            :OF_A_DESCRIPTION
        ]
    ]


@dataclass(frozen=True)
class Mosaic:
    """A picture of four images, row by row, and which of them are meant."""

    number: int
    tiles: tuple[Described, ...]
    meant: tuple[int, ...]


def mosaics(images: Sequence[Described], split: str) -> list[Mosaic]:
    """Pictures of images with four different descriptions; two of them are meant, one by one."""
    start = TEST_OFFSET if split == "val" else 0
    found: list[Mosaic] = []
    for number in range(MOSAICS[split]):
        tiles: dict[tuple[str, str], Described] = {}
        draw = 0
        while len(tiles) < GRID**2:
            image = images[int(share(f"mosaic {split} {number} {draw}") * len(images))]
            tiles.setdefault((image.colour, image.shape), image)
            draw += 1
        first = int(GRID**2 * share(f"meant {split} {number}"))
        found.append(Mosaic(start + number, tuple(tiles.values()), (first, (first + 1) % GRID**2)))
    return found


def mosaic_regions(tiles: Sequence[Regions]) -> tuple[Tensor, Tensor, list[int]]:
    """Regions of a picture of four from those of its images.

    Each image gives its `TILE_REGIONS` best ones, with geometry that is that of the whole picture.

    Returns:
        boxes (R, 4) in pixels of the picture, features (R, F), and the place of each image's first
        region, which is its shape's.
    """
    geometry = LAYOUT["geometry"]
    whole = [_whole(tile) for tile in tiles]  # pixels of foreground of each image
    boxes: list[Tensor] = []
    features: list[Tensor] = []
    first: list[int] = []
    for place, tile in enumerate(tiles):
        row, column = divmod(place, GRID)
        first.append(sum(len(earlier) for earlier in boxes))
        kept = tile.boxes[:TILE_REGIONS]
        moved = kept + torch.tensor([column * SIDE, row * SIDE] * 2)
        shown = tile.features[:TILE_REGIONS].clone()
        numbers = shown[:, geometry] / 4
        shares = moved / (GRID * SIDE)
        sizes = shares[:, 2:] - shares[:, :2]
        numbers[:, :4], numbers[:, 4:6], numbers[:, 6] = shares, sizes, sizes.prod(1)
        numbers[:, 8] *= whole[place] / sum(whole)
        shown[:, geometry] = 4 * numbers
        boxes.append(moved)
        features.append(shown)
    return torch.cat(boxes), torch.cat(features), first


def _whole(tile: Regions) -> float:
    """Share of an image that is foreground: what its largest box says."""
    box = tile.boxes
    largest = int(((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).argmax())
    return float(tile.features[largest, LAYOUT["geometry"]][7] / 4)


def references(
    pictures: Mapping[str, Sequence[Mosaic]], boxes: Mapping[int, Tensor]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """References and instances in the form of RefCOCO+."""
    refs: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    images = []
    for split, found in pictures.items():
        for picture in found:
            side = GRID * SIDE
            images.append({"id": picture.number, "width": side, "height": side})
            for place in picture.meant:
                tile, number = picture.tiles[place], len(objects)
                x1, y1, x2, y2 = boxes[picture.number][place].tolist()
                box = [x1, y1, x2 - x1, y2 - y1]
                objects.append({"id": number, "image_id": picture.number, "bbox": box})
                said = f"the {tile.colour} {tile.shape}"
                refs.append(
                    {
                        "ref_id": number,
                        "ann_id": number,
                        "image_id": picture.number,
                        "split": split,
                        "sentences": [{"sent_id": number, "raw": said}],
                    }
                )
    return refs, {"images": images, "annotations": objects}


def build_easy_tasks(
    folder: Path, dataset: Dataset, mosaic_count: int | None = None, progress: bool = True
) -> None:
    """Write everything; half a minute on one core.

    Args:
        folder: of the files; replaced where it is there.
        dataset: easy-VQA.
        mosaic_count: pictures of four in a split, for tests.
        progress: show bars.
    """
    images = {name: describe(load_split(dataset, split)) for name, split in SOURCES.items()}
    features = {name: open_features(dataset, split) for name, split in SOURCES.items()}
    partial = folder.with_name(f"{folder.name}.partial")
    vcr, retrieval = partial / "VCR", partial / "retrieval"
    for name, found in images.items():
        _write_lines(vcr / f"{name}.jsonl", vcr_lines(found, name))
        shown = found if name == "train" else of_every_description(found)
        _write_lines(retrieval / f"{name}.jsonline", caption_lines(shown))
    write_json(vcr / "vcr1images" / "easy_vqa.json", {"names": []})
    write_bytes(vcr / "unisex_names_table.csv", b",name\n1,casey\n")
    _write_features(partial / "features", images, features, progress)
    numbers = [str(image.number) for image in images["train"]]
    means = mean_features(RegionFeatures.open(partial / "features"), numbers, progress=False)
    find_hard_negatives(numbers, means).write(retrieval / "hard_negative.pkl")
    pictures = {name: mosaics(found, name)[:mosaic_count] for name, found in images.items()}
    refs, instances = references(
        pictures, _write_mosaics(partial / "mosaics", pictures, features, progress)
    )
    referring = partial / "referExpression" / "refcoco+"
    write_bytes(referring / REFS, pickle.dumps(refs, 2))
    write_json(referring / INSTANCES, instances)
    write_json(partial / META, {"version": VERSION})
    replace_folder(partial, folder)


def _write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    write_bytes(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def _writer(path: Path, detector: str) -> RegionFeatureWriter:
    return RegionFeatureWriter(path, 2048, detector=detector, source="easy-vqa", overwrite=True)


def _write_features(
    path: Path,
    images: Mapping[str, Sequence[Described]],
    features: Mapping[str, FeatureSources],
    progress: bool,
) -> None:
    with _writer(path, features["train"].described()["detector"]) as writer:
        for name, found in images.items():
            (store,) = features[name].stores
            for image in tqdm(found, desc=f"{name} images", unit="image", disable=not progress):
                shown = store.get(image.key)
                writer.add(
                    str(image.number), shown.width, shown.height, shown.boxes, shown.features
                )
        writer.finish()


def _write_mosaics(
    path: Path,
    pictures: Mapping[str, Sequence[Mosaic]],
    features: Mapping[str, FeatureSources],
    progress: bool,
) -> dict[int, Tensor]:
    """Features of the pictures; returns the boxes of their four shapes."""
    shapes: dict[int, Tensor] = {}
    with _writer(path, features["train"].described()["detector"]) as writer:
        for name, found in pictures.items():
            (store,) = features[name].stores
            for picture in tqdm(
                found, desc=f"{name} pictures", unit="picture", disable=not progress
            ):
                tiles = [store.get(tile.key) for tile in picture.tiles]
                boxes, rows, first = mosaic_regions(tiles)
                side = GRID * SIDE
                writer.add(str(picture.number), side, side, boxes, rows)
                shapes[picture.number] = boxes[first]
        writer.finish()
    return shapes


def easy_tasks_folder(progress: bool = True) -> Path:
    """The folder of the embedded tasks, which are made where they are missing."""
    folder = repository_root() / PLACE
    dataset = resolve_dataset("easy_vqa")
    with exclusive(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder):
            print(f"{folder}: the embedded tasks are not there, or not whole: making them")
            build_easy_tasks(folder, dataset, progress=progress)
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        found = read_json(folder / META)
    except DataError:
        return False
    return isinstance(found, dict) and found.get("version") == VERSION


def original_key(number: str) -> str:
    """The key that easy-VQA gives an image of these tasks."""
    part = "test" if int(number) >= TEST_OFFSET else "train"
    return f"{PREFIX}_{part}_{int(number) % TEST_OFFSET:012d}"


def easy_entry(task: TaskEntry) -> TaskEntry | None:
    """A task about the embedded data; None where there is no such version of it."""
    folder = repository_root() / PLACE
    shared: dict[str, Any] = {
        "train_split": "train",
        "val_split": "val",
        "features_h5path2": "",
        "max_seq_length": TOKEN_LIMIT,
        "max_region_num": REGION_LIMIT,
    }
    files = {
        "VCR": ("VCR", "features", ".jsonl"),
        "Retrieval": ("retrieval", "features", ".jsonline"),
        "refcoco": ("referExpression", "mosaics", ""),
    }
    for start, (root, store, ending) in files.items():
        if not task.name.startswith(start) or task.data:
            continue
        named: dict[str, Any] = {
            f"{split}_annotations_jsonpath": str(folder / root / f"{split}{ending}")
            for split in SOURCES
        }
        return replace(
            task,
            dataroot=str(folder / root),
            features_h5path1=str(folder / store),
            **(named if ending else {}),
            **shared,
        )
    return None
