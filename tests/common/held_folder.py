"""An output folder that another process is using, for the tests of every command that writes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HOLD = """
import sys
from pathlib import Path
from common.training.folder_lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Within it a process of its own uses the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refused_while_in_use(
    capsys: pytest.CaptureFixture[str],
    commands: Mapping[str, tuple[Callable[[Sequence[str]], Any], Sequence[str]]],
    folder: Path,
) -> None:
    """Each command (its main, its words) ends in one line that names the process, and writes
    nothing into the folder that another process uses."""
    with held(folder) as process:
        before = files(folder)
        for name, (main, words) in commands.items():
            capsys.readouterr()
            status, said = main(list(words)), capsys.readouterr().err
            assert status == 2, f"{name}: {said}"
            assert said.startswith("error: ") and said.count("\n") == 1, f"{name}: {said}"
            assert f"in use by process {process.pid} on" in said, f"{name}: {said}"
        assert files(folder) == before


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
