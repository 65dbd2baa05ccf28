"""The run scripts of LXMERT's visual question answering, run as a user runs them on small data."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.data.annotations import read_lxmert_json
from common.files import repository_root
from tests.lxmert.runs import score_of_predictions, strict_json

LXMERT = repository_root() / "LXMERT"
LIMIT = 600.0  # seconds: a hang fails
LAYERS = ["lang.1", "lang.2", "vision.1", "vision.2", "cross.1", "cross.2"]


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of LXMERT/ with this interpreter."""
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "MPLBACKEND": "Agg",
        **environment,
    }
    return subprocess.run(
        ["bash", *arguments],
        cwd=LXMERT,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(scope="module")
def run_name() -> Iterator[str]:
    """Name of a run that nobody else has; its folder is removed in the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    shutil.rmtree(LXMERT / "snap" / "vqa" / name, ignore_errors=True)


@pytest.fixture(scope="module")
def finetuned(
    run_name: str, vqa_data: Path, pretrained: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two epochs of SpotTune_Block by run/vqa_finetune.bash on GPU 0, and its output."""
    done = bash(
        "run/vqa_finetune.bash",
        "0",
        run_name,
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--size",
        "small",
        "--loadLXMERTQA",
        str(pretrained),
        "--strategy=SpotTune_Block",
        "--questions",
        "64",
        "--batchSize",
        "16",
        "--epochs",
        "2",
        "--quiet",
        "--dropout",
        "0.2",
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    return LXMERT / "snap" / "vqa" / run_name, done


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_no_gpu_is_present_a_gpu_number_is_answered_and_the_cpu_computes(finetuned):
    _, done = finetuned
    assert re.search(
        r"No GPU is usable here .*, but GPU 0 was asked for: running on the CPU", done.stdout
    )
    assert "CPU (1 threads), fp32" in done.stdout


def test_a_run_leaves_result_log_checkpoints_vocabulary_code_plots_and_report(finetuned):
    folder, _ = finetuned
    for name in (
        "result.json",
        "log.log",
        "BEST.safetensors",
        "LAST.safetensors",
        "vocab.txt",
        "run.bash",
        "report.html",
        "src/lxrt/finetuning.py",
        "src/tasks/vqa.py",
        "src/common/training/loop.py",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "run.bash").read_text() == (LXMERT / "run" / "vqa_finetune.bash").read_text()
    assert not list((folder / "src").rglob("__pycache__"))
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    plots = {path.name for path in (folder / "visualizations").glob("*.png")}
    assert {"SpotTune_Block_heldout_epoch_0.png", "SpotTune_Block_heldout_epoch_1.png"} <= plots
    for plot in plots:
        assert (folder / "visualizations" / plot).read_bytes().startswith(b"\x89PNG"), plot
    report = (folder / "report.html").read_text()
    assert "SpotTune_Block" in report and "http" not in report.replace("http://www.w3.org", "")
    assert not list(folder.glob(".*saving*")) and not list(folder.glob("*.tmp"))


def test_the_log_has_upstreams_lines_for_every_epoch(finetuned):
    folder, done = finetuned
    log = (folder / "log.log").read_text()
    result = strict_json(folder / "result.json")
    assert log.splitlines()[0] == result["command"]
    for epoch, record in enumerate(result["epochs"]):
        assert (
            f"\n\nEpoch {epoch}: Train {record['train_accuracy']:.2f}\n"
            f"Epoch {epoch}: Valid {record['heldout_score']:.2f}\n"
            f"Epoch {epoch}: Best {record['best_score']:.2f}\n"
        ) in log
    assert "vqa: 64 training, " in log and " held-out and 100 validation questions" in log
    assert log.strip() in done.stdout or all(line in done.stdout for line in log.splitlines())


def test_the_command_of_the_result_is_one_that_can_be_run_again(finetuned):
    folder, _ = finetuned
    command = strict_json(folder / "result.json")["command"]
    assert command.startswith("python src/tasks/vqa.py --gpus 0 --version test_")
    assert "--strategy=SpotTune_Block" in command and "--questions 64" in command
    assert (LXMERT / "src" / "tasks" / "vqa.py").is_file()


def test_result_json_has_the_schema_of_the_design(finetuned):
    folder, _ = finetuned
    result = strict_json(folder / "result.json")
    fixed = {
        "backbone": "lxmert",
        "task": "vqa",
        "dataset": "vqa",
        "strategy": "SpotTune_Block",
        "policy": "small",
        "size": "small",
        "seed": 9595,
        "precision": "fp32",
        "name": folder.name,
        "policy_eval": "argmax",
    }
    assert {key: result[key] for key in fixed} == fixed
    assert {"python", "torch", "transformers", "package", "commit"} <= result["versions"].keys()
    assert result["versions"]["torch"] == torch.__version__
    assert result["device"].startswith(("cpu", "cuda"))
    for part, count in (("train", 64), ("val", 100)):
        accuracy = result["accuracy"][part]
        assert accuracy.keys() == {"overall", "yes/no", "number", "other", "count"}
        assert accuracy["count"] == count and accuracy["number"] is None
        assert all(0 <= accuracy[kind] <= 100 for kind in ("overall", "yes/no", "other"))
    assert result["generalization_error"] == pytest.approx(
        result["accuracy"]["train"]["overall"] - result["accuracy"]["val"]["overall"]
    )
    assert result["parameters"].keys() == {"trainable", "frozen", "policy"}
    assert result["time"].keys() >= {"train_step_s", "eval_sample_s"}
    assert all(value > 0 for value in result["time"].values())
    assert result["memory"]["peak_rss_bytes"] > 1e8
    assert (result["memory"]["peak_cuda_bytes"] is None) == (not torch.cuda.is_available())
    assert re.fullmatch(
        r"10 % of the training images held out \(\d+ questions\)", result["selection"]
    )
    assert result["baselines"].keys() == {"majority", "question_only"}
    assert isinstance(result["warnings"], list)


def test_the_decisions_of_the_result_are_shares_of_the_validation_questions(finetuned):
    folder, _ = finetuned
    decisions = strict_json(folder / "result.json")["decisions"]
    assert decisions["names"] == decisions["layers"] == LAYERS
    assert decisions["live"] == [True] * 6 and decisions["count"] == 100
    for share in decisions["share"]:
        assert 0 <= share <= 1 and share * 100 == pytest.approx(round(share * 100))
    assert decisions["mean_live"] == pytest.approx(sum(decisions["share"]) / 6)
    by_type = decisions["share_by_type"]
    assert sum(entry["count"] for entry in by_type.values()) == 100
    for place, share in enumerate(decisions["share"]):
        ones = sum(entry["count"] * entry["share"][place] for entry in by_type.values())
        assert ones == pytest.approx(100 * share)


def test_the_epochs_of_the_result_and_the_choice_of_the_best_one(finetuned):
    folder, _ = finetuned
    result = strict_json(folder / "result.json")
    assert [record["epoch"] for record in result["epochs"]] == [0, 1]
    scores = [record["heldout_score"] for record in result["epochs"]]
    assert result["best_epoch"] == scores.index(max(scores))
    assert [record["best_score"] for record in result["epochs"]] == [
        max(scores[: n + 1]) for n in range(2)
    ]
    for record in result["epochs"]:
        assert record["train_loss"] == pytest.approx(sum(record["train_losses"].values()))
        assert record["heldout_score"] == record["heldout"]["overall"]
        assert len(record["decisions"]["share"]) == len(record["train_decisions"]["share"]) == 6
        assert record["train_decisions"]["count"] == 64
    assert result["epochs"][-1]["lr"] == 0.0


def test_vqa_test_reproduces_the_validation_accuracy_exactly_from_best(
    finetuned, run_name, vqa_data, answers
):
    folder, _ = finetuned
    done = bash(
        "run/vqa_test.bash",
        "cpu",
        run_name,
        "--load",
        f"snap/vqa/{run_name}/BEST",
        "--test",
        "minival",
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    result = strict_json(folder / "result.json")
    examples = read_lxmert_json(vqa_data / "vqa" / "minival.json")
    text = (folder / "minival_predict.json").read_text()
    predictions = json.loads(text)
    assert {row["question_id"] for row in predictions} == {e.question_id for e in examples}
    assert all(
        list(row) == ["answer", "question_id"] and row["answer"] in answers for row in predictions
    )
    assert text == json.dumps(predictions, indent=4, sort_keys=True) + "\n"
    found = score_of_predictions(folder / "minival_predict.json", vqa_data)
    assert found == {k: v for k, v in result["accuracy"]["val"].items() if k != "count"}
    assert f"minival of vqa, SpotTune_Block: overall {found['overall']:.2f}, " in done.stdout
    assert strict_json(folder / "result.json") == result, "testing changed the result"
    assert (folder / "run.bash").read_text() == (
        LXMERT / "run" / "vqa_finetune.bash"
    ).read_text(), "testing changed what made the run"


@pytest.mark.parametrize("arguments", [[], ["0"], ["", "name"]])
@pytest.mark.parametrize(
    ("script", "example"),
    [
        ("vqa_finetune.bash", "bash run/vqa_finetune.bash GPU NAME [flags …]"),
        ("vqa_test.bash", "bash run/vqa_test.bash GPU NAME --load snap/vqa/NAME/BEST"),
    ],
)
def test_a_run_script_without_its_arguments_prints_its_usage(script, example, arguments):
    done = bash(f"run/{script}", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert example in done.stderr and "set -euo" not in done.stderr
    assert "unbound" not in done.stderr and "#" not in done.stderr


def test_the_pretraining_script_without_arguments_prints_its_usage():
    done = bash("run/lxmert_pretrain.bash")
    assert done.returncode == 2 and "bash run/lxmert_pretrain.bash GPU [flags …]" in done.stderr


@pytest.mark.slow
def test_the_documented_command_runs_on_the_embedded_data(run_name):
    """`bash run/vqa_finetune.bash 0 v1 --strategy=SpotTune_Block --dataset easy_vqa --tiny`."""
    name = f"{run_name}_easy"
    folder = LXMERT / "snap" / "vqa" / name
    try:
        done = bash(
            "run/vqa_finetune.bash",
            "0",
            name,
            "--strategy=SpotTune_Block",
            "--dataset",
            "easy_vqa",
            "--tiny",
        )
        assert done.returncode == 0, done.stderr
        result = strict_json(folder / "result.json")
        assert result["dataset"] == "easy_vqa"
        assert result["accuracy"]["val"]["overall"] > result["baselines"]["majority"]["overall"]
        assert not math.isnan(result["generalization_error"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
