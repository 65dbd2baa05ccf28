"""Command-line options of adaptive attention and LayerDrop, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from common.adapt.attention import ATTENTION_LR, SPAN_POLICY_SHARE
from common.adapt.layerdrop import LayerDrop
from common.errors import ConfigError
from common.modules.attention import NORMALISERS, SPANS, AttentionOptions
from common.training.flags import add_flag, typed

LEARNED_SPANS = ("keys", "distance")
NEEDED = "--span-over keys or distance"


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    """Mechanisms of attention; they go with every strategy."""
    group = parser.add_argument_group("adaptive attention")
    add_flag(
        group,
        "--attention",
        dest="normaliser",
        choices=NORMALISERS,
        help="how scores become weights: softmax; entmax, with an α in (1, 2] that each head "
        "learns; entmax15 or sparsemax, fixed and cheaper; published: α as Bhargava (2020) has it, "
        "with its faults (default softmax)",
    )
    add_flag(
        group,
        "--span-over",
        dest="span",
        choices=SPANS,
        help="a span that each head learns, over keys: the first ones (of regions the detector's "
        "most confident ones); over distance: in a text those near the query, elsewhere as keys, "
        "since regions have no order; published: as Bhargava (2020) has it, with its faults "
        "(default none)",
    )
    add_flag(
        group,
        "--span-policy",
        action="store_true",
        default=None,
        help="a small network reads the span of every head from the pair, so that spans differ "
        "between samples; needs --span-over keys or distance",
    )
    add_flag(
        group,
        "--span-batch",
        type=int,
        metavar="N",
        help="of --span-over published, whose spans belong to places in a batch: its size",
    )
    add_flag(group, "--span-ramp", type=float, metavar="SHARE", help="of the keys (default 0.25)")
    add_flag(
        group,
        "--span-init",
        type=float,
        metavar="SHARE",
        help="of the keys; 1 starts with all of them (default 1)",
    )
    add_flag(
        group,
        "--span-loss",
        type=float,
        metavar="FACTOR",
        help="weight of the mean span in the loss, which shortens spans (default 0)",
    )
    add_flag(group, "--alpha-init", type=float, help="of --attention entmax (default 1.1)")
    add_flag(
        group,
        "--attention-lr",
        type=float,
        metavar="RATE",
        help=f"learning rate of spans and α (default {ATTENTION_LR:g}); a span policy learns "
        f"at {SPAN_POLICY_SHARE:g} of it",
    )


def add_layerdrop_options(parser: argparse.ArgumentParser) -> None:
    """Layers that training leaves out, and layers that are taken out of a trained model."""
    group = parser.add_argument_group("LayerDrop")
    add_flag(
        group,
        "--layerdrop",
        type=float,
        metavar="RATE",
        help="training leaves out each layer with this probability (default 0)",
    )
    add_flag(
        group,
        "--layerdrop-count",
        type=int,
        metavar="N",
        help="instead: N layers of each stack, as published (default 0)",
    )
    add_prune_option(group)


def add_prune_option(parser: argparse._ActionsContainer) -> None:
    """Take layers out of the model that is loaded."""
    add_flag(
        parser,
        "--prune",
        metavar="RULE",
        help="take layers out of the loaded model: every_other (keeps the first, third, … of each "
        "stack), spread (keeps half of each), a number (takes so many out of each), or the names "
        "of the layers to keep, e.g. lang.1,lang.3,cross.2",
    )


def layerdrop_options(args: argparse.Namespace) -> LayerDrop | None:
    """What the flags say of LayerDrop; None where nothing is dropped."""
    return LayerDrop.chosen(
        getattr(args, "layerdrop", None) or 0.0, getattr(args, "layerdrop_count", None) or 0
    )


def attention_options(
    args: argparse.Namespace, resolved: Mapping[str, Any] | None = None
) -> AttentionOptions | None:
    """What the flags say of attention; None where none is given.

    Args:
        args: of the command line.
        resolved: `normaliser` and `span` where a config has said them already.

    Raises:
        ConfigError: a value outside its limits, or a flag without what it belongs to.
    """
    names = {
        "normaliser": "normaliser",
        "span": "span",
        "span_ramp": "ramp",
        "span_init": "initial_span",
        "alpha_init": "initial_alpha",
        "span_policy": "span_policy",
        "span_batch": "batch",
    }
    given = {
        field: value
        for flag, field in names.items()
        if (value := getattr(args, flag, None)) is not None
    }
    known = {
        field: value for field in ("normaliser", "span") if (value := (resolved or {}).get(field))
    }
    options = AttentionOptions(**(known | given))
    if not getattr(args, "load", None):  # a checkpoint brings its own
        _check_attention_training(args, options)
    if not given:
        return None
    for flag in ("span_ramp", "span_init"):
        if getattr(args, flag) is not None and options.span not in LEARNED_SPANS:
            raise ConfigError(f"{typed(flag, getattr(args, flag))} needs {NEEDED}")
    if args.alpha_init is not None and options.normaliser != "entmax":
        raise ConfigError(f"{typed('alpha_init', args.alpha_init)} needs --attention entmax")
    return options


def _check_attention_training(args: argparse.Namespace, options: AttentionOptions) -> None:
    """Refuse flags about what no head learns."""
    if getattr(args, "span_loss", None) and options.span not in LEARNED_SPANS:
        raise ConfigError(f"{typed('span_loss', args.span_loss)} needs {NEEDED}")
    learned = options.span != "none" or options.normaliser in ("entmax", "published")
    if getattr(args, "attention_lr", None) is not None and not learned:
        raise ConfigError(
            f"{typed('attention_lr', args.attention_lr)} needs --span-over or --attention entmax"
        )
