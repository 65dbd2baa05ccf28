"""Command-line options of LXMERT's pretraining: upstream's flags, and the recipes by size."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.tasks.options import log_options, recipe_changes, run_options
from common.tasks.starting import LogOptions, RunOptions
from common.training.loop import LoopOptions
from common.training.options import add_detector_option, add_run_options, check_options, fill
from common.training.run_folder import SnapshotNames
from lxrt.options import WeightOptions
from lxrt.pretraining_data import DEFAULT_SPLITS, EMBEDDED, UPSTREAM, DataOptions
from lxrt.pretraining_objectives import Objectives
from lxrt.pretraining_weights import check_weights
from lxrt.sizes import SIZES


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to pretrain; `warmup` is a share of the steps."""

    batch_size: int
    lr: float
    epochs: int
    optim: str
    eval_batch_size: int
    warmup: float = 0.05
    clip: float = 1.0
    weight_decay: float = 0.01


RECIPES = {
    "base": Recipe(256, 1e-4, 20, "bert", 512),  # upstream's
    "small": Recipe(32, 7e-4, 10, "adamw", 256),
}


NAMES = SnapshotNames(best="BEST_EVAL_LOSS_LXRT", last="LAST", epoch="Epoch{:02d}_LXRT")


@dataclass(frozen=True)
class PretrainingOptions:
    """What src/pretrain/lxmert_pretrain.py is told.

    Attributes:
        command: as it was typed.
        run, log: where it writes to and computes, and what it logs.
        dataset, root: name and folder of the data; None: the default ones.
        splits: to train and to validate on; None: those of the data, see `data_of`.
        part: which part of the data is used; its splits are those of `splits`.
        objectives: what is learned.
        weights: what the model starts from.
        size: a key of `SIZES`; None: as in the weights, else by the data.
        layers: language, cross and vision layers; None: as in the weights, else by the size.
        hidden_size, dropout: likewise.
        changes: of the recipe.
        loop: of the training loop, without what the recipe says.
        export: folder of the small file of the best epoch; None: none.
    """

    command: str
    run: RunOptions
    log: LogOptions
    dataset: str | None
    root: Path | None
    splits: tuple[str | None, str | None]
    part: DataOptions
    objectives: Objectives
    weights: WeightOptions
    size: str | None
    layers: tuple[int | None, int | None, int | None]
    hidden_size: int | None
    dropout: float | None
    changes: Mapping[str, Any]
    loop: LoopOptions
    export: Path | None

    @property
    def gpus(self) -> str | None:
        return self.run.gpus

    def data_of(self, dataset: str) -> DataOptions:
        """The part of a data set that is asked for."""
        train, valid = (
            default if given is None else given
            for given, default in zip(self.splits, DEFAULT_SPLITS[dataset], strict=True)
        )
        return replace(self.part, train=train, valid=valid)

    def recipe(self, size: str) -> Recipe:
        """The recipe of the size with what the flags change."""
        return replace(RECIPES[size], **self.changes)


def pretrain_parser() -> argparse.ArgumentParser:
    """The parser of src/pretrain/lxmert_pretrain.py."""
    parser = argparse.ArgumentParser(
        prog="python src/pretrain/lxmert_pretrain.py",
        description="Pretrain LXMERT on sentences and images: masked words, masked regions, "
        "matching, question answering. Called by run/lxmert_pretrain.bash.",
    )
    _add_data(parser)
    _add_objectives(parser)
    _add_model(parser)
    recipe = parser.add_argument_group("optimisation (defaults: by size)")
    recipe.add_argument("--batchSize", dest="batch_size", type=int)
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--epochs", type=int)
    recipe.add_argument("--optim", help="bert (BertAdam), adamw, adam, adamax, sgd, rms, lamb")
    recipe.add_argument(
        "--warmup", type=float, help="share of the steps that warms up (default 0.05)"
    )
    recipe.add_argument("--clip", type=float, help="largest gradient norm, 0 = none (default 1)")
    recipe.add_argument("--seed", type=int, default=9595)
    add_run_options(parser)
    parser.set_defaults(holdout=0.05)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("snap/pretrain/lxmert"),
        help="folder of the run (default snap/pretrain/lxmert)",
    )
    parser.add_argument(
        "--keep-epochs",
        dest="keep_epochs",
        type=int,
        default=2,
        metavar="K",
        help="keep the snapshots EpochNN_LXRT of the last K epochs (default 2)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="also write the best snapshot as FOLDER/model_LXRT.safetensors, in "
        "float16 and without the training state, with vocab.txt beside it",
    )
    for name in ("--tqdm", "--multiGPU"):  # upstream's flags that need nothing here
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        choices=(UPSTREAM, EMBEDDED),
        help=f"{UPSTREAM}: COCO, Visual Genome, VQA, GQA and Visual7W in the files "
        f"of the original; {EMBEDDED}: the embedded data (default: {UPSTREAM} "
        "if its splits are named or its files are there)",
    )
    group.add_argument(
        "--data", type=Path, help=f"folder of the files of {UPSTREAM} (default LXMERT/data)"
    )
    defaults = "; ".join(f"{name}: {train}" for name, (train, _) in DEFAULT_SPLITS.items())
    group.add_argument("--train", help=f"training splits (default {defaults})")
    group.add_argument(
        "--valid",
        help="splits to validate on, 5,000 images of each (default: "
        "mscoco_minival). Without any, a share of the training "
        "images is held out (--holdout)",
    )
    group.add_argument(
        "--qaSets",
        dest="qa_sets",
        help="only answers of these data sets: some of vqa,gqa,visual7w (default: all)",
    )
    group.add_argument(
        "--tiny",
        action="store_true",
        help=f"the first 500 images of each feature file ({EMBEDDED}: 512 images)",
    )
    group.add_argument("--fast", action="store_true", help="the same with 5,000 images")
    group.add_argument(
        "--skip-bad",
        "--skip_bad",
        dest="skip_bad",
        action="store_true",
        help="leave out, and count, feature records that cannot be read and "
        "sentences about images without features, which are errors otherwise",
    )
    group.add_argument(
        "--no-captions",
        dest="no_captions",
        action="store_true",
        help=f"{EMBEDDED}: questions only, no captions made of their answers",
    )
    group.add_argument(
        "--numWorkers",
        dest="workers",
        type=int,
        default=0,
        help="processes that read batches (default 0: in this one)",
    )


