"""How long calls take in comparison to each other, on a machine with other work.

Every round makes every call once, in random order, and takes its ratio to the baseline of the same
round; the median over the rounds and its quartiles are the result. On the CPU the time is CPU time
of the process, which other processes on the machine disturb less than the clock on the wall; on a
GPU it is the time between two CUDA events.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], object]


class Clock(Protocol):
    """Measures the seconds that a call takes."""

    unit: str

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        """Run the call once; `seconds` is what ratios are made of."""


class CpuClock:
    """CPU time of this process, and the time on the wall beside it."""

    unit = "CPU time of the process"

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        wall, busy = time.perf_counter(), time.process_time()
        call()
        return {"seconds": time.process_time() - busy, "wall": time.perf_counter() - wall}


class CudaClock:
    """Time between two events on the GPU's stream, and the time on the wall beside it.

    `cuda` is `torch.cuda`, or something with the same `Event` and `synchronize`.
    """

    unit = "time between CUDA events"

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda

    def measure(self, call: Callable[[], object]) -> dict[str, float]:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cuda.synchronize()
        wall = time.perf_counter()
        start.record()
        call()
        end.record()
        self._cuda.synchronize()  # an event's time is known only when the GPU has reached it
        return {"seconds": start.elapsed_time(end) / 1000, "wall": time.perf_counter() - wall}


def find_clock(device: torch.device | str) -> Clock:
    """The clock of a device."""
    return CudaClock() if torch.device(device).type == "cuda" else CpuClock()


def interleaved(
    keys: Sequence[Key],
    prepare: Callable[[Key], Call],
    clock: Clock,
    rounds: int,
    seed: int = 0,
    done: Callable[[Key], object] = lambda key: None,
) -> dict[Key, list[dict[str, float]]]:
    """The times of every call in every round.

    Args:
        keys: of the calls; each was made before, so that nothing is made ready in the first round.
        prepare: gives the call of a key; what it does itself is not timed.
        clock: of the device.
        rounds: how often each call is made.
        seed: of the order within a round.
        done: called after every single call.
    """
    order = random.Random(seed)
    times: dict[Key, list[dict[str, float]]] = {key: [] for key in keys}
    for _ in range(rounds):
        for key in order.sample(keys, len(keys)):
            times[key].append(clock.measure(prepare(key)))
            done(key)
    return times


def summarise(
    case: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """Median ratio of the rounds, with its quartiles, and the median times."""
    pairs = list(zip(case, baseline, strict=True))
    ratios = [mine["seconds"] / its["seconds"] for mine, its in pairs]
    low, middle, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    )
    return {
        "ratio": middle,
        "low": low,
        "high": high,
        "rounds": len(ratios),
        "wall_ratio": statistics.median(mine["wall"] / its["wall"] for mine, its in pairs),
        "seconds": statistics.median(mine["seconds"] for mine in case),
        "baseline_seconds": statistics.median(its["seconds"] for its in baseline),
    }
