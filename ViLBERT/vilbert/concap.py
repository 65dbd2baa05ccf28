"""Pretraining ViLBERT on images with captions: what train_concap.py runs.

Masked words and regions, and whether the caption is the image's own, with the recipe of the
original: BertAdam, linear schedule, a tenth of the learning rate for what comes from BERT.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
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
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.features.lmdb_records import LMDB_DETECTOR
from common.tasks.command import Command
from common.tasks.options import log_options, run_options
from common.tasks.pretraining import heldout_means, shared_loop, trained_parameters
from common.tasks.pretraining import pretrain as pretrain_to_the_end
from common.tasks.starting import LogOptions, RunOptions, Started, started
from common.training.batch_order import WindowOrder
from common.training.loop import LoopOptions, Trainer
from common.training.means import Means
from common.training.optim import make_optimizer, optimizer_key
from common.training.options import add_detector_option, add_run_options, check_options
from common.training.run_folder import SnapshotNames
from common.training.runtime import Runtime, seed_everything
from common.training.task import StepOutput, TaskBatch, Validation
from common.training.tracking import Tracker
from vilbert.concap_data import ConceptualCaptions, find_records, read_caption_list
from vilbert.concap_samples import CaptionSamples, CaptionSource, EmbeddedCaptions, RecordedCaptions
from vilbert.heads import BertForMultiModalPreTraining
from vilbert.inputs import Limits
from vilbert.loading import REGION_CLASSES, find_vocabulary, freeze_text, load_start
from vilbert.losses import pretraining_losses
from vilbert.options import BERT, OPTIMIZERS, SMALL_PRETRAINED, hidden_flags, whole_epochs
from vilbert.pretraining import HELD_OUT, SPLIT
from vilbert.pretraining_run import MaskingTask, pretraining_meta, whole_run
from vilbert.recipe import LARGEST_NORM, parameter_groups
from vilbert.sizes import BASE_CONFIG, HOME, SMALL_CONFIG, ViLBertConfig, read_config

SCRIPT = "train_concap.py"
FOLDER = HOME / "data" / "conceptual_caption"
EASY = "easy_vqa"
LOSSES = ("masked_lm_loss", "masked_img_loss", "next_sentence_loss")
CAPTIONS = {"training": "caption_train.json", "validation": "caption_val.json"}
OF_BERT = 0.1  # of the learning rate
RECIPES: dict[bool, dict[str, Any]] = {  # by whether the images are the embedded ones
    True: {"batch_size": 64, "lr": 1e-3, "epochs": 3, "optim": "adamw"},
    False: {"batch_size": 512, "lr": 1e-4, "epochs": 10, "optim": "bert"},
}


@dataclass(frozen=True)
class ConcapOptions:
    """What train_concap.py is told.

    Attributes:
        command: as it was typed.
        run, log: where it writes to and computes, and what it logs.
        loop: of the training loop.
        embedded: captions of the embedded images.
        tiny: only some of them.
        train_file, validation_file: LMDBs, or their folders.
        window: records of which the order is mixed.
        config_file: sizes.
        bert_model: vocabulary, and weights where nothing else is named.
        from_pretrained: weights to start from; None: random ones for embedded images.
        features: masked regions are told by their features (`--predict_feature`).
        without_coattention: no connections between the streams.
        freeze: see `ModelOptions`.
        img_weight: factor of the loss of masked regions.
        lr, warmup, weight_decay, optim: of the optimiser.
        limits: of captions and regions.
        eval_batch_size: pairs per batch of validation.
        export: a folder for the best epoch, or None.
        any_detector: the features may be of another detector than those weights'.
    """

    command: str
    run: RunOptions
    log: LogOptions
    loop: LoopOptions
    embedded: bool
    tiny: bool
    train_file: Path
    validation_file: Path
    window: int
    config_file: Path
    bert_model: str
    from_pretrained: str | None
    features: bool
    without_coattention: bool
    freeze: int
    img_weight: float
    lr: float
    warmup: float
    weight_decay: float
    optim: str
    limits: Limits
    eval_batch_size: int
    export: Path | None
    any_detector: bool = False

    @property
    def gpus(self) -> str | None:
        return self.run.gpus

    def files_read(self) -> list[list[Any]]:
        """Names and sizes of the records' files."""
        if self.embedded:
            return []
        found = find_records(self.train_file, "training")
        return [[path.name, path.stat().st_size] for path in found]


