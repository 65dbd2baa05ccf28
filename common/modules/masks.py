"""Attention masks as BERT's descendants have them."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -10000.0


def additive_mask(present: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T), true or 1 where something is -> (B, 1, 1, T) of 0 / -10000, added to scores."""
    return (1.0 - present.to(dtype))[:, None, None, :] * MASKED
