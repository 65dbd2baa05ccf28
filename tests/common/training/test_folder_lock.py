"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import shutil
import socket
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.training import folder_lock
from common.training.folder_lock import NAME, alone, renew
from tests.common.held_folder import held
from tests.common.toy_task import make_trainer


def without_system_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)


def test_a_folder_in_use_is_refused_until_its_process_has_ended(tmp_path: Path):
    with held(tmp_path / "run") as process:
        with (
            pytest.raises(ConfigError, match=f"in use by process {process.pid} on") as error,
            alone(tmp_path / "run"),
        ):
            raise AssertionError
        assert socket.gethostname() in str(error.value) and str(tmp_path) in str(error.value)
        process.kill()
        process.wait()
        with alone(tmp_path / "run"):  # though nobody took the file away
            pass
    assert not (tmp_path / "run" / NAME).exists()


def test_it_is_refused_within_one_process_too(tmp_path: Path):
    with alone(tmp_path), pytest.raises(ConfigError, match="this very process"), alone(tmp_path):
        raise AssertionError
    with alone(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_the_file_is_one(tmp_path: Path, monkeypatch):
    with held(tmp_path) as process:
        without_system_locks(monkeypatch)
        with (
            pytest.raises(ConfigError, match=f"in use by process {process.pid} on"),
            alone(tmp_path),
        ):
            raise AssertionError
        process.kill()
        process.wait()
        with alone(tmp_path):
            assert (tmp_path / NAME).exists()
    assert not (tmp_path / NAME).exists()
    (tmp_path / NAME).write_text('{"host": "another machine", "process": 1}')
    with pytest.raises(ConfigError, match=r"on another machine.*delete .*\.lock"), alone(tmp_path):
        raise AssertionError


@pytest.mark.parametrize("locks", [True, False])
def test_a_folder_that_was_deleted_is_locked_again(tmp_path: Path, monkeypatch, locks):
    if not locks:
        without_system_locks(monkeypatch)
    folder = tmp_path / "run"
    with alone(folder):
        assert not renew(folder)
        shutil.rmtree(folder)
        assert renew(folder) and not renew(folder) and (folder / NAME).exists()
    if locks:
        with alone(folder):
            shutil.rmtree(folder)
            with held(folder), pytest.raises(ConfigError, match="in use by process"):
                renew(folder)


def test_what_a_deleted_folder_needs_is_written_again(tmp_path: Path):
    """`ask` reads the vocabulary beside BEST."""
    trainer = make_trainer(tmp_path / "run", 3)
    trainer.keep = lambda: (tmp_path / "run" / "vocab.txt").write_text("a\n")
    with alone(tmp_path / "run"):
        trainer.begin(resume=False, overwrite=False)
        assert (tmp_path / "run" / "vocab.txt").exists()
        shutil.rmtree(tmp_path / "run")
        trainer.fit()
        assert {p.name for p in (tmp_path / "run").iterdir()} >= {
            "vocab.txt",
            "LAST.safetensors",
            "log.log",
        }
        assert "was deleted during the run" in (tmp_path / "run" / "log.log").read_text()


def test_overwrite_removes_the_batch_that_was_not_finite(tmp_path: Path):
    for name in ("non_finite_batch.safetensors", "non_finite_batch_process_1.safetensors"):
        (tmp_path / name).touch()
    make_trainer(tmp_path).begin(resume=False, overwrite=True)
    assert not list(tmp_path.glob("non_finite_batch*"))
