"""Floating-point operations of whatever is called within a context, by torch's counter.

Products of matrices, convolutions and attention count, two operations for a multiplication with its
addition; what is done element by element (softmax, entmax, norms, activations) does not, nor does
looking up embeddings. The operators that really run are counted, so that layers that are skipped,
and samples that a branch does not see, cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **named: Any
) -> int:
    """Shapes (B, H, T, c), (B, H, S, c) and (B, H, S, c)."""
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    grad: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *rest: Any,
    **named: Any,
) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


class FlopCounter(FlopCounterMode):
    """Counts within its context; `total` is there during it and after it.

    Torch's own counter knows attention on GPUs and not the operator that a CPU has for it.
    """

    def __init__(self) -> None:
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )

    @property
    def total(self) -> int:
        """Operations so far."""
        return int(self.get_total_flops())
