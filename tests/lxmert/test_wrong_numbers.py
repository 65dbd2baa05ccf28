"""Numbers that are no numbers end in one error that says where; none passes for an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.ask import main as ask
from common.errors import CheckpointError, DataError
from common.tasks.vqa import check_logits, sample_key
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.optim import clip_grad_norm
from common.training.task import Validation
from common.training.weights import load_into
from lxrt.finetuning import main as lxmert
from tests.lxmert.runs import refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name_and_place(bad):
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    weights = {name: x + 1 for name, x in before.items()}
    weights["0.weight"][1, 2] = bad
    with pytest.raises(
        CheckpointError, match=rf"some file: tensor '0.weight' holds {bad:g} at \[1, 2\]"
    ):
        load_into(model, weights, what="some file")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_logits_that_are_not_finite_name_the_sample():
    logits = torch.zeros(3, 4)
    check_logits(logits, ["a", "b", "c"])
    logits[1, 2] = float("nan")
    with pytest.raises(DataError, match=r"^b: the model computes nan .*1 of 3 samples"):
        check_logits(logits, ["a", "b", "c"])


def test_text_ids_and_large_numbers_key_noise_by_all_that_they_are():
    names = ["train2014-0001234", "val2014-0001234", "0001234", 2**63, 2**63 + 1, "\ud800"]
    keys = [sample_key(name) for name in names]
    assert len(set(keys)) == len(keys) and all(-(2**63) <= key < 2**63 for key in keys)
    assert [sample_key(n) for n in (0, 7, 2**63 - 1)] == [0, 7, 2**63 - 1]
    assert torch.tensor(keys).dtype == torch.int64


def test_measuring_a_norm_that_overflows_leaves_finite_gradients_alone():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3e38)
    assert torch.isinf(clip_grad_norm([parameter], 0.0))
    assert torch.equal(parameter.grad, torch.full((4,), 3e38))
    parameter.grad = torch.full((4,), 3.0)
    assert clip_grad_norm([parameter], None) == 6 and clip_grad_norm([parameter], 1.0) == 6
    torch.testing.assert_close(parameter.grad.norm(), torch.tensor(1.0))


@pytest.fixture
def damaged(flags: list[str], tmp_path: Path) -> Path:
    """A finished run whose best weights have one NaN, with checksums that are right."""
    folder = tmp_path / "run"
    assert lxmert([*flags, "--strategy", "SpotTune_Block", "--output", str(folder)]) == 0
    path = folder / "BEST.safetensors"
    state, meta = load_checkpoint(path)
    state["model"]["logit_fc.3.weight"][0, 0] = float("nan")
    save_checkpoint(path, state, meta)
    return folder


def test_a_damaged_model_is_neither_tested_nor_asked(damaged, flags, vqa_data, capsys):
    data = flags[: flags.index("--size")]
    load = ["--load", str(damaged / "BEST"), "--test", "minival", "--output", str(damaged)]
    shown = refused(capsys, *data, "--gpus", "cpu", *load)
    assert "logit_fc.3.weight" in shown and "nan" in shown
    assert not (damaged / "minival_predict.json").exists()
    question = ["--image-id", "1", "--question", "what?"]
    assert ask(["--run", str(damaged), *question]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "logit_fc.3.weight" in shown and shown.count("\n") == 1


def test_a_validation_score_of_nan_ends_a_run_in_one_line(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "common.tasks.vqa.VQATask.validate", lambda *_: Validation(float("nan"), {})
    )
    shown = refused(capsys, *flags, "--output", str(tmp_path))
    assert "the validation score of epoch 0 is nan" in shown
    assert not (tmp_path / "BEST.safetensors").exists()
    assert not (tmp_path / "result.json").exists()
