"""Damaged files are read with the right values or refused in one line that names them.

`make test` tries a few damages of every kind, always the same ones; `make fuzz` many, other ones
every time (`FUZZ=N`, 20,000 in all by default), and says how many were refused. What fails is kept
in .hypothesis/ and tried first from then on.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import AdaptiveError
from tests.fuzz.kinds import KINDS, Kind

TOTAL = int(os.environ.get("FUZZ", "0"))  # damages of all kinds together; 0: a few of each
FEW, SECONDS, LONGEST = 12, 10, 1200
WEIGHTS = sum(kind.weight for kind in KINDS)
tally: Counter[str] = Counter()
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def count(kind: Kind) -> int:
    """How many damages of a kind are tried."""
    if not TOTAL:
        return max(2, FEW * kind.weight // 10)
    return max(FEW, -(-TOTAL * kind.weight // WEIGHTS))


@cache
def real(name: str) -> tuple[Path, Any, bytes]:
    """The real files of a kind, what is read of them, and the content of the one to damage."""
    kind = next(k for k in KINDS if k.name == name)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kind.files(folder)
    content = (folder / kind.file).read_bytes()
    with copied(folder) as copy:
        value = kind.read(copy)
    return folder, value, content


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of a folder of files, for one reading."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        copy = Path(place) / "files"
        shutil.copytree(folder, copy)
        yield copy


@contextmanager
def time_limit() -> Iterator[None]:
    """A reading that takes longer than a few seconds hangs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hangs: not read within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(kind: Kind, content: bytes) -> str:
    """Read the files with a damaged one; returns `read` or `refused`."""
    folder, value, _ = real(kind.name)
    with copied(folder) as copy:
        (copy / kind.file).write_bytes(content)
        try:
            with time_limit():
                found = kind.read(copy)
        except AdaptiveError as error:
            said = str(error)
            where = Path(kind.file).parts[0]
            assert str(copy) in said or where in said or kind.file == "word", (
                f"does not name the file: {said[:300]}"
            )
            assert len(said) <= LONGEST + 2 * said.count(str(copy)) * len(str(copy)), said[:300]
            said.encode()
            return "refused"
        kind.right(found, value, content)
        return "read"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "_"))
def test_damaged_files_are_read_right_or_refused(kind: Kind, capsys: pytest.CaptureFixture[str]):
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=count(kind),
        deadline=None,
        derandomize=not TOTAL,
        suppress_health_check=SUPPRESSED,
        print_blob=bool(TOTAL),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        outcomes[tried(kind, data.draw(kind.damage(real(kind.name)[2])))] += 1

    check()
    assert outcomes["refused"] + outcomes["read"] >= min(FEW, count(kind)) // 2
    tally.update(outcomes)
    if TOTAL:
        with capsys.disabled():
            print(f"{kind.name}: {dict(outcomes)}", file=sys.stderr)


def test_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """What `make fuzz` reports."""
    if TOTAL:
        with capsys.disabled():
            print(f"{tally.total()} damages: {dict(tally)}; every other one is above", flush=True)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "_"))
def test_the_real_files_are_read(kind: Kind) -> None:
    """Else nothing would be tested above."""
    assert tried(kind, real(kind.name)[2]) == "read"
