"""How a command ends: one line for what went wrong, and an exit status that means something.

0: done. 1: a fault of this project. 2: something that the user can mend. 130: stopped by Ctrl-C.
Commands with a meaning of their own for 1 say so in their help.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from common.errors import AdaptiveError

FLAG = "--traceback"
MEND, FAULT, STOPPED = 2, 1, 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Main = Callable[[Sequence[str]], int]


class Spoken(Protocol):
    """A command; without arguments those of the process."""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run it; returns the exit status."""


def spoken(main: Main) -> Spoken:
    """A command whose failures end in one line; `--traceback` shows where they come from.

    The command is called with the words of its command line.
    """

    @functools.wraps(main)
    def command(arguments: Sequence[str] | None = None) -> int:
        words, shown = without_flag(sys.argv[1:] if arguments is None else arguments)
        plain_output()
        try:
            return main(words)
        except (Exception, KeyboardInterrupt) as error:
            status, message = said(error)
            if shown:
                traceback.print_exc()
            print(message, file=sys.stderr, flush=True)
            return status

    return command


def without_flag(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words of a command line without `--traceback`, and whether it was among them."""
    return [word for word in words if word != FLAG], FLAG in words


def plain_output() -> None:
    """Let a terminal that lacks a sign show a question mark, also for what is typed in another
    encoding, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def said(error: BaseException) -> tuple[int, str]:
    """The exit status after an error, and the line that is said."""
    if isinstance(error, AdaptiveError):
        return MEND, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "stopped by Ctrl-C; what was finished is kept: the same command goes on"
    if isinstance(error, OSError):
        way = ": free some space, then give the same command" if error.errno in NO_ROOM else ""
        return MEND, f"error: {error}{way}"
    text = str(error).strip().split("\n")[0]
    return FAULT, (
        f"bug: {type(error).__name__}: {text}: this is a fault of the program; please report it "
        f"with your command and the trace in {write_trace(error)} ({FLAG} shows it)"
    )


def write_trace(error: BaseException) -> str:
    """The trace of an error in a new file; returns its name."""
    handle, path = tempfile.mkstemp(prefix="adaptive-finetuning-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("".join(traceback.format_exception(error)))
    return path
