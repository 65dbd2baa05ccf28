"""Command-line flags of VL-BERT's scripts, and how they change a config.

The config is what counts: every flag of the model and of training is a short form of one of its
keys, and `--set KEY=VALUE` reaches all others.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.adapt.attention import ATTENTION_LR
from common.adapt.layerdrop import LayerDrop
from common.adapt.strategies import find_strategy
from common.errors import ConfigError, DataError, named
from common.reading import parse_yaml, short
from common.tasks.starting import LogOptions, RunOptions
from common.training.attention_options import add_attention_options, add_layerdrop_options
from common.training.loop import LoopOptions
from common.training.options import add_detector_option, add_run_options, add_strategy_options
from common.training.processes import STARTED
from vlbert.config import Config, load_config
from vlbert.outputs import log_options, output_folder, snapshot_names, wants_resume

# Flag → the key that it changes.
TRAINING_KEYS = {
    "dataset": "DATASET.DATASET",
    "seed": "RNG_SEED",
    "epochs": "TRAIN.END_EPOCH",
    "accumulate": "TRAIN.GRAD_ACCUMULATE_STEPS",
    "holdout": "HOLDOUT",
    "gpus": "GPUS",
    "partial_pretrain": "NETWORK.PARTIAL_PRETRAIN",
    "eval_batch_size": "VAL.BATCH_IMAGES",
    "precision": "TRAIN.FP16",
}
POLICY_TRAINING_KEYS = {
    "policy_training": "POLICY.TRAINING",
    "policy_start": "POLICY.START",
    "policy_hold": "POLICY.HOLD",
    "policy_review": "POLICY.REVIEW",
    "policy_warmup": "POLICY.HEAD_WARMUP",
    "temperature": "POLICY.TEMPERATURE",
}
STRATEGY_KEYS = POLICY_TRAINING_KEYS | {
    "strategy": "FINETUNE_STRATEGY",
    "trainable_layers": "FINETUNE_STRATEGY",
    "frozen_layers": "NETWORK.VLBERT.FROZEN_LAYERS",
    "policy": "POLICY.NETWORK",
    "policy_eval": "POLICY.EVALUATION",
    "policy_init": "POLICY.INITIAL_SHARE",
    "temperature_end": "POLICY.TEMPERATURE_END",
    "executor": "POLICY.EXECUTOR",
    "normaliser": "ATTENTION.NORMALISER",
    "span": "ATTENTION.SPAN",
    "span_ramp": "ATTENTION.SPAN_RAMP",
    "span_init": "ATTENTION.SPAN_INIT",
    "span_loss": "ATTENTION.SPAN_LOSS",
    "alpha_init": "ATTENTION.ALPHA_INIT",
    "attention_lr": "ATTENTION.LR",
    "span_policy": "ATTENTION.SPAN_POLICY",
    "span_batch": "ATTENTION.SPAN_BATCH",
    "layerdrop": "LAYERDROP.RATE",
    "layerdrop_count": "LAYERDROP.COUNT",
    "constrain_k": "CONSTRAIN_K_NUM_BLOCKS",
    "constrain_k_scale": "CONSTRAIN_K_SCALE",
    "deterministic_scale": "DETERMINISTIC_POLICY_SCALE",
}
# Flags whose values are not simply those of their key; see `overrides`.
SPECIAL = (
    "trainable_layers",
    "frozen_layers",
    "constrain_k",
    "deterministic_scale",
    "gpus",
    "precision",
)


def add_config_options(parser: argparse.ArgumentParser, pretraining: bool = False) -> None:
    """What the original's scripts take, and ways to change single keys.

    Args:
        parser: gets the flags.
        pretraining: leave out what only finetuning has.
    """
    group = parser.add_argument_group("config and folders")
    group.add_argument(
        "--cfg",
        type=Path,
        required=True,
        metavar="FILE",
        help="config file, e.g. cfgs/vqa/base_4x16G_fp32.yaml",
    )
    group.add_argument(
        "--model-dir",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="output goes to FOLDER/OUTPUT_PATH/NAME/TRAIN_IMAGE_SET_train/ "
        "(default: the working folder)",
    )
    group.add_argument(
        "--name", help="NAME of the run (default: name of the config without its ending)"
    )
    if not pretraining:
        group.add_argument(
            "--dataset",
            metavar="NAME",
            help="a data set of your own, made by `python -m common.data make`, with a config in "
            "cfgs/own/; or another embedded one (default: DATASET.DATASET of the config)",
        )
    group.add_argument(
        "--set",
        dest="changes",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change keys of the config, e.g. "
        "TRAIN.END_EPOCH=2 NETWORK.PARTIAL_PRETRAIN=; may be given several times",
    )


def train_parser(
    script: str, description: str | None, pretraining: bool = False
) -> argparse.ArgumentParser:
    """The parser of a training script.

    Args:
        script: how it is called.
        description: for --help.
        pretraining: leave out what only finetuning has.
    """
    parser = argparse.ArgumentParser(
        prog=f"python {script}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config_options(parser, pretraining)
    group = parser.add_argument_group("training")
    group.add_argument("--seed", type=int, help="of everything that is drawn at random")
    group.add_argument("--epochs", type=int, help="passes over the training samples")
    group.add_argument(
        "--partial-pretrain", metavar="FILE", help="pretrained weights; an empty text: none"
    )
    group.add_argument(
        "--log-dir",
        type=Path,
        metavar="FOLDER",
        help="folder for the TensorBoard files (default: in the output folder)",
    )
    if not pretraining:
        group.add_argument(
            "--questions",
            type=int,
            metavar="N",
            help="train on so many questions, chosen at random by the seed",
        )
        group.add_argument(
            "--tiny", action="store_true", help="512 images of each image set, for a quick look"
        )
        group.add_argument(
            "--do-test",
            action="store_true",
            help="predict TEST_IMAGE_SET with the best epoch after training",
        )
        add_strategy_options(parser)
        add_attention_options(parser)
        add_layerdrop_options(parser)
    add_detector_option(parser)
    add_run_options(parser)
    group = parser.add_argument_group("flags of the original's launcher")
    group.add_argument(
        "--dist",
        action="store_true",
        help="this is one of several processes (scripts/dist_run_*.sh give it)",
    )
    group.add_argument("--slurm", action="store_true", help=argparse.SUPPRESS)
    group.add_argument("--cudnn-off", action="store_true", help="do without cuDNN")
    _defaults_from_config(parser, TRAINING_KEYS | ({} if pretraining else STRATEGY_KEYS))
    return parser


def _defaults_from_config(parser: argparse.ArgumentParser, keys: Mapping[str, str]) -> None:
    """Let flags that change a key say so; their default is what the config has."""
    for action in parser._actions:
        if action.dest in keys:
            action.default = None
            text = re.sub(r" *\((default|by default)[^()]*\)\.?$", "", action.help or "")
            action.help = f"{text} (default: {keys[action.dest]} of the config)"


def load(args: argparse.Namespace, keys: Mapping[str, Any] | None = None) -> Config:
    """The config with what the command line changes, and then `keys`.

    Raises:
        ConfigError: see `load_config`; or a flag that cannot be understood.
    """
    if args.dist and STARTED not in os.environ:
        raise ConfigError(
            "--dist: this process was not started as one of several; use "
            "scripts/dist_run_single.sh, which gives --dist itself, or leave it out"
        )
    if args.slurm:
        raise ConfigError(
            "--slurm: not supported; start one torchrun per machine with scripts/dist_run_multi.sh"
        )
    if args.cudnn_off:
        torch.backends.cudnn.enabled = False
    return load_config(args.cfg, overrides(args) | dict(keys or {}))


def planned_epochs(args: argparse.Namespace, config: Config) -> int:
    """END_EPOCH of the config itself, which WARMUP_STEPS is part of; --epochs does not count."""
    if args.epochs is None:
        return config.TRAIN.END_EPOCH
    planned = load_config(args.cfg, overrides(args, without=("epochs",)))
    return planned.TRAIN.END_EPOCH or config.TRAIN.END_EPOCH


def overrides(args: argparse.Namespace, without: Sequence[str] = ()) -> dict[str, Any]:
    """{key of the config: value} for all flags that were given, but for those in `without`.

    Raises:
        ConfigError: a flag that cannot be understood.
    """
    found = read_changes(args.changes)
    for flag, key in (TRAINING_KEYS | STRATEGY_KEYS).items():
        value = getattr(args, flag, None)
        if value is not None and flag not in (*SPECIAL, *without):
            found[key] = value
    if (k := getattr(args, "constrain_k", None)) is not None:
        found |= {"USE_CONSTRAIN_K_LOSS": True, "CONSTRAIN_K_NUM_BLOCKS": k}
    if (scale := getattr(args, "deterministic_scale", None)) is not None:
        found |= {"USE_DETERMINISTIC_POLICY_LOSS": scale > 0, "DETERMINISTIC_POLICY_SCALE": scale}
    if (layers := getattr(args, "trainable_layers", None)) is not None:
        kind, _, count = layers.partition(":")
        if kind != "last" or not count.isdecimal():
            raise ConfigError(f"--trainable-layers {layers}: give last:K, e.g. last:4")
        strategy, k = find_strategy(args.strategy or "LastK")
        if strategy.frozen != "not_last" or k not in (None, int(count)):
            raise ConfigError(
                f"--strategy {args.strategy}, --trainable-layers {layers}: the "
                "second is for LastK; give one of them"
            )
        found["FINETUNE_STRATEGY"] = f"last_{count}"
    if (layers := getattr(args, "frozen_layers", None)) is not None:
        numbers = [part.strip() for part in layers.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in numbers):
            raise ConfigError(f"--frozen-layers {layers}: give numbers from 1, e.g. 3,4,10,11")
        found["NETWORK.VLBERT.FROZEN_LAYERS"] = [int(part) - 1 for part in numbers]
    if getattr(args, "policy_eval", None) is not None:
        found["POLICY_GLOBAL_DECISION"] = args.policy_eval == "global"
    return found


def read_changes(changes: Iterable[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as {key: value}; values are read as YAML.

    Raises:
        ConfigError: a word of another form.
    """
    found: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        shown = short(change)[1:-1]
        if not equals or not key:
            raise ConfigError(f"--set {shown}: give KEY=VALUE, e.g. TRAIN.END_EPOCH=2")
        try:
            value = parse_yaml(text, f"--set {shown}")
        except DataError as error:
            raise ConfigError(f"{error}: the value is not valid YAML") from None
        found[key] = "" if value is None else value
    return found


