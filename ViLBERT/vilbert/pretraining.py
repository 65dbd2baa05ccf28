"""Pretraining a small ViLBERT on the embedded data: what pretrain_easy_vqa.py runs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.datasets import (
    TINY_IMAGES,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from common.data.easy_vqa.captions import caption_examples
from common.data.tokenizer import Tokenizer, small_vocabulary
from common.errors import ConfigError
from common.files import write_bytes
from common.modules.losses import precise
from common.tasks.command import Command
from common.tasks.options import log_options, run_options
from common.tasks.pretraining import heldout_means, shared_loop, trained_parameters
from common.tasks.pretraining import pretrain as pretrain_to_the_end
from common.tasks.starting import LogOptions, RunOptions, started
from common.tasks.vqa import vqa_loss
from common.training.batch_order import BatchOrder
from common.training.loop import LoopOptions, Trainer
from common.training.means import Means
from common.training.optim import make_optimizer
from common.training.options import add_run_options, check_options
from common.training.run_folder import SnapshotNames
from common.training.runtime import seed_everything
from common.training.task import StepOutput, TaskBatch, Validation
from common.training.tracking import Tracker
from vilbert.heads import VILBertForVLTasks, VLOutput
from vilbert.inputs import Limits
from vilbert.losses import pretraining_losses
from vilbert.pretraining_run import MaskingTask, pretraining_meta, whole_run
from vilbert.pretraining_samples import Samples
from vilbert.recipe import parameter_groups
from vilbert.sizes import HOME, SMALL_CONFIG, read_config

SCRIPT = "pretrain_easy_vqa.py"
DATASET, SPLIT = "easy_vqa", "pretrain"
HEADS = ("vil_prediction", "vil_binary_prediction", "vision_prediction", "linguisic_prediction")
LOSSES = ("masked_lm_loss", "masked_img_loss", "next_sentence_loss", "answer")
HELD_OUT = 0.05  # of the images


@dataclass(frozen=True)
class PretrainOptions:
    """What pretrain_easy_vqa.py is told.

    Attributes:
        command: as it was typed.
        run, log: where it writes to and computes, and what it logs.
        loop: of the training loop.
        config_file: sizes.
        lr, warmup, weight_decay: of AdamW.
        eval_batch_size: samples per batch of validation.
        tiny: only some images.
        export: a folder for the best epoch, or None.
    """

    command: str
    run: RunOptions
    log: LogOptions
    loop: LoopOptions
    config_file: Path
    lr: float
    warmup: float
    weight_decay: float
    eval_batch_size: int
    tiny: bool
    export: Path | None

    @property
    def gpus(self) -> str | None:
        return self.run.gpus


def pretrain_parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=f"python {SCRIPT}",
        description="Pretrain a small ViLBERT on captions and questions of the embedded images: "
        "masked words and regions, alignment, answers.",
    )
    group = parser.add_argument_group("pretraining")
    add = group.add_argument
    add("--config_file", type=Path, default=SMALL_CONFIG, metavar="FILE", help="sizes")
    add("--output", type=Path, default=Path("save/pretrain_easy_vqa"), help="folder of the run")
    add("--export", type=Path, metavar="FOLDER", help="write the best epoch in half precision")
    add("--epochs", type=int, default=4, help="default 4")
    add("--batch-size", dest="batch_size", type=int, default=64, help="default 64")
    add("--lr", type=float, default=1e-3, help="default 1e-3")
    add("--warmup", type=float, default=0.1, help="share of the steps (default 0.1)")
    add("--weight-decay", dest="weight_decay", type=float, default=0.01, help="default 0.01")
    add("--seed", type=int, default=9595)
    add("--tiny", action="store_true", help=f"{TINY_IMAGES} images only, for a quick look")
    add_run_options(parser)
    parser.set_defaults(gpus=None)
    return parser


def pretrain_options(args: argparse.Namespace, command: str) -> PretrainOptions:
    """What the flags mean."""
    check_options(args)
    loop = LoopOptions(
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        clip=5.0,
        accumulate=args.accumulate,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    return PretrainOptions(
        command,
        run_options(args, args.output, SnapshotNames(epoch="pytorch_model_{}", first=0, keep=1)),
        log_options(args),
        loop,
        args.config_file,
        args.lr,
        args.warmup,
        args.weight_decay,
        args.eval_batch_size or 256,
        args.tiny,
        args.export,
    )


class SmallPretrainingTask(MaskingTask[Samples]):
    """Masked words and regions, alignment and answers, each where a sample has a label for it."""

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """All losses; the score is the soft score of the likeliest answers."""
        losses, scores = self._run(model, batch)
        asked = batch.labels["asked"]
        return StepOutput(losses, (scores * asked).sum(), asked.sum())

    def _run(self, model: nn.Module, batch: TaskBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Losses, and the score of the likeliest answer of every sample (B,)."""
        found: VLOutput = model(**batch.inputs)
        labels = batch.labels
        outputs = {
            "words": found.linguisic_prediction,
            "regions": found.vision_prediction,
            "aligned": found.vil_binary_prediction,
        }
        losses = pretraining_losses({k: x for k, x in outputs.items() if x is not None}, labels)
        answers, asked = found.vil_prediction, labels["asked"]
        assert answers is not None
        losses["answer"] = (
            vqa_loss(answers[asked], labels["answer"][asked])
            if bool(asked.any())
            else precise(answers).sum() * 0
        )
        chosen = answers.detach().argmax(1, keepdim=True)
        return losses, labels["answer"].gather(1, chosen)[:, 0]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Validation:
        """Mean losses and accuracy on held-out samples; the score is the accuracy in percent."""
        model.eval()
        kinds = sorted({e.answer_type for e in self.heldout.examples if e.answer_type})

        def measure(batch: TaskBatch, means: Means) -> dict[str, Tensor]:
            losses, scores = self._run(model, batch)
            rows = zip(batch.types, batch.labels["asked"].tolist(), scores.tolist(), strict=True)
            for kind, asked, score in rows:
                if asked and kind is not None:
                    means.add(f"asked {kind}", score, 1)
            return losses

        names = [*LOSSES, *(f"asked {kind}" for kind in kinds)]
        means = heldout_means(self, self.heldout, self.heldout, names, measure)
        overall = means.mean(*(f"asked {kind}" for kind in kinds)) or 0.0
        shares = means.shares([f"asked {kind}" for kind in kinds])
        accuracy = {"overall": 100 * overall} | {
            kind.removeprefix("asked "): share for kind, share in shares.items()
        }
        losses = {name: means.mean(name) or 0.0 for name in LOSSES}
        return Validation(100 * overall, {"heldout_losses": losses, "heldout_accuracies": accuracy})


