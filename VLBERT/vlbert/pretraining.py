"""Pretraining VL-BERT on captions and texts: what pretrain/train_end2end.py runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.files import text_digest, write_bytes, write_json
from common.tasks.pretraining import export_half, pretraining_result
from common.training.distributed import one_voice
from common.training.loop import EpochRecord, LoopOptions, Trainer
from common.training.options import check_options, command_line
from common.training.processes import start_processes, wanted_processes
from common.training.runtime import seed_everything
from common.training.tracking import Tracker
from vlbert.building import load_start, size_name
from vlbert.config import Config
from vlbert.finetuning import check_training
from vlbert.options import chosen_gpus, load, train_parser
from vlbert.outputs import keep_config, lasting, run_name, snapshot_names
from vlbert.pretraining_data import PretrainingSource
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.pretraining_task import ACCURACIES, PretrainingTask
from vlbert.recipe import Length, make_main_optimizer
from vlbert.sizes import HOME, PretrainingConfig
from vlbert.starting import started

SCRIPT = "pretrain/train_end2end.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = pretrain_parser().parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        config = load(args)
        if not config.pretraining:
            raise ConfigError(
                f"{config.path}: key MODULE: {config.MODULE}: this config is for "
                "vqa/train_end2end.py"
            )
        if config.FINETUNE_STRATEGY.lower() != "standard":
            raise ConfigError(
                f"{config.path}: key FINETUNE_STRATEGY: {config.FINETUNE_STRATEGY}: "
                "pretraining trains all weights; leave the key out"
            )
        check_options(args)
        check_training(config)
        PretrainingSource(config).check_files()
        gpus = chosen_gpus(args, config)
        if (processes := wanted_processes(gpus)) > 1:
            return start_processes(processes, [str(HOME / SCRIPT), *words, "--gpus", gpus])
        pretrain(args, config, gpus, command_line(f"python {SCRIPT}", words))
        return 0

    return one_voice(run)


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


def pretrain(args: argparse.Namespace, config: Config, gpus: str | None, command: str) -> None:
    """Pretrain and save checkpoints under the original's names."""
    start = time.perf_counter()
    source = PretrainingSource(config)  # refuses wrong keys before anything is written
    with started(args, config, gpus, command) as begun:
        folder, runtime, tracker = begun.folder, begun.runtime, begun.tracker
        world = runtime.world
        source.quiet = args.quiet or not world.main
        with world.main_first():  # which makes or imports features, and the vocabulary
            tokenizer = source.tokenizer(folder)
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
        load_start(model, config, tokenizer, (), tracker.log)
        seed_everything((config.seed + world.rank) % 2**32)  # dropout differs between processes
        task = PretrainingTask(
            data,
            sizes,
            runtime,
            config.seed,
            source.heldout_batch[0],
            config.NUM_WORKERS_PER_GPU,
            not args.quiet,
        )
        meta = {
            "backbone": "vlbert",
            "task": "pretraining",
            "dataset": source.name,
            "size": size_name(config),
            "config": sizes.to_dict(),
            "features": features,
            "vocabulary": {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())},
            "captions": {"train": len(task), "held out": len(data.heldout.captions)},
            "keys": lasting(config),
        }
        trainer = make_trainer(
            args, config, task, model.to(runtime.device), source, folder, meta, tracker
        )
        run(args, config, trainer, tokenizer, begun.resume, command, start)


def network_sizes(config: Config, multitask: bool, width: int) -> PretrainingConfig:
    """Sizes of the network of a config; see `PretrainingConfig.from_upstream`."""
    try:
        sizes = PretrainingConfig.from_upstream(config.NETWORK, multitask, width)
    except ConfigError as error:
        raise ConfigError(f"{config.path}: {error}") from None
    if not (sizes.words or sizes.regions or sizes.relationship):
        raise ConfigError(
            f"{config.path}: keys NETWORK.WITH_MLM_LOSS, WITH_MVRC_LOSS, "
            "WITH_REL_LOSS: all are false: there is nothing to learn"
        )
    return sizes


