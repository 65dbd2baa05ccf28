"""VL-BERT with LayerDrop, by its commands: trained, stopped, pruned."""

import pytest
import torch

from common.training.checkpoint import load_checkpoint, load_meta
from tests.vlbert.runs import FOLDER, flags, refused, result_of, write_config, write_training_data
from vlbert.finetuning import main
from vlbert.testing import main as evaluate


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(write_training_data(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("layerdrop")
    assert main(flags(config, out, "--layerdrop", "0.4")) == 0
    return out


def best(out):
    return out / FOLDER / "BEST.safetensors"


def words_of_test(config, checkpoint, out):
    words = ["--cfg", str(config), "--ckpt", str(checkpoint), "--result-path", str(out)]
    return [*words, "--gpus", "cpu", "--quiet", "--split", "val2014"]


def test_a_stopped_run_goes_on_bit_for_bit(config, whole, tmp_path, capsys):
    run = flags(config, tmp_path)
    assert main([*run, "--layerdrop", "0.4", "--max-steps", "1"]) == 0
    assert "LAYERDROP" in refused(capsys, [*run, "--layerdrop", "0.1", "--resume"])
    assert main([*run, "--layerdrop", "0.4", "--resume"]) == 0
    ours, theirs = (load_checkpoint(best(out))[0]["model"] for out in (whole, tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_full_checkpoint_is_tested_whole_and_pruned(config, whole, tmp_path, capsys):
    words = words_of_test(config, best(whole), tmp_path)
    found = result_of(whole)["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(words) == 0
    assert f"{found:.2f}" in capsys.readouterr().out
    assert evaluate([*words, "--prune", "1"]) == 0
    assert "--prune 1: without the layers" in capsys.readouterr().out
    assert "is no layer" in refused(capsys, [*words, "--prune", "layer.77"], evaluate)


def test_a_model_that_starts_pruned_is_tested_as_it_is(config, tmp_path, capsys):
    assert main(flags(config, tmp_path / "run", "--prune", "1")) == 0
    assert load_meta(best(tmp_path / "run"))["pruned"] == "1"
    found = result_of(tmp_path / "run")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(words_of_test(config, best(tmp_path / "run"), tmp_path / "test")) == 0
    assert f"{found:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "LAYERDROP.RATE=1.0"], "section LAYERDROP: LayerDrop rate 1.0"),
        (["--layerdrop-count", "2"], "LayerDrop of 2 layers of each stack"),
    ],
)
def test_wrong_values_are_refused(config, tmp_path, capsys, words, message):
    assert message in refused(capsys, flags(config, tmp_path, *words))
