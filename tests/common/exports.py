"""How the tests of all backbones export runs, and what an exported model has to agree with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common import export
from common.data.vqa_dataset import VQADataset
from common.runs.backbones import OpenedRun
from common.runs.opened_run import training_questions
from tests.common.refusals import error_of


def exported(run: Path, out: Path, *flags: str) -> Path:
    """Export a run, on the CPU."""
    words = ["--run", str(run), "--out", str(out), "--gpus", "cpu", "--quiet", *flags]
    assert export.main(words) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The error of an export that has to fail and to leave nothing behind."""
    return error_of(capsys, export.main, [*flags, "--gpus", "cpu", "--quiet"])


@torch.no_grad()
def logits(model: nn.Module, run: OpenedRun, data: VQADataset) -> Tensor:
    """(questions, A), in float64."""
    inputs = run.make_inputs(data.read(range(len(data))))
    doubled = {
        name: x.double() if x is not None and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    return model.double().eval()(**doubled)


@torch.no_grad()
def majority(run: OpenedRun) -> Tensor:
    """(D,) of 0 / 1: what most training questions choose, asked one by one."""
    data, part = training_questions(run), run.adaptive
    part.options.policy_eval = "argmax"
    decided = []
    for place in range(len(data)):
        run.model(**run.make_inputs(data.read([place])))
        decided.append(part.last.decisions)
    return (torch.cat(decided).mean(0) > 0.5).float()
