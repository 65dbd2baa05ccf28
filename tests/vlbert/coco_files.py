"""Small VL-BERT data in the layout of data/coco: official JSON, COCO JSON, feature JSON, images."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.common.data_files import annotation, question, write_json, write_official

WIDTH = 6
SIZES = {9: (64, 48), 25: (40, 60), 42: (60, 90), 73: (120, 30), 1: (50, 38)}
PART_OF = {9: "train2014", 25: "train2014", 42: "val2014", 73: "val2014", 1: "test2015"}
ANSWERS = ["<unk>", "red", "left", "right", "yes", "2"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "left", "right", "?", "red"]
TRAINVAL = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
TEST = "vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome"


def encode(values: np.ndarray) -> str:
    """Base64 of float32, with the line ends that the released files have."""
    return base64.encodebytes(values.astype("<f4").tobytes()).decode()


def record(
    image: int, count: int = 3, width: int = WIDTH, classes: int = 0, **changes: Any
) -> dict[str, Any]:
    """The feature file of an image; `changes` put other values into some fields."""
    draw = np.random.default_rng(image)
    w, h = SIZES.get(image, (64, 48))
    last = [w - 1, h - 1, w - 1, h - 1]
    corners = np.sort(draw.random((count, 2, 2)), 1).reshape(count, 4) * last
    value = {
        "image_id": image,
        "image_w": w,
        "image_h": h,
        "num_boxes": count,
        "boxes": encode(corners),
        "features": encode(draw.normal(size=(count, width))),
    }
    if classes:
        scores = draw.random((count, classes))
        value["classes"] = encode(scores / scores.sum(1, keepdims=True))
    return value | changes


def write_features(folder: Path, records: Mapping[int, dict[str, Any] | str]) -> Path:
    """A folder of `<image id>.json`; a text is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, value in records.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{image}.json").write_text(text)
    return folder


def zip_folder(folder: Path, method: int = zipfile.ZIP_STORED, top: bool = True) -> Path:
    """The ZIP archive of a folder, which itself is in it."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", method) as file:
        for member in sorted(folder.iterdir()):
            file.write(member, f"{folder.name}/{member.name}" if top else member.name)
    return path


def key(image: int) -> str:
    return f"COCO_{PART_OF[image]}_{image:012d}"


def write_images(folder: Path, images: Sequence[int], suffix: str = ".jpg") -> None:
    """`<part>/<key>.jpg`: a gradient, so that mirroring and colours show."""
    for image in images:
        width, height = SIZES[image]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 255, width)[None]
        pixels[..., 1] = np.linspace(0, 255, height)[:, None]
        path = folder / PART_OF[image] / f"{key(image)}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=95)


def write_sizes(folder: Path, part: str, images: Sequence[int]) -> Path:
    """COCO's JSON of a part, with outlines behind the list of images, as the real one has them."""
    name = "image_info_test2015" if part == "test2015" else f"instances_{part}"
    listed = [
        {"file_name": f"{key(i)}.jpg", "width": SIZES[i][0], "height": SIZES[i][1], "id": i}
        for i in images
    ]
    return write_json(
        folder / "annotations" / f"{name}.json",
        {
            "info": {"description": "images"},
            "images": listed,
            "annotations": [{"segmentation": [[1.5] * 9]}] * 3,
        },
    )


def write_coco(folder: Path) -> Path:
    """Everything: two images in each of train2014 and val2014, one in test2015."""
    for part, images in (("train2014", [9, 25]), ("val2014", [42, 73]), ("test2015", [1])):
        asked = [
            question(100 * i + n, i, question=f"what is {side}?")
            for i in images
            for n, side in enumerate(("left", "right"))
        ]
        answered = [annotation(q["question_id"], q["image_id"], q["question"][8:-1]) for q in asked]
        write_official(folder / "vqa", part, asked, None if part == "test2015" else answered[::-1])
        write_sizes(folder, part, images)
    asked = [question(100, 1, question="what is left?")]
    write_official(folder / "vqa", "test-dev2015", asked, None)
    write_features(folder / TRAINVAL, {i: record(i) for i in (9, 25, 42, 73)})
    write_features(folder / TEST, {1: record(1)})
    write_images(folder, list(SIZES))
    (folder / "vqa" / "answers_vqa.txt").write_text("\n".join(ANSWERS) + "\n")
    bert = folder / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def overrides(folder: Path, **changes: Any) -> dict[str, Any]:
    """What makes a shipped config of VQA read `write_coco`; in `changes` __ stands for a point."""
    return {
        "DATASET.DATASET_PATH": str(folder),
        "NETWORK.BERT_MODEL_NAME": str(folder / "bert"),
        "DATASET.ANSWER_VOCAB_FILE": str(folder / "vqa" / "answers_vqa.txt"),
        "DATASET.ANSWER_VOCAB_SIZE": len(ANSWERS),
        "HOLDOUT": 0.5,
    } | {name.replace("__", "."): value for name, value in changes.items()}
