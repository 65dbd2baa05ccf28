"""Density and entropy of attention, by layer, head and modality, over many samples.

Shape legend: H heads, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common.runs.attention_blocks import Block, Kinds

MEASURES = {
    "zeros": "share of the weights that are exactly 0",
    "above": "keys whose weight is at least {threshold:g}, the mean over queries",
    "entropy": "entropy of a query's weights, divided by the logarithm of the number of keys "
    "(0: one key, 1: all alike)",
    "mass": "share of a query's attention that goes to these keys",
}


@dataclass
class Measured:
    """One attention of one layer.

    Attributes:
        layer: its name.
        kinds: of queries and keys.
        heads: H.
        threshold: see `above`.
        sums: (H,) totals of what is measured, by its name.
        counts: by name, over how much; of `entropy` (H,).
    """

    layer: str
    kinds: Kinds
    heads: int
    threshold: float
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, weights: Tensor) -> None:
        """Count the weights (H, Q, K) of one sample."""
        weights = weights.double()
        queries, keys = weights.shape[1:]
        mass = weights.sum(-1)
        self._count("zeros", (weights == 0).sum((1, 2)), queries * keys)
        self._count("above", (weights >= self.threshold).sum((1, 2)), queries)
        self._count("mass", mass.sum(1), queries)
        if keys > 1:
            # Of a query that attends to none of these keys there is no entropy.
            some = mass > 0
            shares = weights / mass.where(some, 1.0)[..., None]
            entropy = torch.special.entr(shares).sum(-1) / torch.log(torch.tensor(float(keys)))
            self._count("entropy", (entropy * some).sum(1), some.sum(1))

    def _count(self, name: str, sums: Tensor, count: int | Tensor) -> None:
        zero = torch.zeros(self.heads, dtype=torch.float64)
        self.sums[name] = self.sums.get(name, zero) + sums
        self.counts[name] = self.counts.get(name, zero) + count

    def mean(self, name: str) -> list[float | None]:
        """Of each head; None where there was nothing to measure."""
        if name not in self.sums:
            return [None] * self.heads
        pairs = zip(self.sums[name].tolist(), self.counts[name].tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]

    def over_heads(self, name: str) -> float | None:
        """The mean of the heads that have one."""
        known = [value for value in self.mean(name) if value is not None]
        return sum(known) / len(known) if known else None

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, one entry for each head."""
        return {
            "layer": self.layer,
            "from": self.kinds[0],
            "to": self.kinds[1],
            "queries": int(self.counts["mass"][0]),
            **{name: self.mean(name) for name in MEASURES},
        }


def measure(blocks: Iterable[Block], threshold: float) -> list[Measured]:
    """Measure the attention of many samples, by layer and kinds in the order of first sight.

    Args:
        blocks: of all samples, one after the other.
        threshold: weights from here on count as looked at.
    """
    found: dict[tuple[str, Kinds], Measured] = {}
    for block in blocks:
        key = block.layer, block.kinds
        if key not in found:
            found[key] = Measured(*key, len(block.weights), threshold)
        found[key].add(block.weights)
    return list(found.values())