def chosen_gpus(named: str | None, config: Config) -> str | None:
    """What `make_runtime` and `wanted_processes` are given.

    GPUS of a config names GPUs of the machine that it was written for: it counts only where there
    are GPUs and this is the only process; `--gpus` always counts.
    """
    if named is not None:
        return named
    if not torch.cuda.is_available():
        return "cpu"
    return None if STARTED in os.environ else config.GPUS or None


def chosen_precision(args: argparse.Namespace, config: Config) -> str:
    """--precision, else TRAIN.FP16."""
    return args.precision or ("fp16" if config.TRAIN.FP16 else "fp32")


@dataclass(frozen=True)
class TrainOptions:
    """What a training script is told beside its config.

    Attributes:
        command: as it was typed.
        config: with what the flags change.
        name: of the run.
        run, log: where it writes to and computes, and what it logs.
        loop: of the training loop, without what the recipe says.
        planned_epochs: of the config without what shortens this run.
        quiet: show no progress bars.
    """

    command: str
    config: Config
    name: str
    run: RunOptions
    log: LogOptions
    loop: LoopOptions
    planned_epochs: int
    quiet: bool

    @property
    def gpus(self) -> str | None:
        return self.run.gpus


def train_options(args: argparse.Namespace, config: Config, command: str) -> TrainOptions:
    """What finetuning and pretraining have in common.

    Raises:
        ConfigError: something that training cannot do, or flags that do not go together.
    """
    check_training(config)
    name = args.name or config.name
    folder = output_folder(config, args.model_dir, name)
    run = RunOptions(
        folder,
        wants_resume(config, folder, args.resume, args.overwrite),
        args.overwrite,
        chosen_gpus(args.gpus, config),
        chosen_precision(args, config),
        config.seed,
        args.threads,
        snapshot_names(config),
        args.graph,
    )
    log = log_options(config, name, args.log_dir, not args.no_tensorboard, args.wandb)
    loop = LoopOptions(
        epochs=config.TRAIN.END_EPOCH,
        batch_size=1,
        seed=config.seed,
        clip=max(0.0, config.TRAIN.CLIP_GRAD_NORM),
        accumulate=config.TRAIN.GRAD_ACCUMULATE_STEPS,
        workers=config.NUM_WORKERS_PER_GPU,
        log_every=config.LOG_FREQUENT,
        span_loss=config.ATTENTION.SPAN_LOSS or None,
        layerdrop=_layerdrop(config),
        attention_lr=None if config.ATTENTION.LR == ATTENTION_LR else config.ATTENTION.LR,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    return TrainOptions(
        command, config, name, run, log, loop, planned_epochs(args, config), args.quiet
    )


def _layerdrop(config: Config) -> LayerDrop | None:
    if config.pretraining:
        return None
    with named(f"{config.path}: section LAYERDROP"):
        return LayerDrop.chosen(config.LAYERDROP.RATE, config.LAYERDROP.COUNT)


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
