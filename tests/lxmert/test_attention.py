"""LXMERT with mechanisms of attention, by its real command: trained, stopped, tested, exported."""

import pytest
import torch

from common.export import main as export
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.finetuning import main
from tests.lxmert.runs import refused, same_state, small_run, strict_json

ON = ("--attention", "entmax", "--span", "distance", "--span-init", "0.6", "--span-loss", "0.5")
RUN = (*ON, "--strategy", "SpotTune_Block", "--epochs", "2")


@pytest.fixture(scope="module")
def run(vqa_data, pretrained):
    return [*small_run(vqa_data, pretrained), *RUN]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("attention")
    assert main([*run, "--output", str(out)]) == 0
    return out


def test_spans_and_alpha_are_learned_and_recorded(whole):
    epochs = strict_json(whole / "result.json")["epochs"]
    assert "span" in epochs[0]["train_losses"]
    first, last = (epoch["attention"] for epoch in epochs)
    assert set(first) == set(last) and len(first) == 2 + 2 + 2 * 3 - 1  # one cannot matter
    spans = [torch.tensor([e["span"] for e in epoch.values()]) for epoch in (first, last)]
    assert float(spans[1].mean()) < float(spans[0].mean()) < 0.6
    saved = load_meta(whole / "BEST.safetensors")["strategy_flags"]["attention"]
    assert (saved["normaliser"], saved["span"], saved["initial_span"]) == (
        "entmax",
        "distance",
        0.6,
    )


def test_a_stopped_run_goes_on_bit_for_bit(run, whole, tmp_path, capsys):
    run = [*run, "--output", str(tmp_path)]
    assert main([*run, "--max-steps", "2"]) == 0
    assert "attention" in refused(capsys, *run, "--resume", "--alpha-init", "1.5")
    assert main([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_checkpoint_brings_its_mechanism(run, whole, tmp_path, capsys):
    words = [*run[: run.index("--loadLXMERTQA")], "--load", str(whole / "BEST")]
    words += ["--test", "minival", "--quiet", "--output", str(tmp_path)]
    found = strict_json(whole / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert main(words) == 0
    assert f"{found:.2f}" in capsys.readouterr().out
    message = refused(capsys, *words, "--attention", "sparsemax")
    assert "strategy_flags.attention" in message


def test_an_exported_run_keeps_its_mechanism(whole, tmp_path, capsys):
    words = ["--run", str(whole), "--out", str(tmp_path / "out"), "--gpus", "cpu", "--quiet"]
    assert export(words) == 0
    state = load_checkpoint(tmp_path / "out" / "model.safetensors")[0]["model"]
    assert sum("weighting" in name for name in state) == 2 * 10
    assert not (tmp_path / "out" / "transformers").exists()
    capsys.readouterr()
    assert export([*words, "--overwrite", "--format", "transformers"]) == 2
    assert "transformers knows softmax over all keys alone" in capsys.readouterr().err


def test_flags_without_a_meaning_are_refused(run, tmp_path, capsys):
    base = [*run[: -len(RUN)], "--output", str(tmp_path)]
    assert "--span-init 0.5 needs --span" in refused(capsys, *base, "--span-init", "0.5")
