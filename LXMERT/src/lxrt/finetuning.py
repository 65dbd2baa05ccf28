"""Finetuning and testing LXMERT on visual question answering: what src/tasks/vqa.py runs."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from common.data.annotations import Example
from common.data.datasets import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    check_disjoint,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from common.data.vqa_dataset import VQADataset
from common.data.vqa_metric import write_predictions
from common.errors import ConfigError
from common.experiments.seeds import run_seeds
from common.features.sources import FeatureSources
from common.files import write_bytes
from common.runs.opened_run import save_answers
from common.tasks.finetuning import Run, finetune
from common.tasks.vqa import VQATask
from common.training.checkpoint import load_meta
from common.training.distributed import one_voice, start_world
from common.training.options import check_options, command_line
from common.training.processes import start_processes, wanted_processes
from common.training.run_folder import check_unused
from common.training.runtime import Runtime, make_runtime, seed_everything, set_threads
from common.training.tracking import Tracker
from lxrt.building import Built, build_vqa, chosen_size, weights_folder
from lxrt.inputs import LxmertInputs
from lxrt.options import chosen_recipe, parse, vqa_parser
from lxrt.sizes import HOME

SCRIPT = HOME / "src" / "tasks" / "vqa.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = parse(vqa_parser(), arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = command_line("python src/tasks/vqa.py", words)

    def run() -> int:
        check_options(args)
        if args.seeds > 1:
            return run_seeds(args, words, SCRIPT)
        if (processes := wanted_processes(args.gpus)) > 1:
            return start_processes(processes, [str(SCRIPT), *words])
        if args.test:
            test(args)
        else:
            train(args, command)
        return 0

    return one_voice(run)


def train(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Finetune; returns the content of result.json."""
    if not args.resume:
        check_unused(args.output, args.overwrite)
    world = start_world()
    runtime = make_runtime(args.gpus, args.precision, world)
    seed_everything(args.seed)
    with world.main_first():
        dataset = resolve_dataset(args.dataset, data_root=args.data)
    args.train, args.valid = dataset.choose_splits(args.train, args.valid)
    set_threads(args.threads, chosen_size(args, dataset.name, {}) == "small", world.local_size)
    resume_step = None
    if args.resume and (args.output / "LAST.safetensors").exists():
        resume_step = load_meta(args.output / "LAST.safetensors").get("step")
    config = {k: str(v) for k, v in vars(args).items()}
    with Tracker(
        args.output, not args.no_tensorboard, args.wandb, config, resume_step, world.main
    ) as tracker:
        tracker.log(command)
        tracker.log(runtime.describe())
        with world.main_first():  # which imports features, and makes the list of answers
            dataset.vocabulary()
            features = open_features(
                dataset,
                f"{args.train},{args.valid}",
                skip_bad=args.skip_bad,
                progress=not args.quiet,
            )
        built = build(args, dataset, features, tracker)
        seed_everything((args.seed + world.rank) % 2**32)  # dropout differs between processes
        run = make_run(args, dataset, features, built, runtime, tracker, command)
        return finetune(run)


def build(
    args: argparse.Namespace, dataset: Dataset, features: FeatureSources, tracker: Tracker
) -> Built:
    """The adapted model for a data set."""
    answers = list(dataset.vocabulary().answers)
    built = build_vqa(
        args, dataset.name, answers, features.described(), args.data or HOME / "data", tracker.log
    )
    if args.size is None and not args.load and weights_folder(args) is None:
        tracker.log(f"model size {built.size} (default for {dataset.name}; choose with --size)")
    return built


