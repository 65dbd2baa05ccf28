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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.modules.losses import precise
from common.modules.masks import MASKED
from common.modules.published_attention import PublishedWeights

NORMALISERS = ("softmax", "entmax", "entmax15", "sparsemax", "published")
SPANS = ("none", "keys", "distance", "published")
LEAST_ALPHA = 1.01  # nearer to softmax the gradient of α is lost in rounding
SMALL = 1e-8  # in the published renormalisation
LEAST_SHARE = 1e-6  # of a key in a span; less is outside of it
SIGMOID_LIMITS = (0.02, 0.98)  # of spans that a network moves, as nothing moves 0 and 1


@dataclass(frozen=True)
class AttentionOptions:
    """How all attention modules of an encoder weigh keys.

    Attributes:
        normaliser: softmax; entmax with an α for each head, which is learned; entmax15 (α = 1.5)
            or sparsemax (α = 2), which are fixed and cheaper; published, see
            `common.modules.published_attention`.
        span: none; `keys`: of every head the first keys of the sequence, of regions in the order of
            the detector's confidence; `distance`: in self-attention of a text the keys near the
            query, else as `keys`, since regions have no order among themselves; published.
        ramp: keys over which a weight falls from 1 to 0, as a share of a sample's keys.
        initial_span: share of the keys; 1 starts as without a span.
        initial_alpha: of `entmax`.
        span_policy: a small network reads the spans of all heads from the pair, so that they differ
            between samples.
        batch: of published spans, which belong to places in a batch of this size.
    """

    normaliser: str = "softmax"
    span: str = "none"
    ramp: float = 0.25
    initial_span: float = 1.0
    initial_alpha: float = 1.1
    span_policy: bool = False
    batch: int = 0

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
        if self.span_policy and self.span not in ("keys", "distance"):
            raise ConfigError("a span policy needs a span over keys or distance")
        if self.published and not (
            self.span in ("none", "published") and self.normaliser in ("softmax", "published")
        ):
            raise ConfigError(
                f"attention {self.normaliser} with a span over {self.span}: what is published goes "
                "with what is published, or with softmax without a span"
            )
        if (self.batch > 0) != (self.span == "published"):
            raise ConfigError(
                f"a span over {self.span} with a batch of {self.batch}: published spans, and no "
                "others, belong to the places of a batch, whose size has to be given (--span-batch)"
            )
        if not LEAST_ALPHA <= self.initial_alpha <= 2:
            raise ConfigError(
                f"initial alpha {self.initial_alpha}: give a number from {LEAST_ALPHA} to 2"
            )

    @property
    def published(self) -> bool:
        """One of its two parts is the published one."""
        return "published" in (self.normaliser, self.span)

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

    def forward(self, scores: Tensor, heads: Tensor | None = None) -> Tensor:
        """(B, H, T, S) of all heads, or of `heads` (H,) -> weights, which sum to 1."""
        from entmax import entmax_bisect  # machines that only measure may lack it

        alpha = self.alpha if heads is None else self.alpha[heads]
        found: Tensor = entmax_bisect(scores, alpha.to(scores.dtype)[:, None, None])
        return found


class FixedNormaliser(nn.Module):
    """Softmax, entmax with α = 1.5, or sparsemax; no α is learned."""

    alpha: Tensor | None = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, scores: Tensor, heads: Tensor | None = None) -> Tensor:
        """(B, H, T, S) -> weights, which sum to 1; all heads alike."""
        if self.name == "softmax":
            return torch.softmax(scores, dim=-1)
        import entmax  # machines that only measure may lack it

        function: Callable[..., Tensor] = getattr(entmax, self.name)
        return function(scores, dim=-1)


