"""What strategies and executors cost: `python -m common.bench`."""

from common.bench.cases import ADAPTIVE, Case, all_cases, dropping_cases, memory_cases
from common.bench.command import main
from common.bench.dropping import ROWS
from common.bench.features import measure_features, write_tsv
from common.bench.measure import (
    ActivationBytes,
    Bench,
    CpuClock,
    CudaClock,
    measure_group,
    summarise,
)
from common.bench.memory import measure_memory
from common.bench.plot import draw_bench, plot_bench
from common.bench.report import format_report, format_summary, verdicts
from common.bench.results import BenchFile

__all__ = [
    "ADAPTIVE",
    "ROWS",
    "ActivationBytes",
    "Bench",
    "BenchFile",
    "Case",
    "CpuClock",
    "CudaClock",
    "all_cases",
    "draw_bench",
    "dropping_cases",
    "format_report",
    "format_summary",
    "main",
    "measure_features",
    "measure_group",
    "measure_memory",
    "memory_cases",
    "plot_bench",
    "summarise",
    "verdicts",
    "write_tsv",
]
