"""Attention of the adaptive LXMERT (Bhargava 2020) as it was published, with its faults.

It is there to compare with the published numbers and to read the original's checkpoints; see
`common.modules.attention` for what to use. Shape legend: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.modules.losses import precise

SPAN, RAMP, LOSS = 1024, 32, 5e-6
SMALL = 1e-8  # in the renormalisation


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
            ramp = (places + self.current_val * keys) / RAMP + 1
            weights = weights * ramp.clamp(0, 1)
        return weights / (weights.sum(-1, keepdim=True) + SMALL)

    def loss(self) -> Tensor:
        """What the original adds to the loss for this module."""
        return LOSS * SPAN * self.current_val.mean()

    def record(self) -> dict[str, list[float]]:
        """Span of every head, the mean of the places in a batch."""
        return {"span": self.current_val.detach().mean(0).flatten().tolist()}

    def reported(self) -> dict[str, int]:
        """The original's figures: average and largest span, keys to trim, size of its cache."""
        spans = self.current_val.detach()
        figures = {
            name: min(max(math.ceil(float(value) * SPAN) + RAMP, 0), 1024)
            for name, value in (("avg_span", spans.mean()), ("max_span", spans.max()))
        }
        spare = min(SPAN - 1, SPAN - figures["max_span"])
        trim = spare // 64 * 64
        return figures | {"trim_len": trim, "cache_size": min(1024, SPAN - trim + 64)}


class PublishedEntmax(nn.Module):
    """α-entmax whose α is drawn in (1.5, 1.73) or so and then free to leave (1, 2]."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        alpha = (1 + torch.sigmoid(torch.randn(heads))).clamp(1.01, 2)
        self.alpha_chooser = nn.Parameter(alpha)

    @property
    def alpha(self) -> Tensor:
        """(H,)."""
        return self.alpha_chooser

    def forward(self, scores: Tensor) -> Tensor:
        """(B, H, T, S) -> weights, which sum to 1."""
        from entmax import entmax_bisect  # machines that only measure may lack it

        alpha = self.alpha_chooser.to(scores.dtype)[:, None, None]
        found: Tensor = entmax_bisect(scores, alpha.expand(*scores.shape[:-1], 1))
        return found


class PublishedWeights(nn.Module):
    """Softmax or entmax, then the span, then a sum of 1 again."""

    def __init__(self, heads: int, batch: int, sparse: bool) -> None:
        """`batch` samples have spans of their own; 0: there are no spans. `sparse`: entmax."""
        super().__init__()
        self.normaliser = PublishedEntmax(heads) if sparse else None
        self.span = PublishedSpan(batch, heads) if batch else None

    def shares(self, pair: Tensor | None) -> None:
        """Nothing is read from a pair (B, F)."""

    def reaches(self, shares: Tensor | None, width: int) -> None:
        """All keys are computed."""

    def forward(
        self,
        scores: Tensor,
        mask: Tensor | None,
        shares: Tensor | None = None,
        width: int | None = None,
        heads: Tensor | None = None,
    ) -> Tensor:
        """Weights (B, H, T, S), in float32 at least.

        Args:
            scores: (B, H, T, S), scaled.
            mask: additive (B, 1, 1, S), about 0 and -10000, or None.
            shares, width, heads: of `AttentionWeights`; all keys and all heads are there.
        """
        with torch.autocast(scores.device.type, enabled=False):
            full = precise(scores)
            if mask is not None:
                full = full + mask.to(full.dtype)
            weights = full.softmax(-1) if self.normaliser is None else self.normaliser(full)
            return weights if self.span is None else self.span.apply_to(weights)
