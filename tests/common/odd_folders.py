"""Output folders that cannot be written to, for the tests of every command that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest


def a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def below_a_file(folder: Path) -> None:
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.write_text("in the way")


def a_dangling_link(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(folder.parent / "nowhere" / "else")


def with_a_folder_for(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).mkdir(parents=True)

    make.__name__ = f"{name}_is_a_folder"
    return make


ODD = (a_file, below_a_file, a_dangling_link)
FILES = ("BEST.safetensors", "LAST.safetensors", ".lock")


def refused_in_odd_folders(
    capsys: pytest.CaptureFixture[str],
    run: Callable[[Path], tuple[Callable[[Sequence[str]], Any], Sequence[str], Path]],
    base: Path,
    log: str = "log.log",
) -> None:
    """A command ends in one line with status 2 wherever its folder is odd.

    Args:
        run: from a fresh place the command, its words, and the folder that it writes to.
        base: an empty folder.
        log: name of a file that the command writes first.
    """
    for odd in (*ODD, *map(with_a_folder_for, (log, *FILES))):
        main, words, folder = run(base / odd.__name__)
        odd(folder)
        capsys.readouterr()
        status, said = main(list(words)), capsys.readouterr().err
        assert status == 2, f"{odd.__name__}: {said}"
        assert said.startswith("error: ") and "Traceback" not in said, f"{odd.__name__}: {said}"
        assert said.count("\n") == 1 and str(base) in said, f"{odd.__name__}: {said}"
