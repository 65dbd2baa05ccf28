"""Options of LXMERT's finetuning: upstream's flags, what they become, and recipes by size."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.experiments.seeds import SeedRuns
from common.tasks.options import (
    FinetuneOptions,
    Recipe,
    add_recipe_options,
    finetune_options,
    flag_texts,
    log_options,
    recipe_changes,
    run_options,
)
from common.tasks.questions import QuestionOptions, add_question_options
from common.tasks.starting import LogOptions, RunOptions
from common.training.options import (
    add_policy_optimizer_options,
    add_run_options,
    add_seeds_option,
    add_strategy_options,
    check_options,
    fill,
)
from lxrt.sizes import SIZES

BASE_PRETRAINED = Path("snap/pretrained/model")
DEFAULT_WEIGHTS = "default"
TINY_EPOCHS = 2

RECIPES: dict[str, Recipe] = {
    # Upstream's run/vqa_finetune.bash, with the clipping and schedule of its trainer.
    "base": Recipe(
        batch_size=32,
        epochs=4,
        optim="bert",
        lr=5e-5,
        warmup=0.1,
        weight_decay=0.01,
        clip=5.0,
        policy_lr=1e-4,
        eval_batch_size=256,
    ),
    # Measured on easy-VQA, see LXMERT/README.md.
    "small": Recipe(
        batch_size=32,
        epochs=6,
        optim="adamw",
        lr=5e-4,
        warmup=0.1,
        weight_decay=0.01,
        clip=5.0,
        policy_lr=1e-3,
        eval_batch_size=256,
    ),
}


@dataclass(frozen=True)
class WeightOptions:
    """What a model starts from, see the flags of `add_model_options`."""

    load: str | None = None
    load_lxmert: str | None = None
    load_lxmert_qa: str | None = None
    bert: Path | None = None
    from_scratch: bool = False


@dataclass(frozen=True)
class ModelOptions:
    """Sizes, weights and strategy of a model; None: as in the checkpoint, else the default.

    Attributes:
        size: a key of `SIZES`.
        layers, policy_layers: language, cross and vision layers of the model and of its published
            policy.
        dropout: hidden and attention dropout.
        weights: what it starts from.
        strategy, policy, policy_eval, trainable_layers, frozen_layers: see `adapt`.
    """

    weights: WeightOptions
    size: str | None = None
    layers: tuple[int | None, int | None, int | None] = (None, None, None)
    policy_layers: tuple[int | None, int | None, int | None] = (None, None, None)
    dropout: float | None = None
    strategy: str | None = None
    policy: str | None = None
    policy_eval: str | None = None
    trainable_layers: str | None = None
    frozen_layers: str | None = None


@dataclass(frozen=True)
class VQAOptions:
    """What src/tasks/vqa.py is told.

    Attributes:
        command: as it was typed.
        run, log: where it writes to and computes, and what it logs.
        data, model: see there.
        base: how to finetune, with the recipe of size base; see `finetuning`.
        changes: of the recipe.
        name: of the run.
        test: a split to test; None: finetune.
        seeds: several runs that differ in their seed.
        quiet: show no progress bars.
    """

    command: str
    run: RunOptions
    log: LogOptions
    data: QuestionOptions
    model: ModelOptions
    base: FinetuneOptions
    changes: Mapping[str, Any]
    name: str
    test: str | None
    seeds: SeedRuns | None
    quiet: bool

    @property
    def gpus(self) -> str | None:
        return self.run.gpus

    def finetuning(self, size: str) -> FinetuneOptions:
        """How to finetune a model of this size: its recipe with what the flags change."""
        changes = dict(self.changes)
        if self.data.tiny and size == "small":
            changes = {"epochs": TINY_EPOCHS} | changes
        return self.base.with_recipe(replace(RECIPES[size], **changes))


def named(text: str) -> str | None:
    """The name of a file, or None for an empty text: no file."""
    return text or None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Sizes and weights."""
    group = parser.add_argument_group("model and weights")
    group.add_argument(
        "--size",
        choices=tuple(SIZES),
        help="base (LXMERT 9-5-5) or small (2-2-2 layers of width 128; the default for easy_vqa)",
    )
    group.add_argument("--llayers", type=int, help="language layers")
    group.add_argument("--xlayers", type=int, help="cross layers")
    group.add_argument("--rlayers", type=int, help="vision layers")
    for stack, layers, default in (("l", "language", 2), ("x", "cross", 1), ("r", "vision", 1)):
        group.add_argument(
            f"--policy_{stack}layers",
            f"--policy-{stack}layers",
            type=int,
            help=f"{layers} layers of the published policy (default {default})",
        )
    group.add_argument(
        "--bert",
        type=Path,
        metavar="FOLDER",
        help="BERT-base-uncased: vocab.txt, and weights for the language half "
        "(default LXMERT/data/bert-base-uncased)",
    )
    group.add_argument(
        "--load",
        type=named,
        metavar="PATH",
        help="a finetuned model: our .safetensors, upstream's .pth, or a folder of "
        "transformers (LxmertForQuestionAnswering)",
    )
    group.add_argument(
        "--loadLXMERT",
        dest="load_lxmert",
        type=named,
        metavar="PREFIX",
        help="encoder of a pretraining snapshot PREFIX_LXRT.{safetensors,pth}, or "
        "of a folder of transformers, which brings its sizes and vocabulary",
    )
    group.add_argument(
        "--loadLXMERTQA",
        dest="load_lxmert_qa",
        type=named,
        metavar="PREFIX",
        help="its encoder and answer head; `default` takes snap/pretrained/model "
        "for base and the committed small model for small",
    )
    group.add_argument(
        "--fromScratch",
        dest="from_scratch",
        action="store_true",
        help="start from random weights instead of BERT's",
    )


