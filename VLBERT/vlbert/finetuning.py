"""Finetuning VL-BERT on visual question answering: what vqa/train_end2end.py runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.adapt.adapting import adaptive_part
from common.data.datasets import TINY_IMAGES
from common.errors import ConfigError
from common.files import write_bytes
from common.runs.opened_run import save_answers
from common.tasks.finetuning import Optimizers, Recipe, Run, finetune
from common.training.distributed import World, one_voice
from common.training.options import check_options, command_line
from common.training.processes import start_processes, wanted_processes
from common.training.runtime import Runtime, seed_everything
from common.training.tracking import Tracker
from vlbert.building import Built, build_vqa, size_name
from vlbert.config import Config
from vlbert.config_adaptive import AdaptiveSettings, adaptive_settings, policy_remarks
from vlbert.data import Splits, VQASource
from vlbert.data_task import VLBertTask
from vlbert.options import chosen_gpus, load, planned_epochs, train_parser
from vlbert.outputs import keep_config, lasting, run_name, snapshot_names
from vlbert.recipe import Length, make_main_optimizer, make_policy_optimizer
from vlbert.sizes import ENCODER_SIZES, HOME
from vlbert.starting import started

SCRIPT = "vqa/train_end2end.py"
# Flags without a meaning where nothing is decided.
OF_DECISIONS = (
    "policy",
    "policy_eval",
    "policy_init",
    "temperature",
    "temperature_end",
    "executor",
    "constrain_k",
    "deterministic_scale",
    "global_k",
    "target_rate",
)
SHOWN = {
    "answer": "AnsLoss",
    "constrain_k": "ConstrainKLoss",
    "target_rate": "TargetRateLoss",
    "deterministic": "DeterministicPolicyLoss",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = train_parser(
        SCRIPT,
        "Finetune VL-BERT on visual question answering, as a config says.\n"
        "Usually started by scripts/nondist_run.sh or scripts/dist_run_single.sh.",
    ).parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        config = load(args)
        if config.pretraining:
            raise ConfigError(
                f"{config.path}: key MODULE: {config.MODULE}: this config is for "
                "pretrain/train_end2end.py"
            )
        check_training(config)
        settings = strategy_settings(args, config)
        gpus = chosen_gpus(args, config)
        if (processes := wanted_processes(gpus)) > 1:
            return start_processes(processes, [str(HOME / SCRIPT), *words, "--gpus", gpus])
        result = train(args, config, settings, gpus, command_line(f"python {SCRIPT}", words))
        if args.do_test and result:  # which is empty where --max-steps ended the run
            from vlbert.testing import predict_after_training

            predict_after_training(args, config)
        return 0

    return one_voice(run)


def check_training(config: Config) -> None:
    """What training cannot do.

    Raises:
        ConfigError: names file, key and value.
    """

    def wrong(key: str, value: object, why: str) -> ConfigError:
        return ConfigError(f"{config.path}: key {key}: {value}: {why}")

    train = config.TRAIN
    if train.END_EPOCH < 1:
        raise wrong("TRAIN.END_EPOCH", train.END_EPOCH, "must be positive")
    if not train.SHUFFLE:
        raise wrong("TRAIN.SHUFFLE", "false", "training samples are always shuffled")
    if train.BEGIN_EPOCH and not (train.RESUME or train.AUTO_RESUME):
        raise wrong(
            "TRAIN.BEGIN_EPOCH",
            train.BEGIN_EPOCH,
            "a run that goes on says so with "
            "TRAIN.RESUME or TRAIN.AUTO_RESUME, and knows where it was",
        )
    if config.NETWORK.ANS_LOSS_TYPE != "bce":
        raise wrong(
            "NETWORK.ANS_LOSS_TYPE",
            config.NETWORK.ANS_LOSS_TYPE,
            "only bce is supported (as in the original, which never reads this key)",
        )


def strategy_settings(args: argparse.Namespace, config: Config) -> AdaptiveSettings:
    """The strategy of config and flags, checked with all flags.

    Raises:
        ConfigError: something does not go together.
    """
    settings = adaptive_settings(config)
    options = replace(
        settings.options,
        sampled_share=args.sampled_share,
        full_precision=args.policy_precision == "high",
    )
    if settings.strategy.adaptive:
        args.policy_eval = options.policy_eval
    elif useless := [flag for flag in OF_DECISIONS if getattr(args, flag) is not None]:
        flag = useless[0]
        raise ConfigError(
            f"--{flag.replace('_', '-')} {getattr(args, flag)}: strategy "
            f"{settings.strategy.name} decides nothing"
        )
    if args.frozen_layers is not None and settings.frozen_layers is None:
        raise ConfigError(
            f"--frozen-layers {args.frozen_layers}: strategy "
            f"{settings.strategy.name} does not read it; it is for specific_k"
        )
    check_options(args)
    budget = replace(
        settings.budget, target_rate=args.target_rate, target_rate_scale=args.target_rate_scale
    )
    return replace(settings, options=options, budget=budget)


def train(
    args: argparse.Namespace,
    config: Config,
    settings: AdaptiveSettings,
    gpus: str | None,
    command: str,
) -> dict[str, Any]:
    """Finetune; returns the content of result.json, nothing where --max-steps ended the run."""
    source = VQASource(config)
    source.check_files()  # before anything is written
    with started(args, config, gpus, command) as run:
        world, tracker = run.runtime.world, run.tracker
        source.quiet = args.quiet or not world.main
        with world.main_first():  # which makes or imports features
            splits = source.splits(TINY_IMAGES if args.tiny else None, args.questions)
        for remark in [*splits.remarks, *policy_remarks(config, settings)]:
            tracker.log(f"note: {remark}")
        built = build_vqa(
            config,
            settings,
            source.tokenizer,
            source.vocabulary.answers,
            splits.train.features.described(),
            splits.train.transform,
            say=tracker.log,
        )
        seed_everything((config.seed + world.rank) % 2**32)  # dropout differs between processes
        parts = Parts(args, config, source, splits, built, run.runtime, tracker, run.folder)
        return finetune(make_run(parts, run.resume, command))


@dataclass
class Parts:
    """What a run is put together from."""

    args: argparse.Namespace
    config: Config
    source: VQASource
    splits: Splits
    built: Built
    runtime: Runtime
    tracker: Tracker
    folder: Path

    @property
    def world(self) -> World:
        return self.runtime.world


def make_run(parts: Parts, resume: bool, command: str) -> Run:
    """Data, task, model and recipe for the shared training loop."""
    args, config, built, splits = parts.args, parts.config, parts.built, parts.splits
    size = parts.world.size
    recipe, length = make_recipe(
        config, len(splits.train), size, splits.planned, planned_epochs(args, config)
    )
    tracker = parts.tracker
    tracker.log(
        f"{parts.source.name}: {len(splits.train)} training, {len(splits.heldout)} "
        f"held-out and {len(splits.valid)} validation questions"
    )
    tracker.log(
        f"{recipe.batch_size} questions per update, learning rate {config.TRAIN.LR:g} x "
        f"{recipe.batch_size} = {recipe.lr:g}, {length.total} updates; Val-SoftAcc of an "
        "epoch is that of the held-out questions"
    )
    built.model.to(parts.runtime.device)
    task = VLBertTask(
        splits.train,
        splits.heldout,
        parts.runtime,
        recipe.eval_batch_size,
        config.seed,
        progress=not args.quiet,
    )
    identity = {
        "backbone": "vlbert",
        "task": "vqa",
        "dataset": parts.source.name,
        "strategy": built.strategy.name,
        "policy": built.policy,
        "size": built.size,
        "seed": config.seed,
        "name": run_name(args, config),
        "variant": odd_layers(config),
    }

    def keep() -> None:
        write_bytes(parts.folder / "vocab.txt", parts.source.tokenizer.text().encode())
        save_answers(parts.folder, list(parts.source.vocabulary.answers))
        keep_config(config, parts.folder)

    def optimizers(run: Run, total_steps: int) -> Optimizers:
        part = adaptive_part(run.model)
        policy = list(part.policy.parameters()) if part is not None and part.policy else []
        ours = {id(p) for p in policy}
        named = [
            (name, p)
            for name, p in run.model.named_parameters()
            if p.requires_grad and id(p) not in ours
        ]
        return (
            make_main_optimizer(config, named, length, size),
            make_policy_optimizer(config, policy, length, size) if policy else None,
        )

    meta = built.meta | {"keys": lasting(config)}
    return Run(
        built.model,
        task,
        splits.valid,
        built.strategy,
        recipe,
        run_options(parts, resume),
        parts.folder,
        parts.runtime,
        tracker,
        identity,
        meta,
        command,
        keep,
        snapshot_names(config),
        optimizers,
        epoch_lines,
        config.LOG_FREQUENT,
    )


def odd_layers(config: Config) -> str | None:
    """`4 layers`, where the model has not as many as its size."""
    layers = config.NETWORK.VLBERT.num_hidden_layers
    usual = ENCODER_SIZES.get(size_name(config))
    return f"{layers} layers" if usual and layers != usual.num_hidden_layers else None


def make_recipe(
    config: Config, questions: int, processes: int, planned_questions: int, epochs_planned: int
) -> tuple[Recipe, Length]:
    """Hyper-parameters of a config, and how long the run is.

    Args:
        config: of VQA.
        questions: to train on.
        processes: that train together.
        planned_questions, epochs_planned: of the config without what shortens this run.

    Raises:
        ConfigError: fewer questions than an update is made of.
    """
    batch = config.samples_per_update(processes)
    if questions < batch:
        raise ConfigError(
            f"{config.path}: key TRAIN.BATCH_IMAGES: an update is made of {batch} "
            f"questions ({processes} processes x BATCH_IMAGES x "
            f"GRAD_ACCUMULATE_STEPS), but there are {questions} to train on"
        )
    train = config.TRAIN
    length = Length(questions // batch, train.END_EPOCH, planned_questions // batch, epochs_planned)
    recipe = Recipe(
        batch_size=batch,
        epochs=train.END_EPOCH,
        optim=train.OPTIMIZER,
        lr=config.effective_lr(processes),
        warmup=length.warmup(config, "TRAIN"),
        weight_decay=train.WD,
        clip=max(0.0, train.CLIP_GRAD_NORM),
        policy_lr=config.effective_lr(processes, "POLICY"),
        eval_batch_size=config.VAL.BATCH_IMAGES,
    )
    return recipe, length


def run_options(parts: Parts, resume: bool) -> argparse.Namespace:
    """Config and flags as the options that the shared training loop knows."""
    config, settings = parts.config, parts.built.settings
    budget = settings.budget
    return argparse.Namespace(
        **vars(parts.args)
        | {
            "resume": resume,
            "seed": config.seed,
            "holdout": config.HOLDOUT,
            "workers": config.NUM_WORKERS_PER_GPU,
            "accumulate": config.TRAIN.GRAD_ACCUMULATE_STEPS,
            "policy_clip": max(0.0, config.POLICY.CLIP_GRAD_NORM),
            "policy_init": settings.initial_share,
            "policy_eval": settings.options.policy_eval,
            "temperature": settings.options.temperature,
            "temperature_end": settings.temperature_end,
            "constrain_k": budget.constrain_k,
            "constrain_k_scale": budget.constrain_k_scale,
            "deterministic_scale": budget.deterministic_scale,
            "target_rate": budget.target_rate,
            "target_rate_scale": budget.target_rate_scale,
        }
    )


def epoch_lines(values: dict[str, Any]) -> str:
    """What is logged after an epoch, in the original's form; accuracies as shares."""
    epoch, found, best = values["epoch"], values["heldout_score"], values["best_score"]
    line = f"Epoch[{epoch}] \tTrain-SoftAcc={values['train_accuracy'] / 100:.6f},"
    line += "".join(
        f"\t{SHOWN.get(name, name)}={loss:.6f}," for name, loss in values["train_losses"].items()
    )
    line += f"\nEpoch[{epoch}] \tVal-SoftAcc={found / 100:.6f}\n"
    return line + (
        f"New Best Val SoftAcc: {found / 100:.6f}, Epoch: {epoch}"
        if found == best
        else f"Best Val SoftAcc: {best / 100:.6f}"
    )
