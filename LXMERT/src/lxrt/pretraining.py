"""Pretraining LXMERT: what src/pretrain/lxmert_pretrain.py runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.files import text_digest, write_bytes, write_json
from common.tasks.pretraining import export_half, pretraining_result
from common.training.batch_order import BatchOrder
from common.training.checkpoint import load_meta
from common.training.distributed import one_voice, start_world
from common.training.loop import EpochRecord, LoopOptions, Trainer
from common.training.optim import make_optimizer
from common.training.options import check_options, command_line
from common.training.processes import start_processes, wanted_processes
from common.training.run_folder import SnapshotNames, check_unused
from common.training.runtime import make_runtime, seed_everything, set_threads
from common.training.tracking import Tracker
from lxrt.modeling import PretrainingModel
from lxrt.pretraining_data import (
    DataOptions,
    PretrainingData,
    load_pretraining_data,
    region_classes,
    resolve_pretraining,
)
from lxrt.pretraining_objectives import Objectives, train_outputs
from lxrt.pretraining_options import (
    Recipe,
    chosen_data,
    chosen_objectives,
    chosen_recipe,
    pretrain_parser,
)
from lxrt.pretraining_task import PretrainingTask
from lxrt.pretraining_weights import (
    check_weight_flags,
    earlier_snapshot,
    load_start,
    make_tokenizer,
)
from lxrt.sizes import HOME, LxmertConfig, size_config

NAMES = SnapshotNames(best="BEST_EVAL_LOSS_LXRT", last="LAST", epoch="Epoch{:02d}_LXRT")
SCRIPT = HOME / "src" / "pretrain" / "lxmert_pretrain.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = pretrain_parser().parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = command_line("python src/pretrain/lxmert_pretrain.py", words)

    def run() -> int:
        check_options(args)
        if args.keep_epochs < 1:
            raise ConfigError(f"--keep-epochs {args.keep_epochs}: give a number of at least 1")
        check_weight_flags(args)
        if (processes := wanted_processes(args.gpus)) > 1:
            return start_processes(processes, [str(SCRIPT), *words])
        pretrain(args, command)
        return 0

    return one_voice(run)


def pretrain(args: argparse.Namespace, command: str) -> None:
    """Pretrain and save snapshots under upstream's names."""
    start = time.perf_counter()
    objectives = chosen_objectives(args)
    if not args.resume:
        check_unused(args.output, args.overwrite, NAMES)
    world = start_world()
    runtime = make_runtime(args.gpus, args.precision, world)
    with world.main_first():
        source = resolve_pretraining(args.dataset, args.data, args.train)
    embedded = source.dataset is not None
    earlier = earlier_snapshot(args)
    size = args.size or earlier.get("size") or ("small" if embedded else "base")
    from_bert = not embedded and size == "base"
    check_weight_flags(args, from_bert)
    set_threads(args.threads, size == "small", world.local_size)
    with open_tracker(args, world.main) as tracker:
        tracker.log(command)
        tracker.log(runtime.describe())
        options = chosen_data(args, source.name)
        data = load_pretraining_data(source, options, tracker.log)
        tracker.log(
            f"{source.name}: {len(data.train)} sentences for training, "
            f"{len(data.heldout)} for validation; {len(data.answers)} answers"
        )
        tokenizer = make_tokenizer(
            args,
            source.name,
            [*data.train.texts(), *data.heldout.texts()] if embedded else None,
            tracker.log,
        )
        seed_everything(args.seed)
        config = model_config(
            args,
            size,
            data,
            tokenizer,
            earlier.get("config", {}),
            region_classes(source, data.features, objectives.regions),
        )
        model = PretrainingModel(config, objectives.regions, objectives.qa)
        meta = settings(source.name, size, config, data, tokenizer, objectives)
        load_start(
            model,
            args,
            from_bert,
            {key: meta[key] for key in ("features", "vocabulary")},
            data.answers,
            tracker.log,
        )
        train_outputs(model, objectives.outputs)
        seed_everything((args.seed + world.rank) % 2**32)  # dropout differs between processes
        recipe = chosen_recipe(args, size)
        task = PretrainingTask(
            data,
            tokenizer,
            objectives,
            {"obj": config.obj_id_num, "attr": config.attr_id_num},
            runtime,
            args.seed,
            recipe.eval_batch_size,
            args.workers,
            not args.quiet,
        )
        trainer = make_trainer(args, task, model.to(runtime.device), recipe, meta, options, tracker)
        run(args, trainer, tokenizer, command, start)


def open_tracker(args: argparse.Namespace, enabled: bool) -> Tracker:
    """Log and curves of the run; a resumed run goes on with those of before."""
    last = args.output / f"{NAMES.last}.safetensors"
    step = load_meta(last).get("step") if args.resume and last.exists() else None
    return Tracker(
        args.output,
        not args.no_tensorboard,
        args.wandb,
        {k: str(v) for k, v in vars(args).items()},
        step,
        enabled,
    )


