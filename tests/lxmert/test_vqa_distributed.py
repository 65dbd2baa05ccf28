"""The finetuning command on two processes gives what it gives on one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.files import repository_root
from common.training.checkpoint import load_checkpoint
from lxrt.finetuning import main
from tests.lxmert.runs import strict_json

LIMIT = 240.0  # seconds: a hang fails


@pytest.fixture(autouse=True)
def no_litter() -> Iterator[None]:
    """The run script copies the code to the folder of the run's name."""
    yield
    shutil.rmtree(
        repository_root() / "LXMERT" / "snap" / "vqa" / "distributed_test", ignore_errors=True
    )


def finetune(gpus: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Through the run script, whose first argument is the list of GPUs."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        ["bash", "run/vqa_finetune.bash", gpus, "distributed_test", *flags],
        cwd=repository_root() / "LXMERT",
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes `0,1` for two processes on the CPU")
@pytest.mark.slow  # the other backbones' scripts promise the same of this launcher
def test_the_run_script_with_two_gpus_trains_as_one_process(flags, tmp_path):
    run = [
        *flags,
        "--strategy",
        "SpotTune_Block",
        "--target-rate",
        "0.3",
        "--batchSize",
        "13",
        "--policy-eval",
        "global",
        "--questions",
        "63",
        "--eval-batch-size",
        "17",
    ]
    assert main([*run, "--output", str(tmp_path / "one")]) == 0
    done = finetune(
        "0,1",
        *run[: run.index("--gpus")],
        *run[run.index("--gpus") + 2 :],
        "--gpus",
        "0,1",
        "--output",
        str(tmp_path / "two"),
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("Epoch 0: Valid") == 1
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("accuracy", "decisions", "parameters", "best_epoch", "baselines"):
        assert two[key] == one[key], key
    assert two["epochs"][0]["train_loss"] == pytest.approx(one["epochs"][0]["train_loss"], rel=1e-4)
    ours, theirs = (
        load_checkpoint(tmp_path / name / "BEST.safetensors")[0]["model"] for name in ("one", "two")
    )
    # A key's bias moves all scores of a query alike: its gradient is 0 but for rounding, which
    # AdamW turns into steps of full size (5e-4). Single weights of keys are near that too: on one
    # kind of processor five of 16,384 differ by 1.7e-4.
    for name, weight in ((n, w) for n, w in ours.items() if not n.endswith("key.bias")):
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=3e-4, msg=name)


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(flags, tmp_path):
    failed = finetune(
        "0,1", *flags, "--gpus", "0,1", "--loadLXMERTQA", "nowhere", "--output", str(tmp_path)
    )
    assert failed.returncode == 2
    assert failed.stderr.count("error") == 1 and "nowhere" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.slow  # vilbert/test_distributed.py promises the same of the shared evaluation
def test_an_uneven_number_of_predictions_has_every_question_once(flags, tmp_path, vqa_data: Path):
    run = [*flags, "--strategy", "SpotTune", "--output", str(tmp_path)]
    assert main(run) == 0
    script = repository_root() / "LXMERT" / "src" / "tasks" / "vqa.py"
    test = [
        "--test",
        "minival",
        "--dataset",
        "vqa",
        "--data",
        str(vqa_data),
        "--load",
        str(tmp_path / "BEST"),
        "--quiet",
        "--eval-batch-size",
        "7",
        "--output",
        str(tmp_path),
    ]
    file = tmp_path / "minival_predict.json"
    assert main(["--gpus", "cpu", *test]) == 0
    expected = strict_json(file)
    file.unlink()
    subprocess.run(
        [sys.executable, str(script), "--gpus", "0,1", *test],
        check=True,
        timeout=LIMIT,
        capture_output=True,
    )
    assert len(expected) == 100 and strict_json(file) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes `0,1` for two processes on the CPU")
@pytest.mark.slow
def test_an_oracle_on_two_processes_decides_as_on_one(dialect, tmp_path):
    run = [*dialect, "--strategy", "SpotTune", "--policy", "oracle:learned", "--batchSize", "13"]
    assert main([*run, "--output", str(tmp_path / "one")]) == 0
    place = run.index("--gpus")
    two = ["0,1", *run[:place], *run[place + 2 :], "--output", str(tmp_path / "two")]
    done = finetune(*two)
    assert done.returncode == 0, done.stderr
    first, second = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert second["processes"] == 2 and first["decisions"] == second["decisions"]
    train = [r["epochs"][0]["train_decisions"]["share"] for r in (first, second)]
    assert train[0] == pytest.approx(train[1])
