"""Finetuning VL-BERT on visual question answering: what vqa/train_end2end.py runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from common.adapt.adapting import named_parameter_groups
from common.data.datasets import TINY_IMAGES
from common.errors import ConfigError
from common.tasks.command import Command
from common.tasks.finetuning import Optimizers, Run, finetune, identity
from common.tasks.options import FinetuneOptions, Recipe
from common.tasks.starting import RunOptions, Started, started
from common.training.options import check_options, earlier_policy_training, policy_training
from common.training.tracking import Tracker
from vlbert.building import Built, build_vqa, size_name
from vlbert.config import Config
from vlbert.config_adaptive import AdaptiveSettings, adaptive_settings, policy_remarks
from vlbert.config_remarks import idle_keys
from vlbert.data import Splits, VQASource
from vlbert.data_task import VLBertTask
from vlbert.options import POLICY_TRAINING_KEYS, TrainOptions, load, train_options, train_parser
from vlbert.outputs import keep_config, lasting
from vlbert.recipe import Length, make_main_optimizer, make_policy_optimizer
from vlbert.sizes import ENCODER_SIZES, HOME
from vlbert.testing import TestOptions, test

SCRIPT = "vqa/train_end2end.py"
SHOWN = {
    "answer": "AnsLoss",
    "constrain_k": "ConstrainKLoss",
    "target_rate": "TargetRateLoss",
    "deterministic": "DeterministicPolicyLoss",
}


@dataclass(frozen=True)
class VQAOptions:
    """What vqa/train_end2end.py is told.

    Attributes:
        train: config, folder, processes.
        settings: the strategy of config and flags.
        tiny, questions: only some images, or only so many questions.
        global_k: see `FinetuneOptions`.
        plots: draw plots and write the report.
        overwrite: start again in place of the run that the folder holds.
        prune: which of the pretrained layers stay; None: all.
        test: what is tested with the best epoch after training; None: nothing.
        eval_auto: see `FinetuneOptions`.
        any_detector: features may be of another detector than the pretrained weights'.
    """

    train: TrainOptions
    settings: AdaptiveSettings
    tiny: bool
    questions: int | None
    global_k: int | None
    plots: bool
    test: TestOptions | None
    prune: str | None = None
    eval_auto: bool = False
    any_detector: bool = False

    @property
    def gpus(self) -> str | None:
        return self.train.gpus

    def finetuning(self, recipe: Recipe) -> FinetuneOptions:
        """Config and flags as the options of the shared training loop."""
        train, settings = self.train, self.settings
        config = train.config
        loop = replace(
            train.loop,
            policy_clip=max(0.0, config.POLICY.CLIP_GRAD_NORM),
            temperature=settings.options.temperature,
            temperature_end=settings.temperature_end,
            budget=settings.budget,
            policy=settings.training,
        )
        return FinetuneOptions(
            recipe,
            loop,
            settings.options,
            settings.initial_share,
            holdout=config.HOLDOUT,
            global_k=self.global_k,
            plots=self.plots,
            resume=train.run.resume,
            overwrite=train.run.overwrite,
            eval_auto=self.eval_auto,
        ).with_recipe(recipe)


def parser() -> argparse.ArgumentParser:
    """The parser of vqa/train_end2end.py."""
    return train_parser(
        SCRIPT,
        "Finetune VL-BERT on visual question answering, as a config says.\n"
        "Usually started by scripts/nondist_run.sh or scripts/dist_run_single.sh.",
    )


def vqa_options(args: argparse.Namespace, command: str) -> VQAOptions:
    """What the flags and their config mean.

    Raises:
        ConfigError: something does not go together, or is not for finetuning.
    """
    config = load(args)
    if config.pretraining:
        raise ConfigError(
            f"{config.path}: key MODULE: {config.MODULE}: this config is for "
            "pretrain/train_end2end.py"
        )
    train = train_options(args, config, command)
    settings = strategy_settings(args, config, train.run)
    test_options = TestOptions.after_training(train) if args.do_test else None
    return VQAOptions(
        train,
        settings,
        args.tiny,
        args.questions,
        args.global_k,
        not args.no_plots,
        test_options,
        args.prune,
        bool(args.eval_auto),  # else the config has a number
        args.any_detector,
    )


def strategy_settings(
    args: argparse.Namespace, config: Config, run: RunOptions | None = None
) -> AdaptiveSettings:
    """The strategy of config and flags, checked with all flags.

    Args:
        run: whose policy goes on as it was trained, if it is resumed.

    Raises:
        ConfigError: something does not go together.
    """
    settings = adaptive_settings(config)
    if settings.strategy.adaptive:
        for flag, key in POLICY_TRAINING_KEYS.items():
            if key in config.given or flag == "policy_training":
                setattr(args, flag, config.POLICY[key.partition(".")[2]])
    resolved = _of_config(settings)
    if run is not None and run.resume:
        resolved |= earlier_policy_training(run.folder / f"{run.names.last}.safetensors")
    check_options(args, **resolved)
    options = replace(
        settings.options,
        temperature=args.temperature,
        sampled_share=args.sampled_share,
        full_precision=args.policy_precision == "high",
    )
    if args.frozen_layers is not None and settings.frozen_layers is None:
        raise ConfigError(
            f"--frozen-layers {args.frozen_layers}: strategy "
            f"{settings.strategy.name} does not read it; it is for specific_k"
        )
    budget = replace(
        settings.budget, target_rate=args.target_rate, target_rate_scale=args.target_rate_scale
    )
    end = settings.temperature_end
    if "POLICY.TEMPERATURE_END" not in config.given:
        end = args.temperature
    return replace(
        settings,
        options=options,
        budget=budget,
        temperature_end=end,
        training=policy_training(args),
    )


def _of_config(settings: AdaptiveSettings) -> dict[str, Any]:
    """What the config says where a flag does not."""
    found = {"strategy": settings.strategy.name, "executor": settings.options.executor}
    found |= {"normaliser": settings.attention.normaliser, "span": settings.attention.span}
    if settings.strategy.adaptive:
        found["policy_eval"] = settings.options.policy_eval
        found["policy"] = settings.policy
    budget = {
        "constrain_k": settings.budget.constrain_k,
        "deterministic_scale": settings.budget.deterministic_scale or None,
    }
    return found | {key: value for key, value in budget.items() if value is not None}


def train(flags: VQAOptions) -> None:
    """Finetune, and test where that is wanted."""
    options, settings = flags.train, flags.settings
    config = options.config
    source = VQASource(config)
    source.check_files()  # before anything is written
    with started(options.run) as begun:
        tracker = begun.open_log(options.command, size_name(config) == "small", options.log)
        for remark in idle_keys(config):
            tracker.log(f"note: {remark}")
        source.quiet = options.quiet or not begun.world.main
        with begun.world.main_first():  # which makes or imports features
            splits = source.splits(TINY_IMAGES if flags.tiny else None, flags.questions)
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
            rule=flags.prune,
            any_detector=flags.any_detector,
        )
        begun.seed_processes()
        result = finetune(make_run(flags, source, splits, built, begun, tracker))
    if flags.test is not None and result:  # which is empty where --max-steps ended the run
        test(flags.test)


main = Command(HOME, SCRIPT, parser, vqa_options, train)


def make_run(
    flags: VQAOptions,
    source: VQASource,
    splits: Splits,
    built: Built,
    begun: Started,
    tracker: Tracker,
) -> Run:
    """Data, task, model and recipe for the shared training loop."""
    options, config, processes = flags.train, flags.train.config, begun.world.size
    recipe, length = make_recipe(
        config, len(splits.train), processes, splits.planned, options.planned_epochs
    )
    tracker.log(
        f"{source.name}: {len(splits.train)} training, {len(splits.heldout)} "
        f"held-out and {len(splits.valid)} validation questions"
    )
    tracker.log(
        f"{recipe.batch_size} questions per update, learning rate {config.TRAIN.LR:g} x "
        f"{recipe.batch_size} = {recipe.lr:g}, {length.total} updates; Val-SoftAcc of an "
        "epoch is that of the held-out questions"
    )
    built.model.to(begun.runtime.device)
    task = VLBertTask(
        splits.train,
        splits.heldout,
        begun.runtime,
        flags.finetuning(recipe).evaluation_batches(tracker.log),
        config.seed,
        progress=not options.quiet,
    )
    head = identity(built.meta, source.name, config.seed, options.name, variant=odd_layers(config))

    def optimizers(run: Run, total_steps: int) -> Optimizers:
        groups = named_parameter_groups(run.model)
        policy = [parameter for _, parameter in groups["policy"]]
        return (
            make_main_optimizer(config, groups["trainable"], length, processes),
            make_policy_optimizer(config, policy, length, processes) if policy else None,
        )

    return Run(
        built.model,
        task,
        splits.valid,
        built.record.row,
        flags.finetuning(recipe),
        begun.folder,
        begun.runtime,
        tracker,
        head,
        built.meta | {"keys": lasting(config)},
        options.command,
        source.tokenizer,
        splits.valid.vocabulary.answers,
        lambda: keep_config(config, begun.folder),
        options.run.names,
        optimizers=optimizers,
        epoch_lines=epoch_lines,
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
