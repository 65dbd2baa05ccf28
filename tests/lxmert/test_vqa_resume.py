"""Runs that are stopped and go on, and folders that hold a run already."""

from __future__ import annotations

import pytest
import torch

from common.training.checkpoint import load_checkpoint
from lxrt.finetuning import main
from tests.lxmert.runs import DROPOUT_RUN, refused, same_state, strict_json, tensors


@pytest.mark.parametrize("stop", ["3", "4"])
def test_a_resumed_run_is_bit_identical_to_one_without_interruption(
    flags, whole, tmp_path, capsys, stop
):
    """SpotTune_Block with dropout; stopped in an epoch, at its end."""
    run, parts = [*flags, *DROPOUT_RUN], tmp_path
    torch.manual_seed(123)  # whatever happened in this process before
    assert main([*run, "--max-steps", stop, "--output", str(parts)]) == 0
    assert load_checkpoint(parts / "LAST.safetensors")[0]["progress"]["step"] == int(stop)
    assert not (parts / "result.json").exists(), "a result of a run that has not ended"
    assert (
        f"stopped after {stop} of 8 steps; go on with --resume and without --max-steps"
        in capsys.readouterr().out
    )
    torch.manual_seed(321)
    assert main([*run, "--resume", "--output", str(parts)]) == 0
    assert f"resumed at step {stop} of 8" in capsys.readouterr().out
    assert same_state(whole / "LAST.safetensors", parts / "LAST.safetensors") > 400
    assert same_state(whole / "BEST.safetensors", parts / "BEST.safetensors") > 100
    first, second = (strict_json(folder / "result.json") for folder in (whole, parts))
    for key in ("accuracy", "decisions", "best_epoch", "generalization_error", "baselines"):
        assert first[key] == second[key], key
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


def test_dropout_is_active_in_training(flags, tmp_path):
    """Else the test above would show less than it says."""
    run = [*flags, "--strategy", "SpotTune_Block"]
    for name, rate in (("with", "0.2"), ("without", "0")):
        assert main([*run, "--dropout", rate, "--output", str(tmp_path / name)]) == 0
    losses = [
        strict_json(tmp_path / n / "result.json")["epochs"][0]["train_loss"]
        for n in ("with", "without")
    ]
    assert losses[0] != losses[1]


@pytest.mark.long
def test_saving_often_and_reading_in_other_processes_changes_nothing(flags, whole, tmp_path):
    assert (
        main(
            [
                *flags,
                *DROPOUT_RUN,
                "--save-every",
                "1",
                "--numWorkers",
                "2",
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    same_state(tmp_path / "LAST.safetensors", whole / "LAST.safetensors")


def test_resuming_a_finished_run_gives_its_result_again(flags, tmp_path):
    out = tmp_path / "run"
    run = [*flags, "--strategy", "BlockDrop", "--output", str(out)]
    assert main(run) == 0
    before = strict_json(out / "result.json")
    weights = (out / "LAST.safetensors").read_bytes()
    assert main([*run, "--resume"]) == 0
    after = strict_json(out / "result.json")
    assert (out / "LAST.safetensors").read_bytes() == weights
    for key in ("accuracy", "decisions", "epochs", "best_epoch", "parameters"):
        assert after[key] == before[key], key
    assert after["time"]["train_step_s"] == before["time"]["train_step_s"]


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*flags, "--output", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shown = refused(capsys, *flags, "--strategy", "BlockDrop", "--output", str(out))
    assert shown == (
        f"error: {out / 'LAST.safetensors'} exists: add --resume to go on, "
        "--overwrite to start again, or choose another name\n"
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*flags, "--strategy", "BlockDrop", "--overwrite", "--output", str(out)]) == 0
    assert strict_json(out / "result.json")["strategy"] == "BlockDrop"


def test_overwriting_removes_what_the_earlier_run_left_and_keeps_its_own_curves(flags, tmp_path):
    """Nothing of the earlier run may pass for the new one, also if that is stopped early."""
    flags = [flag for flag in flags if flag not in ("--no-plots", "--no-tensorboard")]
    assert main([*flags, "--strategy", "BlockDrop", "--output", str(tmp_path)]) == 0
    old = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"result.json", "report.html", "BEST.safetensors"} <= {str(path) for path in old}
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*flags, "--overwrite", "--max-steps", "1", "--output", str(tmp_path)]) == 0
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    curves = {name for name in left if name.startswith("tensorboard/events.out.tfevents")}
    assert len(curves) == 1, "the curves of this run"
    assert left - curves == {
        "LAST.safetensors",
        "log.log",
        "vocab.txt",
        "answers.json",
        "notes.txt",
    }
    assert load_checkpoint(tmp_path / "LAST.safetensors")[1]["strategy"] == "standard"


def test_resume_without_a_run_is_refused(flags, tmp_path, capsys):
    shown = refused(capsys, *flags, "--resume", "--output", str(tmp_path / "new"))
    assert shown == (
        f"error: nothing to resume: {tmp_path / 'new' / 'LAST.safetensors'} does not "
        "exist; start without --resume\n"
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            ["--strategy", "SpotTune"],
            "strategy is 'SpotTune_Block' in the file, this run has 'SpotTune'",
        ),
        (["--strategy", "standard"], "policy is 'small' in the file, this run has None"),
        (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
        (["--llayers", "1"], "config.l_layers is 2 in the file, this run has 1"),
        (["--seed", "3"], "seed is 9595 in the file, this run has 3"),
        (["--lr", "0.1"], "lr is 0.0005 in the file, this run has 0.1"),
        (["--batchSize", "32"], "batch_size is 16 in the file, this run has 32"),
        (["--questions", "65"], "training.questions.count is 64 in the file, this run has 65"),
    ],
)
def test_resuming_with_other_settings_is_one_error_that_names_them(
    stopped, capsys, change, difference
):
    out, run = stopped
    before = (out / "LAST.safetensors").read_bytes()
    shown = refused(capsys, *run, "--resume", *change)
    assert f"{out / 'LAST.safetensors'}: made with other settings: " in shown
    assert difference in shown and "Run with the file's values" in shown
    assert (out / "LAST.safetensors").read_bytes() == before