def model_config(
    args: argparse.Namespace,
    size: str,
    data: PretrainingData,
    tokenizer: Tokenizer,
    saved: Mapping[str, Any],
    classes: Mapping[str, int],
) -> LxmertConfig:
    """Sizes from the flags, else those of the snapshot to start from, else those of the size."""
    wanted = {
        "l_layers": args.llayers,
        "x_layers": args.xlayers,
        "r_layers": args.rlayers,
        "hidden_size": args.hidden_size,
    }
    wanted = {k: saved.get(k) if given is None else given for k, given in wanted.items()}
    if args.hidden_size:
        wanted |= {
            "intermediate_size": 4 * args.hidden_size,
            "num_attention_heads": max(1, args.hidden_size // 32),
        }
    return size_config(
        size,
        vocab_size=len(tokenizer),
        num_answers=len(data.answers),
        visual_feat_dim=data.features.width,
        hidden_dropout_prob=args.dropout,
        attention_probs_dropout_prob=args.dropout,
        **wanted,
        **classes,
    )


def settings(
    dataset: str,
    size: str,
    config: LxmertConfig,
    data: PretrainingData,
    tokenizer: Tokenizer,
    objectives: Objectives,
) -> dict[str, Any]:
    """What a snapshot remembers, for finetuning and for going on."""
    answers = {"answers": list(data.answers)} if objectives.qa else {}
    return {
        "backbone": "lxmert",
        "task": "pretraining",
        "dataset": dataset,
        "size": size,
        "config": config.to_dict(),
        "features": data.features.described(),
        **answers,
        "vocabulary": {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())},
        "objectives": asdict(objectives),
        "sentences": {"train": len(data.train), "held out": len(data.heldout)},
    }


def make_trainer(
    args: argparse.Namespace,
    task: PretrainingTask,
    model: PretrainingModel,
    recipe: Recipe,
    meta: Mapping[str, Any],
    options: DataOptions,
    tracker: Tracker,
) -> Trainer:
    """The shared training loop with the recipe of the size."""
    total = BatchOrder(len(task), recipe.batch_size, args.seed).steps * recipe.epochs
    optimizer = make_optimizer(
        recipe.optim,
        [p for p in model.parameters() if p.requires_grad],
        recipe.lr,
        total,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
    )
    data = {name: value for name, value in asdict(options).items() if name != "progress"}
    training = {k: v for k, v in asdict(recipe).items() if k != "eval_batch_size"}
    meta = {**meta, "data": data, "training": training | {"seed": args.seed}}
    loop = LoopOptions(
        recipe.epochs,
        recipe.batch_size,
        seed=args.seed,
        clip=recipe.clip,
        accumulate=args.accumulate,
        workers=args.workers,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    return Trainer(
        model,
        task,
        optimizer,
        None,
        task.runtime,
        loop,
        args.output,
        tracker,
        meta,
        replace(NAMES, keep=args.keep_epochs),
    )


def run(
    args: argparse.Namespace, trainer: Trainer, tokenizer: Tokenizer, command: str, start: float
) -> None:
    """Train to the end; then write result.json and the export."""
    tracker, main_process = trainer.tracker, trainer.world.main
    trainer.begin(args.resume, args.overwrite)
    if main_process:
        write_bytes(args.output / "vocab.txt", tokenizer.text().encode())

    def after_epoch(record: EpochRecord) -> None:
        report_epoch(record.values, tracker, trainer.step)

    trainer.fit(after_epoch)
    if trainer.epoch < trainer.options.epochs:
        what = "nothing is exported, " if args.export else ""
        tracker.log(
            f"stopped after {trainer.step} of {trainer.total_steps} steps; {what}go on "
            "with --resume and without --max-steps"
        )
    elif main_process:
        write_json(args.output / "result.json", result(args, trainer, command, start), indent=1)
        if args.export:
            export_half(
                args.output / f"{NAMES.best}.safetensors",
                args.export / "model_LXRT.safetensors",
                tokenizer,
                tracker,
                ("cls.predictions.decoder.weight",),
            )


def report_epoch(values: Mapping[str, Any], tracker: Tracker, step: int) -> None:
    """Losses by part and answer accuracy of an epoch, on the screen, in log.log and as curves."""

    def parts(losses: Mapping[str, float]) -> str:
        return " ".join(f"{name}: {loss:.4f}" for name, loss in losses.items())

    name = f"Epoch {values['epoch']}"
    tracker.log(f"\n{name}: train loss {values['train_loss']:.4f}  {parts(values['train_losses'])}")
    tracker.log(
        f"{name}: valid loss {-values['heldout_score']:.4f}  {parts(values['heldout_losses'])}"
    )
    accuracy = values.get("heldout_qa_accuracy", {})
    if accuracy:
        tracker.log(
            f"{name}: QA accuracy train {values['train_accuracy']:.2f}, valid "
            + ", ".join(f"{kind} {share:.2f}" for kind, share in accuracy.items())
        )
    tracker.log(f"{name}: best valid loss {-values['best_score']:.4f}")
    tracker.scalars(
        {f"heldout/{part}": loss for part, loss in values["heldout_losses"].items()}
        | {f"heldout/QA accuracy {kind}": share for kind, share in accuracy.items()},
        step,
    )


def result(
    args: argparse.Namespace, trainer: Trainer, command: str, start: float
) -> dict[str, Any]:
    """Everything that result.json holds; accuracies are of question answering, in percent."""
    best = trainer.history[trainer.best_epoch]
    meta = trainer.meta
    valid = meta["data"]["valid"]
    identity = {
        "backbone": "lxmert",
        "dataset": meta["dataset"],
        "size": meta["size"],
        "seed": args.seed,
        "name": args.output.name,
    }
    accuracies = best.get("heldout_qa_accuracy", {}) | {"count": len(trainer.task.heldout)}
    return pretraining_result(
        trainer,
        identity,
        command,
        start,
        accuracies,
        best["heldout_losses"],
        f"sum of the losses on {valid}"
        if valid
        else f"sum of the losses on {100 * args.holdout:g} % of the training images",
    )
