"""`params` and `config` of the adaptive LXMERT (Bhargava 2020): what each of them means here.

Every entry is a flag of train.py under its own name. Those without an effect can be given as well,
so that the published tables can be used as they are; train.py prints why they change nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STACKS = ("lang", "cross", "vision")


def truth(text: str) -> bool:
    """`true` or `false`, as YAML writes them."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def layer_sizes(text: str) -> dict[str, int]:
    """`9,5,5`: language, cross and vision layers; also `lang=9,cross=5,vision=5`."""
    parts = [part.strip() for part in text.split(",")]
    named = zip(STACKS, parts, strict=False)
    pairs = [part.split("=") if "=" in part else [stack, part] for stack, part in named]
    try:
        found = {name.strip(): int(count) for name, count in pairs}
    except ValueError:
        found = {}
    if len(parts) != len(STACKS) or set(found) != set(STACKS):
        raise argparse.ArgumentTypeError(f"{text!r}: give language,cross,vision, such as 9,5,5")
    return {name: found[name] for name in STACKS}


@dataclass(frozen=True)
class Param:
    """One entry.

    Attributes:
        name: as published.
        published: its value there.
        kind: reads it from a text; None: it is kept as the text it is, having no effect.
        said: what it means here, or why it has no effect.
        shapes: a checkpoint has it and must agree with it.
        same: the entry that it is another name of.
    """

    name: str
    published: Any
    kind: Any
    said: str
    shapes: bool = False
    same: str | None = None

    @property
    def idle(self) -> bool:
        """It has no effect."""
        return self.kind is None

    @property
    def help(self) -> str:
        """For --help."""
        what = f"without effect: {self.said}" if self.idle else self.said
        return f"{what} (published {_shown(self.published)})".replace("%", "%%")


SPAN_LOSS = 0.148
PARAMS = (
    Param("adapt_span_enabled", False, truth, "every head learns a span", True),
    Param("attn_span", 1024, None, "a span is a share of the sample's own keys"),
    Param(
        "adapt_span_loss_coeff",
        5e-6,
        float,
        f"weight of the mean span in the loss, {SPAN_LOSS} by itself: the published weight, which "
        "was for each of 1024 keys and of 29 modules",
    ),
    Param(
        "adapt_span_ramp",
        32,
        float,
        "share of the sample's keys over which a weight falls to 0, 0.25 by itself; it was a "
        "number of keys, larger than most sequences",
        True,
    ),
    Param(
        "adapt_span_init",
        0.002,
        float,
        "share of the keys before training, 1 by itself, so that training starts from the "
        "pretrained model; the published one was lost in random values around 0.16",
    ),
    Param("adapt_span_cache", True, None, "keys are not kept from one sequence to the next"),
    Param("nb_heads", 12, None, "the heads are those of the model's size"),
    Param("mask_size", [20, 36], None, "a span follows the sample's own number of keys"),
    Param("sparse_enabled", False, truth, "entmax, with an α that every head learns", True),
    Param("num_attention_heads", 4, None, "there, too; the heads are those of the model's size"),
    Param(
        "layer_sizes",
        {"lang": 9, "cross": 5, "vision": 5},
        layer_sizes,
        "language, cross and vision layers, such as 9,5,5; those of the model's size by itself",
        shapes=True,
    ),
    Param("layerdrop_enabled", False, truth, "training leaves layers out"),
    Param(
        "layerdrop_num_layers",
        1,
        int,
        "so many of each stack, different ones where the published draw could repeat itself; "
        "evaluation uses all",
    ),
)
CONFIG = (
    Param("adaptive_enable", False, truth, "as adapt_span_enabled", same="adapt_span_enabled"),
    Param("sparse_enable", False, truth, "as sparse_enabled", same="sparse_enabled"),
)
SHAPES = tuple(param.name for param in PARAMS if param.shapes)


def add_params(parser: argparse.ArgumentParser) -> None:
    """A flag for every entry."""
    group = parser.add_argument_group(
        "params and config of the adaptive LXMERT, also for --set and --config"
    )
    for param in (*PARAMS, *CONFIG):
        group.add_argument(
            f"--{param.name}",
            dest=param.same or param.name,
            type=param.kind or str,
            default=None,
            metavar="VALUE",
            help=param.help,
        )


def given_params(args: argparse.Namespace) -> dict[str, Any]:
    """The entries that are given."""
    return {p.name: v for p in PARAMS if (v := getattr(args, p.name)) is not None}


def param_lines(
    values: Mapping[str, Any], config: Mapping[str, Any], given: Mapping[str, Any]
) -> str:
    """What train.py prints at its start.

    Args:
        values, config: every entry that has an effect.
        given: on the command line; a value without effect is shown as it was given.
    """
    lines = [
        f"{title}: " + ", ".join(f"{name} {_shown(value)}" for name, value in table.items())
        for title, table in (("params", values), ("config", config))
    ]
    for param in PARAMS:
        if param.idle:
            value = _shown(given.get(param.name, param.published))
            lines.append(f"  {param.name} {value}: without effect, {param.said}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(str(part) for part in value.values())
    return str(value)
