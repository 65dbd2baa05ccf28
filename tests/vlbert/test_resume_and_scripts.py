"""Runs that are stopped and go on, launch scripts, and several processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from common.training.checkpoint import load_checkpoint
from tests.lxmert.runs import same_state
from tests.vlbert.runs import FOLDER, LIMIT, flags, refused, result_of, script, write_config
from vlbert.finetuning import main

LAST = f"{FOLDER}/LAST.safetensors"
SAME = ("accuracy", "decisions", "best_epoch", "generalization_error", "baselines")
DROPOUT = {
    "NETWORK__VLBERT__hidden_dropout_prob": 0.2,
    "NETWORK__CLASSIFIER_DROPOUT": 0.1,
    "TRAIN__END_EPOCH": 2,
    "FINETUNE_STRATEGY": "SpotTune_Block",
}


@pytest.mark.parametrize("stop", ["3", "5"])
def test_auto_resume_is_bit_identical_to_a_run_without_interruption(coco, tmp_path, stop, capsys):
    """With dropout and mirrored samples; stopped in an epoch, or after one."""
    config = write_config(coco, **DROPOUT, TRAIN__AUTO_RESUME=True)
    assert main(flags(config, tmp_path / "whole", "--no-tensorboard")) == 0
    torch.manual_seed(123)  # whatever happened in this process before
    run = flags(config, tmp_path / "parts", "--no-tensorboard")
    assert main([*run, "--max-steps", stop]) == 0
    assert load_checkpoint(tmp_path / "parts" / LAST)[0]["progress"]["step"] == int(stop)
    torch.manual_seed(321)
    assert main(run) == 0
    assert f"resumed at step {stop} of 10" in capsys.readouterr().out
    assert same_state(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST) > 100
    whole, parts = (result_of(tmp_path / name) for name in ("whole", "parts"))
    for key in SAME:
        assert whole[key] == parts[key], key


def test_without_auto_resume_a_used_folder_is_refused(coco, tmp_path, capsys):
    config = write_config(coco)
    assert main(flags(config, tmp_path, "--no-tensorboard")) == 0
    assert "--resume" in refused(capsys, flags(config, tmp_path))
    shown = refused(capsys, flags(config, tmp_path, "--resume", "--set", "TRAIN.LR=0.5"))
    assert "LR is 0.001 in the file, this run has 0.5" in shown
    # What changes no result may differ; where files are is such a thing.
    assert (
        main(
            flags(
                config,
                tmp_path,
                "--resume",
                "--set",
                "LOG_FREQUENT=7",
                f"DATASET.DATASET_PATH={coco}/../{coco.name}",
                "VAL.BATCH_IMAGES=3",
                "--no-tensorboard",
            )
        )
        == 0
    )
    assert main(flags(config, tmp_path, "--overwrite", "--no-tensorboard")) == 0


@pytest.mark.long
def test_the_published_command_line_runs_in_one_process(coco, tmp_path):
    write_config(coco).rename(coco / "Tiny_4x16G_fp32.yaml")
    done = script(
        "nondist_run",
        "vqa/train_end2end.py",
        str(coco / "Tiny_4X16G_fp32.yaml"),
        str(tmp_path),
        "--quiet",
        "--no-plots",
        "--gpus",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    folder = FOLDER.replace("tiny", "Tiny_4x16G_fp32")
    assert result_of(tmp_path, folder)["processes"] == 1
    assert "New Best Val SoftAcc: " in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes two processes on the CPU")
def test_two_processes_train_as_one(coco, tmp_path):
    """The same update from 2 x 3 questions as from 6; every process resumes its own state."""
    config = write_config(
        coco,
        FINETUNE_STRATEGY="SpotTune_Block",
        USE_CONSTRAIN_K_LOSS=True,
        CONSTRAIN_K_NUM_BLOCKS=1,
        TRAIN__BATCH_IMAGES=3,
    )
    assert (
        main(flags(config, tmp_path / "one", "--set", "TRAIN.BATCH_IMAGES=6", "--no-tensorboard"))
        == 0
    )
    two = (
        "2",
        "vqa/train_end2end.py",
        str(config),
        str(tmp_path / "two"),
        "--quiet",
        "--no-plots",
        "--no-tensorboard",
    )
    done = script("dist_run_single", *two)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("Epoch[0] \tVal-SoftAcc") == 1
    one, both = (result_of(tmp_path / name) for name in ("one", "two"))
    assert (one["processes"], both["processes"]) == (1, 2)
    assert both["recipe"] | {"eval_batch_size": 0} == one["recipe"] | {"eval_batch_size": 0}
    for key in SAME:
        assert both[key] == one[key], key
    ours, theirs = (load_checkpoint(tmp_path / name / LAST)[0]["model"] for name in ("one", "two"))
    for name, weight in ((n, w) for n, w in ours.items() if not n.endswith("key.bias")):
        torch.testing.assert_close(
            theirs[name],
            weight,
            rtol=1e-3,
            atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes two processes on the CPU")
def test_every_process_of_a_distributed_run_resumes_bit_for_bit(coco, tmp_path):
    config = write_config(coco, **DROPOUT, TRAIN__AUTO_RESUME=True)

    def run(out: str, *more: str) -> None:
        done = script(
            "dist_run_single",
            "2",
            "vqa/train_end2end.py",
            str(config),
            str(tmp_path / out),
            "--quiet",
            "--no-plots",
            "--no-tensorboard",
            "--questions",
            "16",
            *more,
        )
        assert done.returncode == 0, done.stderr

    run("whole")
    run("parts", "--max-steps", "3")
    run("parts")
    state = load_checkpoint(tmp_path / "parts" / LAST)[0]
    assert len(state["processes"]) == 2
    assert same_state(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST) > 100


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes two processes on the CPU")
def test_a_run_goes_on_with_another_number_of_processes_and_is_tested_by_them(coco, tmp_path):
    """From one process to two that share the same update, and to the end with --do-test."""
    config = write_config(coco, FINETUNE_STRATEGY="SpotTune_Block", TRAIN__BATCH_IMAGES=3)
    whole = ("--set", "TRAIN.BATCH_IMAGES=6", "--no-tensorboard")
    assert main(flags(config, tmp_path / "one", *whole)) == 0
    assert main(flags(config, tmp_path / "two", *whole, "--max-steps", "2")) == 0
    done = script(
        "dist_run_single",
        "2",
        "vqa/train_end2end.py",
        str(config),
        str(tmp_path / "two"),
        "--quiet",
        "--no-plots",
        "--no-tensorboard",
        "--resume",
        "--do-test",
    )
    assert done.returncode == 0, done.stderr
    assert "was saved by 1 processes, these are 2" in done.stdout
    assert done.stdout.count("8 predictions of") == 1
    one, both = (result_of(tmp_path / name) for name in ("one", "two"))
    for key in SAME:
        assert both[key] == one[key], key


def test_a_killed_run_goes_on_from_what_it_saved(coco, tmp_path):
    """kill -9 in the middle of an epoch, then the same command."""
    config = write_config(coco, **DROPOUT, TRAIN__AUTO_RESUME=True)
    assert main(flags(config, tmp_path / "whole", "--no-tensorboard")) == 0
    run = flags(config, tmp_path / "parts", "--no-tensorboard", "--save-every", "1")
    killed = (
        "import os, signal, sys\n"
        "from common.training import Trainer\n"
        "from vlbert.finetuning import main\n"
        "save = Trainer.save_last\n"
        "def save_and_die(self):\n"
        "    save(self)\n"
        "    if self.step == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer.save_last = save_and_die\n"
        "main(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", killed, *run],
        timeout=LIMIT,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == -9, done.stderr
    assert main(run) == 0
    assert same_state(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST) > 100


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nondist_run", ()),
        ("nondist_run", ("vqa/train_end2end.py", "cfgs/vqa/standard.yaml")),
        ("dist_run_single", ("vqa/train_end2end.py", "cfgs/vqa/standard.yaml", "output")),
        ("dist_run_multi", ("2", "0", "10.0.0.1", "vqa/train_end2end.py")),
    ],
)
def test_a_launch_script_without_its_arguments_explains_itself(name, arguments):
    done = script(name, *arguments)
    assert done.returncode == 2 and f"./scripts/{name}.sh" in done.stderr


def test_help_explains_the_flags_and_their_keys():
    """From another folder: tests/test_scripts.py."""
    done = script("dist_run_single", "2", "vqa/train_end2end.py", "--help")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "--strategy" in text and "(default: FINETUNE_STRATEGY of the config)" in text
    assert "--set KEY=VALUE" in text and "(default 0.1)" not in text
