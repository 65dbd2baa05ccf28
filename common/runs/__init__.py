"""The table of backbones, and finished runs opened again."""

from common.runs.backbones import (
    Backbone,
    BenchModel,
    BenchSettings,
    BenchSizes,
    Exporting,
    MakeInputs,
    OpenedRun,
    dataset_name,
    find_backbone,
)
from common.runs.opened_run import (
    find_exporting,
    open_run,
    options_of,
    save_answers,
    training_questions,
)
from common.runs.run_script import RunScript
from common.runs.strategy_record import KEY, StrategyRecord, finetuned_meta

__all__ = [
    "KEY",
    "Backbone",
    "BenchModel",
    "BenchSettings",
    "BenchSizes",
    "Exporting",
    "MakeInputs",
    "OpenedRun",
    "RunScript",
    "StrategyRecord",
    "dataset_name",
    "find_backbone",
    "find_exporting",
    "finetuned_meta",
    "open_run",
    "options_of",
    "save_answers",
    "training_questions",
]