def concap_parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog=f"python {SCRIPT}",
        description="Pretrain ViLBERT on images with captions: masked words, masked regions, "
        "whether the caption is the image's own. Starts in several processes under torchrun or "
        "python -m torch.distributed.launch.",
    )
    group = parser.add_argument_group("data")
    add = group.add_argument
    add(
        "--dataset",
        choices=("conceptual_captions", EASY),
        help=f"{EASY}: captions of the embedded images (default: Conceptual Captions if its files "
        f"are there, else {EASY})",
    )
    for part in CAPTIONS:
        add(
            f"--{part.removesuffix('ing')}_file",
            type=Path,
            default=FOLDER,
            metavar="PATH",
            help=f"an LMDB, or the folder of {part}_feat_all.lmdb or {part}_feat_part_*.lmdb, and "
            f"of {CAPTIONS[part]} (default ViLBERT/data/conceptual_caption)",
        )
    add(
        "--window",
        type=int,
        default=50_000,
        metavar="N",
        help="records are read in windows of N consecutive ones, whose order is mixed (default "
        "50000)",
    )
    add("--tiny", action="store_true", help=f"{TINY_IMAGES} embedded images only")
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--config_file",
        "--config-file",
        type=Path,
        metavar="FILE",
        help=f"sizes (default: config/{SMALL_CONFIG.name} for embedded images, else "
        f"config/{BASE_CONFIG.name})",
    )
    add("--bert_model", "--bert-model", default=BERT, metavar="FOLDER", help=f"default {BERT}")
    add(
        "--from_pretrained",
        "--from-pretrained",
        metavar="FILE",
        help="start from a pretrained ViLBERT, or from a BERT (default: --bert_model; for embedded "
        "images random weights)",
    )
    add(
        "--predict_feature",
        "--predict-feature",
        action="store_true",
        help="tell masked regions by their features (regression), not by their classes (KL)",
    )
    add(
        "--without_coattention",
        "--without-coattention",
        action="store_true",
        help="no connections, and no question whether the caption is the image's",
    )
    add("--freeze", type=int, default=-1, metavar="N", help="text layers 0 … N are not trained")
    group = parser.add_argument_group("optimisation")
    add = group.add_argument
    add("--train_batch_size", "--batch-size", dest="batch_size", type=int, help="default 512 / 64")
    add("--learning_rate", "--lr", dest="lr", type=float, help="default 1e-4 / 1e-3")
    add(
        "--num_train_epochs",
        "--epochs",
        dest="epochs",
        type=whole_epochs,
        help="default 10 / 3 (Conceptual Captions / embedded images)",
    )
    add("--warmup_proportion", "--warmup", dest="warmup", type=float, default=0.1)
    add("--weight_decay", "--weight-decay", dest="weight_decay", type=float, default=0.01)
    add("--img_weight", "--img-weight", type=float, default=1.0, help="factor of that loss")
    add("--optim", help="bert (BertAdam), adamw, …; default bert / adamw")
    add("--max_seq_length", "--max-seq-length", type=int, default=36, help="word pieces")
    add("--max_regions", "--max-regions", type=int, default=36, help="of an image (default 36)")
    add("--seed", type=int, default=42)
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output_dir", "--output-dir", type=Path, default=Path("save"), metavar="FOLDER")
    add("--save_name", "--save-name", default="", help="name of the run in it")
    add("--output", type=Path, help="the run's folder itself")
    add("--export", type=Path, metavar="FOLDER", help="write the best epoch in half precision")
    add_run_options(parser)
    add_detector_option(parser)
    alias = hidden_flags(parser)
    alias("--num_workers", dest="workers", type=int)
    alias("--no_cuda", dest="gpus", action="store_const", const="cpu")
    alias("--fp16", dest="precision", action="store_const", const="fp16")
    alias("--local_rank", "--local-rank", type=int)
    alias("--gradient_accumulation_steps", dest="accumulate", type=int)
    alias("--optimizer", dest="optim", type=lambda name: OPTIMIZERS.get(name, name))
    for name in ("--do_lower_case", "--on_memory"):
        alias(name, nargs="?")
    alias("--distributed", action="store_true")
    alias("--use_chuncks", type=int)
    alias("--start_epoch", type=float, default=0)
    alias("--loss_scale", type=float, default=0)
    alias("--baseline", action="store_true", default=False)
    parser.set_defaults(gpus=None, workers=0)
    return parser


