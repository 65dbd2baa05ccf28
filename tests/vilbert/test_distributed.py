"""The commands in two processes, as torchrun and torch.distributed.launch start them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from common.files import repository_root
from common.training.checkpoint import load_checkpoint
from tests.lxmert.runs import same_state, strict_json
from tests.vilbert.concap_files import write_concap
from tests.vilbert.runs import DROPOUT_RUN, TESTED, without
from vilbert.concap import main as pretrain
from vilbert.finetuning import evaluate, train
from vilbert.sizes import HOME

LIMIT = 240.0  # seconds: a hang fails
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")
LAUNCH = ("torch.distributed.launch", "--nproc_per_node=2", "--nnodes=1", "--node_rank=0")
# Whole parts, since other processes know nothing of the tests' small minival.
PARTS = ("--train", "train", "--valid", "val")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on the CPU")


def started(*words: str, folder: Path = HOME) -> subprocess.CompletedProcess[str]:
    """A launcher of two processes with a script of ViLBERT/ and its flags."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.mark.slow  # the next one promises the same of this launcher, of several tasks
def test_torchrun_trains_as_one_process(files, tmp_path, monkeypatch):
    run = [*PARTS, "--strategy", "SpotTune_Block", "--target-rate", "0.3", "--batchSize", "13"]
    run += ["--questions", "47", "--eval-batch-size", "17", "--policy-eval", "global"]
    with monkeypatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        assert train(files.run(tmp_path / "one", *run)) == 0
    script = ("-m", "tests.vilbert.without_dropout")
    done = started(*TORCHRUN, *script, *files.run(tmp_path / "two", *run), folder=repository_root())
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("Epoch 0: Valid") == 1
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for key in ("accuracy", "decisions", "parameters", "best_epoch", "baselines", "recipe"):
        assert two[key] == one[key], key
    assert two["epochs"][0]["train_loss"] == pytest.approx(one["epochs"][0]["train_loss"], rel=1e-4)
    names = [sorted(path.name for path in (tmp_path / n).iterdir()) for n in ("one", "two")]
    assert names[0] == names[1] and names[1].count("result.json") == 1
    ours, theirs = (
        load_checkpoint(tmp_path / name / "BEST.safetensors")[0]["model"] for name in ("one", "two")
    )
    # A key's bias moves all scores of a query alike: its gradient is 0 but for rounding, which
    # AdamW turns into steps of full size.
    keys = re.compile(r"\.(key|key1|key2)\.bias$")
    for name, weight in ((n, w) for n, w in ours.items() if not keys.search(n)):
        torch.testing.assert_close(theirs[name], weight, rtol=1e-3, atol=3e-4, msg=name)


