"""Where the samples of chosen tasks come from: their own files, or the embedded images.

The tasks of a run are either all about their own files or all about the embedded ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.data.annotations import Example
from common.data.datasets import Dataset, load_split, open_features, split_holdout
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources, explain_missing, open_store
from common.tasks.evaluation import FinetuneTask
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.questions import QuestionOptions, find_features, find_questions, with_splits
from common.tasks.vqa import VQATask
from common.training.distributed import World
from common.training.runtime import Runtime
from vilbert.easy_tasks import easy_entry, easy_tasks_folder, original_key
from vilbert.inputs import Limits, ViLBertInputs
from vilbert.pair_inputs import PairInputs
from vilbert.pair_task import PairTask, run_head
from vilbert.samples import TaskData
from vilbert.sizes import HOME
from vilbert.task_data import read_split
from vilbert.task_types import TYPES
from vilbert.tasks import TaskEntry
from vilbert.vqa_data import EMBEDDED, KINDS, features_path, is_own, task_dataset

EASY = "easy_vqa"
REPORTED = "validation"  # of --split: the split that each task reports
ANSWERS = "vil_prediction"


@dataclass(frozen=True)
class OpenedTask:
    """The data of a task, and what makes a task of them.

    Attributes:
        entry: of the task file, or that of its embedded version.
        split: name of the split that is reported.
        train, heldout, val: samples to train on, to choose the best epoch with, to report.
        features: of its images.
        answers: of its answer head; empty where it has none.
        limits: of texts and regions.
        make: the task, from the tokenizer of the texts, the runtime, samples per batch of
            evaluation, the seed and whether to show progress.
    """

    entry: TaskEntry
    split: str
    train: Any
    heldout: Any
    val: Any
    features: FeatureSources
    answers: Sequence[str]
    limits: Limits
    make: Callable[[Tokenizer, Runtime, EvaluationBatches, int, bool], FinetuneTask]

    @property
    def head(self) -> str:
        return TYPES[self.entry.type].head


def is_embedded(tasks: Sequence[TaskEntry], name: str | None, data: Path | None) -> bool:
    """Whether the embedded version of some tasks is meant.

    Args:
        tasks: entries of the task file.
        name: `easy_vqa`; None: their own files if any of them is there.
        data: folder instead of the `dataroot` of a single task.

    Raises:
        ConfigError: a task without an embedded version, or data of another task.
    """
    if data is not None:
        if len(tasks) > 1:
            raise ConfigError(
                f"--data {data}: {len(tasks)} tasks have a folder each: write them into the task "
                "file as dataroot"
            )
        return False
    if name not in (None, EASY):
        raise ConfigError(
            f"--dataset {name}: data of questions; {', '.join(t.name for t in tasks)} takes its "
            f"own files (without --dataset), or the embedded ones: --dataset {EASY}"
        )
    if name is None and any(_has_files(task) for task in tasks):
        return False
    without = [t.name for t in tasks if t.name not in KINDS and easy_entry(t) is None]
    if without:
        raise ConfigError(
            f"task {without[0]}: there is no embedded version of it"
            + (
                ""
                if name
                else f", and no file of it in {HOME / _entry(tasks, without[0]).dataroot}"
            )
        )
    return True


def _entry(tasks: Sequence[TaskEntry], name: str) -> TaskEntry:
    return next(task for task in tasks if task.name == name)


def _has_files(task: TaskEntry) -> bool:
    """Whether any of a task's own files is there; a task of one's own is always about its own."""
    if task.name in KINDS:
        return is_own(task, None, None)
    folder = HOME / task.dataroot
    return bool(task.data) or (folder.is_dir() and any(folder.iterdir()))


def settle_entries(
    tasks: Sequence[TaskEntry], name: str | None, data: Path | None
) -> tuple[list[TaskEntry], bool]:
    """The tasks as they are read, and whether they are about embedded data."""
    if not is_embedded(tasks, name, data):
        moved = [replace(task, dataroot=str(data.resolve())) for task in tasks] if data else tasks
        return list(moved), False
    if name is None:
        listed = ", ".join(f"{task.name} in {HOME / task.dataroot}" for task in tasks)
        print(f"No files of {listed}: using the embedded data ({EASY})")
    return [easy_entry(task) or task for task in tasks], True


@dataclass(frozen=True)
class TaskOpener:
    """Opens the tasks of a run.

    Attributes:
        embedded: the tasks are about the embedded data.
        options: which samples.
        world: the processes; the first one makes and imports data.
        seed: of what is drawn.
        quiet: no progress bars.
        say: where to report to.
    """

    embedded: bool
    options: QuestionOptions
    world: World
    seed: int
    quiet: bool
    say: Callable[[str], None]

    def open(self, task: TaskEntry) -> OpenedTask:
        """Samples and features of a task for training.

        Raises:
            DataError, ConfigError: see the readers.
        """
        if task.name in KINDS:
            return self._open_questions(task)
        options = self.options
        train_split, val_split = options.train or task.train_split, options.valid or task.val_split
        if train_split == val_split:
            raise ConfigError(f"--train {train_split} --valid {val_split}: give two splits")
        self._prepare()
        read = read_split(task, train_split, self.seed)
        features, second = self._features(task, read)
        read = self._shown(task, _limited(read, options.image_limit), features)
        train, heldout = self._divided(task, read)
        val = _limited(read_split(task, val_split, self.seed), options.image_limit)
        val = self._shown(task, val.part(range(len(val)), training=False), features)
        for split, part in ((train_split, train), (train_split, heldout), (val_split, val)):
            _check_told(task, split, part)
            _check_images(task, part, features, second)
        if train.answers != val.answers:
            raise ConfigError(
                f"task {task.name}: {len(train.answers)} answers in split {train_split}, "
                f"{len(val.answers)} in {val_split}, or others: `answers` are those of the task, "
                "the same in every split and in the same order"
            )
        return _pairs(task, val_split, (train, heldout, val), features, second)

    def open_tested(self, task: TaskEntry, split: str) -> OpenedTask:
        """Samples and features of a split to answer; `REPORTED` means the one that it reports."""
        if task.name in KINDS:
            return self._open_tested_questions(task, split)
        self._prepare()
        split = task.val_split if split == REPORTED else split
        found = read_split(task, split, self.seed)
        data = found.part(range(len(found)), training=False)
        features, second = self._features(task, data)
        data = self._shown(task, data, features)
        _check_images(task, data, features, second)
        return _pairs(task, split, (data, data, data), features, second)

    def _prepare(self) -> None:
        if self.embedded:
            with self.world.main_first():
                easy_tasks_folder(not self.quiet)

    def _features(
        self, task: TaskEntry, data: TaskData
    ) -> tuple[FeatureSources, FeatureSources | None]:
        """The detector's regions, and second ones where the data show them."""

        def opened(path: str) -> FeatureSources:
            place, skip = features_path(HOME / path), self.options.skip_bad
            return FeatureSources([open_store(place, None, skip, not self.quiet)], skip)

        with self.world.main_first():  # which imports features
            wanted = task.features_h5path2 and data.second_features
            second = opened(task.features_h5path2) if wanted else None
            return opened(task.features_h5path1), second

    def _shown(self, task: TaskEntry, data: TaskData, features: FeatureSources) -> TaskData:
        """The samples; without those of images that an import skipped, where they may be."""
        skipped = set(features.missing(data.images())) & set(features.skipped())
        if not self.options.skip_bad or not skipped:
            return data
        rest = data.without(skipped)
        self.say(
            f"{task.name}: {len(data) - len(rest)} of {len(data)} samples are left out: the "
            f"features of their {len(skipped)} images were skipped on import (--skip-bad)"
        )
        return rest

    def _divided(self, task: TaskEntry, data: TaskData) -> tuple[TaskData, TaskData]:
        """Samples to train on and held-out ones, which share no image."""
        wanted = self.options.questions
        # The embedded images are held out for all tasks alike, whatever their names are.
        name = original_key if self.embedded else str
        places = [Example(n, name(data.image(n)), "") for n in range(len(data))]
        kept, held = split_holdout(places, self.options.holdout)
        chosen = [int(example.question_id) for example in kept]
        if wanted is not None:
            if not 0 < wanted <= len(chosen):
                raise ConfigError(
                    f"--questions {wanted}: task {task.name} has {len(chosen)} training samples"
                )
            chosen = random.Random(self.seed).sample(chosen, wanted)
        return (
            data.part(chosen, training=True),
            data.part([int(example.question_id) for example in held], training=False),
        )

    def _open_questions(self, task: TaskEntry) -> OpenedTask:
        dataset = self._dataset(task)
        options = with_splits(replace(self.options, train=None, valid=None), dataset)
        features = find_features(options, dataset, self.world, self.quiet)
        parts = find_questions(options, dataset, features, self.seed, self.say)
        return _questions(task, options.valid or "", self.embedded, parts, features)

    def _open_tested_questions(self, task: TaskEntry, name: str) -> OpenedTask:
        dataset = self._dataset(task)
        split = dataset.kind.valid if name == REPORTED else dataset.split_to_test(name)
        with self.world.main_first():
            features = open_features(
                dataset, split, skip_bad=self.options.skip_bad, progress=not self.quiet
            )
        data = VQADataset(load_split(dataset, split), features, dataset.vocabulary())
        return _questions(task, split, self.embedded, (data, data, data), features)

    def _dataset(self, task: TaskEntry) -> Dataset:
        with self.world.main_first():
            own = KINDS[task.name][0]
            return task_dataset(task, EMBEDDED[own] if self.embedded else own, None)


