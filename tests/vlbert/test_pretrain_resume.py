"""Pretraining that is stopped, divided into parts or over processes: the same result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from common.training.checkpoint import load_checkpoint
from common.training.loop import LoopOptions, Trainer
from common.training.optim import make_optimizer
from common.training.runtime import make_runtime
from common.training.task import TaskBatch
from common.training.tracking import Tracker
from tests.lxmert.runs import same_state, strict_json, tensors
from tests.vlbert.models import randomise
from tests.vlbert.pretraining_files import (
    WIDTH,
    PretrainingFiles,
    out,
    refused_pretraining,
    write_all,
)
from vlbert.config import load_config
from vlbert.pretraining import main, network_sizes
from vlbert.pretraining_data import PretrainingSource
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.pretraining_task import PretrainingTask
from vlbert.sizes import HOME

SNAPSHOTS = ["BEST", "LAST", "tiny-0000", "tiny-0001"]
SCRIPT = HOME / "pretrain" / "train_end2end.py"
EVERYTHING = {"NETWORK__WITH_REL_LOSS": True, "NETWORK__VLBERT__with_pooler": True}
SGD = EVERYTHING | {
    "TRAIN__OPTIMIZER": "SGD",
    "TRAIN__LR": 1e-2,
    "TRAIN__END_EPOCH": 1,
    "TRAIN__WARMUP_STEPS": 1,
    "NETWORK__IMAGE_DROPOUT": 0.0,
    "NETWORK__VLBERT__hidden_dropout_prob": 0.0,
    "NETWORK__VLBERT__attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> PretrainingFiles:
    return write_all(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def whole(files: PretrainingFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(files.flags(folder, **EVERYTHING)) == 0
    return folder


@pytest.mark.parametrize("stop", ["3", "4", "6"])
def test_a_stopped_run_goes_on_bit_for_bit(files, whole, tmp_path, capsys, stop):
    """In an epoch, at its end, and in the second one; with dropout and another reader's order."""
    run = files.flags(tmp_path, **EVERYTHING, NUM_WORKERS_PER_GPU=int(stop == "3"))
    torch.manual_seed(1)
    assert main([*run, "--max-steps", stop]) == 0
    assert not (out(tmp_path) / "result.json").exists()
    assert f"stopped after {stop} of 8 steps; go on with --resume" in capsys.readouterr().out
    torch.manual_seed(2)
    again = files.flags(tmp_path, **EVERYTHING, TRAIN__AUTO_RESUME=True)  # instead of --resume
    assert main(again) == 0
    for name in SNAPSHOTS:
        assert (
            same_state(out(whole) / f"{name}.safetensors", out(tmp_path) / f"{name}.safetensors")
            > 40
        )
    first, second = (strict_json(out(folder) / "result.json") for folder in (whole, tmp_path))
    assert first["losses"] == second["losses"] and first["accuracy"] == second["accuracy"]
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


def test_a_run_goes_on_only_with_the_same_settings(files, tmp_path, capsys):
    assert main(files.flags(tmp_path, "--max-steps", "2")) == 0
    shown = refused_pretraining(capsys, files.flags(tmp_path))
    assert "LAST.safetensors exists: add --resume to go on" in shown
    other = files.flags(tmp_path, "--resume", NETWORK__MVRC_LOSS_NORM_IN_BATCH_FIRST=True)
    assert "this run has" in refused_pretraining(capsys, other)


def doubled(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: x.double() if x is not None and x.is_floating_point() else x
        for name, x in values.items()
    }


class DoubleTask(PretrainingTask):
    """Batches in float64."""

    def read(self, indices, epoch):
        batch = super().read(indices, epoch)
        return TaskBatch(
            batch.samples, doubled(batch.inputs), doubled(batch.labels), weights=batch.weights
        )


def trained(files: PretrainingFiles, folder: Path, accumulate: int) -> dict[str, torch.Tensor]:
    """Weights after an epoch of batches of 8 captions and 4 texts, in float64."""
    config = load_config(files.config(folder, **SGD | {"TRAIN__BATCH_IMAGES": [8, 4]}))
    source = PretrainingSource(config, quiet=True)
    sizes = network_sizes(config, True, WIDTH)
    data = source.load(source.tokenizer(folder), sizes)
    model = randomise(ResNetVLBERTForPretraining(sizes), 0.1).double()
    task = DoubleTask(data, sizes, make_runtime("cpu"), 3, 8, progress=False)
    optimizer = make_optimizer("sgd", model.parameters(), 0.05, 2, warmup=0)
    options = LoopOptions(1, 8, accumulate=accumulate, max_steps=1, progress=False)
    Trainer(
        model, task, optimizer, None, task.runtime, options, folder, Tracker(folder, False), {}
    ).fit()
    return model.state_dict()


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_gradient_accumulation_gives_the_weights_of_the_whole_batch(files, tmp_path, parts):
    """Also where a part has no text, no masked word or no masked region at all (8 parts)."""
    one, other = trained(files, tmp_path / "one", 1), trained(files, tmp_path / "parts", parts)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes `0,1` for two processes on the CPU")
def test_two_processes_train_and_validate_as_one(files, tmp_path):
    """Twice BATCH_IMAGES, so one process takes twice as many."""
    runs = {"one": {"TRAIN__BATCH_IMAGES": [8, 8]}, "two": {"TRAIN__BATCH_IMAGES": [4, 4]}}
    for name, changes in runs.items():
        flags = files.flags(tmp_path / name, **SGD, **changes)
        if name == "two":
            flags[flags.index("--gpus") + 1] = "0,1"
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *flags],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HOME)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Epoch[0] \tVal-") == 1
    one, two = (strict_json(out(tmp_path / name) / "result.json") for name in runs)
    assert two["processes"] == 2
    ours, theirs = (
        load_checkpoint(out(tmp_path / name) / "LAST.safetensors")[0]["model"] for name in runs
    )
    for part in ("train", "val"):
        assert two["losses"][part] == pytest.approx(one["losses"][part], rel=1e-4)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-4, atol=1e-5, msg=name)
