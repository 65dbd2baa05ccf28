"""Finetuning LXMERT on visual question answering: what src/tasks/vqa.py runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from common.data.annotations import Example
from common.data.datasets import (
    Dataset,
    check_disjoint,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError
from common.experiments.seeds import run_seeds
from common.features.sources import FeatureSources
from common.tasks.command import Command
from common.tasks.finetuning import Run, finetune
from common.tasks.starting import Started, started
from common.tasks.vqa import VQATask
from common.training.tracking import Tracker
from lxrt.building import Built, build_for, chosen_size
from lxrt.inputs import LxmertInputs
from lxrt.options import DataOptions, VQAOptions, vqa_options, vqa_parser
from lxrt.sizes import HOME
from lxrt.testing import test

SCRIPT = "src/tasks/vqa.py"


def work(options: VQAOptions) -> None:
    """Finetune, or test."""
    if options.test:
        test(options)
    else:
        train(options)


def several_seeds(options: VQAOptions, words: Sequence[str]) -> int | None:
    """Train with several seeds, if they are wanted."""
    if options.seeds is None:
        return None
    if options.test:
        raise ConfigError(
            "--seeds is for training; test one of them with --load …/seed_<seed>/BEST"
        )
    return run_seeds(options.seeds, words, HOME / SCRIPT)


main = Command(HOME, SCRIPT, vqa_parser, vqa_options, work, several_seeds)


def train(options: VQAOptions) -> None:
    """Finetune and write result.json."""
    with started(options.run) as begun:
        with begun.world.main_first():
            dataset = resolve_dataset(options.data.dataset, data_root=options.data.data)
        train, valid = dataset.choose_splits(options.data.train, options.data.valid)
        options = replace(options, data=replace(options.data, train=train, valid=valid))
        small = chosen_size(options.model, dataset.name, {}) == "small"
        config = {**options.log.config, "train": train, "valid": valid}
        tracker = begun.open_log(options.command, small, replace(options.log, config=config))
        with begun.world.main_first():  # which imports features, and makes the list of answers
            dataset.vocabulary()
            features = open_features(
                dataset,
                f"{train},{valid}",
                skip_bad=options.data.skip_bad,
                progress=not options.quiet,
            )
        built = build_for(options, dataset, features, tracker.log)
        begun.seed_processes()
        finetune(make_run(options, dataset, features, built, begun, tracker))


def make_run(
    options: VQAOptions,
    dataset: Dataset,
    features: FeatureSources,
    built: Built,
    begun: Started,
    tracker: Tracker,
) -> Run:
    """Data, task and model of a finetuning run."""
    data, how = options.data, options.finetuning(built.size)
    train_examples, heldout = training_examples(data, dataset, options.run.seed)
    val_examples = load_split(dataset, data.valid, data.image_limit)
    for splits, examples in ((data.train, train_examples + heldout), (data.valid, val_examples)):
        if any(example.answers is None for example in examples):
            raise ConfigError(
                f"split {splits} of {dataset.name} has questions without answers: it "
                "can be predicted (--test), not trained or validated on"
            )
    check_disjoint(train_examples + heldout, val_examples)
    train, held, val = (
        VQADataset(examples, features, dataset.vocabulary())
        for examples in (train_examples, heldout, val_examples)
    )
    tracker.log(
        f"{dataset.name}: {len(train)} training, {len(held)} held-out and "
        f"{len(val)} validation questions"
    )
    built.model.to(begun.runtime.device)
    task = VQATask(
        train,
        held,
        LxmertInputs(built.tokenizer),
        begun.runtime,
        how.recipe.eval_batch_size,
        options.run.seed,
        progress=not options.quiet,
    )
    identity = {
        "backbone": "lxmert",
        "task": "vqa",
        "dataset": dataset.name,
        "strategy": built.record.row.name,
        "policy": built.record.chosen_policy,
        "size": built.size,
        "seed": options.run.seed,
        "name": options.name,
    }
    how = replace(how, adaptive=replace(how.adaptive, policy_eval=built.record.policy_eval))
    return Run(
        built.model,
        task,
        val,
        built.record.row,
        how,
        begun.folder,
        begun.runtime,
        tracker,
        identity,
        built.meta,
        options.command,
        built.tokenizer,
    )


def training_examples(
    options: DataOptions, dataset: Dataset, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and held-out questions; the held-out images are the same for every seed."""
    examples = load_split(dataset, options.train, options.image_limit)
    train_part, heldout = split_holdout(examples, options.holdout)
    if options.questions is not None:
        if not 0 < options.questions <= len(train_part):
            raise ConfigError(
                f"--questions {options.questions}: there are {len(train_part)} training "
                f"questions in {options.train} of {dataset.name}"
            )
        train_part = random.Random(seed).sample(train_part, options.questions)
    return train_part, heldout
