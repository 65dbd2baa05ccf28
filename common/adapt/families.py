"""The encoder of a model: one of ours, or made from a model of another library.

Packages that can make a routed encoder from a foreign model say so by an entry point of the group
`GROUP`: a function that takes a model and returns its encoder, routed in place, or None where the
model is not one that it knows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import nn

from common.adapt.encoder import RoutedEncoder
from common.errors import ConfigError
from common.installed import offered

GROUP = "adaptive_finetuning.encoders"
Wrap = Callable[[nn.Module], RoutedEncoder | None]


@cache
def encoder_families() -> dict[str, Wrap]:
    """What turns foreign models into routed ones, by the name of the family."""
    return {point.name: point.load() for point in offered(GROUP)}


def find_encoder(model: nn.Module) -> RoutedEncoder:
    """The one routed encoder in a model, made from a `transformers` model where needed.

    Raises:
        ConfigError: the model has none, or several.
    """
    encoders = [m for m in model.modules() if isinstance(m, RoutedEncoder)]
    policies = [
        e for outer in encoders if outer.adaptive is not None for e in outer.adaptive.modules()
    ]
    encoders = [e for e in encoders if not any(e is p for p in policies)]
    if not encoders:
        wrapped = (wrap(model) for wrap in encoder_families().values())
        encoders = [encoder for encoder in wrapped if encoder is not None]
    if len(encoders) != 1:
        raise ConfigError(
            f"{type(model).__name__} has {len(encoders)} encoders that can be adapted, needs "
            "exactly one: a model that derives from RoutedEncoder, or one of another library, "
            f"of the families {', '.join(encoder_families()) or '(none installed)'}"
        )
    return encoders[0]
