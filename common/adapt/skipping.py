"""A layer that some samples skip: its products are computed for those that keep it.

The samples are sorted, those that keep the layer first, and a product with a matrix is a grouped
one (`grouped_mm`) with a single group that ends after them: rows beyond it are not computed. Their
number stays on the device and no shape depends on it, so that a step can be captured as a graph.

The kernels leave memory as they found it beyond the end of the group; there zeros are put, in
results and in gradients, before anything reads it. What has no matrix (attention, residuals,
LayerNorm) runs on all samples. Shape legend: B batch, T tokens, C channels, N rows, those of all
samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.adapt.experts import Arrangement, Chosen, groups_product, product_dtype
from common.modules.products import LinearMode


def kept_first(kept: Tensor) -> Arrangement:
    """The order in which the samples that keep a layer come first, as one group.

    Args:
        kept: (B,) bool.
    """
    order = torch.argsort(kept.to(torch.uint8), descending=True, stable=True)
    ends = kept.sum(dtype=torch.int32)[None]
    return Arrangement(Chosen(kept[order], ends), order, torch.argsort(order))


class FirstSamples(LinearMode):
    """Within it, products with matrices are computed for the first samples; others get zeros."""

    def __init__(self, chosen: Chosen) -> None:
        """`chosen` is that of `kept_first`."""
        super().__init__()
        assert chosen.ends is not None, "the samples are not sorted"
        self._samples, self._end = len(chosen.one), chosen.ends

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Input (B, T, C) or (B, C); what is of no sample is computed as a whole."""
        if input.dim() < 2 or len(input) != self._samples or not groups_product(input, weight):
            return F.linear(input, weight, bias)
        dtype = product_dtype(input)
        flat = _FirstRows.apply(  # type: ignore[no-untyped-call]
            input.to(dtype).flatten(0, -2).contiguous(),
            weight.to(dtype),
            None if bias is None else bias.to(dtype),
            self._end * input.shape[1:-1].numel(),
        )
        y: Tensor = flat.unflatten(0, input.shape[:-1])
        return y


class _FirstRows(torch.autograd.Function):
    """A linear map of the first rows; the others, and their gradients, are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, end: Tensor) -> Tensor:
        """x (N, C), weight (C', C), bias (C') or None, end (1,) int32 -> (N, C')."""
        beyond = torch.arange(len(x), device=x.device)[:, None] >= end
        ctx.save_for_backward(x, weight, end, beyond)
        y = F.grouped_mm(x, weight[None].transpose(1, 2), offs=end)
        if bias is not None:
            y += bias
        return y.masked_fill_(beyond, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, end, beyond = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        gradient = gradient.masked_fill(beyond, 0).contiguous()
        grad_x = grad_weight = None
        if of_x:
            grad_x = F.grouped_mm(gradient, weight[None], offs=end).masked_fill_(beyond, 0)
        if of_weight:  # of no rows, the kernel need not write it either
            grad_weight = F.grouped_mm(gradient.t(), x, offs=end)[0].masked_fill_(end == 0, 0)
        return grad_x, grad_weight, gradient.sum(0) if of_bias else None, None
