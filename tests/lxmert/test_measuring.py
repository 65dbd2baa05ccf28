"""What runs say of their work, and how the models of an experiment are compared."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.errors import CheckpointError
from common.experiments.measuring import keep_measured, measure, measured_rows
from common.experiments.plan import EXPERIMENTS, PlannedRun
from common.experiments.rows import PrunedRow, Row
from common.results.files import load_result
from common.results.table import format_markdown
from common.runs.opened_run import open_run
from common.tasks.measuring import SAMPLES, measure_work, measured_places
from common.tasks.vqa import VQATask
from common.training.runtime import make_runtime
from lxrt.finetuning import main
from tests.lxmert.runs import strict_json

ROWS = (
    Row("standard", (), "softmax"),
    Row("standard", ("--attention", "sparsemax"), "sparsemax"),
    Row("BlockDrop", ("--policy-init", "0.3")),
)
PRUNED = PrunedRow("sparsemax", "every_other", "half", "half of the layers", 0.5)
EXPERIMENT = replace(
    EXPERIMENTS["adaptive_attention"], rows=ROWS, pruned=(PRUNED,), seeds=1, flags=()
)
TRAIN = (
    "--dataset easy_vqa --gpus cpu --loadLXMERTQA default --questions 64 --epochs 1 --quiet "
    "--no-plots --no-tensorboard"
)


def test_the_same_samples_are_measured_evenly_spread_or_all():
    places = measured_places(range(9673))
    assert len(set(places)) == SAMPLES and places == measured_places(range(9673))
    gaps = {b - a for a, b in itertools.pairwise(places)}
    assert places[0] == 0 and gaps == {9673 // SAMPLES, 9673 // SAMPLES + 1}
    assert measured_places(range(10)) == list(range(10))


@pytest.fixture(scope="module")
def trained(easy_vqa_root, tmp_path_factory) -> Path:
    """A repository with the three runs of the experiment."""
    root = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
        for run in runs():
            out = root / "LXMERT/snap/vqa" / run.name
            words = [*TRAIN.split(), "--strategy", run.strategy, *run.trained.flags]
            assert main([*words, "--seed", str(run.seed), "--output", str(out)]) == 0
    return root


def runs() -> list[PlannedRun]:
    return [PlannedRun(EXPERIMENT, row, 5, "experiments") for row in ROWS]


@pytest.fixture
def repository(trained, easy_vqa_root, monkeypatch) -> Path:
    monkeypatch.setattr("common.runs.run_script.repository_root", lambda: trained)
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    return trained


@pytest.mark.slow
def test_a_result_says_operations_and_zeros(repository):
    plain, sparse, dropped = (load_result(run.folder) for run in runs())
    count = min(SAMPLES, plain["accuracy"]["val"]["count"])
    assert {r["flops"]["samples"] for r in (plain, sparse, dropped)} == {count}
    assert plain["flops"]["per_sample"] == sparse["flops"]["per_sample"]
    assert plain["attention_zero_share"] == 0 < sparse["attention_zero_share"] < 1
    assert dropped["decisions"]["mean_live"] < 0.9
    assert dropped["flops"]["per_sample"] < 0.9 * plain["flops"]["per_sample"]
    assert sparse["variant"] == "sparsemax"
    shown = format_markdown([plain, sparse, dropped])
    assert f"| {plain['flops']['per_sample'] / 1e9:.3f} |" in shown


def test_operations_are_those_of_a_sample(repository):
    """A question alone takes what the mean question takes, but for the padding of a batch."""
    opened, dataset = open_run(runs()[0].folder), resolve_dataset("easy_vqa")
    question = load_split(dataset, "minival")[:1]
    data = VQADataset(question, open_features(dataset, "minival"), dataset.vocabulary())
    task = VQATask(data, data, opened.make_inputs, make_runtime("cpu"), 1)
    mean = load_result(runs()[0].folder)["flops"]["per_sample"]
    assert measure_work(opened.model, task, data).flops == pytest.approx(mean, rel=0.3)


def test_testing_says_them_too(repository, tmp_path, capsys):
    folder = runs()[1].folder
    found = load_result(folder)
    words = ["--dataset", "easy_vqa", "--gpus", "cpu", "--quiet", "--load", str(folder / "BEST")]
    assert main([*words, "--test", "minival", "--output", str(tmp_path)]) == 0
    flops, samples = found["flops"]["per_sample"] / 1e9, found["flops"]["samples"]
    assert (
        f"{flops:.3g} GFLOP per sample (mean of {samples:,}), "
        f"{found['attention_zero_share']:.1%} of attention weights exactly 0"
    ) in capsys.readouterr().out


@pytest.mark.slow
def test_models_of_a_seed_are_compared_and_the_figures_are_kept(repository, tmp_path, capsys):
    assert measured_rows(runs()) == {}
    found = measure(runs(), "cpu", rounds=2)
    keep_measured(runs(), found)
    assert measured_rows(runs()) == json.loads(json.dumps(found))
    results = {run.row: load_result(run.folder) for run in runs()}
    for name, result in results.items():
        for key in ("flops", "attention_zero_share"):
            assert found[name][key] == result[key], "it is the very model of the run"
    figures = {name: row["measured"] for name, row in found.items()}
    assert figures["softmax"]["time_ratio"] == figures["softmax"]["flops_ratio"] == 1
    assert figures["BlockDrop"]["kept_share"] == results["BlockDrop"]["decisions"]["mean_live"]
    assert figures["half"]["kept_share"] == 0.5
    assert figures["half"]["flops_ratio"] < 0.7
    assert figures["half"]["parameters"] < 0.8 * figures["sparsemax"]["parameters"]
    assert all(0 < row["sample_s"] < 1 for row in figures.values())
    # What is taken out of a model answers as the command with --prune does.
    folder = runs()[1].folder
    words = ["--dataset", "easy_vqa", "--gpus", "cpu", "--quiet", "--load", str(folder / "BEST")]
    words += ["--test", "minival", "--output", str(tmp_path), "--prune", "every_other"]
    assert main(words) == 0
    assert f"overall {found['half']['accuracy']['val']['overall']:.2f}" in capsys.readouterr().out
    assert found["half"]["variant"] == "sparsemax, 3 of 6 layers"


def test_figures_of_other_runs_do_not_count(repository, tmp_path, monkeypatch):
    keep_measured(runs(), {"softmax": {}})
    moved = tmp_path / "repository"
    shutil.copytree(repository, moved)
    monkeypatch.setattr("common.runs.run_script.repository_root", lambda: moved)
    assert measured_rows(runs()) == {"softmax": {}}
    path = runs()[0].folder / "result.json"
    path.write_text(json.dumps(strict_json(path) | {"name": "another run"}))
    assert measured_rows(runs()) == {}
    for path in runs()[2].folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="only the result of this run is here"):
        measure(runs(), "cpu", rounds=1)
