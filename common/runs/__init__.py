"""The table of backbones, and finished runs opened again."""

from common.runs.backbones import (
    Backbone,
    BenchModel,
    BenchSettings,
    Exporting,
    OpenedModel,
    OpenedRun,
    find_backbone,
)
from common.runs.opened_run import check_training_questions, open_run, run_arguments, save_answers

__all__ = [
    "Backbone",
    "BenchModel",
    "BenchSettings",
    "Exporting",
    "OpenedModel",
    "OpenedRun",
    "check_training_questions",
    "find_backbone",
    "open_run",
    "run_arguments",
    "save_answers",
]
