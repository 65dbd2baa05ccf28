"""Many runs: plans, launching, seeds, summaries. `python -m common.experiments`."""

from common.experiments.command import main
from common.experiments.plan import (
    EXPERIMENTS,
    LAST_EPOCH,
    STRATEGIES,
    PlannedRun,
    flags_of,
    learned_share,
    run_script,
)
from common.experiments.plots import draw_experiments, plot_experiments
from common.experiments.report import CHART, LEGEND, SUMMARY, Summary, publish
from common.experiments.rows import Experiment, PrunedRow, Row

__all__ = [
    "CHART",
    "EXPERIMENTS",
    "LAST_EPOCH",
    "LEGEND",
    "STRATEGIES",
    "SUMMARY",
    "Experiment",
    "PlannedRun",
    "PrunedRow",
    "Row",
    "Summary",
    "draw_experiments",
    "flags_of",
    "learned_share",
    "main",
    "plot_experiments",
    "publish",
    "run_script",
]