def make_trainer(
    args: argparse.Namespace,
    config: Config,
    task: PretrainingTask,
    model: ResNetVLBERTForPretraining,
    source: PretrainingSource,
    folder: Path,
    meta: dict[str, Any],
    tracker: Tracker,
) -> Trainer:
    """The shared training loop with the recipe of the config; an epoch is one of the captions."""
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
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = make_main_optimizer(config, named, length, size)
    loop = LoopOptions(
        train.END_EPOCH,
        batch,
        seed=config.seed,
        clip=max(0.0, train.CLIP_GRAD_NORM),
        accumulate=train.GRAD_ACCUMULATE_STEPS,
        workers=config.NUM_WORKERS_PER_GPU,
        log_every=config.LOG_FREQUENT,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    training = {
        "epochs": train.END_EPOCH,
        "captions per update": batch,
        "texts per update": source.train_batch[1] * batch // source.train_batch[0],
        "optim": train.OPTIMIZER,
        "lr": config.effective_lr(size),
        "warmup": length.warmup(config, "TRAIN"),
        "weight_decay": train.WD,
        "clip": loop.clip,
        "accumulate": loop.accumulate,
        "seed": config.seed,
    }
    tracker.log(
        f"{batch} captions per update, learning rate {training['lr']:g}, {length.total} updates"
    )
    return Trainer(
        model,
        task,
        optimizer,
        None,
        task.runtime,
        loop,
        folder,
        tracker,
        meta | {"training": training},
        snapshot_names(config),
    )


def run(
    args: argparse.Namespace,
    config: Config,
    trainer: Trainer,
    tokenizer: Tokenizer,
    resume: bool,
    command: str,
    start: float,
) -> None:
    """Train to the end; then write result.json and the export."""
    tracker, folder, names = trainer.tracker, trainer.out_dir, trainer.names
    trainer.begin(resume, args.overwrite)
    if trainer.world.main:
        write_bytes(folder / "vocab.txt", tokenizer.text().encode())
        keep_config(config, folder)

    def after_epoch(record: EpochRecord) -> None:
        new = trainer.best_epoch == record.values["epoch"]
        tracker.log(epoch_lines(record.values, shown_losses(config), new))
        found = record.values["heldout_accuracies"] | record.values["heldout_losses"]
        tracker.scalars({f"heldout/{name}": value for name, value in found.items()}, trainer.step)

    trainer.fit(after_epoch)
    if trainer.epoch < trainer.options.epochs:
        what = "nothing is exported, " if args.export else ""
        tracker.log(
            f"stopped after {trainer.step} of {trainer.total_steps} steps; {what}go on "
            "with --resume and without --max-steps"
        )
    elif trainer.world.main:
        write_json(folder / "result.json", result(args, config, trainer, command, start), indent=1)
        if args.export:
            export_half(
                folder / f"{names.best}.safetensors",
                args.export / "model.safetensors",
                tokenizer,
                tracker,
            )


def result(
    args: argparse.Namespace, config: Config, trainer: Trainer, command: str, start: float
) -> dict[str, Any]:
    """Everything that result.json holds."""
    best, task = trainer.history[trainer.best_epoch], trainer.task
    identity = {
        "backbone": "vlbert",
        "dataset": trainer.meta["dataset"],
        "size": trainer.meta["size"],
        "seed": task.seed,
        "name": run_name(args, config),
    }
    accuracies = best["heldout_accuracies"] | {"count": len(task.data.heldout.captions)}
    score = ACCURACIES[task.losses[0]]
    return pretraining_result(
        trainer,
        identity,
        command,
        start,
        accuracies,
        best["heldout_losses"],
        f"{score} on {config.datasets[0].VAL_IMAGE_SET}",
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
