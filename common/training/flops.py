"""Floating-point operations of whatever is called within a context, by torch's counter.

Products of matrices, convolutions and attention count, two operations for a multiplication with its
addition; what is done element by element (softmax, entmax, norms, activations) does not, nor does
looking up embeddings. The operators that really run are counted, so that layers that are skipped,
and samples that a branch does not see, cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

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


def _grouped(
    first: Tensor, second: Tensor, offs: Tensor | None = None, *rest: Any, **named: Any
) -> int:
    """Rows (M, K) in groups with a matrix (G, K, N) each, or groups of K of (M, K) and (K, N).

    What is beyond the last of `offs`, where the groups end, is not computed.
    """
    operations = 2 * first.numel() * second.shape[-1]
    if offs is None:
        return operations
    length = first.shape[0] if second.dim() == 3 else first.shape[1]
    return operations // length * int(offs[-1])


_grouped._get_raw = True  # type: ignore[attr-defined]  # torch's word: tensors, not their shapes


def _packed(x: Sequence[int], weight: Sequence[int], *rest: Any, **named: Any) -> int:
    """Shapes (…, C) and (C', C), laid out by `common.modules.packing`."""
    return 2 * math.prod(x) * weight[0]


# Not there in a torch without oneDNN.
PACKED = (
    {torch.ops.mkldnn._linear_pointwise: _packed} if torch.backends.mkldnn.is_available() else {}
)


class _NoModules(ModuleTracker):
    """Counts are of everything: modules need no hooks, some of which fail without gradients."""

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FlopCounter(FlopCounterMode):
    """Counts within its context; `total` is there during it and after it.

    Torch's own counter knows neither the operator that a CPU has for attention, nor products by
    group, nor those with weights that were laid out.
    """

    def __init__(self) -> None:
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
                aten._grouped_mm: _grouped,
                **PACKED,
            },
        )
        self.mod_tracker = _NoModules()

    @property
    def total(self) -> int:
        """Operations so far."""
        return int(self.get_total_flops())
