"""Attention whose keys are weighed by a mechanism, and what its spans leave out.

In evaluation, keys that no head gives a weight are not projected, heads of like reach are computed
together on the keys that they reach, and a head that reaches one key alone asks nothing. The result
is that of all keys. Shape legend: B batch, H heads, T queries, S keys, C channels, c = C / H, F
features of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.heads import join_heads, scaled_scores, split_heads

# Measured on two cores (base width, small width): heads apart took 0.87 and 1.0 of the time of all
# keys where they needed 30 % of the longest head's keys, but 1.0 and 1.2 where they needed 51 %.
GROUPS = 2  # of heads, beside those that reach one key
WORTH = 0.5  # heads are computed apart where they need less than this share of the keys


class Projections(Protocol):
    """What is used of an attention module."""

    num_attention_heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear


Seen = Callable[[Tensor, Tensor, Tensor], None]  # weights (B, H, T, S), values, context


class Weighting(Protocol):
    """What is used of a mechanism, see `common.modules.attention.AttentionWeights`."""

    def __call__(
        self,
        scores: Tensor,
        mask: Tensor | None,
        shares: Tensor | None = None,
        width: int | None = None,
        heads: Tensor | None = None,
    ) -> Tensor: ...

    def shares(self, pair: Tensor | None) -> Tensor | None: ...

    def reaches(self, shares: Tensor | None, width: int) -> list[int] | None: ...


def weighted_attention(
    attention: Projections,
    query: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    weighting: Weighting,
    pair: Tensor | None,
    dropout: float,
    cut: bool,
    seen: Seen | None = None,
) -> Tensor:
    """Attention of all heads.

    Args:
        attention: the projections.
        query, keys: (B, T, C) and (B, S, C).
        mask: additive (B, 1, 1, S), or None.
        weighting: its mechanism.
        pair: (B, F) for a span policy, or None.
        dropout: probability that a weight is dropped.
        cut: leave out what no span reaches.
        seen: is handed the weights (B, H, T, S) and values (B, H, S, c) of all keys, without
            dropout and 0 where a key was left out, and the context (B, T, C).

    Returns:
        (B, T, C).
    """
    width, heads = keys.shape[1], attention.num_attention_heads
    shares = weighting.shares(pair)
    reaches = weighting.reaches(shares, width) if cut else None
    found, watched = [], []
    order: list[int] = []
    for members, reach in head_groups(reaches or [width] * heads):
        chosen = None if len(members) == heads else torch.tensor(members, device=query.device)
        k_v = keys[:, :reach]
        v = _by_head(attention.value, k_v, heads, chosen)
        order += members
        if reach == 1 and reaches is not None:  # its weight is 1
            weights = v.new_ones(len(v), len(members), query.shape[1], 1)
            found.append(v.expand(-1, -1, query.shape[1], -1))
        else:
            q, k = (
                _by_head(linear, x, heads, chosen)
                for linear, x in ((attention.query, query), (attention.key, k_v))
            )
            scores = scaled_scores(q, k)
            weights = weighting(scores, mask, shares, width, chosen)
            found.append(F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v)
        if seen is not None:
            left_out = width - reach
            watched.append((F.pad(weights, (0, left_out)), F.pad(v, (0, 0, 0, left_out))))
    context = join_heads(_in_order(found, order))
    if seen is not None:
        weights, v = (_in_order(parts, order) for parts in zip(*watched, strict=True))
        seen(weights, v, context)
    return context


def _in_order(parts: Sequence[Tensor], heads: Sequence[int]) -> Tensor:
    """Parts (B, H', …) of some heads each, put together in the order of all heads, (B, H, …)."""
    if len(parts) == 1:
        return parts[0]
    places = torch.tensor(heads, device=parts[0].device).argsort()
    return torch.cat(list(parts), 1)[:, places]


def head_groups(reaches: Sequence[int]) -> list[tuple[list[int], int]]:
    """Heads that are computed together, with the number of keys that they need.

    Args:
        reaches: of every head.
    """
    heads, most = len(reaches), max(reaches)
    everything = [(list(range(heads)), most)]
    if sum(reaches) > WORTH * most * heads:
        return everything
    bounds = sorted({1, *(math.ceil(most * i / GROUPS) for i in range(1, GROUPS + 1))})
    groups: list[tuple[list[int], int]] = []
    below = 0
    for bound in bounds:
        members = [head for head, reach in enumerate(reaches) if below < reach <= bound]
        if members:
            groups.append((members, max(reaches[head] for head in members)))
        below = bound
    return groups


def _by_head(linear: nn.Linear, x: Tensor, heads: int, chosen: Tensor | None) -> Tensor:
    """x (B, T, C) projected for some heads: (B, H', T, c); `chosen` (H',), None: all heads."""
    if chosen is None:
        return split_heads(linear(x), heads)
    weight = linear.weight.unflatten(0, (heads, -1))[chosen].flatten(0, 1)
    bias = linear.bias.unflatten(0, (heads, -1))[chosen].flatten()
    return split_heads(F.linear(x, weight, bias), len(chosen))
