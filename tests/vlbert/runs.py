"""How the tests run VL-BERT's commands: data in the official layout, a tiny config, released files.

The data are those of `tests.vlbert.coco_files`, with enough questions to train on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.files import repository_root
from tests.common.data_files import annotation, question, write_json, write_official
from tests.common.refusals import error_of
from tests.vlbert.coco_files import ANSWERS, TEST, TRAINVAL, WORDS, record, write_features
from vlbert.finetuning import main
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.sizes import EncoderConfig, ImageConfig, PretrainingConfig

HOME = repository_root() / "VLBERT"
LIMIT = 240.0  # seconds: a hang fails
TRAIN, VAL, TESTED = range(100, 118), range(200, 206), range(300, 304)
SIZE = 16
ENCODER = {
    "visual_size": SIZE,
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "vocab_size": len(WORDS),
}
FOLDER = "output/vl-bert/vqa/tiny/train2014_train"


def write_training_data(folder: Path) -> Path:
    """data/coco with 18 + 6 + 4 images, two questions about each; half of train is held out."""
    for part, images in (("train2014", TRAIN), ("val2014", VAL), ("test2015", TESTED)):
        asked = [
            question(10 * i + n, i, question=f"what is {side}?")
            for i in images
            for n, side in enumerate(("left", "right"))
        ]
        answered = [
            annotation(
                q["question_id"],
                q["image_id"],
                ANSWERS[1 + (q["question_id"] * 7) % 5],
                answer_type=("yes/no", "other")[q["question_id"] % 2],
            )
            for q in asked
        ]
        write_official(folder / "vqa", part, asked, None if part == "test2015" else answered)
        name = "image_info_test2015" if part == "test2015" else f"instances_{part}"
        write_json(
            folder / "annotations" / f"{name}.json",
            {
                "images": [
                    {"file_name": f"COCO_{part}_{i:012d}.jpg", "width": 64, "height": 48, "id": i}
                    for i in images
                ]
            },
        )
    write_official(
        folder / "vqa",
        "test-dev2015",
        [question(10 * i, i, question="what is left?") for i in TESTED],
        None,
    )
    write_features(folder / TRAINVAL, {i: record(i, 2 + i % 2) for i in (*TRAIN, *VAL)})
    write_features(folder / TEST, {i: record(i) for i in TESTED})
    (folder / "vqa" / "answers_vqa.txt").write_text("\n".join(ANSWERS) + "\n")
    (folder / "bert").mkdir()
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    write_released(folder / "vl-bert-tiny-prec.model")
    return folder


def write_released(path: Path) -> None:
    """A pretrained model as the original's training wrote it."""
    torch.manual_seed(7)
    encoder = EncoderConfig(
        **ENCODER, visual_scale_text_init=1.0, visual_scale_object_init=1.0, visual_region_classes=5
    )
    image = ImageConfig(feature_size=6, final_dim=SIZE, waves=256)
    network = ResNetVLBERTForPretraining(PretrainingConfig(encoder, image))
    torch.save(
        {
            "state_dict": {f"module.{k}": v for k, v in network.state_dict().items()},
            "optimizer": {},
        },
        path,
    )


def write_config(folder: Path, base: str = "vqa/base_4x16G_fp32.yaml", **changes: Any) -> Path:
    """`tiny.yaml` on those data; in `changes` __ stands for a point."""
    encoder = ENCODER | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tree = {
        "BASE": str(HOME / "cfgs" / base),
        "NUM_WORKERS_PER_GPU": 0,
        "HOLDOUT": 0.4,
        "DATASET": {
            "DATASET_PATH": str(folder),
            "ANSWER_VOCAB_SIZE": len(ANSWERS),
            "ANSWER_VOCAB_FILE": str(folder / "vqa" / "answers_vqa.txt"),
        },
        "NETWORK": {
            "PARTIAL_PRETRAIN": str(folder / "vl-bert-tiny-prec.model"),
            "BERT_MODEL_NAME": str(folder / "bert"),
            "IMAGE_FINAL_DIM": SIZE,
            "CLASSIFIER_DROPOUT": 0.0,
            "IMAGE_DROPOUT": 0.0,
            "VLBERT": {**encoder, "FROZEN_LAYERS": [0]},
        },
        "POLICY": {
            "NETWORK": "small",
            "LR": 1e-3,
            "WARMUP_STEPS": 1,
            "IMAGE_FINAL_DIM": SIZE,
            "VLBERT": {**encoder, "num_hidden_layers": 1},
        },
        "TRAIN": {"BATCH_IMAGES": 4, "END_EPOCH": 1, "LR": 1e-3, "WARMUP_STEPS": 1},
        "VAL": {"BATCH_IMAGES": 8},
        "TEST": {"BATCH_IMAGES": 8},
    }
    for name, value in changes.items():
        place = tree
        *sections, key = name.split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def flags(config: Path, out: Path, *more: str) -> list[str]:
    """Flags of a quiet run into a folder."""
    return [
        "--cfg",
        str(config),
        "--model-dir",
        str(out),
        "--gpus",
        "cpu",
        "--quiet",
        "--no-plots",
        *more,
    ]


def result_of(out: Path, folder: str = FOLDER) -> dict[str, Any]:
    """The result of a run."""
    return json.loads((out / folder / "result.json").read_text())


def refused(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], command: Any = main
) -> str:
    """The one error of a command that has to fail with exit status 2."""
    return error_of(capsys, command, arguments)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A launch script, in VLBERT/."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        ["bash", f"scripts/{name}.sh", *arguments],
        cwd=HOME,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
