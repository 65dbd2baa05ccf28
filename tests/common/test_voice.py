"""Commands end in one line: what the user can mend, what is a bug, what was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.voice import spoken
from lxrt.finetuning import main as finetune

COMMANDS = ("parity", "export", "ask", "compare", "demo", "data", "experiments", "bench", "readme")


def failing(error: BaseException) -> object:
    @spoken
    def main(arguments: Sequence[str]) -> int:
        if arguments:
            print(*arguments)
            return 0
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("no such thing"), 2, "error: no such thing"),
        (OSError(20, "Not a directory", "x/y"), 2, "error: [Errno 20] Not a directory: 'x/y'"),
        (OSError(28, "No space left on device"), 2, "free some space"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (ValueError("first line\nsecond line"), 1, "bug: ValueError: first line: this is a fault"),
    ],
)
def test_every_failure_is_one_line_and_its_kind_is_the_exit_status(error, status, line, capsys):
    main = failing(error)
    assert main([]) == status
    shown = capsys.readouterr().err
    assert line in shown and shown.count("\n") == 1 and "Traceback" not in shown
    if status == 1:
        Path(shown.split("the trace in ")[1].split()[0]).unlink()
    assert main(["--traceback"]) == status
    shown = capsys.readouterr().err
    assert "Traceback" in shown and type(error).__name__ in shown
    assert main(["--traceback", "word"]) == 0 and capsys.readouterr().out == "word\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_is_shown_on_terminals_without_our_signs(encoding, monkeypatch):
    shown = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(shown, encoding))
    mains = [import_module(f"common.{name}").main for name in COMMANDS]
    for main in (*mains, finetune):
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert not ended.value.code
    sys.stdout.flush()
    assert shown.getvalue().count(b"usage: ") == len(mains) + 1
    assert b"?" in shown.getvalue()