class AdaptiveSpan(nn.Module):
    """One span for each head, as a share of a sample's keys.

    What a sample's keys are weighted with depends on its own number of keys, not on the padding of
    its batch. With a span policy every sample has spans of its own, which start as the heads'.

    Attributes:
        seen: sums over the samples of evaluation: number, shares (H,), squares of shares (H,).
    """

    def __init__(
        self, heads: int, ramp: float, initial: float, distance: bool, features: int = 0
    ) -> None:
        """Start all heads alike.

        Args:
            heads: H.
            ramp, initial: shares of the keys, see `AttentionOptions`.
            distance: from the query, else the place in the sequence.
            features: F that the span policy reads from a pair; 0: there is none.
        """
        super().__init__()
        self.ramp, self.distance = ramp, distance
        self.limits = SIGMOID_LIMITS if features else (0.0, 1.0)
        self.span = nn.Parameter(torch.full((heads,), float(initial)).clamp(*self.limits))
        self.shift = nn.Linear(features, heads) if features else None
        if self.shift is not None:  # frozen twins stay so
            nn.init.zeros_(self.shift.weight)
            nn.init.zeros_(self.shift.bias)
        self.seen: tuple[int, Tensor, Tensor] | None = None

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the spans in 0..1; after every update, and before the first."""
        self.span.clamp_(*self.limits)

    def shares(self, pair: Tensor | None = None) -> Tensor:
        """Spans of samples of whose pairs (B, F) was read: (B, H); without a span policy (1, H)."""
        own = self.span.clamp(*self.limits)[None]
        if self.shift is None or pair is None:
            return own
        shares: Tensor = (own.logit() + self.shift(pair.to(own.dtype))).sigmoid()
        if not self.training:
            self._note(shares.detach())
        return shares

    def _note(self, shares: Tensor) -> None:
        count, total, squares = self.seen or (0, torch.zeros(()), torch.zeros(()))
        self.seen = (
            count + len(shares),
            total.to(shares.device) + shares.sum(0),
            squares.to(shares.device) + shares.square().sum(0),
        )

    def record(self) -> dict[str, list[float]]:
        """Span of every head; where it is read from the pair, mean and standard deviation over the
        samples that were evaluated since the last call."""
        seen, self.seen = self.seen, None
        if seen is None:
            return {"span": self.shares().detach()[0].tolist()}
        count, total, squares = seen
        mean = total / count
        return {
            "span": mean.tolist(),
            "span_sd": (squares / count - mean.square()).clamp(min=0).sqrt().tolist(),
        }

    def reach(self, shares: Tensor, keys: Tensor) -> Tensor:
        """(B, H) places, from 0, before which a key has a weight above 0.

        Args:
            shares: (1 or B, H).
            keys: (B,) numbers of keys.
        """
        return keys[:, None] * shares + self._ramps(keys)[:, None]

    def _ramps(self, keys: Tensor) -> Tensor:
        return (self.ramp * keys).clamp(min=1)

    def forward(
        self, queries: int, keys: Tensor, width: int, shares: Tensor | None = None
    ) -> Tensor:
        """Weights of the first keys, (B, H, 1 or T, S), in 0..1.

        Args:
            queries: T.
            keys: (B,) number of keys of each sample, float.
            width: S.
            shares: (1 or B, H); None: every head's own.
        """
        shares = self.shares() if shares is None else shares
        places = torch.arange(width, device=keys.device, dtype=keys.dtype)
        order = places[None]
        if self.distance:
            order = (order - places[:queries, None]).abs()
        reach = self.reach(shares.to(keys.dtype), keys)[:, :, None, None]
        ramps = self._ramps(keys)[:, None, None, None]
        return ((reach - order) / ramps).clamp(0, 1)

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last passes left behind, so that a model can be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"seen": None}


class AttentionWeights(nn.Module):
    """From scores to weights: normaliser, then span, then a sum of 1 again."""

    def __init__(
        self, heads: int, options: AttentionOptions, text: bool, features: int = 0
    ) -> None:
        """Make it for a module.

        Args:
            heads: H.
            options: of all modules.
            text: queries and keys are the same text, whose words have an order.
            features: see `AdaptiveSpan`.
        """
        super().__init__()
        self.normaliser: LearnedEntmax | FixedNormaliser = (
            LearnedEntmax(heads, options.initial_alpha)
            if options.normaliser == "entmax"
            else FixedNormaliser(options.normaliser)
        )
        self.span = (
            None
            if options.span == "none"
            else AdaptiveSpan(
                heads,
                options.ramp,
                options.initial_span,
                text and options.span == "distance",
                features,
            )
        )
        self._cached: tuple[tuple[int, int, int], list[int]] | None = None

    def forward(
        self,
        scores: Tensor,
        mask: Tensor | None,
        shares: Tensor | None = None,
        width: int | None = None,
        heads: Tensor | None = None,
    ) -> Tensor:
        """Weights in float32 at least, whatever the precision of the scores.

        Args:
            scores: (B, H, T, S), scaled.
            mask: additive (B, 1, 1, W), about 0 and -10000, or None.
            shares: (1 or B, H) spans of all heads; None: every head's own.
            width: W, the number of keys before some were cut; None: S.
            heads: (H,) numbers of the heads that the scores are of; None: all.

        Returns:
            (B, H, T, S); exactly 0 at masked keys where the normaliser is an entmax.
        """
        with torch.autocast(scores.device.type, enabled=False):
            full = precise(scores)
            kept, width = scores.shape[-1], width or scores.shape[-1]
            if mask is not None:
                full = full + mask[..., :kept].to(full.dtype)
            if self.span is None:
                return self._normalised(full, heads)
            shares = self.span.shares() if shares is None else shares
            shares = shares if heads is None else shares[:, heads]
            if mask is None:
                keys = full.new_full((len(scores),), float(width))
            else:
                present = mask[:, 0, 0] > MASKED / 2
                keys = present.sum(-1).to(full.dtype).expand(len(scores))
            return self._within(full, self.span(scores.shape[-2], keys, kept, shares), heads)

    def _normalised(self, scores: Tensor, heads: Tensor | None) -> Tensor:
        weights: Tensor = self.normaliser(scores, heads)
        return weights

    def _within(self, scores: Tensor, span: Tensor, heads: Tensor | None) -> Tensor:
        """Weights in proportion to the span's.

        With an entmax the span is part of the scores, as its logarithm: taken afterwards, it could
        leave a query nothing, where all keys that the entmax has chosen lie outside. With softmax
        the two are the same, and a product has a gradient everywhere.
        """
        if isinstance(self.normaliser, FixedNormaliser) and self.normaliser.name == "softmax":
            weights = self._normalised(scores, heads) * span
            return weights / weights.sum(-1, keepdim=True).clamp(min=SMALL)
        outside = span <= LEAST_SHARE
        shares = torch.where(outside, 1.0, span).log()
        return self._normalised(torch.where(outside, scores + MASKED, scores + shares), heads)

    def shares(self, pair: Tensor | None) -> Tensor | None:
        """Spans (B, H) of samples of whose pairs (B, F) was read; None: every head's own."""
        if self.span is None or self.span.shift is None or pair is None:
            return None
        return self.span.shares(pair)

    @torch.no_grad()
    def reaches(self, shares: Tensor | None, width: int) -> list[int] | None:
        """How many of the first W keys each head can give a weight, H numbers from 1 to W.

        The largest among the samples with spans `shares` (B, H). None: all keys, since there is no
        span, or one around every query.
        """
        span = self.span
        if span is None or span.distance:
            return None
        if shares is not None:
            return self._places(span, shares.amax(0, keepdim=True), width)
        version = (span.span._version, span.span.data_ptr(), width)
        if self._cached is None or self._cached[0] != version:  # spares waiting for the device
            self._cached = (version, self._places(span, span.shares(), width))
        return self._cached[1]

    @staticmethod
    def _places(span: AdaptiveSpan, shares: Tensor, width: int) -> list[int]:
        reach = span.reach(shares.double(), shares.new_tensor([width], dtype=torch.float64))
        return [int(n) for n in (reach[0] - LEAST_SHARE).ceil().clamp(1, width).tolist()]


def has_mechanism(model: nn.Module) -> bool:
    """Whether its attention is something else than softmax over all keys."""
    kinds = (AttentionWeights, PublishedWeights)
    return any(isinstance(module, kinds) for module in model.modules())
