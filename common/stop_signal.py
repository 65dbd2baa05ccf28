"""Letting SIGTERM and Ctrl-C wait until a run has saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopSignal:
    """Within it SIGTERM and Ctrl-C are only remembered: the run looks at `received` and saves.

    A second signal of the same kind acts as usual.
    """

    def __init__(self) -> None:
        self.received = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        def remember(number: int, frame: Any) -> None:
            self.received = True
            signal.signal(number, self._previous[number])

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, remember)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