def _pairs(
    task: TaskEntry,
    split: str,
    parts: tuple[TaskData, TaskData, TaskData],
    features: FeatureSources,
    second: FeatureSources | None,
) -> OpenedTask:
    """From samples to train on, held-out ones, and those of the split that is reported."""
    train, heldout, val = parts
    limits = Limits(task.max_seq_length, task.max_region_num)

    def make(
        tokenizer: Tokenizer,
        runtime: Runtime,
        batches: EvaluationBatches,
        seed: int,
        progress: bool,
    ) -> PairTask:
        inputs = PairInputs(tokenizer, limits, features, second)
        kind = TYPES[task.type]
        return PairTask(task.name, kind, train, heldout, inputs, runtime, batches, seed, progress)

    return OpenedTask(task, split, train, heldout, val, features, train.answers, limits, make)


def _limited(data: TaskData, images: int | None) -> TaskData:
    """The samples about the first so many images."""
    if images is None:
        return data
    of_place = [data.image(place) for place in range(len(data))]
    kept = set(list(dict.fromkeys(of_place))[:images])
    return data.part([n for n, image in enumerate(of_place) if image in kept], training=True)


def _check_told(task: TaskEntry, split: str, data: TaskData) -> None:
    """Refuse samples that can be answered, not trained or validated on."""
    told = TYPES[task.type].told
    for sample in data.samples:
        if not told(sample):
            raise ConfigError(
                f"task {task.name}: split {split}: sample {sample.sample_id}: what is right is not "
                "known: it can be answered (eval_tasks.py --split), not trained or validated on"
            )


