"""Letting SIGTERM and Ctrl-C wait until a run has saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun and common.training.processes set it
# A signal to a whole tree of processes (SLURM, systemd, kill -- -GROUP) reaches a process twice: by
# itself, and passed on by the launcher.
REPEATS = 3.0  # seconds in which further signals are the same wish


class StopSignal:
    """Within it SIGTERM and Ctrl-C are only remembered: the run looks at `received` and saves.

    One that comes more than `REPEATS` seconds after the first acts as usual. Where a launcher
    started this process, its death is a signal as well: a run that nobody watches must not go on
    writing into a folder in which it is resumed.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._launcher = os.getppid() if LAUNCHED in os.environ else None
        self._first = 0.0
        self._previous: dict[int, Any] = {}

    @property
    def received(self) -> bool:
        """Whether the run has to stop."""
        return self._signalled or self._launcher not in (None, os.getppid())

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._signalled:
            self._signalled, self._first = True, now
        elif now - self._first > REPEATS:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
