"""Starting finetuning runs through the backbones' run scripts, and stopping them in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from common.errors import StoppedError
from common.files import repository_root


@dataclass(frozen=True)
class RunScript:
    """How a backbone finetunes on VQA: its folder, its scripts, and where runs go in it."""

    folder: str
    script: str
    test_script: str
    runs: str

    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        """What starts the run `name`, in the backbone's folder."""
        return ["bash", self.script, gpu, name, *flags]

    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        """What evaluates a snapshot (`BEST`, `LAST`) of the run `name` on minival."""
        return ["bash", self.test_script, gpu, name, "--load", f"{self.runs}/{name}/{snapshot}",
                "--test", "minival", *flags]

    @property
    def home(self) -> Path:
        """The backbone's folder."""
        return repository_root() / self.folder

    def run_folder(self, name: str) -> Path:
        """Where the run `name` writes to."""
        return self.home / self.runs / name


RUN_SCRIPTS = {"lxmert": RunScript("LXMERT", "run/vqa_finetune.bash", "run/vqa_test.bash",
                                   "snap/vqa")}


class Launcher:
    """Runs commands one by one or from several threads; within it a stop reaches all of them.

    SIGTERM, SIGHUP and Ctrl-C are passed on as one SIGTERM, on which a run saves and ends.
    Commands get a session of their own, so that Ctrl-C does not reach them a second time.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Launcher:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        for process in tuple(self._running):
            process.send_signal(signal.SIGTERM)

    def run(self, command: Sequence[str], folder: Path, output: IO[bytes] | None = None) -> int:
        """Run a command in a folder to its end; returns its exit status.

        Args:
            output: takes what the command prints; by default it goes to the screen.

        Raises:
            StoppedError: a signal asked to stop, before the command began or while it ran.
        """
        with self._lock:
            self.check()
            environment = os.environ | {"PYTHON": sys.executable}
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output,
                                       stderr=None if output is None else subprocess.STDOUT,
                                       start_new_session=True)
            self._running.add(process)
        if self.stopped:  # between the check and the start
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        self._running.discard(process)
        self.check()
        return status

    def check(self) -> None:
        """Raise StoppedError if a signal asked to stop."""
        if self.stopped:
            raise StoppedError("stopped by a signal; what was done is kept")
