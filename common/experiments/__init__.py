"""Many runs: plans, launching, seeds, summaries. `python -m common.experiments`."""

from common.experiments.command import main
from common.experiments.launch import Launcher
from common.experiments.plan import EXPERIMENTS, STRATEGIES, PlannedRun, flags_of, learned_share
from common.experiments.plots import draw_experiments
from common.experiments.seeds import SeedRuns, run_seeds

__all__ = [
    "EXPERIMENTS",
    "STRATEGIES",
    "Launcher",
    "PlannedRun",
    "SeedRuns",
    "draw_experiments",
    "flags_of",
    "learned_share",
    "main",
    "run_seeds",
]
