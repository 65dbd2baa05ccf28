"""Pretraining LXMERT: what src/pretrain/lxmert_pretrain.py runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from common.data.tokenizer import Tokenizer
from common.tasks.command import Command
from common.tasks.pretraining import PretrainingRun
from common.tasks.pretraining import pretrain as pretrain_to_the_end
from common.tasks.starting import started
from common.training.batch_order import BatchOrder
from common.training.loop import Trainer
from common.training.optim import make_optimizer
from common.training.runtime import seed_everything
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
    PretrainingOptions,
    Recipe,
    pretrain_parser,
    pretraining_options,
)
from lxrt.pretraining_task import PretrainingTask
from lxrt.pretraining_weights import check_weights, earlier_snapshot, load_start, make_tokenizer
from lxrt.sizes import HOME, LxmertConfig, size_config

SCRIPT = "src/pretrain/lxmert_pretrain.py"


def pretrain(options: PretrainingOptions) -> None:
    """Pretrain and save snapshots under upstream's names."""
    start = time.perf_counter()
    weights = options.weights
    with started(options.run) as begun:
        with begun.world.main_first():
            source = resolve_pretraining(options.dataset, options.root, options.splits[0])
        embedded = source.dataset is not None
        earlier = earlier_snapshot(weights)
        size = options.size or earlier.get("size") or ("small" if embedded else "base")
        from_bert = not embedded and size == "base"
        check_weights(weights, from_bert)
        tracker = begun.open_log(options.command, size == "small", options.log)
        part = options.data_of(source.name)
        data = load_pretraining_data(source, part, tracker.log)
        tracker.log(
            f"{source.name}: {len(data.train)} sentences for training, "
            f"{len(data.heldout)} for validation; {len(data.answers)} answers"
        )
        words = [*data.train.texts(), *data.heldout.texts()] if embedded else None
        tokenizer = make_tokenizer(weights, source.name, words, begun.folder, tracker.log)
        seed_everything(options.run.seed)
        classes = region_classes(source, data.features, options.objectives.regions)
        config = model_config(options, size, data, tokenizer, earlier.get("config", {}), classes)
        model = PretrainingModel(config, options.objectives.regions, options.objectives.qa)
        meta = settings(source.name, size, config, data, tokenizer, options.objectives)
        fits = {key: meta[key] for key in ("features", "vocabulary")}
        load_start(model, weights, from_bert, fits, data.answers, tracker.log)
        train_outputs(model, options.objectives.outputs)
        begun.seed_processes()
        recipe = options.recipe(size)
        task = PretrainingTask(
            data,
            tokenizer,
            options.objectives,
            {"obj": config.obj_id_num, "attr": config.attr_id_num},
            begun.runtime,
            options.run.seed,
            recipe.eval_batch_size,
            options.loop.workers,
            options.loop.progress,
        )
        model.to(begun.runtime.device)
        trainer = make_trainer(options, task, model, recipe, meta, part, tracker)
        pretrain_to_the_end(whole_run(options, trainer, task, part, start))


main = Command(HOME, SCRIPT, pretrain_parser, pretraining_options, pretrain)


def model_config(
    options: PretrainingOptions,
    size: str,
    data: PretrainingData,
    tokenizer: Tokenizer,
    saved: Mapping[str, Any],
    classes: Mapping[str, int],
) -> LxmertConfig:
    """Sizes from the flags, else those of the snapshot to start from, else those of the size."""
    width = options.hidden_size
    names = ("l_layers", "x_layers", "r_layers", "hidden_size")
    given = dict(zip(names, (*options.layers, width), strict=True))
    wanted = {k: saved.get(k) if value is None else value for k, value in given.items()}
    if width:
        wanted |= {"intermediate_size": 4 * width, "num_attention_heads": max(1, width // 32)}
    return size_config(
        size,
        vocab_size=len(tokenizer),
        num_answers=len(data.answers),
        visual_feat_dim=data.features.width,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
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
        "vocabulary": tokenizer.digest(),
        "objectives": asdict(objectives),
        "sentences": {"train": len(data.train), "held out": len(data.heldout)},
    }


def make_trainer(
    options: PretrainingOptions,
    task: PretrainingTask,
    model: PretrainingModel,
    recipe: Recipe,
    meta: Mapping[str, Any],
    part: DataOptions,
    tracker: Tracker,
) -> Trainer:
    """The shared training loop with the recipe of the size."""
    total = BatchOrder(len(task), recipe.batch_size, options.run.seed).steps * recipe.epochs
    optimizer = make_optimizer(
        recipe.optim,
        [p for p in model.parameters() if p.requires_grad],
        recipe.lr,
        total,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
    )
    data = {name: value for name, value in asdict(part).items() if name != "progress"}
    training = {k: v for k, v in asdict(recipe).items() if k != "eval_batch_size"}
    meta = {**meta, "data": data, "training": training | {"seed": options.run.seed}}
    loop = replace(
        options.loop, epochs=recipe.epochs, batch_size=recipe.batch_size, clip=recipe.clip
    )
    run = options.run
    return Trainer(
        model, task, optimizer, None, task.runtime, loop, run.folder, tracker, meta, run.names
    )


def whole_run(
    options: PretrainingOptions,
    trainer: Trainer,
    task: PretrainingTask,
    part: DataOptions,
    start: float,
) -> PretrainingRun:
    """The run up to result.json; accuracies are of question answering, in percent."""
    identity = {
        "backbone": "lxmert",
        "dataset": trainer.meta["dataset"],
        "size": trainer.meta["size"],
        "seed": options.run.seed,
        "name": options.run.folder.name,
    }
    where = part.valid or f"{100 * part.holdout:g} % of the training images"
    return PretrainingRun(
        trainer,
        task.tokenizer,
        identity,
        options.command,
        start,
        options.run.resume,
        options.run.overwrite,
        lambda values: report_epoch(values, trainer.tracker, trainer.step),
        lambda best: best.get("heldout_qa_accuracy", {}),
        task.heldout,
        f"sum of the losses on {where}",
        options.export and options.export / "model_LXRT.safetensors",
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
