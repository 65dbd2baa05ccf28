"""LXMERT with LayerDrop, by its command: trained, stopped, pruned."""

import pytest

from common.training.checkpoint import load_meta
from lxrt.finetuning import main
from tests.lxmert.runs import refused, same_state, small_run, strict_json


@pytest.fixture(scope="module")
def run(vqa_data, pretrained):
    return [*small_run(vqa_data, pretrained), "--layerdrop", "0.4"]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("layerdrop")
    assert main([*run, "--output", str(out)]) == 0
    return out


def words_of_test(run, checkpoint, out):
    words = [*run[: run.index("--loadLXMERTQA")], "--load", str(checkpoint)]
    return [*words, "--test", "minival", "--quiet", "--output", str(out)]


def test_a_stopped_run_goes_on_bit_for_bit(run, whole, tmp_path, capsys):
    run = [*run, "--output", str(tmp_path)]
    assert main([*run, "--max-steps", "2"]) == 0
    changed = ["0.1" if word == "0.4" else word for word in run]
    assert "layerdrop" in refused(capsys, *changed, "--resume")
    assert main([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_full_checkpoint_is_tested_whole_and_pruned(run, whole, tmp_path, capsys):
    words = words_of_test(run, whole / "BEST", tmp_path)
    found = strict_json(whole / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert main(words) == 0
    assert f"overall {found:.2f}" in capsys.readouterr().out
    assert main([*words, "--prune", "every_other"]) == 0
    assert "--prune every_other: without the layers lang.2" in capsys.readouterr().out
    assert "lang.9" in refused(capsys, *words, "--prune", "lang.9")


def test_a_model_that_starts_pruned_is_tested_as_it_is(run, tmp_path, capsys):
    plain = run[: run.index("--layerdrop")]
    assert main([*plain, "--prune", "1", "--output", str(tmp_path / "run")]) == 0
    meta = load_meta(tmp_path / "run" / "BEST.safetensors")
    assert meta["pruned"] == "1" and meta["config"]["l_layers"] == 1
    found = strict_json(tmp_path / "run" / "result.json")["accuracy"]["val"]["overall"]
    capsys.readouterr()
    assert main(words_of_test(run, tmp_path / "run" / "BEST", tmp_path / "test")) == 0
    assert f"overall {found:.2f}" in capsys.readouterr().out


def test_layers_of_an_adaptive_strategy_are_not_pruned(run, tmp_path, capsys):
    """Trained with LayerDrop and BlockDrop together, it is exported first."""
    out = ["--output", str(tmp_path / "run")]
    assert main([*run, "--strategy", "BlockDrop", *out]) == 0
    words = words_of_test(run, tmp_path / "run" / "BEST", tmp_path / "test")
    assert "python -m common.export" in refused(capsys, *words, "--prune", "1")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layerdrop", "1"], "LayerDrop rate 1.0"),
        (["--layerdrop", "0.1", "--layerdrop-count", "1"], "a rate, or a number of layers"),
        (["--layerdrop-count", "7"], "LayerDrop of 7 layers of each stack"),
    ],
)
def test_wrong_flags_are_refused(run, tmp_path, capsys, flags, message):
    base = [*run[: run.index("--layerdrop")], "--output", str(tmp_path), *flags]
    assert message in refused(capsys, *base)
