"""What `common.export` needs to know of ViLBERT: the training questions of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import Dataset
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources
from common.runs.backbones import Exporting, OpenedRun
from common.runs.opened_run import options_of
from common.tasks.evaluation import FinetuneTask
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.questions import trained_on
from common.training.checkpoint import check_compatible
from common.training.runtime import Runtime
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


def training_task(
    run: OpenedRun, data_root: Path | None, runtime: Runtime, batch_size: int, progress: bool
) -> FinetuneTask:
    """The tasks of a run with what it was finetuned on.

    Raises:
        DataError: these are not the samples that it was finetuned on.
    """
    from vilbert.finetuning import TRAIN  # which needs this package's table
    from vilbert.task_program import together
    from vilbert.task_sources import TaskOpener, settle_entries

    options = options_of(run, TRAIN.parse)
    chosen, data = options.model, options.data
    entries, embedded = settle_entries(chosen.tasks, data.dataset, data_root or data.data)
    opener = TaskOpener(embedded, data, runtime.world, options.run.seed, not progress, print)
    opened = [opener.open(entry) for entry in entries]
    features = FeatureSources([store for source in opened for store in source.features.stores])
    check_compatible(run.meta, {"features": features.described()}, run.checkpoint)
    tasks = {
        source.entry.name: source.make(
            run.tokenizer, runtime, EvaluationBatches(batch_size), options.run.seed, progress
        )
        for source in opened
    }
    how = TRAIN.finetuning(options, run.meta["size"])
    task, _, _ = together(opened, tasks, options, how.recipe)
    expected = {key: run.meta["training"].get(key) for key in task.settings()}
    if expected != task.settings():
        raise DataError(
            f"{run.folder} was finetuned on other samples than those that are found now; give the "
            "folder of its data with --data"
        )
    return task


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
    training_task=training_task,
    usage_of_tasks="python eval_tasks.py --tasks {task} --from_pretrained {model}.safetensors  "
    "(in ViLBERT/; with the --tasks_file of the run, if it had one)",
    open_snapshot=open_snapshot,
    usage="python eval_tasks.py --from_pretrained {model}.safetensors --dataset {dataset}  "
    "(in ViLBERT/; with --tasks_file where the run had one)",
)
