"""What `common.export` needs to know of ViLBERT: the training questions of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import Dataset
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError
from common.runs.backbones import Exporting, OpenedRun
from common.runs.opened_run import options_of
from common.tasks.questions import trained_on
from vilbert.vqa_data import task_dataset


def training_questions(run: OpenedRun, data_root: Path | None) -> tuple[VQADataset, Path]:
    """The questions of a run's command, see `common.runs.opened_run.training_questions`."""
    from vilbert.finetuning import TRAIN  # which needs this package's table

    options = options_of(run, TRAIN.parse)
    dataset = run_dataset(run, data_root)
    return trained_on(options.data, dataset, options.run.seed)


def run_dataset(run: OpenedRun, data_root: Path | None) -> Dataset:
    """The data of a run's command; see `Backbone.dataset`."""
    from vilbert.finetuning import TRAIN  # which needs this package's table

    options = options_of(run, TRAIN.parse)
    return task_dataset(options.model.task, run.dataset, data_root or options.data.data)


def open_snapshot(path: Path, meta: dict[str, Any]) -> nn.Module:
    """A pretraining snapshot has nothing to export.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"{path} is a plain model already, with the names of the released ones: give it to "
        "train_tasks.py as --from_pretrained"
    )


EXPORTING = Exporting(
    training_questions=training_questions,
    open_snapshot=open_snapshot,
    usage="python eval_tasks.py --from_pretrained {model}.safetensors --dataset {dataset}  "
    "(in ViLBERT/)",
)
