"""What turns attention scores into weights: softmax or entmax, and a learned span of each head.

A module of this file is put beside query, key and value of an attention module (`weighting`); where
there is none, attention is softmax over all keys, computed by torch's own function.

Entmax (Peters et al. 2019, Correia et al. 2019) gives weights that are exactly 0. Its α lies in (1,
2]: towards 1 it is softmax, 2 is sparsemax. An adaptive span (Sukhbaatar et al. 2019) takes keys
away from a head over a ramp: those far from the query, or those that stand late in their sequence.
Shape legend: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from entmax import entmax15, entmax_bisect, sparsemax
from torch import Tensor, nn

from common.errors import ConfigError
from common.modules.masks import MASKED

NORMALISERS = ("softmax", "entmax", "entmax15", "sparsemax")
SPANS = ("none", "keys", "distance")
LEAST_ALPHA = 1.01  # nearer to softmax the gradient of α is lost in rounding
SMALL = 1e-8  # in the published renormalisation
LEAST_SHARE = 1e-6  # of a key in a span; less is outside of it
PUBLISHED_SPAN, PUBLISHED_RAMP, PUBLISHED_LOSS = 1024, 32, 5e-6


@dataclass(frozen=True)
class AttentionOptions:
    """How all attention modules of an encoder weigh keys.

    Attributes:
        normaliser: softmax; entmax with an α for each head, which is learned; entmax15 (α = 1.5)
            or sparsemax (α = 2), which are fixed and cheaper.
        span: none; `keys`: of every head the first keys of the sequence, of regions in the order of
            the detector's confidence; `distance`: in self-attention of a text the keys near the
            query, else as `keys`, since regions have no order among themselves.
        ramp: keys over which a weight falls from 1 to 0, as a share of a sample's keys.
        initial_span: share of the keys; 1 starts as without a span.
        initial_alpha: of `entmax`.
    """

    normaliser: str = "softmax"
    span: str = "none"
    ramp: float = 0.25
    initial_span: float = 1.0
    initial_alpha: float = 1.1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("attention", self.normaliser, NORMALISERS),
            ("span", self.span, SPANS),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r}: valid: {', '.join(known)}")
        if not 0 < self.ramp <= 1:
            raise ConfigError(f"span ramp {self.ramp}: give a share of the keys, above 0, to 1")
        if not 0 <= self.initial_span <= 1:
            raise ConfigError(f"initial span {self.initial_span}: give a share from 0 to 1")
        if not LEAST_ALPHA <= self.initial_alpha <= 2:
            raise ConfigError(
                f"initial alpha {self.initial_alpha}: give a number from {LEAST_ALPHA} to 2"
            )

    @property
    def plain(self) -> bool:
        """Softmax over all keys."""
        return self.normaliser == "softmax" and self.span == "none"


class LearnedEntmax(nn.Module):
    """α-entmax with an α for each head, kept in (1, 2] by how it is stored."""

    def __init__(self, heads: int, initial: float) -> None:
        """Start all heads at one α."""
        super().__init__()
        share = (initial - LEAST_ALPHA) / (2 - LEAST_ALPHA)
        share = min(max(share, 1e-4), 1 - 1e-4)
        self.logit = nn.Parameter(torch.full((heads,), math.log(share / (1 - share))))

    @property
    def alpha(self) -> Tensor:
        """(H,), from `LEAST_ALPHA` to 2."""
        return LEAST_ALPHA + (2 - LEAST_ALPHA) * self.logit.sigmoid()

    def forward(self, scores: Tensor) -> Tensor:
        """(B, H, T, S) -> weights, which sum to 1."""
        found: Tensor = entmax_bisect(scores, self.alpha.to(scores.dtype)[:, None, None])
        return found


class FixedNormaliser(nn.Module):
    """Softmax, entmax with α = 1.5, or sparsemax."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, scores: Tensor) -> Tensor:
        """(B, H, T, S) -> weights, which sum to 1."""
        functions: dict[str, Callable[..., Tensor]] = {
            "softmax": torch.softmax,
            "entmax15": entmax15,
            "sparsemax": sparsemax,
        }
        return functions[self.name](scores, dim=-1)