def _add_objectives(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("objectives (all of them unless some are named)")
    group.add_argument(
        "--taskMatched",
        dest="matched",
        action="store_true",
        help="does the sentence belong to the image?",
    )
    group.add_argument("--taskMaskLM", dest="mask_lm", action="store_true", help="masked words")
    group.add_argument(
        "--taskObjPredict",
        dest="obj_predict",
        action="store_true",
        help="objects, attributes and features of regions: --visualLosses",
    )
    group.add_argument("--taskQA", dest="qa", action="store_true", help="question answering")
    group.add_argument(
        "--visualLosses",
        dest="visual_losses",
        default="obj,attr,feat",
        help="any of obj,attr,feat (default: all)",
    )
    group.add_argument(
        "--wordMaskRate",
        dest="word_mask_rate",
        type=float,
        default=0.15,
        help="share of word pieces that are masked (default 0.15)",
    )
    group.add_argument(
        "--objMaskRate",
        dest="obj_mask_rate",
        type=float,
        default=0.15,
        help="share of regions that are masked (default 0.15)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and weights")
    group.add_argument(
        "--size",
        choices=tuple(SIZES),
        help=f"base (LXMERT 9-5-5; the default for {UPSTREAM}) or small (2-2-2 "
        f"layers of width 128; the default for {EMBEDDED})",
    )
    group.add_argument("--hiddenSize", dest="hidden_size", type=int, help="another width")
    group.add_argument("--llayers", type=int, help="language layers")
    group.add_argument("--xlayers", type=int, help="cross layers")
    group.add_argument("--rlayers", type=int, help="vision layers")
    group.add_argument(
        "--dropout",
        type=float,
        help="hidden and attention dropout (default: 0.1 for base, 0 for small)",
    )
    group.add_argument(
        "--bert",
        type=Path,
        metavar="FOLDER",
        help="start the language half and its heads from this BERT, with its "
        f"vocabulary (default for {UPSTREAM} at size base: "
        "LXMERT/data/bert-base-uncased; otherwise random weights)",
    )
    group.add_argument(
        "--load",
        metavar="PREFIX",
        help="a whole pretraining snapshot PREFIX_LXRT.{safetensors,pth}, ours or "
        "upstream's, to start from; every tensor must be there",
    )
    group.add_argument(
        "--loadLXMERT",
        dest="load_lxmert",
        metavar="PREFIX",
        help="the same without its answer head, as far as it fits",
    )
    group.add_argument(
        "--fromScratch",
        dest="from_scratch",
        action="store_true",
        help="random weights instead of BERT's, whose vocabulary is used; "
        "--load and --loadLXMERT override them",
    )
    add_detector_option(group)


def chosen_objectives(args: argparse.Namespace) -> Objectives:
    """Those named on the command line, or all of them if none is."""
    names = ("matched", "mask_lm", "obj_predict", "qa")
    chosen = {name: getattr(args, name) for name in names}
    if not any(chosen.values()):
        chosen = dict.fromkeys(names, True)
    return Objectives(
        **chosen,
        visual_losses=tuple(args.visual_losses.split(",")),
        word_mask_rate=args.word_mask_rate,
        obj_mask_rate=args.obj_mask_rate,
    )


def pretraining_options(args: argparse.Namespace, command: str) -> PretrainingOptions:
    """What src/pretrain/lxmert_pretrain.py is told.

    Raises:
        ConfigError: numbers outside their limits, or flags that do not go together.
    """
    check_options(args)
    if args.keep_epochs < 1:
        raise ConfigError(f"--keep-epochs {args.keep_epochs}: give a number of at least 1")
    weights = fill(WeightOptions, args)
    check_weights(weights)
    data = fill(
        DataOptions,
        args,
        train=args.train or "",
        valid=args.valid or "",
        qa_sets=None if args.qa_sets is None else tuple(args.qa_sets.split(",")),
        captions=not args.no_captions,
        progress=not args.quiet,
    )
    loop = LoopOptions(
        epochs=1,
        batch_size=1,
        seed=args.seed,
        accumulate=args.accumulate,
        workers=args.workers,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )
    return PretrainingOptions(
        command,
        run_options(args, args.output, replace(NAMES, keep=args.keep_epochs)),
        log_options(args),
        args.dataset,
        args.data,
        (args.train, args.valid),
        data,
        chosen_objectives(args),
        weights,
        args.size,
        (args.llayers, args.xlayers, args.rlayers),
        args.hidden_size,
        args.dropout,
        recipe_changes(args, Recipe),
        loop,
        args.export,
    )
