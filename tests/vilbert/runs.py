"""How the tests run ViLBERT's commands: data in the official layout, a tiny model, its files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from common.data.tokenizer import Tokenizer, small_vocabulary
from tests.common.data_files import annotation, question, write_official
from tests.common.lmdb_files import arrays, texts, write_lmdb
from tests.common.refusals import error_of
from vilbert.finetuning import train
from vilbert.heads import BertForMultiModalPreTraining
from vilbert.sizes import read_config
from vilbert.tasks import TASKS_FILE

WIDTH = 2048
TRAIN, VAL, TESTED = range(100, 124), range(200, 212), range(300, 304)
SIDES = ("left", "right", "above", "below")
ANSWERS = ["red", "blue", "green", "grey", "pink", "ball", "box", "cone", "ring", "star"]
MINIVAL = 16  # questions, in the tests that run in this process
PRETRAINED = "pytorch_model_9.bin"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "v_target_size": 7,
    "v_hidden_size": 24,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 20,
    "v_hidden_dropout_prob": 0.0,
    "v_attention_probs_dropout_prob": 0.0,
    "bi_hidden_size": 12,
    "bi_num_attention_heads": 2,
    "v_biattention_id": [0, 1],
    "t_biattention_id": [1, 2],
}
DROPOUT_RUN = ["--strategy", "SpotTune_Block", "--dropout", "0.2", "--epochs", "2"]
LAYERS = ["lang.1", "connection.1", "vision.1", "lang.2", "connection.2", "vision.2", "lang.3"]


@dataclass(frozen=True)
class TaskFiles:
    """Everything that a run of task 1 reads.

    Attributes:
        folder: of all files.
    """

    folder: Path

    @property
    def questions(self) -> Path:
        """The task's `dataroot`."""
        return self.folder / "VQA"

    @property
    def features(self) -> Path:
        """The LMDB."""
        return self.folder / "coco" / "trainval.lmdb"

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks.yml"

    @property
    def config(self) -> Path:
        return self.folder / "tiny.json"

    @property
    def pretrained(self) -> Path:
        """As the authors released it: without a vocabulary beside it."""
        return self.folder / PRETRAINED

    @property
    def bert(self) -> Path:
        """A BERT's folder; only its vocabulary."""
        return self.folder / "bert"

    def model(self) -> list[str]:
        """Flags of task and model."""
        return [
            *("--tasks_file", str(self.tasks), "--bert_model", str(self.bert)),
            *("--config_file", str(self.config), "--from_pretrained", str(self.pretrained)),
        ]

    def run(self, out: Path | str, *more: str) -> list[str]:
        """Flags of a run of 3 updates an epoch on 48 questions, without plots."""
        return [
            *self.model(),
            *("--gpus", "cpu", "--quiet", "--no-plots", "--no-tensorboard"),
            *("--questions", "48", "--batchSize", "16", "--epochs", "1", "--lr", "1e-3"),
            *("--output", str(out), *more),
        ]

    def test(self, load: Path | str, out: Path | str, *more: str) -> list[str]:
        """Flags of eval_tasks.py."""
        return [
            *("--tasks_file", str(self.tasks), "--bert_model", str(self.bert)),
            *("--from_pretrained", str(load), "--output", str(out), "--gpus", "cpu", "--quiet"),
            *more,
        ]


def answer_of(image: int, side: int) -> str:
    """What the task's files say: mostly two answers for a side."""
    return ANSWERS[8 + side % 2 if image % 5 == 0 else 2 * side + image % 2]


