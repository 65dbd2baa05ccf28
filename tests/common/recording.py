"""Recordings without a GPU: something that does the recorded work again.

Whatever a pass takes from elsewhere than the memory that it was recorded on stays that of the
recording, and what is written is written there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.tasks import starting


class Repeating:
    """Does the work again."""

    def __init__(self) -> None:
        self.recordings = self.repeats = 0
        self.said: set[str] = set()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        work()

        def repeat() -> None:
            self.repeats += 1
            work()

        return repeat


def recording(monkeypatch: pytest.MonkeyPatch) -> Repeating:
    """Commands of this test record their passes."""
    recorder, make = Repeating(), starting.make_runtime
    monkeypatch.setattr(
        starting, "make_runtime", lambda *given: replace(make(*given), recorder=recorder)
    )
    return recorder