def load_samples(options: PretrainOptions, folder: Path, classes: int) -> tuple[Samples, Samples]:
    """Training and held-out samples, with a vocabulary of the words that occur in them."""
    dataset = resolve_dataset(DATASET)
    questions = load_split(dataset, SPLIT, TINY_IMAGES if options.tiny else None)
    answers, features = dataset.vocabulary(), open_features(dataset, SPLIT)
    kept, held = split_holdout([*questions, *caption_examples(questions)], HELD_OUT)
    words = [e.question for e in (*kept, *held)]
    text = "\n".join(small_vocabulary([*words, *answers.answers])) + "\n"
    write_bytes(folder / "vocab.txt", text.encode())
    tokenizer = Tokenizer(folder)
    limits = Limits()
    train, heldout = (
        Samples(part, features, answers, tokenizer, limits, classes) for part in (kept, held)
    )
    return train, heldout


def pretrain(options: PretrainOptions) -> None:
    """Pretrain and, where it is wanted, export."""
    start = time.perf_counter()
    with started(options.run) as begun:
        tracker = begun.open_log(options.command, True, options.log)
        sizes = read_config(options.config_file)
        if sizes.predict_feature:
            raise ConfigError(
                f"{options.config_file}: key predict_feature: regions of {DATASET} are told by "
                "their classes; set it to false"
            )
        classes = sizes.v_target_size
        with begun.world.main_first():
            train, heldout = load_samples(options, begun.folder, classes)
        answers = list(train.vocabulary.answers)
        config = read_config(
            options.config_file,
            v_feature_size=train.features.width,
            vocab_size=len(train.tokenizer),
            num_labels=len(answers),
        )
        tracker.log(
            f"{DATASET}: {len(train)} captions and questions for training, {len(heldout)} held "
            f"out; {len(train.tokenizer)} word pieces, {len(answers)} answers"
        )
        seed_everything(options.run.seed)
        model = VILBertForVLTasks(config)
        model.use(HEADS)
        begun.seed_processes()
        task = SmallPretrainingTask(train, heldout, begun.runtime, options)
        described, samples = train.features.described(), (len(train), len(heldout))
        meta = pretraining_meta(DATASET, config, described, answers, train.tokenizer, samples)
        model.to(begun.runtime.device)
        trainer = make_trainer(options, task, model, meta, tracker)
        selection = f"answers to the questions about {100 * HELD_OUT:g} % of the images"
        run = whole_run(options, trainer, heldout, train.tokenizer, start, selection, "answers")
        pretrain_to_the_end(run)


main = Command(HOME, SCRIPT, pretrain_parser, pretrain_options, pretrain)


def make_trainer(
    options: PretrainOptions,
    task: SmallPretrainingTask,
    model: VILBertForVLTasks,
    meta: Mapping[str, Any],
    tracker: Tracker,
) -> Trainer:
    """The shared training loop."""
    loop, run = options.loop, options.run
    if len(task) < loop.batch_size:
        raise ConfigError(
            f"--batch-size {loop.batch_size}: there are {len(task)} samples to train on"
        )
    total = BatchOrder(len(task), loop.batch_size, run.seed).steps * loop.epochs
    groups = parameter_groups(
        trained_parameters(model), options.lr, options.weight_decay, options.lr
    )
    optimizer = make_optimizer("adamw", groups, options.lr, total, options.warmup)
    recipe = {
        "batch_size": loop.batch_size,
        "optim": "adamw",
        "lr": options.lr,
        "warmup": options.warmup,
        "weight_decay": options.weight_decay,
        "clip": loop.clip,
    }
    return shared_loop(model, task, optimizer, loop, run, tracker, meta, recipe)