@pytest.mark.slow
def test_several_tasks_are_trained_by_two_processes_as_by_one(others, tmp_path, monkeypatch):
    """Steps of different heads, batches that are divided unevenly; scores of every sample once."""
    words = ["--strategy", "SpotTune_Block", "--policy-eval", "global", "--plateau"]

    def run(out: Path) -> list[str]:
        found = without(others.train("6,9,11", out, *words), "--batchSize", "--epochs")
        return [*found, "--batchSize", "7", "--epochs", "1", "--eval-batch-size", "3"]

    with monkeypatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        assert train(run(tmp_path / "one")) == 0
    script = ("-m", "tests.vilbert.without_dropout")
    done = started(*TORCHRUN, *script, *run(tmp_path / "two"), folder=repository_root())
    assert done.returncode == 0, done.stderr
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    for key in ("accuracy", "decisions", "best_epoch", "baselines"):
        assert two[key] == one[key], key
    losses = [result["epochs"][0]["train_losses"] for result in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_captions_are_pretrained_on_by_two_processes_as_by_one(files, tmp_path, monkeypatch):
    """With parts of the data in several files; masks do not depend on the processes."""
    data = write_concap(tmp_path / "data", parts=3)

    def run(out: Path) -> list[str]:
        return [
            *("--train_file", str(data), "--validation_file", str(data)),
            *("--bert_model", str(files.bert), "--config_file", str(files.config)),
            *("--from_pretrained", str(files.pretrained), "--train_batch_size", "7"),
            *("--num_train_epochs", "1", "--no_cuda", "--quiet", "--no-tensorboard"),
            *("--output", str(out), "--eval-batch-size", "3", "--distributed"),
        ]

    with monkeypatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        assert pretrain(run(tmp_path / "one")) == 0
    script = ("-m", "tests.vilbert.without_dropout", "--concap")
    done = started(*TORCHRUN, *script, *run(tmp_path / "two"), folder=repository_root())
    assert done.returncode == 0, done.stderr
    one, two = (strict_json(tmp_path / name / "result.json") for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for part in ("train", "val"):
        assert two["losses"][part] == pytest.approx(one["losses"][part], rel=1e-4), part
    assert two["accuracy"] == one["accuracy"]


@pytest.mark.long
def test_the_launcher_of_the_original_answers_every_question_once(files, whole, tmp_path):
    """With --local-rank among the flags; an uneven number of batches."""
    run = files.test(whole / "BEST", "out", "--split", "test", "--batch_size", "5")
    place = run.index("--output")
    run[place + 1] = str(tmp_path / "one")
    assert evaluate(run) == 0
    run[place + 1] = str(tmp_path / "two")
    done = started(*LAUNCH, "eval_tasks.py", *run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 predictions in ") == 1
    for name in ("test_result.json", "test_others.json"):
        one, two = (strict_json(tmp_path / folder / name) for folder in ("one", "two"))
        assert one == two and len(one) == 4 * len(TESTED), name


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(files, tmp_path):
    run = files.run(tmp_path / "run")
    run[run.index("--from_pretrained") + 1] = "nowhere.bin"
    done = started(*LAUNCH, "train_tasks.py", *run)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(said) == 1 and "nowhere.bin" in said[0], done.stderr
    assert "vilbert/" not in done.stderr, "a traceback of ours"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, LAUNCH])
def test_a_run_of_two_processes_leaves_one_result_and_resumes_bit_for_bit(
    files, tmp_path, launcher
):
    def run(out: Path, *more: str) -> None:
        words = files.run(out, *PARTS, *DROPOUT_RUN, "--batchSize", "16", *more)
        done = started(*launcher, "train_tasks.py", *words)
        assert done.returncode == 0, done.stderr

    run(tmp_path / "whole")
    run(tmp_path / "parts", "--max-steps", "2")
    run(tmp_path / "parts", "--resume")
    assert len(load_checkpoint(tmp_path / "parts" / "LAST.safetensors")[0]["processes"]) == 2
    for name in ("LAST", "BEST"):
        same_state(*(tmp_path / f / f"{name}.safetensors" for f in ("whole", "parts")))
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names.count("result.json") == 1 and names.count("log.log") == 1


@pytest.mark.slow
def test_several_gpu_numbers_start_as_many_processes(files, tmp_path):
    """`--gpus 0,1` alone, without a launcher; two processes on the CPU where there is no GPU."""
    words = files.run(tmp_path, *PARTS)
    words[words.index("--gpus") + 1] = "0,1"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "train_tasks.py", *words],
        cwd=HOME,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert strict_json(tmp_path / "result.json")["processes"] == 2


@pytest.mark.slow
def test_fixed_layers_train_in_two_processes(files, tmp_path):
    """Every trainable tensor has to get a gradient."""
    sizes = json.loads(files.config.read_text()) | {"fixed_t_layer": 1}
    (tmp_path / "fixed.json").write_text(json.dumps(sizes))
    run = files.run(tmp_path / "run", *PARTS, "--questions", "16", "--max-steps", "1")
    run[run.index("--config_file") + 1] = str(tmp_path / "fixed.json")
    done = started(*TORCHRUN, "train_tasks.py", *run)
    assert done.returncode == 0, done.stderr
    assert "standard: train" in done.stdout