def make_run(
    args: argparse.Namespace,
    dataset: Dataset,
    features: FeatureSources,
    built: Built,
    runtime: Runtime,
    tracker: Tracker,
    command: str,
) -> Run:
    """Data, task and model of a finetuning run."""
    recipe = chosen_recipe(args, built.size)
    train_examples, heldout = training_examples(args, dataset)
    val_examples = load_split(dataset, args.valid, image_limit(args))
    for splits, examples in ((args.train, train_examples + heldout), (args.valid, val_examples)):
        if any(example.answers is None for example in examples):
            raise ConfigError(
                f"split {splits} of {dataset.name} has questions without answers: it "
                "can be predicted (--test), not trained or validated on"
            )
    check_disjoint(train_examples + heldout, val_examples)
    vocabulary = dataset.vocabulary()
    datasets = [
        VQADataset(examples, features, vocabulary)
        for examples in (train_examples, heldout, val_examples)
    ]
    tracker.log(
        f"{dataset.name}: {len(datasets[0])} training, {len(datasets[1])} held-out and "
        f"{len(datasets[2])} validation questions"
    )
    built.model.to(runtime.device)
    task = VQATask(
        datasets[0],
        datasets[1],
        LxmertInputs(built.tokenizer),
        runtime,
        recipe.eval_batch_size,
        args.seed,
        progress=not args.quiet,
    )
    identity = {
        "backbone": "lxmert",
        "task": "vqa",
        "dataset": dataset.name,
        "strategy": built.strategy.name,
        "policy": built.policy,
        "size": built.size,
        "seed": args.seed,
        "name": args.version or args.output.name,
    }

    def keep_vocabulary() -> None:
        write_bytes(args.output / "vocab.txt", built.tokenizer.text().encode())
        save_answers(args.output, vocabulary.answers)

    return Run(
        built.model,
        task,
        datasets[2],
        built.strategy,
        recipe,
        args,
        args.output,
        runtime,
        tracker,
        identity,
        built.meta,
        command,
        keep_vocabulary,
    )


def image_limit(args: argparse.Namespace) -> int | None:
    """Images per split that --tiny or --fast leaves."""
    return TINY_IMAGES if args.tiny else FAST_IMAGES if args.fast else None


def training_examples(
    args: argparse.Namespace, dataset: Dataset
) -> tuple[list[Example], list[Example]]:
    """Training and held-out questions; the held-out images are the same for every seed."""
    examples = load_split(dataset, args.train, image_limit(args))
    train_part, heldout = split_holdout(examples, args.holdout)
    if args.questions is not None:
        if not 0 < args.questions <= len(train_part):
            raise ConfigError(
                f"--questions {args.questions}: there are {len(train_part)} training "
                f"questions in {args.train} of {dataset.name}"
            )
        train_part = random.Random(args.seed).sample(train_part, args.questions)
    return train_part, heldout


def test(args: argparse.Namespace) -> None:
    """Write the predictions of a split and, where its answers are public, say the accuracy."""
    if not args.load:
        raise ConfigError("--test needs the finetuned model: --load snap/vqa/NAME/BEST")
    if "test" not in args.test and "val" not in args.test:
        raise ConfigError(f"--test {args.test!r}: use a split with `test` or `val` in its name")
    world = start_world()
    runtime = make_runtime(args.gpus, args.precision, world)
    seed_everything(args.seed)
    with world.main_first():
        dataset = resolve_dataset(args.dataset, data_root=args.data)
    set_threads(args.threads, chosen_size(args, dataset.name, {}) == "small", world.local_size)
    split = dataset.split_to_test(args.test)
    with Tracker(args.output, tensorboard=False, enabled=world.main) as tracker:
        with world.main_first():
            features = open_features(
                dataset, split, skip_bad=args.skip_bad, progress=not args.quiet
            )
        built = build(args, dataset, features, tracker)
        data = VQADataset(load_split(dataset, split), features, dataset.vocabulary())
        built.model.to(runtime.device)
        recipe = chosen_recipe(args, built.size)
        task = VQATask(
            data,
            data,
            LxmertInputs(built.tokenizer),
            runtime,
            recipe.eval_batch_size,
            args.seed,
            progress=not args.quiet,
        )
        found = task.evaluate(built.model, data, split)
        path = args.output / f"{split}_predict.json"
        if world.main:
            write_predictions(path, found.predictions)
        tracker.log(f"{len(found.predictions)} predictions in {path}")
        if found.scores is not None:
            scores = ", ".join(
                f"{kind} {value:.2f}" for kind, value in found.scores.items() if value is not None
            )
            tracker.log(f"{split} of {dataset.name}, {built.strategy.name}: {scores}")
