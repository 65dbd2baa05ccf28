"""Pretraining VL-BERT on captions and texts: what pretrain/train_end2end.py runs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, named
from common.tasks.command import Command
from common.tasks.pretraining import PretrainingRun, shared_loop, trained_parameters
from common.tasks.pretraining import pretrain as pretrain_to_the_end
from common.tasks.starting import started
from common.training.loop import Trainer
from common.training.options import check_options
from common.training.tracking import Tracker
from vlbert.building import check_start, load_start, size_name
from vlbert.config import Config
from vlbert.config_remarks import idle_keys
from vlbert.options import TrainOptions, load, train_options, train_parser
from vlbert.outputs import keep_config, lasting
from vlbert.pretraining_data import PretrainingSource
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.pretraining_task import ACCURACIES, PretrainingTask
from vlbert.recipe import Length, make_main_optimizer
from vlbert.sizes import HOME, PretrainingConfig

SCRIPT = "pretrain/train_end2end.py"


@dataclass(frozen=True)
class PretrainOptions:
    """What pretrain/train_end2end.py is told.

    Attributes:
        train: config, folder, processes.
        export: folder of the small file of the best epoch; None: none.
        any_detector: features may be of another detector than the pretrained weights'.
    """

    train: TrainOptions
    export: Path | None
    any_detector: bool = False

    @property
    def gpus(self) -> str | None:
        return self.train.gpus


def pretrain_parser() -> argparse.ArgumentParser:
    """The parser of pretrain/train_end2end.py."""
    parser = train_parser(
        SCRIPT,
        "Pretrain VL-BERT on captions with images and on texts, as a "
        "config says.\nUsually started by scripts/nondist_run.sh or "
        "scripts/dist_run_single.sh.",
        pretraining=True,
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="also write the best epoch as FOLDER/model.safetensors, in float16 "
        "and without the training state, with vocab.txt beside it",
    )
    return parser


def pretrain_options(args: argparse.Namespace, command: str) -> PretrainOptions:
    """What the flags and their config mean.

    Raises:
        ConfigError: something does not go together, or is not for pretraining.
    """
    config = load(args)
    if not config.pretraining:
        raise ConfigError(
            f"{config.path}: key MODULE: {config.MODULE}: this config is for vqa/train_end2end.py"
        )
    if config.FINETUNE_STRATEGY.lower() != "standard":
        raise ConfigError(
            f"{config.path}: key FINETUNE_STRATEGY: {config.FINETUNE_STRATEGY}: "
            "pretraining trains all weights; leave the key out"
        )
    check_options(args)
    train = train_options(args, config, command)
    PretrainingSource(config).check_files()
    return PretrainOptions(train, args.export, args.any_detector)


def pretrain(options: PretrainOptions) -> None:
    """Pretrain and save checkpoints under the original's names."""
    start = time.perf_counter()
    train, config = options.train, options.train.config
    source = PretrainingSource(config)  # refuses wrong keys before anything is written
    with started(train.run) as begun:
        tracker = begun.open_log(train.command, size_name(config) == "small", train.log)
        for remark in idle_keys(config):
            tracker.log(f"note: {remark}")
        source.quiet = train.quiet or not begun.world.main
        with begun.world.main_first():  # which makes or imports features, and the vocabulary
            tokenizer = source.tokenizer(begun.folder)
            features = source.features().described()
        sizes = network_sizes(config, source.multitask, features["width"])
        data = source.load(tokenizer, sizes)
        texts = data.train.texts
        tracker.log(
            f"{source.name}: {len(data.train.captions)} captions for training, "
            f"{len(data.heldout.captions)} for validation; {len(tokenizer)} word pieces"
            + ("" if texts is None else f"; {len(texts.corpus)} sentences of text")
        )
        model = ResNetVLBERTForPretraining(sizes)
        check_start(config, features, options.any_detector, tracker.log)
        load_start(model, config, tokenizer, (), tracker.log)
        begun.seed_processes()
        task = PretrainingTask(
            data,
            sizes,
            begun.runtime,
            config.seed,
            source.heldout_batch[0],
            train.loop.workers,
            not train.quiet,
        )
        meta = {
            "backbone": "vlbert",
            "task": "pretraining",
            "dataset": source.name,
            "size": size_name(config),
            "config": sizes.to_dict(),
            "features": features,
            "vocabulary": tokenizer.digest(),
            "captions": {"train": len(task), "held out": len(data.heldout.captions)},
            "keys": lasting(config),
        }
        model.to(begun.runtime.device)
        trainer = make_trainer(train, task, model, source, meta, tracker)
        pretrain_to_the_end(whole_run(options, trainer, task, tokenizer, start))


main = Command(HOME, SCRIPT, pretrain_parser, pretrain_options, pretrain)


