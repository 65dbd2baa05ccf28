"""Pretraining that is stopped, killed, divided into parts or over processes: the same result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.files import repository_root
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.pretraining import main
from tests.lxmert.pretraining_files import PretrainingFiles, refused_pretraining
from tests.lxmert.runs import same_state, strict_json, tensors

SNAPSHOTS = ["BEST_EVAL_LOSS_LXRT", "Epoch01_LXRT", "Epoch02_LXRT", "LAST"]
SCRIPT = repository_root() / "LXMERT" / "src" / "pretrain" / "lxmert_pretrain.py"
DROPOUT = ["--dropout", "0.2"]


@pytest.fixture
def files(pretraining_files: PretrainingFiles) -> PretrainingFiles:
    return pretraining_files


@pytest.fixture
def whole(whole_pretraining: Path) -> Path:
    return whole_pretraining


@pytest.mark.parametrize("stop", ["4", "9", "11"])
def test_a_stopped_run_goes_on_bit_for_bit(files, whole, tmp_path, capsys, stop):
    """In an epoch, at its end, and in the second one; with dropout and another reader's order."""
    run = files.flags(tmp_path, *DROPOUT, "--numWorkers", "1" if stop == "4" else "0")
    torch.manual_seed(1)
    assert main([*run, "--max-steps", stop]) == 0
    assert not (tmp_path / "result.json").exists()
    assert f"stopped after {stop} of 18 steps; go on with --resume" in capsys.readouterr().out
    torch.manual_seed(2)
    assert main([*run, "--resume"]) == 0
    for name in SNAPSHOTS:
        assert same_state(whole / f"{name}.safetensors", tmp_path / f"{name}.safetensors") > 50
    first, second = (strict_json(folder / "result.json") for folder in (whole, tmp_path))
    assert first["losses"] == second["losses"] and first["accuracy"] == second["accuracy"]
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


@pytest.mark.long
def test_a_killed_run_goes_on_bit_for_bit(files, whole, tmp_path):
    run = files.flags(tmp_path, *DROPOUT, "--save-every", "1")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *run],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    last, deadline = tmp_path / "LAST.safetensors", time.monotonic() + 150
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_meta(last)["step"] < 18
    assert main([*run, "--resume"]) == 0
    for name in SNAPSHOTS:
        same_state(whole / f"{name}.safetensors", tmp_path / f"{name}.safetensors")


def test_gradient_accumulation_gives_the_losses_and_weights_of_the_whole_batch(files, tmp_path):
    for name, parts in (("whole", "1"), ("parts", "3")):
        assert (
            main(
                files.flags(
                    tmp_path / name,
                    "--accumulate",
                    parts,
                    "--epochs",
                    "1",
                    "--optim",
                    "sgd",
                    "--lr",
                    "0.1",
                )
            )
            == 0
        )
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("whole", "parts"))
    for part in ("train", "val"):
        assert two["losses"][part] == pytest.approx(one["losses"][part], rel=1e-4)
    ours, theirs = (
        load_checkpoint(tmp_path / name / "LAST.safetensors")[0]["model"]
        for name in ("whole", "parts")
    )
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes `0,1` for two processes on the CPU")
def test_two_processes_train_and_validate_as_one(files, tmp_path):
    run = [
        "--epochs",
        "1",
        "--optim",
        "sgd",
        "--lr",
        "0.1",
        "--batchSize",
        "13",
        "--eval-batch-size",
        "7",
    ]
    assert main(files.flags(tmp_path / "one", *run)) == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *files.flags(tmp_path / "two", *run), "--gpus", "0,1"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch 0: valid loss") == 1
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert two["processes"] == 2
    for part in ("train", "val"):
        assert two["losses"][part] == pytest.approx(one["losses"][part], rel=1e-4)
    assert two["accuracy"] == one["accuracy"]
    ours, theirs = (
        load_checkpoint(tmp_path / name / "LAST.safetensors")[0]["model"] for name in ("one", "two")
    )
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5, msg=name)


def test_training_with_several_objectives_off_resumes_only_with_the_same_ones(
    files, tmp_path, capsys
):
    run = files.flags(tmp_path, "--taskMatched", "--taskQA")
    assert main([*run, "--max-steps", "2"]) == 0
    shown = refused_pretraining(capsys, [*files.flags(tmp_path, "--taskMatched"), "--resume"])
    assert "objectives.qa is True in the file, this run has False" in shown
    assert main([*run, "--resume"]) == 0