class AdaptiveSpan(nn.Module):
    """One span for each head, as a share of a sample's keys.

    What a sample's keys are weighted with depends on its own number of keys, not on the padding of
    its batch.
    """

    def __init__(self, heads: int, ramp: float, initial: float, distance: bool) -> None:
        """`distance`: from the query, else the place in the sequence."""
        super().__init__()
        self.ramp, self.distance = ramp, distance
        self.span = nn.Parameter(torch.full((heads,), float(initial)))

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the spans in 0..1; after every update, and before the first."""
        self.span.clamp_(0, 1)

    def reach(self, keys: Tensor) -> Tensor:
        """(B, H) places, from 0, before which a key has a weight above 0, of samples with (B,)
        keys."""
        shares = self.span.clamp(0, 1)[None]
        return keys[:, None] * shares + self._ramps(keys)[:, None]

    def _ramps(self, keys: Tensor) -> Tensor:
        return (self.ramp * keys).clamp(min=1)

    def forward(self, queries: int, keys: Tensor, width: int) -> Tensor:
        """Weights of the keys, (B, H, 1 or T, S), in 0..1.

        Args:
            queries: T.
            keys: (B,) number of keys of each sample, float.
            width: S.
        """
        places = torch.arange(width, device=keys.device, dtype=keys.dtype)
        order = places[None]
        if self.distance:
            order = (order - places[:queries, None]).abs()
        reach = self.reach(keys)[:, :, None, None]
        ramps = self._ramps(keys)[:, None, None, None]
        return ((reach - order) / ramps).clamp(0, 1)


class PublishedSpan(nn.Module):
    """Adaptive span as the adaptive LXMERT has it, with its faults, to compare with its numbers.

    A span belongs to a place in the batch, counts from the end of the sequence, has a ramp of 32
    keys of 20 or 36, and is left out in batches of another size.
    """

    def __init__(self, batch: int, heads: int) -> None:
        super().__init__()
        self.current_val = nn.Parameter(torch.empty(batch, heads, 1, 1))
        nn.init.kaiming_normal_(self.current_val)
        with torch.no_grad():
            self.current_val.add_(0.002)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the spans in 0..1; the original did so after every update."""
        self.current_val.clamp_(0, 1)

    def apply_to(self, weights: Tensor) -> Tensor:
        """(B, H, T, S) attention weights -> the same, cut and made to sum to 1."""
        if len(weights) == len(self.current_val):
            keys = weights.shape[-1]
            places = torch.arange(keys, device=weights.device, dtype=weights.dtype) - (keys - 1)
            ramp = (places + self.current_val * keys) / PUBLISHED_RAMP + 1
            weights = weights * ramp.clamp(0, 1)
        return weights / (weights.sum(-1, keepdim=True) + SMALL)

    def loss(self) -> Tensor:
        """What the original adds to the loss for this module."""
        return PUBLISHED_LOSS * PUBLISHED_SPAN * self.current_val.mean()

    def reported(self) -> dict[str, int]:
        """The original's figures: average and largest span, keys to trim, size of its cache."""
        spans = self.current_val.detach()
        figures = {
            name: min(max(math.ceil(float(value) * PUBLISHED_SPAN) + PUBLISHED_RAMP, 0), 1024)
            for name, value in (("avg_span", spans.mean()), ("max_span", spans.max()))
        }
        spare = min(PUBLISHED_SPAN - 1, PUBLISHED_SPAN - figures["max_span"])
        trim = spare // 64 * 64
        return figures | {"trim_len": trim, "cache_size": min(1024, PUBLISHED_SPAN - trim + 64)}


class AttentionWeights(nn.Module):
    """From scores to weights: normaliser, then span, then a sum of 1 again."""

    def __init__(self, heads: int, options: AttentionOptions, text: bool) -> None:
        """Make it for a module.

        Args:
            heads: H.
            options: of all modules.
            text: queries and keys are the same text, whose words have an order.
        """
        super().__init__()
        self.normaliser: nn.Module = (
            LearnedEntmax(heads, options.initial_alpha)
            if options.normaliser == "entmax"
            else FixedNormaliser(options.normaliser)
        )
        self.span = (
            None
            if options.span == "none"
            else AdaptiveSpan(
                heads, options.ramp, options.initial_span, text and options.span == "distance"
            )
        )

    def forward(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Weights in float32 at least, whatever the precision of the scores.

        Args:
            scores: (B, H, T, S), scaled.
            mask: additive (B, 1, 1, S), about 0 and -10000, or None.

        Returns:
            (B, H, T, S); exactly 0 at masked keys where the normaliser is an entmax.
        """
        with torch.autocast(scores.device.type, enabled=False):
            precise = scores.to(torch.promote_types(scores.dtype, torch.float32))
            if mask is not None:
                precise = precise + mask.to(precise.dtype)
            if self.span is None:
                return self._normalised(precise)
            width = scores.shape[-1]
            if mask is None:
                keys = precise.new_full((len(scores),), float(width))
            else:
                present = mask[:, 0, 0] > MASKED / 2
                keys = present.sum(-1).to(precise.dtype).expand(len(scores))
            return self._within(precise, self.span(scores.shape[-2], keys, width))

    def _normalised(self, scores: Tensor) -> Tensor:
        weights: Tensor = self.normaliser(scores)
        return weights

    def _within(self, scores: Tensor, span: Tensor) -> Tensor:
        """Weights in proportion to the span's.

        With an entmax the span is part of the scores, as its logarithm: taken afterwards, it could
        leave a query nothing, where all keys that the entmax has chosen lie outside. With softmax
        the two are the same, and a product has a gradient everywhere.
        """
        if isinstance(self.normaliser, FixedNormaliser) and self.normaliser.name == "softmax":
            weights = self._normalised(scores) * span
            return weights / weights.sum(-1, keepdim=True).clamp(min=SMALL)
        outside = span <= LEAST_SHARE
        shares = torch.where(outside, 1.0, span).log()
        return self._normalised(torch.where(outside, scores + MASKED, scores + shares))


def attention_weights(module: nn.Module) -> Iterator[tuple[str, AttentionWeights]]:
    """All of a model, with their names."""
    for name, part in module.named_modules():
        if isinstance(part, AttentionWeights):
            yield name, part
