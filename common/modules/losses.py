"""Losses that several backbones share, in float32 at least.

Shape legend: V classes; … any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -1


def precise(x: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the places whose label is not -1; logits (…, V), labels (…).

    0 where no place is labelled (upstream: 0 / 0 = NaN for the whole step).
    """
    flat = labels.flatten()
    loss = F.cross_entropy(
        precise(logits.flatten(0, -2)), flat, ignore_index=IGNORED, reduction="sum"
    )
    return loss / (flat != IGNORED).sum().clamp(min=1)


def first_answer_loss(logits: Tensor) -> Tensor:
    """Binary cross-entropy where the first answer is right; logits (B, A) -> scalar.

    Summed over the answers, mean over the batch. Made where the logits are: nothing is copied
    between devices.
    """
    target = torch.zeros_like(logits)
    target[:, 0] = 1
    return F.binary_cross_entropy_with_logits(logits, target) * logits.shape[1]