def _check_images(
    task: TaskEntry, data: TaskData, features: FeatureSources, second: FeatureSources | None
) -> None:
    """Refuse samples whose images have no features, before any training."""
    shown = data.images()
    for source in (features, second if data.second_features else None):
        if source is not None and (missing := source.missing(shown)):
            image = missing[0]
            raise DataError(
                f"task {task.name}: no region features of image {image!r}, which sample "
                f"{shown[image]} shows; {len(missing)} of {len(shown)} images have none: "
                f"{explain_missing(source, image)}"
            )


def _questions(
    task: TaskEntry,
    split: str,
    embedded: bool,
    parts: tuple[VQADataset, VQADataset, VQADataset],
    features: FeatureSources,
) -> OpenedTask:
    train, heldout, val = parts
    limits = Limits() if embedded else Limits(task.max_seq_length, task.max_region_num)

    def make(
        tokenizer: Tokenizer,
        runtime: Runtime,
        batches: EvaluationBatches,
        seed: int,
        progress: bool,
    ) -> VQATask:
        inputs = ViLBertInputs(tokenizer, limits)
        return VQATask(train, heldout, inputs, runtime, batches, seed, progress, read_answers)

    answers = val.vocabulary.answers
    return OpenedTask(task, split, train, heldout, val, features, answers, limits, make)


def read_answers(model: nn.Module, inputs: Mapping[str, Tensor | None]) -> Tensor:
    """The answer logits of a model with several heads."""
    return run_head(model, inputs, ANSWERS)
