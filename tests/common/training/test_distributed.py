"""Several processes are one: the same training, no hang when one dies, and a run that goes on.

Real processes that talk through gloo, started as the run scripts and as torchrun start them.
"""

from __future__ import annotations

import errno
import functools
import json
import operator
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.adapt.budget import BudgetOptions
from common.errors import ConfigError
from common.training.checkpoint import load_checkpoint
from common.training.distributed import World, one_voice, split_evenly, start_world
from common.training.processes import main, wanted_processes
from tests.common.distributed_runs import ATTENDED, CASES, DROPPED, EQUAL, RECORDED
from tests.common.toy_task import final_state, flat, make_trainer, same

MODULE = ["-m", "tests.common.distributed_runs"]
LIMIT = 150.0  # seconds: a hang fails


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def command(kind: str, out: Path, *flags: str) -> list[str]:
    """Two processes, as the run scripts start them."""
    return [sys.executable, "-m", "common.training.processes", "2", *MODULE, kind, str(out), *flags]


def start(kind: str, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(kind, out, *flags),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("equal")
    done = start("equal", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.long
@pytest.mark.parametrize(("family", "strategy"), CASES)
def test_two_processes_train_as_one(two_processes, tmp_path, family, strategy):
    """Uneven parts, budget losses, and means over other things than samples included."""
    trainer = make_trainer(tmp_path, strategy=strategy, family=family, **EQUAL)
    trainer.fit()
    folder = two_processes / f"{family}_{strategy}"
    state, _meta = load_checkpoint(folder / "LAST.safetensors")
    for name, ours in trainer.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], ours, rtol=1e-7, atol=1e-9, msg=name)
    assert len(state["processes"]) == 2
    for ours, theirs in zip(trainer.history, state["progress"]["history"], strict=True):
        assert theirs["train_losses"] == pytest.approx(ours["train_losses"], rel=1e-6)
        assert theirs["train_accuracy"] == ours["train_accuracy"]
        assert theirs.get("train_decisions") == ours.get("train_decisions")
        recorded = [flat(record.get("policy", {})) for record in (ours, theirs)]
        assert recorded[1] == pytest.approx(recorded[0], rel=1e-6, abs=1e-8)
    if trainer.part is not None:
        one_sided = json.loads((folder / "one_sided.json").read_text())
        assert all(one_sided), "no process ever had a branch without samples: nothing is tested"


@pytest.mark.long
@pytest.mark.parametrize("strategy", DROPPED)
def test_two_processes_drop_the_same_layers_and_shorten_the_spans_of_all(
    two_processes, tmp_path, strategy
):
    trainer = make_trainer(tmp_path, strategy=strategy, **ATTENDED)
    trainer.fit()
    state = final_state(two_processes / f"dropped_{strategy}")
    for name, ours in trainer.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], ours, rtol=1e-7, atol=1e-9, msg=name)
    assert any("span_policy" in name for name in state["model"])


@pytest.mark.long
def test_two_processes_with_micro_batches_train_as_one_with_none(two_processes, tmp_path):
    trainer = make_trainer(tmp_path, **EQUAL | {"budget": BudgetOptions()})
    trainer.fit()
    state = final_state(two_processes / "accumulated")
    for name, ours in trainer.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], ours, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.long