def concap_options(args: argparse.Namespace, command: str) -> ConcapOptions:
    """What the flags mean.

    Raises:
        ConfigError: numbers outside their limits, or flags of the original without a meaning here.
    """
    check_options(args)
    if args.start_epoch:
        raise ConfigError(f"--start_epoch {args.start_epoch:g}: go on with --resume instead")
    if args.loss_scale:
        raise ConfigError(f"--loss_scale {args.loss_scale:g}: only 0, dynamic scaling, is there")
    if args.baseline:
        raise ConfigError("--baseline: pretraining the single-stream model never worked: leave out")
    if args.max_regions < 1 or args.max_seq_length < 3:
        raise ConfigError(
            f"--max_regions {args.max_regions} --max_seq_length {args.max_seq_length}: an image "
            "has a region, a caption [CLS], a word and [SEP]"
        )
    there = args.train_file != FOLDER or FOLDER.exists()
    embedded = args.dataset == EASY or (args.dataset is None and not there)
    if args.tiny and not embedded:
        raise ConfigError(f"--tiny: is of the embedded images; add --dataset {EASY}")
    if embedded and args.dataset is None:
        print(f"No --dataset given and no Conceptual Captions in {FOLDER}: using {EASY}")
    usual = RECIPES[embedded]
    recipe = usual | {k: getattr(args, k) for k in usual if getattr(args, k) is not None}
    name = args.save_name or f"concap{'_easy' if embedded else ''}"
    folder = args.output or args.output_dir / name
    loop = LoopOptions(
        epochs=recipe["epochs"],
        batch_size=recipe["batch_size"],
        seed=args.seed,
        clip=0.0 if optimizer_key(recipe["optim"]) == "bert" else 5.0,
        accumulate=args.accumulate,
        workers=args.workers,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    return ConcapOptions(
        command,
        run_options(args, folder, SnapshotNames(epoch="pytorch_model_{}", first=0, keep=3)),
        log_options(args),
        loop,
        embedded,
        args.tiny,
        args.train_file,
        args.validation_file,
        args.window,
        args.config_file or (SMALL_CONFIG if embedded else BASE_CONFIG),
        args.bert_model,
        args.from_pretrained,
        args.predict_feature,
        args.without_coattention,
        args.freeze,
        args.img_weight,
        recipe["lr"],
        args.warmup,
        args.weight_decay,
        recipe["optim"],
        Limits(args.max_seq_length, args.max_regions + 1),
        args.eval_batch_size or recipe["batch_size"],
        args.export,
        args.any_detector,
    )


class CaptionTask(MaskingTask[CaptionSamples]):
    """Masked words and regions, and alignment, for the training loop."""

    def __init__(
        self,
        train: CaptionSamples,
        heldout: CaptionSamples,
        runtime: Runtime,
        options: ConcapOptions,
    ) -> None:
        super().__init__(train, heldout, runtime, options)
        self.options = options

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """All losses; the score is the number of pairs whose alignment is told rightly."""
        losses, right = self._run(model, batch)
        return StepOutput(losses, right.sum(), len(right))

    def _run(self, model: nn.Module, batch: TaskBatch) -> tuple[dict[str, Tensor], Tensor]:
        found: dict[str, Tensor] = model(**batch.inputs)
        losses = pretraining_losses(found, batch.labels, self.options.features)
        losses["masked_img_loss"] = losses["masked_img_loss"] * self.options.img_weight
        if self.options.without_coattention:
            losses["next_sentence_loss"] = losses["next_sentence_loss"] * 0
        return losses, found["aligned"].argmax(1) == batch.labels["aligned"]

    @torch.no_grad()
    def validate(self, model: nn.Module) -> Validation:
        """Mean losses and accuracy of the alignment; the score is minus the sum of the losses."""
        model.eval()

        def measure(batch: TaskBatch, means: Means) -> dict[str, Tensor]:
            losses, right = self._run(model, batch)
            means.add("aligned", float(right.sum()), len(right))
            return losses

        means = heldout_means(self, self.heldout, self.heldout, [*LOSSES, "aligned"], measure)
        losses = {name: means.mean(name) or 0.0 for name in LOSSES}
        accuracies = {"overall": 100 * (means.mean("aligned") or 0.0)}
        return Validation(
            -sum(losses.values()), {"heldout_losses": losses, "heldout_accuracies": accuracies}
        )


@dataclass(frozen=True)
class Sources:
    """Pairs to train on and held-out ones, and what is known of their features."""

    train: CaptionSource
    heldout: CaptionSource
    described: Mapping[str, Any]
    name: str


def open_sources(options: ConcapOptions, begun: Started, stack: ExitStack) -> Sources:
    """The pairs of a run; `stack` closes their files.

    Raises:
        DataError: files are missing or damaged, or training and validation do not go together.
    """
    if options.embedded:
        return embedded_sources(options, begun)
    files = {
        "training": find_records(options.train_file, "training"),
        "validation": find_records(options.validation_file, "validation"),
    }
    trained, validated = ({file.resolve() for file in found} for found in files.values())
    if shared := trained & validated:
        raise ConfigError(f"{shared.pop()}: is trained on and validated on: give two files")
    train, heldout = (
        RecordedCaptions(
            stack.enter_context(closing(ConceptualCaptions(found))),
            read_caption_list(found[0].parent / CAPTIONS[part]),
        )
        for part, found in files.items()
    )
    if (train.width, train.classes) != (heldout.width, heldout.classes):
        raise ConfigError(
            f"training has features of {train.width} numbers and {train.classes} classes, "
            f"validation {heldout.width} and {heldout.classes}: give two parts of one data set"
        )
    return Sources(
        train, heldout, {"width": train.width, "detector": LMDB_DETECTOR}, "conceptual_captions"
    )


def embedded_sources(options: ConcapOptions, begun: Started) -> Sources:
    """Captions of easy-VQA's split for pretraining, a twentieth of the images held out."""
    with begun.world.main_first():
        dataset = resolve_dataset(EASY)
    questions = load_split(dataset, SPLIT, TINY_IMAGES if options.tiny else None)
    features = open_features(dataset, SPLIT)
    classes = read_config(options.config_file).v_target_size
    captions = caption_examples(questions)
    texts = sorted({example.question for example in captions})
    train, heldout = (
        EmbeddedCaptions(part, features, classes, texts)
        for part in split_holdout(captions, HELD_OUT)
    )
    return Sources(train, heldout, features.described(), EASY)


def sizes_of(options: ConcapOptions, sources: Sources, words: int) -> ViLBertConfig:
    """The config's sizes with what the data decide.

    Raises:
        ConfigError: classes that the config does not have.
    """
    width, classes = sources.train.width, sources.train.classes
    config = read_config(options.config_file, v_feature_size=width, vocab_size=words)
    if not options.features and config.v_target_size != classes:
        raise ConfigError(
            f"{options.config_file}: key v_target_size: {config.v_target_size}: the regions have "
            f"{classes} classes; set it to {classes}, or give --predict_feature"
        )
    return replace(
        config,
        v_target_size=width if options.features else classes,
        predict_feature=options.features,
        with_coattention=config.with_coattention and not options.without_coattention,
    )


def start_model(
    options: ConcapOptions, sources: Sources, say: Any
) -> tuple[BertForMultiModalPreTraining, Tokenizer, ViLBertConfig]:
    """The model with the weights that it starts from."""
    start = options.from_pretrained or (None if options.embedded else options.bert_model)
    beside = str(SMALL_PRETRAINED) if options.embedded and start is None else start
    tokenizer = Tokenizer(find_vocabulary(beside, options.bert_model, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    config = sizes_of(options, sources, len(tokenizer))
    seed_everything(options.run.seed)
    model = BertForMultiModalPreTraining(config)
    if start is not None:
        fits = {"features": sources.described, "vocabulary": tokenizer.digest()}
        # Another target of masked regions has another last layer.
        unread = (REGION_CLASSES,) if options.features else ()
        load_start(model, start, fits, (), say, (), unread, options.any_detector)
    else:
        say("random weights: nothing is named with --from_pretrained")
    freeze_text(model, options.freeze)
    return model, tokenizer, config


def pretrain(options: ConcapOptions) -> None:
    """Pretrain and, where it is wanted, export."""
    start = time.perf_counter()
    with started(options.run) as begun, ExitStack() as stack:
        tracker = begun.open_log(options.command, options.embedded, options.log)
        sources = open_sources(options, begun, stack)
        model, tokenizer, config = start_model(options, sources, tracker.log)
        train, heldout = (
            CaptionSamples(part, tokenizer, options.limits, options.features)
            for part in (sources.train, sources.heldout)
        )
        tracker.log(f"{sources.name}: {len(train):,} pairs for training, {len(heldout):,} held out")
        begun.seed_processes()
        task = CaptionTask(train, heldout, begun.runtime, options)
        samples = len(train), len(heldout)
        meta = pretraining_meta(sources.name, config, sources.described, (), tokenizer, samples)
        model.to(begun.runtime.device)
        trainer = make_trainer(options, task, model, meta, tracker)
        selection = "sum of the losses on held-out pairs"
        run = whole_run(options, trainer, heldout, tokenizer, start, selection, "alignment")
        pretrain_to_the_end(run)


def make_trainer(
    options: ConcapOptions,
    task: CaptionTask,
    model: BertForMultiModalPreTraining,
    meta: Mapping[str, Any],
    tracker: Tracker,
) -> Trainer:
    """The shared training loop, with the optimiser of the original."""
    loop, run = options.loop, options.run
    order = WindowOrder(len(task), loop.batch_size, run.seed, options.window)
    named = trained_parameters(model)
    rate = options.lr if options.from_pretrained is None and options.embedded else None
    # What comes from BERT learns slowly; without a BERT everything learns alike.
    of_bert = rate or OF_BERT * options.lr
    groups = parameter_groups(named, of_bert, options.weight_decay, options.lr, options.lr)
    clipped = optimizer_key(options.optim) == "bert"
    more: dict[str, Any] = {"max_grad_norm": LARGEST_NORM} if clipped else {}
    optimizer = make_optimizer(
        options.optim, groups, options.lr, order.total(loop.epochs), options.warmup, **more
    )
    recipe = {
        "batch_size": loop.batch_size,
        "optim": options.optim,
        "lr": options.lr,
        "lr_of_bert": of_bert,
        "warmup": options.warmup,
        "weight_decay": options.weight_decay,
        "img_weight": options.img_weight,
        "window": options.window,
        "limits": asdict(options.limits),
        "precision": options.run.precision,
        "from_pretrained": options.from_pretrained,
        "bert_model": options.bert_model,
        "files": options.files_read(),
        "freeze": options.freeze,
    }
    return shared_loop(model, task, optimizer, loop, run, tracker, meta, recipe, order)


main = Command(HOME, SCRIPT, concap_parser, concap_options, pretrain)