def asked_and_answered(images: Sequence[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Four questions about each image, and their annotations."""
    asked = [
        question(10 * image + n, image, question=f"what is {side} of it?")
        for image in images
        for n, side in enumerate(SIDES)
    ]
    answered = [
        annotation(
            q["question_id"],
            q["image_id"],
            answer_of(q["image_id"], q["question_id"] % 10),
            answer_type=("other", "number")[q["question_id"] % 2],
        )
        for q in asked
    ]
    return asked, answered


def write_questions(folder: Path) -> None:
    """The official files of VQA v2, in another order than that of the question ids."""
    parts = {"train2014": TRAIN, "val2014": VAL, "test2015": TESTED, "test-dev2015": TESTED[:2]}
    for part, images in parts.items():
        asked, answered = asked_and_answered(images)
        write_official(folder, part, asked[::-1], None if "test" in part else answered)


def region_record(image: int, write: Callable[..., Any]) -> Any:
    """Two to four regions whose features tell the image."""
    count = 2 + image % 3
    draw = np.random.default_rng(image)
    record = arrays(str(image), count)
    features = (draw.normal(size=(count, WIDTH)) * 0.5).astype(np.float32)
    if write is arrays:
        return record | {"features": features}
    row = texts(str(image), count)
    return row | {"features": texts("x", count, features=features)["features"]}


def write_features(path: Path, images: Sequence[int], write: Callable[..., Any] = arrays) -> Path:
    """An LMDB in one of the two forms."""
    return write_lmdb(path, {str(image): region_record(image, write) for image in images})


def write_task(path: Path, files: TaskFiles, name: str = "VQA", **changes: Any) -> Path:
    """A task file with the shipped section 1 about these files; `changes` of its keys."""
    section = yaml.safe_load(TASKS_FILE.read_text())["TASK1"]
    section |= {
        "name": name,
        "dataroot": str(files.questions),
        "features_h5path1": str(files.features),
        "max_region_num": 4,
    }
    path.write_text(yaml.safe_dump({"TASK1": section | changes}))
    return path


def write_pretrained(path: Path, config: Path, words: int) -> None:
    """A pretraining model's state dict under the original's names."""
    torch.manual_seed(7)
    model = BertForMultiModalPreTraining(
        read_config(config, v_feature_size=WIDTH, vocab_size=words)
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # So large that different questions and images get different answers.
            nn.init.normal_(module.weight, std=0.25 if module.in_features < WIDTH else 0.02)
    torch.save(model.state_dict(), path)


def write_bert(files: TaskFiles) -> None:
    """The text half of the pretrained model as a BERT's file, beside its vocabulary."""
    weights = torch.load(files.pretrained, weights_only=True)
    of_bert = ("bert.embeddings.", "bert.encoder.layer.")
    found = {n: x for n, x in weights.items() if n.startswith((*of_bert, "cls.predictions."))}
    torch.save(found, files.bert / "pytorch_model.bin")


def write_files(folder: Path) -> TaskFiles:
    """Questions, features, vocabulary, sizes, weights and the task file."""
    files = TaskFiles(folder)
    write_questions(files.questions)
    write_features(files.features, [*TRAIN, *VAL, *TESTED])
    files.bert.mkdir()
    words = small_vocabulary(f"what is {side} of it?" for side in SIDES)
    (files.bert / "vocab.txt").write_text("\n".join(words) + "\n")
    files.config.write_text(json.dumps(SIZES))
    write_pretrained(files.pretrained, files.config, len(Tokenizer(files.bert)))
    write_task(files.tasks, files)
    return files


def write_cache(folder: Path, answers: Sequence[str], part: str, images: Sequence[int]) -> None:
    """The original's `cache/`: its list of answers, and the targets of a part."""
    (folder / "cache").mkdir(exist_ok=True)
    (folder / "cache" / "trainval_label2ans.pkl").write_bytes(pickle.dumps(list(answers), 3))
    rows = [
        {
            "question_id": 10 * image + n,
            "image_id": image,
            "labels": [list(answers).index(answer_of(image, n))],
            "scores": [1.0],
        }
        for image in images
        for n in range(len(SIDES))
    ]
    (folder / "cache" / f"{part}_target.pkl").write_bytes(pickle.dumps(rows, 3))


def without(words: Sequence[str], *flags: str) -> list[str]:
    """A command line without some flags and their values."""
    places = {words.index(flag) for flag in flags}
    return [word for n, word in enumerate(words) if n not in places and n - 1 not in places]


def refused(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], command: Any = train
) -> str:
    """The one error of a command that has to fail with exit status 2."""
    return error_of(capsys, command, arguments)
