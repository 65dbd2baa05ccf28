"""Streams taken apart into attention heads, and put together again.

Shape legend: B batch, T queries, S keys, H heads, C channels, c = C / H.
"""

from __future__ import annotations

import math

from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, c)."""
    by_head: Tensor = x.unflatten(-1, (heads, -1))
    return by_head.transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, c) -> (B, T, C)."""
    return x.transpose(1, 2).flatten(2)


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """q (B, H, T, c), k (B, H, S, c) -> (B, H, T, S)."""
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
