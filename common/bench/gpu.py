"""How the parts of `make bench DEVICE=cuda` are run: resumable, and each failure a row of its own.

Everything is measured in a process that is started for it: a graph that cannot be recorded leaves
the GPU's library in a state in which nothing else should be measured. Such a case is noted, and a
new process goes on with the others.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from common.bench.apart import in_own_process
from common.bench.card import demands, matrix_rate
from common.bench.cases import Case
from common.bench.loop import loop_settings, measure_loop
from common.bench.measure import Bench
from common.bench.memory import measure_memory
from common.bench.parts import LoopCase, Part, find_parts, precisions
from common.bench.results import BenchFile
from common.errors import AdaptiveError
from common.runs.backbones import BenchModel, BenchSettings
from common.training.recording import CudaRecorder, Recorder
from common.training.timing import Clock, find_clock, interleaved, summarise

REASON = 200  # characters of it that are kept
FAILURES = (RuntimeError, AdaptiveError)  # what torch raises for a graph, a compiler, memory


@dataclass(frozen=True)
class Work:
    """What a process is to measure, unless it is in the file already.

    Attributes:
        supply: makes models and inputs for settings.
        settings: of all cases.
        path: of the file of results.
        parts: their names; None: all.
        quick: the short version.
        only: cases whose name contains this.
        deadline: `time.time()` after which nothing new is begun; None: none.
        recorder: makes what records steps on a device.
    """

    supply: Callable[[BenchSettings], BenchModel]
    settings: BenchSettings
    path: Path
    parts: tuple[str, ...] | None = None
    quick: bool = False
    only: str = ""
    deadline: float | None = None
    recorder: Callable[[torch.device], Recorder] = CudaRecorder

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline

    def find_parts(self) -> list[Part]:
        """In their order, without those that need a model that the backbone has not."""
        found = find_parts(self.parts, self.quick)
        if all(not part.reference for part in found) or self.supply(self.settings).reference:
            return found
        return [part for part in found if not part.reference]


@dataclass(frozen=True)
class Cases:
    """Some cases of a part."""

    timed: tuple[Case, ...]
    memory: tuple[Case, ...]
    loop: tuple[LoopCase, ...]

    def __len__(self) -> int:
        return len(self.timed) + len(self.memory) + len(self.loop)


def missing(part: Part, work: Work, file: BenchFile) -> Cases:
    """What is left of a part."""
    every = cases_of(part, work)
    return Cases(
        tuple(c for c in every.timed if c.key not in file.cases),
        tuple(c for c in every.memory if c.key not in file.memory),
        tuple(c for c in every.loop if c.key not in file.loop),
    )


def cases_of(part: Part, work: Work) -> Cases:
    """What of a part is wanted."""
    given = work.settings, work.quick

    def wanted(cases: Iterator[Any]) -> tuple[Any, ...]:
        return tuple(c for c in dict.fromkeys(cases) if work.only in c.key)

    timed, memory, loop = part.timed(*given), part.memory(*given), part.loop(*given)
    return Cases(wanted(timed), wanted(memory), wanted(loop))


def run_parts(work: Work) -> None:
    """Measure until nothing is missing that can be measured, or it is too late."""
    died = (
        f"the process that measured died; what it had measured is in {work.path}. The same command "
        "goes on; --part NAME measures something else"
    )
    while in_own_process(died, measure_parts, work):
        pass


def measure_parts(work: Work) -> bool:
    """Measure what is missing, in this process; returns whether another one has to go on."""
    torch.set_num_threads(work.settings.threads)
    file = BenchFile.read(work.path)
    for part in work.find_parts():
        left = missing(part, work, file)
        if not left:
            continue
        if work.late:
            print(f"time is up before part {part.name}; the same command goes on", flush=True)
            return False
        print(f"part {part.name}: {part.about}; {len(left)} cases", flush=True)
        try:
            done = _measure(left, work, file)
        except ModuleNotFoundError as error:
            print(f"part {part.name} is left out: {error}", flush=True)
            continue
        if not done:
            return not work.late
    return False


def _measure(left: Cases, work: Work, file: BenchFile) -> bool:
    """Measure cases of a part; returns whether all of them were, and this process can go on."""
    clock = find_clock(work.settings.device)
    for _, cases in groupby(
        sorted(left.timed, key=lambda c: c.batch or 0), key=lambda c: c.batch or 0
    ):
        if not _timed(list(cases), work, file, clock):
            return False
    for case in left.loop:
        if work.late:
            return False
        supplied = work.supply(loop_settings(work.settings))
        file.loop[case.key] = measure_loop(supplied, work.settings, case)
        file.write()
        _free()
    for alone in left.memory:
        if work.late:
            return False
        file.add_memory(alone, measure_memory(work.supply, work.settings, alone))
        file.write()
    return True


def _timed(cases: Sequence[Case], work: Work, file: BenchFile, clock: Clock) -> bool:
    """Cases of one batch, on one set of models."""
    settings = replace(work.settings, batch=cases[0].batch or work.settings.batch)
    _measure_rates(settings, file, clock)
    recorder = work.recorder(torch.device(settings.device))
    bench = Bench(work.supply(settings), settings, cases, recorder=recorder)
    for (precision, mode), group in groupby(
        sorted(cases, key=lambda c: (c.precision, c.mode)), key=lambda c: (c.precision, c.mode)
    ):
        if work.late:
            return False
        begun, some = time.time(), list(group)
        records, failures = measure_cases(bench, some, clock, file.rates[precision])
        for case, record in records.items():
            file.add_case(case, record)
        for case, reason in failures.items():
            file.add_case(case, {"error": reason})
            print(f"  {case.key}: {reason}", flush=True)
        file.write()
        if failures:
            return False
        print(
            f"  {mode}, {precision}, batch {settings.batch}: {len(some)} cases in "
            f"{time.time() - begun:.0f} s",
            flush=True,
        )
    del bench
    _free()
    return True


def _measure_rates(settings: BenchSettings, file: BenchFile, clock: Clock) -> None:
    device = torch.device(settings.device)
    for precision in precisions(settings, quick=False):
        if precision not in file.rates:
            file.rates[precision] = matrix_rate(device, precision, clock)


def _free() -> None:
    gc.collect()  # the next models come before these would go by themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_cases(
    bench: Bench, cases: Sequence[Case], clock: Clock, rate: float
) -> tuple[dict[Case, dict[str, Any]], dict[Case, str]]:
    """Time cases of one batch, precision and mode against their baselines, interleaved.

    Args:
        bench: with their models.
        cases: to be measured.
        clock: of the device.
        rate: operations in a second of a large product in that precision.

    Returns:
        Per case the record of `summarise` with what `demands` says, the number of `decisions`, and
        `limit_seconds`, the time of its operations at that rate; or the reasons of those that
        failed first, and then nothing else: this process should not go on.
    """
    everything = list(dict.fromkeys([c.baseline() for c in cases] + list(cases)))
    asked = {}
    for case in everything:
        try:
            asked[case] = demands(bench, case)
        except FAILURES as error:
            reason = _line(error)
            return {}, {c: reason for c in cases if case in (c, c.baseline())}
    settings = bench.settings
    times = interleaved(everything, bench.run, clock, settings.rounds, settings.seed)
    records = {}
    for case in cases:
        flops = asked[case]["flops"]
        records[case] = (
            summarise(times[case], times[case.baseline()])
            | asked[case]
            | {
                "decisions": bench.decision_count(case),
                "limit_seconds": None if flops is None else flops / rate,
            }
        )
    return records, {}


def _line(error: BaseException) -> str:
    """The reason in one line."""
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}"[:REASON]
