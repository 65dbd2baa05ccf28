"""Finetuning LXMERT on visual question answering: what src/tasks/vqa.py runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from common.data.datasets import Dataset
from common.errors import ConfigError
from common.experiments.seeds import run_seeds
from common.features.sources import FeatureSources
from common.tasks.command import Command
from common.tasks.finetuning import Run, finetune, identity
from common.tasks.questions import find_dataset, find_features, find_questions
from common.tasks.starting import Started, started
from common.tasks.vqa import VQATask
from common.training.tracking import Tracker
from lxrt.building import Built, build_for, chosen_size
from lxrt.inputs import LxmertInputs
from lxrt.options import VQAOptions, vqa_options, vqa_parser
from lxrt.sizes import HOME
from lxrt.testing import test

SCRIPT = "src/tasks/vqa.py"


def work(options: VQAOptions) -> None:
    """Finetune, or test."""
    if options.test:
        test(options, options.test)
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
        dataset, data = find_dataset(options.data, begun.world)
        options = replace(options, data=data)
        small = chosen_size(options.model, dataset.name, {}) == "small"
        config = {**options.log.config, "train": data.train, "valid": data.valid}
        tracker = begun.open_log(options.command, small, replace(options.log, config=config))
        features = find_features(data, dataset, begun.world, options.quiet)
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
    how = options.finetuning(built.size)
    train, held, val = find_questions(options.data, dataset, features, options.run.seed)
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
        identity(built.meta, dataset.name, options.run.seed, options.name),
        built.meta,
        options.command,
        built.tokenizer,
    )
