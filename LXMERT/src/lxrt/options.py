"""Options of LXMERT's finetuning: upstream's flags, what they become, and recipes by size."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.modules.attention import AttentionOptions
from common.tasks.options import Recipe
from common.training.options import fill
from lxrt.sizes import SIZES

BASE_PRETRAINED = Path("snap/pretrained/model")
DEFAULT_WEIGHTS = "default"
TINY = {"epochs": 2}  # of small models on a few hundred images

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
    """What a model starts from, see the flags of `add_model_options`.

    With `any_detector` it may read features of another detector than that start.
    """

    load: str | None = None
    load_lxmert: str | None = None
    load_lxmert_qa: str | None = None
    bert: Path | None = None
    from_scratch: bool = False
    any_detector: bool = False


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
        attention: how attention modules weigh keys.
        prune: which layers of the loaded model stay, see `common.adapt.layerdrop.kept_layers`.
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
    attention: AttentionOptions | None = None
    prune: str | None = None


def named(text: str) -> str | None:
    """The name of a file, or None for an empty text: no file."""
    return text or None


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Sizes and weights."""
    group = parser.add_argument_group("model and weights")
    group.add_argument(
        "--size",
        choices=tuple(SIZES),
        help="base (LXMERT 9-5-5) or small (2-2-2 layers of width 128; default for easy_vqa and "
        "for your own data with features of --detector pixels)",
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
    # Upstream's flags that need nothing here: the bar is always shown, GPUs are given by --gpus.
    for name in ("--tqdm", "--multiGPU", "--mceLoss"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What the flags say of the model."""
    return fill(
        ModelOptions,
        args,
        layers=(args.llayers, args.xlayers, args.rlayers),
        policy_layers=(args.policy_llayers, args.policy_xlayers, args.policy_rlayers),
        weights=fill(WeightOptions, args),
    )
