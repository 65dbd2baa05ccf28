"""VL-BERT's pretraining data in the original files: small ones that the tests make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from common.data.tokenizer import small_vocabulary
from tests.vlbert.coco_files import WIDTH, record, zip_folder
from vlbert.pretraining import main
from vlbert.sizes import HOME

CLASSES = 5
IMAGES = {"train": range(1, 9), "val": range(21, 25)}
SIZE = 64, 48
NOUNS = ["dog", "cat", "horse", "bird", "table", "ball", "tree", "house"]
COLOURS = ["red", "green", "blue", "black"]
SENTENCES = {
    "bc1g.doc": [
        "the dog runs to the house .",
        "",
        "a bird sings in the tree",
        "the ball is red ,  and the table is not",
    ],
    "wiki.doc": ["horse", "", "a house has a table", "the cat is black ."],
}
BASES = {True: "base_prec_4x16G_fp32", False: "base_prec_withouttextonly_4x16G_fp32"}


def caption(image: int, place: int) -> list[str]:
    """Words that say something of an image; the same every time."""
    return ["a", COLOURS[image % 4], NOUNS[image % 8], "near", "the", NOUNS[(image + place) % 8]]


def rows(part: str) -> list[dict]:
    """Two captions for each image of a part."""
    return [
        {
            "image": f"{part}_image.zip@/{image:08d}.jpg",
            "caption": caption(image, place),
            "frcnn": f"{part}_frcnn.zip@/{image:08d}.json",
        }
        for image in IMAGES[part]
        for place in (1, 2)
    ]


def write_rows(folder: Path, part: str, values: Sequence[dict | str]) -> Path:
    """The JSON lines of a part; a text is written as it is."""
    path = folder / f"{part}_frcnn.json"
    path.write_text("".join(f"{v if isinstance(v, str) else json.dumps(v)}\n" for v in values))
    return path


def write_captions(folder: Path, zipped: bool = False) -> Path:
    """Both parts with features and images, in folders or in archives."""
    folder.mkdir(exist_ok=True)
    for part, images in IMAGES.items():
        write_rows(folder, part, rows(part))
        features, pictures = folder / f"{part}_frcnn", folder / f"{part}_image"
        features.mkdir()
        pictures.mkdir()
        for image in images:
            found = record(image, 2 + image % 3, classes=CLASSES, image_w=SIZE[0], image_h=SIZE[1])
            (features / f"{image:08d}.json").write_text(json.dumps(found))
            pixels = np.random.default_rng(image).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
            Image.fromarray(pixels).save(pictures / f"{image:08d}.jpg")
        if zipped:
            for path in (features, pictures):
                zip_folder(path)
                shutil.rmtree(path)
    return folder


@dataclass(frozen=True)
class PretrainingFiles:
    """A folder of captions, texts and a vocabulary."""

    data: Path

    def config(self, folder: Path, texts: bool = True, **changes: object) -> Path:
        """A config of a tiny model on these data; in `changes` __ stands for a point."""
        captions = {
            "DATASET": "conceptual_captions",
            "DATASET_PATH": str(self.data),
            "TRAIN_IMAGE_SET": "train",
            "VAL_IMAGE_SET": "val",
        }
        files = "+".join(str(self.data / name) for name in SENTENCES)
        corpus = {
            "DATASET": "general_corpus",
            "TRAIN_ANNOTATION_FILE": files,
            "SEQ_LEN": 12,
            "VAL_ANNOTATION_FILE": str(self.data / "bc1g.doc"),
            "MIN_SEQ_LEN": 10,
        }
        batch = [4, 4] if texts else 4
        vocabulary = len((self.data / "bert" / "vocab.txt").read_text().splitlines())
        tree = {
            "BASE": str(HOME / "cfgs" / "pretrain" / f"{BASES[texts]}.yaml"),
            "SIZE": "small",
            "OUTPUT_PATH": "out",
            "MODEL_PREFIX": "tiny",
            "NUM_WORKERS_PER_GPU": 0,
            "SCALES": [],
            "DATASET": [captions, corpus] if texts else captions,
            "NETWORK": {
                "BERT_MODEL_NAME": str(self.data / "bert"),
                "IMAGE_FINAL_DIM": 12,
                "VLBERT": {
                    "from_scratch": True,
                    "visual_size": 12,
                    "hidden_size": 12,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 16,
                    "vocab_size": vocabulary,
                    "visual_region_classes": CLASSES,
                    "max_position_embeddings": 64,
                },
            },
            "TRAIN": {
                "BATCH_IMAGES": batch,
                "END_EPOCH": 2,
                "LR": 1e-3,
                "WARMUP_STEPS": 2,
                "AUTO_RESUME": False,
            },
            "VAL": {"BATCH_IMAGES": batch},
            "TEST": {"BATCH_IMAGES": batch},
        }
        for name, value in changes.items():
            *sections, key = name.split("__")
            place = tree
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        path = folder / "tiny.yaml"
        folder.mkdir(exist_ok=True, parents=True)
        path.write_text(yaml.safe_dump(tree))
        return path

    def flags(self, folder: Path, *more: str, texts: bool = True, **changes: object) -> list[str]:
        """Arguments of a run whose output is in `folder`/out/tiny/train_train."""
        return [
            "--cfg",
            str(self.config(folder, texts, **changes)),
            "--model-dir",
            str(folder),
            "--gpus",
            "cpu",
            "--quiet",
            "--no-tensorboard",
            *more,
        ]


def write_all(folder: Path, zipped: bool = False) -> PretrainingFiles:
    """Captions, texts, vocabulary."""
    write_captions(folder, zipped)
    for name, lines in SENTENCES.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "bert").mkdir()
    words = [" ".join(row["caption"]) for part in IMAGES for row in rows(part)]
    vocabulary = small_vocabulary([*words, *(line for s in SENTENCES.values() for line in s)])
    (folder / "bert" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return PretrainingFiles(folder)


def out(folder: Path) -> Path:
    """Where the run of `PretrainingFiles.flags` writes to."""
    return folder / "out" / "tiny" / "train_train"


def refused_pretraining(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The error of a pretraining command that has to fail with exit status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("error: ") == 1 and "Traceback" not in shown
    return shown


__all__ = [
    "CLASSES",
    "IMAGES",
    "SENTENCES",
    "WIDTH",
    "PretrainingFiles",
    "out",
    "refused_pretraining",
    "rows",
    "write_all",
    "write_captions",
    "write_rows",
]
