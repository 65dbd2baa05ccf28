"""Saving that is killed or fails at any point leaves the last good checkpoint, and says so."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from common.errors import CheckpointError
from common.training import checkpoint
from common.training.checkpoint import load_checkpoint, save_checkpoint

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # the scripts fork after torch is loaded


def make_state(version: int, size: int = 1000) -> dict[str, Any]:
    return {"model": {"w": torch.full((size,), float(version))}, "step": version}


def version_of(path: Path) -> int:
    """The version in a file, after checking that all of it is of that version."""
    state, meta = load_checkpoint(path)
    assert (state["model"]["w"] == state["step"]).all() and meta == {"step": state["step"]}
    return state["step"]


def run_script(
    body: str, folder: Path, launcher: Sequence[str] = ()
) -> subprocess.CompletedProcess:
    """Run code that has `folder` and `save(version, size)` in a process of its own."""
    prelude = """
        import os, resource, signal, sys, time
        from pathlib import Path
        import torch
        from common.training import checkpoint
        from common.training.checkpoint import save_checkpoint
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        folder = Path(sys.argv[1])
        def save(version, size=1000):
            save_checkpoint(folder / "LAST.safetensors", {"model": {
                "w": torch.full((size,), float(version))}, "step": version}, {"step": version})
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(body)
    return subprocess.run(
        [*launcher, sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )


KILLED = """
    def kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)
    def before(module, name):
        setattr(module, name, kill)
    def after(module, name):
        real = getattr(module, name)
        setattr(module, name, lambda *a, **k: (real(*a, **k), kill()))
    def in_the_middle():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # deadly at the millionth byte
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    st = checkpoint.safetensors.torch
    points = [("writing, before", lambda: before(st, "save_file")),
              ("writing, in the middle", in_the_middle),
              ("writing, after", lambda: after(st, "save_file")),
              ("fsync, before", lambda: before(os, "fsync")),
              ("replace, before", lambda: before(os, "replace")),
              ("replace, after", lambda: after(os, "replace")),
              ("removing leftovers", lambda: before(checkpoint.shutil, "rmtree"))]
    save(0)
    for number, (name, arm) in enumerate(points):
        child = os.fork()
        if child == 0:
            arm()
            save(number + 1, 10**6)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        state, meta = checkpoint.load_checkpoint(folder / "LAST.safetensors")
        assert (state["model"]["w"] == state["step"]).all() and meta["step"] == state["step"]
        print(name, os.WTERMSIG(status), state["step"], len(os.listdir(folder)), sep="|")
    save(99)
    print("end", 0, 99, len(os.listdir(folder)), sep="|")
"""


def test_a_save_killed_at_any_point_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = run_script(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    found = {name: (int(signal), int(step)) for name, signal, step, _ in rows}
    assert found == {
        "writing, before": (9, 0),
        "writing, in the middle": (25, 0),
        "writing, after": (9, 0),
        "fsync, before": (9, 0),
        "replace, before": (9, 0),
        "replace, after": (9, 6),
        "removing leftovers": (9, 6),
        "end": (0, 99),
    }
    assert rows[-1][3] == "1", "the next save removes what killed ones left"
    assert max(int(row[3]) for row in rows) == 2, "and never lets it pile up"
    assert version_of(tmp_path / "LAST.safetensors") == 99


KILLED_ANY_TIME = """
    save(0)
    for round in range(12):
        child = os.fork()
        if child == 0:
            for version in range(100 * round, 100 * round + 99):
                save(version, 2 * 10**6)
        time.sleep(0.02 + 0.013 * round)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state, meta = checkpoint.load_checkpoint(folder / "LAST.safetensors")
        assert (state["model"]["w"] == state["step"]).all() and meta["step"] == state["step"]
        print(state["step"], [name for name in os.listdir(folder) if name[0] == "."])
"""


def test_a_save_killed_at_any_time_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    done = run_script(KILLED_ANY_TIME, tmp_path)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 12, done.stderr
    assert max(int(line.split()[0]) for line in done.stdout.splitlines()) > 0
    save_checkpoint(tmp_path / "LAST.safetensors", make_state(1), {"step": 1})
    assert os.listdir(tmp_path) == ["LAST.safetensors"]


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def partly(error: Exception) -> Callable[..., None]:
    def fail(_: Any, path: Path, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    return fail


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
RUST_FULL = SafetensorError("Error while serializing: I/O error: ENOSPC text (os error 28)")


@pytest.mark.parametrize(
    ("module", "name", "fault", "reason"),
    [
        (safetensors.torch, "save_file", partly(RUST_FULL), "No space left on device"),
        (safetensors.torch, "save_file", partly(FULL), "No space left on device"),
        (os, "fsync", failing(FULL), "No space left on device"),
        (os, "replace", failing(PermissionError(errno.EACCES, "denied")), "Permission denied"),
        (Path, "mkdir", failing(OSError(errno.EROFS, "read-only")), "Read-only file system"),
    ],
)
def test_a_failed_save_keeps_the_old_file_and_says_what_happened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    fault: Callable,
    reason: str,
) -> None:
    path = tmp_path / "LAST.safetensors"
    save_checkpoint(path, make_state(1), {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fault)
        with pytest.raises(CheckpointError) as error:
            save_checkpoint(path, make_state(2, 10**6), {"step": 2})
        with pytest.raises(CheckpointError, match="there was no earlier checkpoint"):
            save_checkpoint(tmp_path / "BEST.safetensors", make_state(2), {})
    message = str(error.value)
    assert message.startswith(f"{path}: the checkpoint could not be saved: {reason}")
    assert "the previous checkpoint of this name is untouched" in message
    assert re.search(r"It needs 4\.\d MB; [\d,.]+ MB are free there", message)
    assert version_of(path) == 1 and os.listdir(tmp_path) == [path.name]
    save_checkpoint(path, make_state(3), {"step": 3})
    assert version_of(path) == 3


def test_ctrl_c_while_saving_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "LAST.safetensors"
    save_checkpoint(path, make_state(1), {"step": 1})
    monkeypatch.setattr(safetensors.torch, "save_file", partly(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, make_state(2), {"step": 2})
    assert version_of(path) == 1 and os.listdir(tmp_path) == [path.name]


def test_an_unconfirmed_rename_says_that_the_new_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def second_fails(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(CheckpointError, match="the new checkpoint is in its place"):
        save_checkpoint(tmp_path / "x", make_state(4), {"step": 4})
    assert version_of(tmp_path / "x") == 4


REALLY_FULL = """
    save(1)
    print(len(os.listdir(folder)))
    try:
        save(2, 10**6)
    except checkpoint.CheckpointError as error:
        print(error)
    print(os.listdir(folder), checkpoint.load_checkpoint(folder / "LAST.safetensors")[1])
"""


def check_really_full(done: subprocess.CompletedProcess, reason: str) -> None:
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "1", done.stderr
    assert reason in lines[1] and "previous checkpoint of this name is untouched" in lines[1]
    assert lines[2] == "['LAST.safetensors'] {'step': 1}"


def test_a_limit_on_file_size_is_like_a_full_disk(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    check_really_full(
        run_script(limit + textwrap.dedent(REALLY_FULL), tmp_path),
        "File too large (free some space",
    )


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of 1 MB that exists only for one process."""
    mount = [
        "unshare",
        "--mount",
        "--map-root-user",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"',
        str(tmp_path),
    ]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this machine does not let a test mount a file system")
    done = run_script(REALLY_FULL, tmp_path, mount)
    check_really_full(done, "No space left on device (free some space")


def test_stale_folders_are_removed_and_those_of_living_processes_stay(tmp_path: Path) -> None:
    host = checkpoint.socket.gethostname()
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()
    names = {
        "dead": f".BEST.safetensors.saving-{host}-{dead}",
        "own": f".LAST.safetensors.saving-{host}-{os.getpid()}",
        "living": f".BEST.safetensors.saving-{host}-{os.getppid()}",
        "elsewhere": f".BEST.safetensors.saving-not-{host}-1",
        "old": f".BEST.safetensors.saving-old-{host}-1",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    yesterday = time.time() - 86_400
    os.utime(tmp_path / names["old"], (yesterday, yesterday))
    save_checkpoint(tmp_path / "LAST.safetensors", make_state(1), {})
    assert set(os.listdir(tmp_path)) == {"LAST.safetensors", names["living"], names["elsewhere"]}
