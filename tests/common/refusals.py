"""What every command does with what it cannot do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

Command = Callable[[Sequence[str]], int]


def error_of(capsys: pytest.CaptureFixture[str], command: Command, words: Sequence[str]) -> str:
    """The one error of a command that has to fail with exit status 2."""
    capsys.readouterr()
    assert command(list(words)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("error: ") == 1, shown
    assert "Traceback" not in shown
    return shown
