"""Gives all attention modules of an encoder another way to weigh keys; see `common.modules`.

The mechanism is a submodule of each attention module, so that frozen twins have their own, and
checkpoints hold it like any other weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.encoder import RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.steps import WEIGHTING, HeadsStep, live_steps
from common.errors import ConfigError
from common.modules.attention import (
    AdaptiveSpan,
    AttentionOptions,
    AttentionWeights,
    LearnedEntmax,
    attention_weights,
)

TEXTS = ("lang",)  # streams whose places have an order
ATTENTION_LR = 5e-3  # at a rate made for pretrained weights they would not move by 0.01


def set_attention(model: nn.Module, options: AttentionOptions) -> None:
    """Give a model a mechanism of attention, before it is adapted.

    Args:
        model: plain, with pretrained weights loaded or to be loaded before this.
        options: softmax over all keys leaves the model as it is.

    Raises:
        ConfigError: it is adapted, or has a mechanism already.
    """
    if options.plain:
        return
    encoder = find_encoder(model)
    if encoder.adaptive is not None:
        raise ConfigError("attention is set before the model is adapted")
    for module, name, text in _modules(encoder):
        if getattr(module, name, None) is not None:
            raise ConfigError("the model has a mechanism of attention already; build it anew")
        heads = int(module.num_attention_heads)  # type: ignore[arg-type]
        reference = next(module.parameters())
        weights = AttentionWeights(heads, options, text).to(reference.device)
        setattr(module, name, weights.to(reference.dtype))


def _modules(encoder: RoutedEncoder) -> list[tuple[nn.Module, str, bool]]:
    """The attention modules, the name of their mechanism, and whether it is about one text alone.

    A mechanism that several steps share, such as those of both directions between two streams, is
    there once.
    """
    found: dict[tuple[int, str], tuple[nn.Module, str, bool]] = {}
    for layer in encoder.layers():
        for step in layer.steps:
            if isinstance(step, HeadsStep):
                module = layer.module.get_submodule(step.module)
                query, keys = (slot.partition(".")[0] for slot in step.reads[:2])
                text = query == keys and query in TEXTS
                key = id(module), step.weighting
                _, _, before = found.get(key, (module, "", True))
                found[key] = module, step.weighting, before and text
    return list(found.values())


def without_attention(
    named: Iterable[tuple[str, nn.Parameter]], lr: float | None
) -> tuple[list[tuple[str, nn.Parameter]], list[dict[str, Any]]]:
    """Take what mechanisms of attention learn from the parameters of an optimiser.

    Args:
        named: trainable parameters.
        lr: of spans and α; None: `ATTENTION_LR`.

    Returns:
        The rest, and groups for the optimiser: one of spans and α, which do not decay, or none.
    """
    rest: list[tuple[str, nn.Parameter]] = []
    own: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        (own if f".{WEIGHTING}" in name else rest).append((name, parameter))
    rate = ATTENTION_LR if lr is None else lr
    group = {"params": [p for _, p in own], "lr": rate, "weight_decay": 0.0}
    return rest, [group] if own else []


def spans_of(model: nn.Module) -> list[AdaptiveSpan]:
    """The spans of a model that are learned, after it was adapted."""
    return [
        module
        for module in model.modules()
        if isinstance(module, AdaptiveSpan) and module.span.requires_grad
    ]


def clamp_spans(spans: Iterable[AdaptiveSpan]) -> None:
    """Keep spans in 0..1; after every update."""
    for module in spans:
        module.clamp()


def mean_span(spans: Iterable[AdaptiveSpan]) -> Tensor | None:
    """Their mean, 0..1; None where there are none."""
    found = [module.span.clamp(0, 1) for module in spans]
    return torch.cat(found).mean() if found else None


def attention_record(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """Spans and α of every head, by layer and component (`cross.1.lang.head`), in their order.

    A mechanism that two directions share is there once. What reaches no answer is left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    if next(attention_weights(model), None) is None:
        return found
    encoder = find_encoder(model)
    layers = encoder.layers()
    for layer, steps in zip(layers, live_steps(layers, encoder.reads)[0], strict=True):
        for step in steps:
            if isinstance(step, HeadsStep):
                module = encoder.get_submodule(layer.path).get_submodule(step.module)
                entry = _entry(getattr(module, step.weighting))
                if entry:
                    found[f"{layer.name}.{step.component}"] = entry
    return found


def _entry(weights: AttentionWeights) -> dict[str, list[float]]:
    entry: dict[str, list[float]] = {}
    if weights.span is not None:
        entry["span"] = weights.span.span.detach().clamp(0, 1).tolist()
    if isinstance(weights.normaliser, LearnedEntmax):
        entry["alpha"] = weights.normaliser.alpha.detach().tolist()
    return entry
