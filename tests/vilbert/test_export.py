"""Exported runs: the plain model answers as the global evaluation of the adaptive one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from common.adapt.adapting import adaptive_part
from common.data.datasets import load_split, open_features
from common.data.vqa_dataset import VQADataset
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint, load_meta
from tests.common.exports import exported, logits, majority, refused
from tests.lxmert.runs import strict_json
from tests.vilbert.runs import LAYERS, TaskFiles, without
from vilbert.building import make_model
from vilbert.finetuning import evaluate, train
from vilbert.tasks import chosen_tasks
from vilbert.vqa_data import task_dataset

MERGED = ("SpotTune", "BlockDrop")  # all of them, on every family: adapt/test_merge.py
MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(files: TaskFiles, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Trains a run when it is first asked for; its weights move far from the twins'."""
    made: dict[tuple[str, ...], Path] = {}

    def make(strategy: str, *flags: str) -> Path:
        key = (strategy, *flags)
        if key not in made:
            out = tmp_path_factory.mktemp(strategy)
            rates = ["--learning_rate", "2e-2", "--epochs", "2"]
            rates += [] if strategy == "standard" else ["--policy-lr", "2e-2"]
            # Its decisions are neither all 0 nor all 1 here.
            rates += ["--policy-training", "published"] if strategy.startswith("SpotTune") else []
            assert train(files.run(out, *rates, "--strategy", strategy, *flags)) == 0
            made[key] = out
        return made[key]

    return make


def minival(files: TaskFiles) -> VQADataset:
    dataset = task_dataset(chosen_tasks("1", files.tasks)[0], "vqa", None)
    features = open_features(dataset, "minival")
    return VQADataset(load_split(dataset, "minival"), features, dataset.vocabulary())


def plain(out: Path) -> nn.Module:
    """The exported model, built from nothing but its own file."""
    state, meta = load_checkpoint(out / "model.safetensors")
    model = make_model(meta)
    model.load_state_dict(state["model"], strict=True)
    return model


@pytest.mark.parametrize("strategy", MERGED)
def test_the_exported_model_gives_the_logits_of_the_global_evaluation(
    runs, files, tmp_path, strategy
):
    """In float64."""
    out = exported(runs(strategy), tmp_path / "out")
    run, data = open_run(runs(strategy)), minival(files)
    decisions = majority(run)
    record = strict_json(out / "export.json")
    assert record["decisions"]["global"] == decisions.tolist()
    assert record["decisions"]["from"] == "48 training questions"
    assert 0 < decisions[run.adaptive.live].mean() < 1
    run.adaptive.options.policy_eval = "global"
    run.adaptive.global_decisions.copy_(decisions)
    model = plain(out)
    assert adaptive_part(model) is None
    expected = logits(run.model, run, data)
    torch.testing.assert_close(logits(model, run, data), expected, rtol=0, atol=1e-11)
    run.adaptive.global_decisions.fill_(1.0)
    assert (logits(run.model, run, data) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("strategy", MERGED)
def test_evaluating_the_export_gives_the_accuracy_of_the_global_evaluation(
    runs, files, tmp_path, strategy, capsys
):
    """A run evaluated globally keeps its decisions: no data are needed."""
    run = runs(strategy, "--policy-eval", "global")
    out = exported(run, tmp_path / "out", "--data", str(tmp_path / "no data"))
    shown = capsys.readouterr().out
    assert f"python eval_tasks.py --from_pretrained {out}/model.safetensors" in shown
    assert evaluate(files.test(out / "model.safetensors", tmp_path / "test")) == 0
    found = strict_json(run / "result.json")["accuracy"]["val"]["overall"]
    assert f"minival of vqa, standard: overall {found:.2f}" in capsys.readouterr().out
    of_run = files.test(run / "BEST", tmp_path / "run", "--policy-eval", "global")
    assert evaluate(of_run) == 0
    ours, theirs = (strict_json(tmp_path / f / "minival_others.json") for f in ("test", "run"))
    assert ours == theirs and len({tuple(row["answer"]) for row in ours}) > 1


def test_the_k_most_used_layers_make_a_model_of_k_layers(runs, tmp_path):
    """Connections keep their places before the layers that are left."""
    out = exported(runs("BlockDrop"), tmp_path / "out", "--global-k", "4")
    record = strict_json(out / "export.json")
    chosen = [n for n, keep in zip(LAYERS, record["decisions"]["global"], strict=True) if keep]
    assert len(chosen) == 4 and len(record["merged"]["dropped"]) == 3
    config = load_meta(out / "model.safetensors")["config"]
    assert config["num_hidden_layers"] == sum(n.startswith("lang") for n in chosen)
    assert config["v_num_hidden_layers"] == sum(n.startswith("vision") for n in chosen)
    assert len(config["t_biattention_id"]) == sum(n.startswith("connection") for n in chosen)


def test_a_run_that_decides_nothing_exports_its_weights(runs, tmp_path, capsys):
    run = runs("standard")
    out = exported(run, tmp_path / "out")
    assert "nothing was decided" in capsys.readouterr().out
    best, state = (
        load_checkpoint(file)[0]["model"]
        for file in (run / "BEST.safetensors", out / "model.safetensors")
    )
    assert best.keys() == state.keys()
    assert all(torch.equal(state[name], x) for name, x in best.items())
    for name in ("answers.json", "vocab.txt"):
        assert (out / name).read_text() == (run / name).read_text()


def test_an_export_starts_another_run(runs, files, tmp_path):
    """As a finetuned model of plain layers."""
    out = exported(runs("BlockDrop"), tmp_path / "out", "--global-k", "5")
    words = files.run(tmp_path / "run", "--load", str(out / "model.safetensors"))
    assert train([*without(words, "--from_pretrained"), "--strategy", "SpotTune_Block"]) == 0
    assert len(strict_json(tmp_path / "run" / "result.json")["decisions"]["share"]) == 5


def test_what_cannot_be_exported_is_refused_with_a_way_out(runs, files, tmp_path, capsys):
    run, out = runs("BlockDrop"), str(tmp_path / "out")
    flags = ["--run", str(run), "--out", out]
    assert "7 live decisions" in refused(capsys, *flags, "--global-k", "8")
    assert "every layer is dropped" in refused(capsys, *flags, "--global-k", "0")
    shown = refused(capsys, *flags, "--format", "transformers")
    assert "transformers" in shown
    plain_run = ["--run", str(runs("standard")), "--out", out]
    assert "decides nothing" in refused(capsys, *plain_run, "--global-k", "1")
    snapshot = refused(capsys, "--run", str(files.pretrained), "--out", out)
    assert str(files.pretrained) in snapshot
    assert not list(tmp_path.iterdir())