def vqa_parser() -> argparse.ArgumentParser:
    """The parser of src/tasks/vqa.py."""
    parser = argparse.ArgumentParser(
        prog="python src/tasks/vqa.py",
        description="Finetune and test LXMERT on visual question "
        "answering, plainly or adaptively. Called by run/vqa_finetune.bash and run/vqa_test.bash.",
    )
    add_question_options(parser)
    add_model_options(parser)
    add_recipe_options(parser)
    add_seeds_option(parser)
    add_strategy_options(parser)
    add_policy_optimizer_options(parser)
    add_run_options(parser)
    parser.add_argument("--output", type=Path, default=Path("snap/test"), help="folder of the run")
    parser.add_argument("--version", help="name of the run (default: name of the output folder)")
    # Upstream's flags that need nothing here: the bar is always shown, GPUs are given by --gpus.
    for name in ("--tqdm", "--multiGPU", "--mceLoss"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(strategy=None, policy=None)
    return parser


def vqa_options(args: argparse.Namespace, command: str) -> VQAOptions:
    """What src/tasks/vqa.py is told.

    Raises:
        ConfigError: numbers outside their limits, or flags that do not go together.
    """
    check_options(args)
    model = fill(
        ModelOptions,
        args,
        layers=(args.llayers, args.xlayers, args.rlayers),
        policy_layers=(args.policy_llayers, args.policy_xlayers, args.policy_rlayers),
        weights=fill(WeightOptions, args),
    )
    seeds = None
    if args.seeds > 1:
        name = args.version or args.output.name
        seeds = SeedRuns(
            args.seed, args.seeds, args.output, name, args.resume, args.overwrite, flag_texts(args)
        )
    return VQAOptions(
        command,
        run_options(args, args.output),
        log_options(args),
        fill(QuestionOptions, args),
        model,
        finetune_options(args, RECIPES["base"]),
        recipe_changes(args, Recipe),
        args.version or args.output.name,
        args.test,
        seeds,
        args.quiet,
    )


def parse(arguments: Sequence[str]) -> VQAOptions:
    """The options that a command line means."""
    return vqa_options(vqa_parser().parse_args(arguments), "")
