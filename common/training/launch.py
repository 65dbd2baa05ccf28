"""Starting commands, such as the backbones' run scripts, and stopping them in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from common.errors import ConfigError, StoppedError


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
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        if self.stopped:  # between the check and the start
            process.send_signal(signal.SIGTERM)
        status = process.wait()
        self._running.discard(process)
        self.check()
        return status

    def run_silently(self, command: Sequence[str], folder: Path) -> None:
        """Run a command in a folder, showing what it printed only if it fails.

        Raises:
            ConfigError: it failed; with its errors, or else its last lines.
            StoppedError: as `run`.
        """
        with tempfile.TemporaryFile() as output:
            status = self.run(command, folder, output)
            if status:
                output.seek(0)
                said = output.read().decode(errors="replace").strip().splitlines()
                errors = [line for line in said if line.startswith("error: ")] or said[-5:]
                raise ConfigError(f"exit status {status}: " + "\n".join(errors))

    def check(self) -> None:
        """Raise StoppedError if a signal asked to stop."""
        if self.stopped:
            raise StoppedError("stopped by a signal; what was done is kept")


class Pace:
    """How long runs take here in comparison to what was expected."""

    def __init__(self) -> None:
        self.expected = self.needed = 0.0

    def add(self, minutes: float, seconds: float) -> None:
        """Note a run that was expected to take some minutes and took so many seconds."""
        self.expected += minutes
        self.needed += seconds / 60

    def minutes(self, expected: float) -> float:
        """What these expected minutes will be."""
        return expected * (self.needed / self.expected if self.expected else 1.0)
