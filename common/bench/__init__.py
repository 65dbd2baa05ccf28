"""What strategies and executors cost: `python -m common.bench`."""

from common.bench.cases import (
    ADAPTIVE,
    DEFAULT_EXECUTOR,
    MIDDLE,
    Case,
    all_cases,
    dropping_cases,
    memory_cases,
)
from common.bench.command import main
from common.bench.dropping import ROWS, draw_dropping, format_dropping, summary_of_dropping
from common.bench.features import measure_features, write_tsv
from common.bench.measure import ActivationBytes, Bench, measure_group
from common.bench.memory import measure_memory
from common.bench.plot import draw_bench, plot_bench
from common.bench.report import format_report, format_summary, targets, verdicts
from common.bench.results import BenchFile

__all__ = [
    "ADAPTIVE",
    "DEFAULT_EXECUTOR",
    "MIDDLE",
    "ROWS",
    "ActivationBytes",
    "Bench",
    "BenchFile",
    "Case",
    "all_cases",
    "draw_bench",
    "draw_dropping",
    "dropping_cases",
    "format_dropping",
    "format_report",
    "format_summary",
    "main",
    "measure_features",
    "measure_group",
    "measure_memory",
    "memory_cases",
    "plot_bench",
    "summary_of_dropping",
    "targets",
    "verdicts",
    "write_tsv",
]