def network_sizes(config: Config, multitask: bool, width: int) -> PretrainingConfig:
    """Sizes of the network of a config; see `PretrainingConfig.from_upstream`."""
    with named(config.path):
        sizes = PretrainingConfig.from_upstream(config.NETWORK, multitask, width)
    if not (sizes.words or sizes.regions or sizes.relationship):
        raise ConfigError(
            f"{config.path}: keys NETWORK.WITH_MLM_LOSS, WITH_MVRC_LOSS, "
            "WITH_REL_LOSS: all are false: there is nothing to learn"
        )
    return sizes


def make_trainer(
    options: TrainOptions,
    task: PretrainingTask,
    model: ResNetVLBERTForPretraining,
    source: PretrainingSource,
    meta: dict[str, Any],
    tracker: Tracker,
) -> Trainer:
    """The shared training loop with the recipe of the config; an epoch is one of the captions."""
    config = options.config
    train, size = config.TRAIN, task.runtime.world.size
    batch = source.train_batch[0] * size * train.GRAD_ACCUMULATE_STEPS
    if len(task) < batch:
        raise ConfigError(
            f"{config.path}: key TRAIN.BATCH_IMAGES: an update is made of {batch} "
            f"captions ({size} processes x BATCH_IMAGES x GRAD_ACCUMULATE_STEPS), "
            f"but there are {len(task)} to train on"
        )
    steps = len(task) // batch
    length = Length(steps, train.END_EPOCH, steps, train.END_EPOCH)
    optimizer = make_main_optimizer(config, trained_parameters(model), length, size)
    loop = replace(options.loop, batch_size=batch)
    recipe = {
        "captions per update": batch,
        "texts per update": source.train_batch[1] * batch // source.train_batch[0],
        "optim": train.OPTIMIZER,
        "lr": config.effective_lr(size),
        "warmup": length.warmup(config, "TRAIN"),
        "weight_decay": train.WD,
        "clip": loop.clip,
    }
    tracker.log(
        f"{batch} captions per update, learning rate {recipe['lr']:g}, {length.total} updates"
    )
    return shared_loop(model, task, optimizer, loop, options.run, tracker, meta, recipe)


def whole_run(
    options: PretrainOptions,
    trainer: Trainer,
    task: PretrainingTask,
    tokenizer: Tokenizer,
    start: float,
) -> PretrainingRun:
    """The run up to result.json."""
    train, config, tracker = options.train, options.train.config, trainer.tracker
    identity = {
        "backbone": "vlbert",
        "dataset": trainer.meta["dataset"],
        "size": trainer.meta["size"],
        "seed": task.seed,
        "name": train.name,
    }

    def report_epoch(values: dict[str, Any]) -> None:
        new = trainer.best_epoch == values["epoch"]
        tracker.log(epoch_lines(values, shown_losses(config), new))
        found = values["heldout_accuracies"] | values["heldout_losses"]
        tracker.scalars({f"heldout/{name}": value for name, value in found.items()}, trainer.step)

    return PretrainingRun(
        trainer,
        tokenizer,
        identity,
        train.command,
        start,
        train.run.resume,
        train.run.overwrite,
        report_epoch,
        lambda best: best["heldout_accuracies"],
        task.data.heldout.captions,
        f"{ACCURACIES[task.losses[0]]} on {config.datasets[0].VAL_IMAGE_SET}",
        options.export and options.export / "model.safetensors",
        keep=lambda: keep_config(config, trainer.out_dir),
    )


def shown_losses(config: Config) -> dict[str, str]:
    """Names of the losses in the log: those of LOSS_LOGGERS, where they are named there."""
    given = dict(config.TRAIN.LOSS_LOGGERS)
    if "mlm_loss" in given:  # the original's name where there are captions alone
        given.setdefault("mlm_loss_wvc", given["mlm_loss"])
    return {name: given.get(name, name) for name in ACCURACIES}


def epoch_lines(values: Mapping[str, Any], shown: Mapping[str, str], new_best: bool) -> str:
    """What is logged after an epoch, in the original's form; accuracies as shares."""

    def losses(found: Mapping[str, float]) -> str:
        return "".join(f"\t{shown.get(name, name)}={loss:.6f}," for name, loss in found.items())

    epoch = f"Epoch[{values['epoch']}]"
    accuracies = values["heldout_accuracies"]
    first = next(iter(accuracies), "score")
    found = "".join(f"\tVal-{name}={share / 100:.6f}," for name, share in accuracies.items())
    score, best = values["heldout_score"] / 100, values["best_score"] / 100
    news = (
        f"New Best Val {first}: {score:.6f}, {epoch}"
        if new_best
        else f"Best Val {first}: {best:.6f}"
    )
    return (
        f"{epoch} \tTrain-{first}={values['train_accuracy'] / 100:.6f},"
        f"{losses(values['train_losses'])}\n"
        f"{epoch} {found}{losses(values['heldout_losses'])}\n{news}"
    )
