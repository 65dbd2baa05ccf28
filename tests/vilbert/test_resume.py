"""Runs that are stopped and go on, folders that hold a run already, several seeds."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.training.checkpoint import load_checkpoint
from tests.common.held_folder import refused_while_in_use
from tests.common.odd_folders import refused_in_odd_folders
from tests.lxmert.runs import same_state, strict_json, tensors
from tests.vilbert.runs import DROPOUT_RUN, MINIVAL, refused
from vilbert.finetuning import evaluate, train

SAME = ("accuracy", "decisions", "best_epoch", "generalization_error", "baselines")


@pytest.fixture(scope="module")
def stopped(files, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that stopped after its first epoch, and its command."""
    out = tmp_path_factory.mktemp("stopped")
    run = files.run(out, *DROPOUT_RUN)
    assert train([*run, "--max-steps", "3"]) == 0
    return out, run


@pytest.mark.parametrize("stop", [pytest.param("3", marks=pytest.mark.slow), "5"])
def test_a_resumed_run_is_bit_identical_to_one_without_interruption(
    files, whole, tmp_path, capsys, stop
):
    """With dropout; stopped at the end of an epoch, in the second one."""
    run = files.run(tmp_path, *DROPOUT_RUN)
    torch.manual_seed(123)  # whatever happened in this process before
    assert train([*run, "--max-steps", stop]) == 0
    assert load_checkpoint(tmp_path / "LAST.safetensors")[0]["progress"]["step"] == int(stop)
    assert not (tmp_path / "result.json").exists(), "a result of a run that has not ended"
    assert f"stopped after {stop} of 6 steps; go on with --resume" in capsys.readouterr().out
    torch.manual_seed(321)
    assert train([*run, "--resume"]) == 0
    assert f"resumed at step {stop} of 6" in capsys.readouterr().out
    assert same_state(whole / "LAST.safetensors", tmp_path / "LAST.safetensors") > 300
    assert same_state(whole / "BEST.safetensors", tmp_path / "BEST.safetensors") > 100
    first, second = (strict_json(folder / "result.json") for folder in (whole, tmp_path))
    for key in SAME:
        assert first[key] == second[key], key
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


def test_dropout_is_active_in_training(files, whole, tmp_path):
    """Else the test above would show less than it says."""
    assert train(files.run(tmp_path, *DROPOUT_RUN, "--dropout", "0")) == 0
    losses = [strict_json(f / "result.json")["epochs"][0]["train_loss"] for f in (whole, tmp_path)]
    assert losses[0] != losses[1]


def test_saving_often_and_reading_in_other_processes_changes_nothing(files, whole, tmp_path):
    assert train(files.run(tmp_path, *DROPOUT_RUN, "--save-every", "1", "--num_workers", "2")) == 0
    same_state(tmp_path / "LAST.safetensors", whole / "LAST.safetensors")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--strategy", "SpotTune"], "strategy is 'SpotTune_Block' in the file, this run has"),
        (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
        (["--dropout", "0.1"], "config.hidden_dropout_prob is 0.2 in the file, this run has 0.1"),
        (["--seed", "3"], "seed is 9595 in the file, this run has 3"),
        (["--learning_rate", "0.1"], "lr is 0.001 in the file, this run has 0.1"),
        (["--batchSize", "8"], "batch_size is 16 in the file, this run has 8"),
        (["--questions", "47"], "training.questions.count is 48 in the file, this run has 47"),
        (["--optimizer", "BertAdam"], "optim is 'adamw' in the file, this run has 'bert'"),
        (["--freeze", "0"], "freeze is -1 in the file, this run has 0"),
        (["--vision_scratch"], "vision_scratch is False in the file, this run has True"),
    ],
)
def test_resuming_with_other_settings_is_one_error_that_names_them(
    stopped, capsys, change, difference
):
    out, run = stopped
    before = (out / "LAST.safetensors").read_bytes()
    shown = refused(capsys, [*run, "--resume", *change])
    assert f"{out / 'LAST.safetensors'}: made with other settings: " in shown
    assert difference in shown and "Run with the file's values" in shown
    assert (out / "LAST.safetensors").read_bytes() == before


KILLED = """
import os, signal, sys
import vilbert.vqa_data
from common.training.loop import Trainer
from vilbert.finetuning import train
vilbert.vqa_data.MINIVAL = int(sys.argv[1])
save = Trainer.save_last
def save_and_die(self):
    save(self)
    if self.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Trainer.save_last = save_and_die
train(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_it_saved(files, whole, tmp_path):
    """kill -9 in the middle of an epoch, then the same command."""
    run = files.run(tmp_path, *DROPOUT_RUN, "--save-every", "1")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(MINIVAL), *run],
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert train([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (whole, tmp_path)))


def test_a_used_folder_is_refused_and_overwritten_only_when_asked(stopped, tmp_path, files, capsys):
    out, run = stopped
    folder = tmp_path / "run"
    shutil.copytree(out, folder)
    run = files.run(folder, "--strategy", "BlockDrop")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    shown = refused(capsys, run)
    assert f"{folder / 'LAST.safetensors'} exists: add --resume to go on, --overwrite" in shown
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert train([*run, "--overwrite"]) == 0
    assert strict_json(folder / "result.json")["strategy"] == "BlockDrop"
    assert "nothing to resume" in refused(capsys, [*files.run(tmp_path / "new"), "--resume"])


def test_a_folder_that_another_run_uses_is_left_alone(stopped, tmp_path, capsys, files):
    """Training, resuming, several seeds, testing."""
    out, run = stopped
    folder = tmp_path / "run"
    shutil.copytree(out, folder)
    here = ["--output", str(folder)]
    refused_while_in_use(
        capsys,
        {
            "train": (train, [*run, *here, "--overwrite"]),
            "resume": (train, [*run, *here, "--resume"]),
            "seeds": (train, [*run, *here, "--seeds", "2", "--overwrite"]),
            "test": (evaluate, files.test(folder / "BEST", folder)),
        },
        folder,
    )


def test_a_folder_that_cannot_be_written_to_is_one_line(files, tmp_path, capsys):
    def run(place: Path):
        folder = place / "save" / "run"
        return train, files.run(folder), folder

    refused_in_odd_folders(capsys, run, tmp_path)


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Train every seed in this process, since a new one takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "common.tasks.seeds.Launcher.run", lambda self, command, folder: train(command[2:])
        )
        yield


def test_each_of_several_seeds_is_the_run_that_it_would_be_alone(files, in_process, tmp_path):
    out, alone = tmp_path / "v1", tmp_path / "alone"
    run = files.run(out, "--strategy", "SpotTune_Block", "--seeds", "2")
    assert train([*run, "--max-steps", "2"]) == 0
    assert not (out / "seeds.json").exists() and not list(out.rglob("result.json"))
    assert train([*run, "--resume"]) == 0
    assert train(files.run(alone, "--strategy", "SpotTune_Block", "--seed", "9596")) == 0
    assert same_state(alone / "LAST.safetensors", out / "seed_9596" / "LAST.safetensors") > 100
    summary = strict_json(out / "seeds.json")
    assert summary["seeds"] == [9595, 9596]
    values = [
        strict_json(out / path)["accuracy"]["val"]["overall"]
        for path in ("seed_9595/result.json", "seed_9596/result.json")
    ]
    found = summary["figures"]["accuracy.val.overall"]
    assert found["mean"] == pytest.approx(statistics.fmean(values))
    assert found["sd"] == pytest.approx(statistics.stdev(values))
    assert "ViLBERT" in (out / "seeds.md").read_text()
