"""`--policy-training started` through LXMERT's command: a new head, resuming, what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.training.checkpoint import load_checkpoint
from lxrt.finetuning import main
from tests.lxmert.runs import small_run, strict_json

STARTED = ["--strategy", "SpotTune_Block", "--policy-training", "started", "--policy-start", "2"]


@pytest.fixture
def flags(vqa_data: Path, pretrained: Path) -> list[str]:
    return [*small_run(vqa_data, pretrained), *STARTED]


def policy_of(folder: Path) -> dict:
    """How the policy of a run was trained, as its checkpoint says."""
    _, meta = load_checkpoint(folder / "LAST.safetensors")
    return meta["training"]["policy"]


def test_a_pretrained_head_needs_no_warm_up(flags, tmp_path, capsys):
    assert main([*flags, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "policy taught in 2 passes" in said and " new: " not in said
    assert policy_of(tmp_path) == {"warmup": 0.0, "start": 2, "hold": 1.0, "review": 0}
    assert strict_json(tmp_path / "result.json")["variant"] == "started"


def test_a_new_head_learns_before_what_is_pretrained_is_measured(flags, tmp_path, capsys):
    place = flags.index("--loadLXMERTQA")
    fresh = [*flags[:place], "--loadLXMERT", *flags[place + 1 :], "--epochs", "3"]
    assert main([*fresh, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "are new: in the first 10% of the steps" in said and "logit_fc" in said
    assert said.index("are new") < said.index("policy taught") < said.index("Epoch 0")
    assert policy_of(tmp_path)["warmup"] == 0.1


def test_it_goes_on_with_the_flags_that_it_was_started_with(flags, tmp_path, capsys):
    assert main([*flags, "--output", str(tmp_path), "--max-steps", "2"]) == 0
    assert main([*flags, "--output", str(tmp_path), "--resume", "--policy-start", "3"]) == 2
    assert "policy" in capsys.readouterr().err
    assert main([*flags, "--output", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "result.json").is_file()
