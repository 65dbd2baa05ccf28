"""LXMERT's pretraining data in the original files: small ones that the tests make."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.data.tokenizer import Tokenizer, small_vocabulary
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter
from common.training.runtime import make_runtime
from lxrt.pretraining import main
from lxrt.pretraining_data import PretrainingData
from lxrt.pretraining_objectives import Objectives
from lxrt.pretraining_sentences import Sentences
from lxrt.pretraining_task import PretrainingTask
from tests.common.refusals import error_of

WIDTH = 2048
TRAIN = [f"COCO_train2014_{n:012d}" for n in range(101, 113)]
VAL = [f"COCO_val2014_{n:012d}" for n in range(201, 211)]  # in this order in the feature file
MINIVAL = VAL[:4]
VG = [str(n) for n in range(2331, 2339)]
ANSWERS = [
    ("yes", ["vqa", "gqa"]),
    ("no", ["vqa", "gqa"]),
    ("2", ["vqa", "visual7w"]),
    ("man", ["gqa", "visual7w"]),
    ("red", ["vqa", "gqa", "visual7w"]),
    ("dog", ["vqa"]),
    ("table", ["visual7w"]),
]
LAYERS = [
    "--size",
    "small",
    "--hiddenSize",
    "32",
    "--llayers",
    "1",
    "--xlayers",
    "1",
    "--rlayers",
    "1",
]


@dataclass(frozen=True)
class PretrainingFiles:
    """Folders of data and of a BERT (only its vocabulary)."""

    data: Path
    bert: Path

    def flags(self, out: Path, *more: str) -> list[str]:
        """A run of a tiny model with the splits of upstream's script."""
        return [
            "--dataset",
            "lxmert",
            "--data",
            str(self.data),
            "--gpus",
            "cpu",
            *LAYERS,
            "--bert",
            str(self.bert),
            "--fromScratch",
            "--batchSize",
            "16",
            "--epochs",
            "2",
            "--quiet",
            "--no-tensorboard",
            "--output",
            str(out),
            *more,
        ]


def refused_pretraining(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The error of a pretraining command that has to fail with exit status 2."""
    return error_of(capsys, main, arguments)


def entry(image: str, seed: int, questions: bool = True) -> dict:
    """An image with captions and, if wanted, questions of all three data sets."""
    words = ["dog", "man", "table", "red", "blue"]
    captions = [
        f"A {words[(seed + k) % 5]} near the {words[(seed + 2 * k + 1) % 5]} ." for k in range(2)
    ]
    found = {"img_id": image, "sentf": {"mscoco": captions}, "labelf": {}}
    if questions:
        found["sentf"] |= {
            "vqa": ["Is there a dog?", "How many men?"],
            "gqa": ["Who is red?"],
            "visual7w": ["What is blue?"],
        }
        found["labelf"] |= {
            "vqa": [{"yes": 1, "no": 0.3}, {"two": 0.9} if seed % 2 else {"many": 0.3}],
            "gqa": [{"a man": 1.0}],
            "visual7w": [{"The table.": 1.0}],
        }
    return found


def write_tsv(path: Path, images: Sequence[str], boxes: Sequence[int]) -> None:
    """A feature file as csv.writer of the original tools makes it; boxes: how many, in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(len(images))

    def text(array: np.ndarray) -> str:
        return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

    with open(path, "w", encoding="utf-8", newline="") as file:
        for place, image in enumerate(images):
            n = boxes[place % len(boxes)]
            corner = generator.uniform(0, 200, (n, 2))
            box = np.concatenate([corner, corner + generator.uniform(10, 100, (n, 2))], 1)
            cells = [
                image,
                "320",
                "400",
                text(generator.integers(0, 1600, n)),
                text(generator.uniform(0.2, 1, n).astype("f4")),
                text(generator.integers(0, 400, n)),
                text(generator.uniform(0.1, 1, n).astype("f4")),
                str(n),
                text(box.astype("f4")),
                text(np.maximum(generator.normal(size=(n, WIDTH)), 0).astype("f4")),
            ]
            file.write("\t".join(cells) + "\r\n")


def write_data(root: Path) -> PretrainingFiles:
    """Everything that upstream's script reads, and a vocabulary."""
    data, bert = root / "data", root / "bert"
    parts = {
        "mscoco_train": TRAIN,
        "mscoco_nominival": VAL[4:],
        "mscoco_minival": MINIVAL,
        "vgnococo": VG,
    }
    (data / "lxmert").mkdir(parents=True)
    sentences = []
    for name, images in parts.items():
        rows = [entry(image, seed) for seed, image in enumerate(images)]
        (data / "lxmert" / f"{name}.json").write_text(json.dumps(rows))
        sentences += [s for row in rows for found in row["sentf"].values() for s in found]
    (data / "lxmert" / "all_ans.json").write_text(
        json.dumps([{"ans": answer, "dsets": sets} for answer, sets in ANSWERS])
    )
    write_tsv(data / "mscoco_imgfeat" / "train2014_obj36.tsv", TRAIN, (4,))
    write_tsv(data / "mscoco_imgfeat" / "val2014_obj36.tsv", VAL, (4,))
    write_tsv(data / "vg_gqa_imgfeat" / "vg_gqa_obj36.tsv", VG, (4, 2, 5))
    bert.mkdir()
    (bert / "vocab.txt").write_text("\n".join(small_vocabulary(sentences)) + "\n")
    return PretrainingFiles(data, bert)


def write_store(
    path: Path,
    images: Sequence[str],
    width: int = 5,
    boxes: Sequence[int] = (3, 2),
    classes: tuple[int, int] = (4, 3),
) -> RegionFeatures:
    """A small feature store; every region's feature vector is different from all others."""
    generator = np.random.default_rng(7)
    with RegionFeatureWriter(
        path,
        width,
        "float32",
        detector="test",
        box_policy="all",
        optional=["object_ids", "object_conf", "attribute_ids", "attribute_conf"],
    ) as writer:
        for place, image in enumerate(images):
            n = boxes[place % len(boxes)]
            corner = generator.uniform(0, 50, (n, 2))
            writer.add(
                image,
                100,
                100,
                np.concatenate([corner, corner + 20], 1).astype("f4"),
                generator.uniform(0.5, 1, (n, width)).astype("f4"),
                object_ids=generator.integers(0, classes[0], n).astype("i4"),
                object_conf=generator.uniform(0.2, 1, n).astype("f4"),
                attribute_ids=generator.integers(0, classes[1], n).astype("i4"),
                attribute_conf=generator.uniform(0.2, 1, n).astype("f4"),
            )
        return writer.finish()


def task_maker(
    folder: Path,
    rows: Sentences,
    answers: Sequence[str],
    seed: int = 3,
    boxes: Sequence[int] = (3, 2),
) -> Callable[..., PretrainingTask]:
    """Builds tasks on some sentences, which are to train and to validate on.

    Features are 5 wide; there are 4 object and 3 attribute classes.
    """
    store = write_store(folder / "store", rows.image_ids, boxes=boxes)
    (folder / "vocab.txt").write_text("\n".join(small_vocabulary(rows.texts())) + "\n")
    tokenizer, data = (
        Tokenizer(folder),
        PretrainingData(rows, rows, FeatureSources([store]), answers),
    )

    def make(objectives: Objectives, **changes: object) -> PretrainingTask:
        changes = {"seed": seed, "progress": False} | changes
        return PretrainingTask(
            data, tokenizer, objectives, {"obj": 4, "attr": 3}, make_runtime("cpu"), **changes
        )

    return make
