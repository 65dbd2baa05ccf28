"""The frame of a backbone's commands: flags, processes, the work, one voice for errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from common.training.distributed import one_voice
from common.training.options import command_line
from common.training.processes import start_processes, wanted_processes
from common.voice import plain_output, without_flag


class HasDevices(Protocol):
    """Options of a command that may run in several processes."""

    @property
    def gpus(self) -> str | None:
        """`cpu`, or GPU numbers; several mean a process each."""


Options = TypeVar("Options", bound=HasDevices)


@dataclass(frozen=True)
class Command(Generic[Options]):
    """A script of a backbone.

    Attributes:
        home: the backbone's folder, where its scripts are started.
        script: path of the script in it.
        parser: makes the parser of its flags.
        options: turns flags and the command as it was typed into options, after checking all that
            can be checked before any process starts. Nothing after it sees the flags.
        run: does the work; called in every process.
        instead: may do something else than the work: it gets options and words of the command line
            and returns an exit status, or None to go on.
    """

    home: Path
    script: str
    parser: Callable[[], argparse.ArgumentParser]
    options: Callable[[argparse.Namespace, str], Options]
    run: Callable[[Options], None]
    instead: Callable[[Options, Sequence[str]], int | None] | None = None

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command line; returns the exit status."""
        words, shown = without_flag(sys.argv[1:] if arguments is None else arguments)
        plain_output()

        def work() -> int:
            args = self.parser().parse_args(words)
            options = self.options(args, command_line(f"python {self.script}", words))
            if self.instead is not None and (status := self.instead(options, words)) is not None:
                return status
            if (processes := wanted_processes(options.gpus)) > 1:
                typed = args.gpus if isinstance(args.gpus, str) else ",".join(args.gpus or ())
                chosen = [] if typed == options.gpus else ["--gpus", str(options.gpus)]
                script = str(self.home / self.script)
                return start_processes(processes, [script, *words, *chosen])
            self.run(options)
            return 0

        return one_voice(work, shown)
