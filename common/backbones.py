"""Backbones are found through package entry points; `common` imports none of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import Tensor, nn

from common.adaptive import RoutedEncoder
from common.errors import ConfigError

GROUP = "adaptive_finetuning.backbones"


@dataclass(frozen=True)
class Backbone:
    """What a backbone's package offers to the core.

    Attributes:
        name: `lxmert`, `vlbert`, `vilbert`.
        wrap: turns a model of another library into a routed one in place and returns its encoder,
            or None if the model is not of this backbone.
        parity: {kind of golden case: `run(config, weights, inputs, wanted) -> tensors`}.
    """

    name: str
    wrap: Callable[[nn.Module], RoutedEncoder | None]
    parity: Mapping[str, Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor],
                                   list[str]], dict[str, Tensor]]] = field(default_factory=dict)


@cache
def backbones() -> dict[str, Backbone]:
    """All installed backbones by name."""
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name; an unknown one lists the installed ones."""
    if name not in backbones():
        raise ConfigError(f"unknown backbone {name!r}; installed: "
                          f"{', '.join(sorted(backbones())) or 'none'}")
    return backbones()[name]


def find_encoder(model: nn.Module) -> RoutedEncoder:
    """The one routed encoder in a model, made from a `transformers` model where needed."""
    encoders = [m for m in model.modules() if isinstance(m, RoutedEncoder)]
    policies = [e for outer in encoders if outer.adaptive is not None
                for e in outer.adaptive.modules()]
    encoders = [e for e in encoders if not any(e is p for p in policies)]
    if not encoders:
        wrapped = (backbone.wrap(model) for backbone in backbones().values())
        encoders = [encoder for encoder in wrapped if encoder is not None]
    if len(encoders) != 1:
        raise ConfigError(f"{type(model).__name__} has {len(encoders)} encoders that can be "
                          f"adapted, needs exactly one; backbones: {', '.join(backbones())}")
    return encoders[0]
