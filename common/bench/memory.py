"""Peak memory of one case, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from common.bench.apart import in_own_process
from common.bench.cases import Case
from common.bench.measure import Bench
from common.runs.backbones import BenchModel, BenchSettings
from common.training.runtime import peak_memory

STEPS = 2


def measure_memory(
    supply: Callable[[BenchSettings], BenchModel], settings: BenchSettings, case: Case
) -> dict[str, int | None]:
    """Start a process, run the case in it, and return what `peak_of_case` saw there.

    Raises:
        ConfigError: the process died, most likely for want of memory.
    """
    died = (
        f"the process that measured the memory of {case.key} died, most "
        "likely for want of memory: fewer --layers, a smaller --batch"
    )
    return in_own_process(died, peak_of_case, supply, settings, case)


def peak_of_case(
    supply: Callable[[BenchSettings], BenchModel], settings: BenchSettings, case: Case
) -> dict[str, int | None]:
    """Peak memory of this process, in bytes, after a few steps of one case and nothing else."""
    torch.set_num_threads(settings.threads)
    bench = Bench(supply(settings), settings, [case], baselines=False)
    for _ in range(STEPS):
        bench.run(case)()
    return peak_memory()