@pytest.mark.parametrize(("family", "strategy"), RECORDED)
def test_two_processes_with_recorded_passes_train_as_one_without(
    two_processes, tmp_path, family, strategy
):
    """Gradients are averaged after the passes, which nothing could be within."""
    trainer = make_trainer(
        tmp_path, strategy=strategy, family=family, **EQUAL | {"budget": BudgetOptions()}
    )
    trainer.fit()
    state = final_state(two_processes / f"recorded_{family}_{strategy}")
    for name, ours in trainer.model.state_dict().items():
        torch.testing.assert_close(state["model"][name], ours, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.long
def test_a_process_that_is_killed_ends_the_run_with_its_name_and_the_run_goes_on(
    two_processes, tmp_path
):
    died = start("killed", tmp_path / "parts")
    assert died.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 ended with signal SIGKILL" in died.stderr
    assert "--resume" in died.stderr and "Traceback" not in died.stderr
    step = final_state(tmp_path / "parts")["progress"]["step"]
    assert step == 7
    went_on = start("train", tmp_path / "parts", "--resume")
    assert went_on.returncode == 0, went_on.stderr
    same(final_state(two_processes / "whole"), final_state(tmp_path / "parts"))


def test_the_error_of_one_process_is_the_error_of_the_run(tmp_path):
    failed = start("poisoned", tmp_path)
    assert failed.returncode != 0
    assert "error (process 1): loss answer is not finite at step 4" in failed.stderr
    assert (tmp_path / "non_finite_batch_process_1.safetensors").exists()
    assert "Traceback" not in failed.stderr


@pytest.mark.slow
def test_a_signal_stops_all_processes_at_the_same_step_and_the_run_goes_on(tmp_path, capsys):
    process = subprocess.Popen(
        command("train", tmp_path / "parts"), env=environment(), text=True, stderr=subprocess.PIPE
    )
    last = tmp_path / "parts" / "LAST.safetensors"
    deadline = time.time() + LIMIT
    while not last.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 128 + signal.SIGTERM, error
    assert error.count("stopped by a signal at step") == 1 and "--resume" in error
    stopped = final_state(tmp_path / "parts")["progress"]["step"]
    assert 0 < stopped < 15
    # On another number of processes: the samples are those of the same global batches.
    alone = make_trainer(tmp_path / "parts", save_every=1)
    alone.begin(resume=True, overwrite=False)
    alone.fit()
    assert "was saved by 2 processes" in capsys.readouterr().out
    state = final_state(tmp_path / "parts")["progress"]
    assert state["step"] == 15 and len(state["history"]) == 3


@pytest.mark.slow
def test_processes_whose_launcher_was_killed_save_and_end(tmp_path):
    """Otherwise they would go on writing into the folder in which the run is resumed."""
    launcher = subprocess.Popen(
        command("train", tmp_path),
        env=environment(),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    last, deadline = tmp_path / "LAST.safetensors", time.time() + LIMIT
    while not last.exists() and launcher.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    launcher.kill()
    error = launcher.communicate(timeout=LIMIT)[1]  # open until the last of them has ended
    assert error.count("stopped by a signal at step") == 1
    assert 0 < final_state(tmp_path)["progress"]["step"] < 15


@pytest.mark.slow
def test_torchrun_over_two_nodes(tmp_path):
    """Two agents on one machine, as two machines would start them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes",
                "2",
                "--node_rank",
                str(rank),
                "--nproc_per_node",
                "1",
                "--master_addr",
                "localhost",
                "--master_port",
                str(port),
                *MODULE,
                "train",
                str(tmp_path),
            ],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [node.communicate(timeout=LIMIT)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert len(final_state(tmp_path)["processes"]) == 2
    assert final_state(tmp_path)["progress"]["step"] == 15


def test_parts_are_even_and_in_order():
    items = list(range(11))
    for parts in range(1, 13):
        split = split_evenly(items, parts)
        assert functools.reduce(operator.iadd, split, []) == items and len(split) == parts
        assert max(map(len, split)) - min(map(len, split)) <= 1
    assert World(1, 3).share(items) == [4, 5, 6, 7]
    assert World().sum({"a": 2}) == {"a": 2.0} and World().gather("x") == ["x"]


def test_the_processes_that_a_list_of_gpus_means(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert [wanted_processes(gpus) for gpus in (None, "cpu", "0", "0,1", "4,5,6")] == [
        1,
        1,
        1,
        2,
        3,
    ]
    monkeypatch.setenv("RANK", "0")
    assert wanted_processes("0,1") == 1


def test_faults_of_files_are_messages_and_a_full_disk_says_what_helps(capsys):
    def write(number: int) -> int:
        raise OSError(number, os.strerror(number))

    assert one_voice(lambda: write(errno.ENOSPC)) == 2
    assert "No space left on device: free some space" in capsys.readouterr().err
    assert one_voice(lambda: write(errno.EIO)) == 2
    shown = capsys.readouterr().err
    assert os.strerror(errno.EIO) in shown and "free some space" not in shown


def test_a_fault_of_the_program_says_so_and_where_its_trace_is(capsys):
    def fail() -> int:
        raise KeyError("a name")

    assert one_voice(fail) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("bug: KeyError: 'a name'") and shown.count("\n") == 1
    trace = Path(shown.split("the trace in ")[1].split()[0])
    assert "in fail" in trace.read_text()
    trace.unlink()
    assert one_voice(fail, trace=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_before_the_processes_met_is_said_once_on_every_machine(monkeypatch, capsys):
    def fail() -> int:
        raise ConfigError("no such file")

    shown = {}
    for rank, local_rank in (("0", "0"), ("1", "1"), ("2", "0")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert one_voice(fail) == 2
        shown[rank] = capsys.readouterr().err.count("no such file")
    assert shown == {"0": 1, "1": 0, "2": 1}


def test_incomplete_settings_of_a_launcher_are_named(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but 'RANK' is not set"):
        start_world()
    assert main(["two", "x.py"]) == 2
    assert "error: two x.py: give a number of processes" in capsys.readouterr().err
