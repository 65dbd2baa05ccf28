"""Budget losses: what pushes the decisions towards fewer, or clearer, ones.

All take the share (D,) of samples with decision 1, a mean over the batch of all processes through
which the straight-through gradient flows (`World.mean`), and the mask (D,) of live decisions; dead
ones count nowhere. The original's formulas are in
`constrain_k`; its entropy loss lacked one of the two terms and peaked at p = 1 / e, corrected here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BudgetOptions:
    """Scales of the budget losses; None or 0 switches a loss off.

    Attributes:
        constrain_k: wanted number of decisions that are 1 in the mean sample, 0..D.
        constrain_k_scale: its weight.
        deterministic_scale: weight of the entropy of the batch-mean decisions.
        target_rate: wanted share of decisions that are 1, 0..1.
        target_rate_scale: its weight.
    """

    constrain_k: float | None = None
    constrain_k_scale: float = 1.0
    deterministic_scale: float = 0.0
    target_rate: float | None = None
    target_rate_scale: float = 1.0

    @property
    def active(self) -> bool:
        """Whether any loss is switched on."""
        return (
            self.constrain_k is not None
            or self.target_rate is not None
            or bool(self.deterministic_scale)
        )


def constrain_k(share: Tensor, live: Tensor, k: float) -> Tensor:
    """(sum over live d of share - K)^2, a scalar; share and live (D,)."""
    return ((share * live).sum() - k) ** 2


def deterministic(share: Tensor, live: Tensor) -> Tensor:
    """Entropy in nats of the batch-mean decision, summed over live sites; scalar.

    0 when every site decides the same for all samples, ln 2 per site at share one half.
    """
    p = share.clamp(1e-6, 1 - 1e-6)
    return -((p * p.log() + (1 - p) * (1 - p).log()) * live).sum()


def target_rate(share: Tensor, live: Tensor, rate: float) -> Tensor:
    """(mean share of live decisions that are 1 - rate)^2, a scalar."""
    return ((share * live).sum() / live.sum() - rate) ** 2


def budget_losses(share: Tensor, live: Tensor, options: BudgetOptions) -> dict[str, Tensor]:
    """The losses that are switched on, weighted: {name: scalar}."""
    losses: dict[str, Tensor] = {}
    if options.constrain_k is not None:
        losses["constrain_k"] = options.constrain_k_scale * constrain_k(
            share, live, options.constrain_k
        )
    if options.deterministic_scale:
        losses["deterministic"] = options.deterministic_scale * deterministic(share, live)
    if options.target_rate is not None:
        losses["target_rate"] = options.target_rate_scale * target_rate(
            share, live, options.target_rate
        )
    return losses


def total(losses: dict[str, Tensor]) -> Tensor | float:
    """Sum of the losses, 0 where there are none."""
    return torch.stack(list(losses.values())).sum() if losses else 0.0
