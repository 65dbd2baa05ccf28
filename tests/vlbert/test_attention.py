"""VL-BERT with mechanisms of attention, by its commands: trained, stopped, tested, exported."""

import pytest
import torch
import yaml

from common.export import main as export
from common.training.checkpoint import load_checkpoint, load_meta
from tests.vlbert.runs import FOLDER, flags, refused, result_of, write_config, write_training_data
from vlbert.finetuning import main
from vlbert.testing import main as evaluate

ON = ("--attention", "entmax", "--span-over", "keys", "--span-init", "0.6", "--span-loss", "0.5")
ON += ("--span-policy",)
RUN = (*ON, "--strategy", "SpotTune_Block", "--epochs", "2")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(write_training_data(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("attention")
    assert main(flags(config, out, *RUN)) == 0
    return out


def weights(out, name="BEST"):
    return load_checkpoint(out / FOLDER / f"{name}.safetensors")[0]["model"]


def test_spans_and_alpha_are_learned_and_recorded(whole):
    epochs = result_of(whole)["epochs"]
    assert "span" in epochs[0]["train_losses"]
    first, last = (epoch["attention"] for epoch in epochs)
    assert all("span_sd" in entry for entry in last.values())
    assert set(first) == set(last) and len(first) == 2
    spans = [torch.tensor([e["span"] for e in epoch.values()]) for epoch in (first, last)]
    assert float(spans[1].mean()) < float(spans[0].mean()) < 0.6
    assert load_meta(whole / FOLDER / "BEST.safetensors")["strategy_flags"]["attention"] == {
        "normaliser": "entmax",
        "span": "keys",
        "ramp": 0.25,
        "initial_span": 0.6,
        "initial_alpha": 1.1,
        "span_policy": True,
    }
    # α, span, weight and bias of what moves it
    assert sum("weighting" in name and "twins" in name for name in weights(whole)) == 2 * 4


def test_a_stopped_run_goes_on_bit_for_bit(config, whole, tmp_path, capsys):
    run = flags(config, tmp_path, *RUN)
    assert main([*run, "--max-steps", "2"]) == 0
    assert "ATTENTION" in refused(capsys, [*run, "--resume", "--alpha-init", "1.5"])
    assert main([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        ours, theirs = weights(tmp_path, name), weights(whole, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_brings_its_mechanism(config, whole, tmp_path, capsys):
    words = ["--cfg", str(config), "--ckpt", str(whole / FOLDER / "BEST.safetensors")]
    words += ["--result-path", str(tmp_path), "--gpus", "cpu", "--quiet", "--split", "val2014"]
    words += ["--strategy", "SpotTune_Block"]
    found = result_of(whole)["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(words) == 0
    assert f"{found:.2f}" in capsys.readouterr().out
    words += ["--set", "ATTENTION.NORMALISER=sparsemax"]
    assert "strategy_flags.attention" in refused(capsys, words, evaluate)


def test_an_exported_run_keeps_its_mechanism(whole, tmp_path):
    words = ["--run", str(whole / FOLDER), "--out", str(tmp_path / "out"), "--gpus", "cpu"]
    assert export([*words, "--quiet"]) == 0
    state = load_checkpoint(tmp_path / "out" / "model.safetensors")[0]["model"]
    assert sum("weighting" in name for name in state) == 2 * 4
    assert any("span_policy" in name for name in state)


def test_a_config_says_the_same_as_the_flags(config, tmp_path):
    tree = yaml.safe_load(config.read_text())
    tree["ATTENTION"] = {"NORMALISER": "entmax15", "SPAN": "keys", "SPAN_INIT": 0.5}
    own = config.parent / "attention.yaml"
    own.write_text(yaml.safe_dump(tree))
    assert main(flags(own, tmp_path, "--span-ramp", "0.5")) == 0
    found = tmp_path / FOLDER.replace("tiny", "attention") / "BEST.safetensors"
    saved = load_meta(found)["strategy_flags"]["attention"]
    assert (saved["normaliser"], saved["initial_span"], saved["ramp"]) == ("entmax15", 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--span-init", "0.5"], "--span-init 0.5 needs --span-over keys or distance"),
        (["--alpha-init", "1.5"], "--alpha-init 1.5 needs --attention entmax"),
        (["--set", "ATTENTION.SPAN_RAMP=0"], "section ATTENTION: span ramp"),
        (["--set", "ATTENTION.SPAN=window"], "ATTENTION.SPAN"),
    ],
)
def test_values_without_a_meaning_are_refused(config, tmp_path, capsys, words, message):
    assert message in refused(capsys, flags(config, tmp_path, *words))
