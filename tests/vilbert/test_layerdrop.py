"""ViLBERT with LayerDrop, by its commands: trained, stopped, pruned."""

import pytest

from common.training.checkpoint import load_meta
from tests.lxmert.runs import same_state, strict_json
from tests.vilbert.runs import refused
from vilbert.finetuning import evaluate, train


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("layerdrop")
    assert train(files.run(out, "--layerdrop", "0.4")) == 0
    return out


def test_a_stopped_run_goes_on_bit_for_bit(files, whole, tmp_path, capsys):
    run = files.run(tmp_path)
    assert train([*run, "--layerdrop", "0.4", "--max-steps", "2"]) == 0
    assert "layerdrop" in refused(capsys, [*run, "--layerdrop", "0.1", "--resume"])
    assert train([*run, "--layerdrop", "0.4", "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_full_checkpoint_is_tested_whole_and_pruned(files, whole, tmp_path, capsys):
    words = files.test(whole / "BEST", tmp_path)
    found = strict_json(whole / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(words) == 0
    assert f"overall {found:.2f}" in capsys.readouterr().out
    assert evaluate([*words, "--prune", "1"]) == 0
    assert "--prune 1: without the layers" in capsys.readouterr().out
    assert "is no layer" in refused(capsys, [*words, "--prune", "lang.77"], evaluate)


def test_a_model_that_starts_pruned_is_tested_as_it_is(files, tmp_path, capsys):
    assert train(files.run(tmp_path / "run", "--prune", "every_other")) == 0
    assert load_meta(tmp_path / "run" / "BEST.safetensors")["pruned"] == "every_other"
    found = strict_json(tmp_path / "run" / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert evaluate(files.test(tmp_path / "run" / "BEST", tmp_path / "out")) == 0
    assert f"overall {found:.2f}" in capsys.readouterr().out
