"""How the tests run LXMERT's VQA command, and how they compare what runs leave behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.data.annotations import read_lxmert_json
from common.data.vqa_metric import Scores, score
from common.training.checkpoint import load_checkpoint
from lxrt.finetuning import main
from tests.common.refusals import error_of

ADAPTIVE = ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop", "BlockReplace")
DROPOUT_RUN = ["--strategy", "SpotTune_Block", "--dropout", "0.2", "--epochs", "2"]
TIMES = ("seconds", "step_seconds")


def small_run(vqa_data: Path, pretrained: Path) -> list[str]:
    """Flags of a run of 4 steps an epoch on 64 questions, without plots."""
    return [
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--size",
        "small",
        "--gpus",
        "cpu",
        "--loadLXMERTQA",
        str(pretrained),
        "--questions",
        "64",
        "--batchSize",
        "16",
        "--epochs",
        "1",
        "--quiet",
        "--no-plots",
        "--no-tensorboard",
    ]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one error of a command that has to fail with exit status 2."""
    return error_of(capsys, main, arguments)


def strict_json(path: Path) -> Any:
    """JSON without NaN and Infinity, which the standard does not have."""

    def not_json(word: str) -> None:
        raise AssertionError(f"{path}: {word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=not_json)


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a checkpoint's state, by path; wall-clock times left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in TIMES:
                yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from tensors(item, f"{name}.{place}")
    else:
        yield name, value


def same_state(a: Path, b: Path) -> int:
    """Compare two checkpoints bit for bit; returns how many values they have."""
    ours, theirs = (dict(tensors(load_checkpoint(path)[0])) for path in (a, b))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        equal = (
            torch.equal(value, theirs[name])
            if isinstance(value, Tensor)
            else bool((value == theirs[name]).all())
            if hasattr(value, "all")
            else value == theirs[name]
        )
        assert equal, f"{name} differs"
    return len(ours)


def score_of_predictions(file: Path, data: Path) -> Scores:
    """Accuracy on minival of predictions in the EvalAI form."""
    predictions = {row["question_id"]: row["answer"] for row in strict_json(file)}
    return score(predictions, read_lxmert_json(data / "vqa" / "minival.json"))
