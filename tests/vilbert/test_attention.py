"""Spans and entmax by flags: trained, resumed, tested, exported."""

from __future__ import annotations

import pytest
import torch

from common.export import main as export
from common.training.checkpoint import load_checkpoint, load_meta
from tests.lxmert.runs import same_state, strict_json
from tests.vilbert.runs import refused
from vilbert.finetuning import evaluate, train

FLAGS = (
    "--attention",
    "entmax",
    "--span-over",
    "distance",
    "--span-init",
    "0.6",
    "--span-loss",
    "0.5",
    "--span-policy",
)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("attention")
    assert train(files.run(out, *FLAGS, "--strategy", "SpotTune_Block", "--epochs", "2")) == 0
    return out


def test_spans_and_alpha_are_learned_and_recorded(whole):
    epochs = strict_json(whole / "result.json")["epochs"]
    assert "span" in epochs[0]["train_losses"]
    first, last = (epoch["attention"] for epoch in epochs)
    assert set(first) == set(last) and len(first) == 3 + 2 + 2 * 2
    spans = [torch.tensor([e["span"] for e in epoch.values()]) for epoch in (first, last)]
    assert float(spans[1].mean()) < float(spans[0].mean()) < 0.6
    assert all(1.01 <= alpha <= 2 for entry in last.values() for alpha in entry["alpha"])
    meta = load_meta(whole / "BEST.safetensors")["strategy_flags"]["attention"]
    assert meta == {
        "normaliser": "entmax",
        "span": "distance",
        "ramp": 0.25,
        "initial_span": 0.6,
        "initial_alpha": 1.1,
        "span_policy": True,
    }
    state = load_checkpoint(whole / "BEST.safetensors")[0]["model"]
    assert sum("weighting" in name and "twins" in name for name in state) == 4 * 9


def test_a_checkpoint_brings_its_mechanism(files, whole, tmp_path, capsys):
    found = strict_json(whole / "result.json")["accuracy"]["val"]["overall"]
    assert evaluate(files.test(whole / "BEST", tmp_path)) == 0
    assert f"SpotTune_Block: overall {found:.2f}" in capsys.readouterr().out
    words = files.test(whole / "BEST", tmp_path, "--attention", "sparsemax")
    assert "strategy_flags.attention" in refused(capsys, words, evaluate)


def test_a_stopped_run_goes_on_bit_for_bit(files, whole, tmp_path, capsys):
    run = files.run(tmp_path, *FLAGS, "--strategy", "SpotTune_Block", "--epochs", "2")
    assert train([*run, "--max-steps", "2"]) == 0
    assert "attention" in refused(capsys, [*run, "--resume", "--alpha-init", "1.5"])
    assert train([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_plain_strategy_with_a_mechanism_is_tested_and_trained_further(files, tmp_path, capsys):
    assert train(files.run(tmp_path / "run", "--attention", "entmax15", "--span-over", "keys")) == 0
    found = strict_json(tmp_path / "run" / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(files.test(tmp_path / "run" / "BEST", tmp_path / "out")) == 0
    assert f"standard: overall {found:.2f}" in capsys.readouterr().out


def test_an_exported_run_keeps_its_mechanism(files, whole, tmp_path, capsys):
    words = ["--run", str(whole), "--out", str(tmp_path / "out"), "--gpus", "cpu", "--quiet"]
    assert export(words) == 0
    assert evaluate(files.test(tmp_path / "out" / "model", tmp_path / "answers")) == 0
    state = load_checkpoint(tmp_path / "out" / "model.safetensors")[0]["model"]
    assert sum("weighting" in name for name in state) == 4 * 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--span-init", "0.5"], "--span-init 0.5 needs --span-over keys or distance"),
        (["--span-ramp", "0.5"], "--span-ramp 0.5 needs --span-over keys or distance"),
        (["--alpha-init", "1.5"], "--alpha-init 1.5 needs --attention entmax"),
        (["--span-loss", "0.5"], "--span-loss 0.5 needs --span-over keys or distance"),
        (
            ["--attention", "entmax15", "--attention-lr", "0.1"],
            "--attention-lr 0.1 needs --span-over or --attention entmax",
        ),
        (["--span-over", "keys", "--span-init", "2"], "initial span 2.0"),
        (["--span-over", "keys", "--span-ramp", "0"], "span ramp 0.0"),
        (["--attention", "entmax", "--alpha-init", "1"], "initial alpha 1.0"),
        (["--span-over", "keys", "--span-loss", "-1"], "--span-loss -1.0: give a number"),
    ],
)
def test_flags_without_a_meaning_are_refused(files, tmp_path, capsys, flags, message):
    assert message in refused(capsys, files.run(tmp_path, *flags))
