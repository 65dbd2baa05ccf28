"""Gives all attention modules of an encoder another way to weigh keys; see `common.modules`.

The mechanism is a submodule of each attention module, so that frozen twins have their own, and
checkpoints hold it like any other weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.encoder import RoutedEncoder
from common.adapt.families import find_encoder
from common.adapt.policy import mean_of_present
from common.adapt.routes import State, read_stream
from common.adapt.steps import WEIGHTING, HeadsStep
from common.errors import ConfigError
from common.modules.attention import AdaptiveSpan, AttentionOptions, AttentionWeights, has_mechanism
from common.modules.published_attention import PublishedSpan, PublishedWeights

Module = TypeVar("Module", bound=nn.Module)
TEXTS = ("lang",)  # streams whose places have an order
ATTENTION_LR = 5e-3  # at a rate made for pretrained weights they would not move by 0.01
SPAN_POLICY_SHARE = 0.2  # of that rate, at which the network learns that reads spans from a pair
SPAN_POLICY = "span_policy"


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
    encoder.by_place = options.span == "published"
    features = 0
    if options.span_policy:
        channels = {s: c for layer in encoder.layers() for s, c in layer.streams.items()}
        encoder.span_policy = _like(encoder, SpanPolicy(channels))
        features = encoder.span_policy.features
    for module, name, text in _modules(encoder):
        if getattr(module, name, None) is not None:
            raise ConfigError("the model has a mechanism of attention already; build it anew")
        heads = int(module.num_attention_heads)  # type: ignore[arg-type]
        weights = (
            PublishedWeights(
                heads,
                options.batch if options.span == "published" else 0,
                options.normaliser == "published",
            )
            if options.published
            else AttentionWeights(heads, options, text, features)
        )
        setattr(module, name, _like(module, weights))


class SpanPolicy(nn.Module):
    """What the spans of a sample are read from: the means of its embeddings, a layer wide.

    The linear map from it to the spans of a module's heads belongs to that module
    (`AdaptiveSpan.shift`), so that frozen twins and layers have their own, which is 0. No gradient
    is sent into the embeddings.
    """

    def __init__(self, channels: Mapping[str, int]) -> None:
        """For streams {name: C}."""
        super().__init__()
        self.features = min(64, max(16, max(channels.values()) // 2))
        self.read = nn.ModuleDict({s: nn.Linear(c, self.features) for s, c in channels.items()})
        self.normalise = nn.LayerNorm(self.features)

    def forward(self, state: State) -> Tensor:
        """Streams (B, T, C) with masks (B, 1, 1, T) -> (B, F), in the precision of its weights."""
        own = self.normalise.weight.dtype
        total: Tensor | None = None
        for stream, read in self.read.items():
            x, mask = read_stream(state, stream).detach().to(own), state.get(f"{stream}.mask")
            mean = x.mean(1) if mask is None else mean_of_present(x, mask)
            total = read(mean) if total is None else total + read(mean)
        assert total is not None
        found: Tensor = F.gelu(self.normalise(total))
        return found


def _like(reference: nn.Module, module: Module) -> Module:
    """On the device and in the precision of another module."""
    parameter = next(reference.parameters())
    return module.to(device=parameter.device, dtype=parameter.dtype)


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
        lr: of spans and α; None: `ATTENTION_LR`. A span policy has `SPAN_POLICY_SHARE` of it.

    Returns:
        The rest, and groups for the optimiser, which do not decay: spans and α, a span policy.
    """
    rest: list[tuple[str, nn.Parameter]] = []
    own: list[nn.Parameter] = []
    network: list[nn.Parameter] = []
    for name, parameter in named:
        if f".{SPAN_POLICY}." in f".{name}" or (f".{WEIGHTING}" in name and ".shift." in name):
            network.append(parameter)
        elif f".{WEIGHTING}" in name:
            own.append(parameter)
        else:
            rest.append((name, parameter))
    rate = ATTENTION_LR if lr is None else lr
    groups = [
        {"params": found, "lr": rate * share, "weight_decay": 0.0}
        for found, share in ((own, 1.0), (network, SPAN_POLICY_SHARE))
        if found
    ]
    return rest, groups


Span = AdaptiveSpan | PublishedSpan


class LearnedSpans:
    """The spans of a model that are learned, after it was adapted."""

    def __init__(self, model: nn.Module) -> None:
        """Look them up, once for all steps."""
        self.spans: list[Span] = [
            module
            for module in model.modules()
            if isinstance(module, Span) and any(p.requires_grad for p in module.parameters())
        ]
        self._encoder = find_encoder(model) if self.spans else None

    def clamp(self) -> None:
        """Keep them in 0..1; after every update."""
        for module in self.spans:
            module.clamp()

    def loss(self, factor: float | None) -> Tensor | None:
        """What their lengths add to the loss of a batch, after its forward pass.

        Args:
            factor: of the mean span, 0..1, of all heads and, where spans are read from the pair, of
                all samples, whatever is decided about them. Published spans have the published
                loss, a sum.

        Returns:
            A loss (0-d), or None.
        """
        if self._encoder is None:
            return None
        pair, self._encoder.pair = self._encoder.pair, None
        learned = [m for m in self.spans if factor and isinstance(m, AdaptiveSpan)]
        own = [module.shares(pair).mean(0) for module in learned]
        published = [m.loss() for m in self.spans if isinstance(m, PublishedSpan)]
        parts = [factor * torch.cat(own).mean()] if factor and own else []
        parts += [torch.stack(published).sum()] if published else []
        return torch.stack(parts).sum() if parts else None


def attention_record(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """Spans and α of every head, by layer and component (`cross.1.lang.head`), in their order.

    A mechanism that two directions share is there once. What reaches no answer is left out. Where
    spans are read from the pair, `span` is their mean over the samples that were evaluated since
    the last call, and `span_sd` their standard deviation.
    """
    found: dict[str, dict[str, list[float]]] = {}
    if not has_mechanism(model):
        return found
    for layer, module, step in find_encoder(model).attending():
        name = f"{layer.name}.{step.component}"
        if name not in found:
            entry = _entry(getattr(module.get_submodule(step.module), step.weighting))
            found |= {name: entry} if entry else {}
    return found


def _entry(weights: AttentionWeights | PublishedWeights) -> dict[str, list[float]]:
    entry = {} if weights.span is None else weights.span.record()
    alpha = None if weights.normaliser is None else weights.normaliser.alpha
    return entry if alpha is None else entry | {"alpha": alpha.detach().tolist()}
