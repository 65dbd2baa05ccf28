"""Moving samples between the two branches of a site, with gradients that cost one copy.

What goes apart in the forward pass comes together in the backward pass and the other way round, so
that neither direction adds into zeros; nothing is summed in an order that a GPU may choose. Shape
legend: B batch, T tokens, H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rows = tuple[Tensor, Tensor]


def split_rows(x: Tensor, rows: Rows) -> Rows:
    """x (B, ...) -> the samples in rows[0] and those in rows[1], which together are all."""
    parts: Rows = _Split.apply(*rows, x)  # type: ignore[no-untyped-call]
    return parts


def merge_rows(zero: Tensor, one: Tensor, rows: Rows) -> Tensor:
    """The inverse of `split_rows`."""
    dtype = torch.promote_types(zero.dtype, one.dtype)
    zero, one = zero.to(dtype), one.to(dtype)
    merged: Tensor = _Merge.apply(*rows, zero, one)  # type: ignore[no-untyped-call]
    return merged


def with_zero_gradients(y: Tensor, others: Sequence[Tensor]) -> Tensor:
    """y (…) as it is; in the backward pass the other tensors get gradients of 0."""
    wanted = [other for other in others if other.requires_grad]
    return _ZeroGradients.apply(y, *wanted) if wanted else y  # type: ignore[no-untyped-call]


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, *others: Tensor) -> Tensor:
        ctx.others = [(x.shape, x.dtype, x.device) for x in others]
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(s, dtype=dtype, device=device) for s, dtype, device in ctx.others)
        return grad, *zeros


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_zero: Tensor, rows_one: Tensor, x: Tensor) -> Rows:
        ctx.rows = rows_zero, rows_one
        return x.index_select(0, rows_zero), x.index_select(0, rows_one)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, zero: Tensor, one: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _merged(ctx.rows, zero, one)


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_zero: Tensor, rows_one: Tensor, zero: Tensor, one: Tensor) -> Tensor:
        ctx.rows = rows_zero, rows_one
        return _merged(ctx.rows, zero, one)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
        wanted = zip(ctx.rows, ctx.needs_input_grad[2:], strict=True)
        zero, one = (y.index_select(0, rows) if needed else None for rows, needed in wanted)
        return None, None, zero, one


def _merged(rows: Rows, zero: Tensor, one: Tensor) -> Tensor:
    y = zero.new_empty(len(zero) + len(one), *zero.shape[1:])
    return y.index_copy_(0, rows[0], zero).index_copy_(0, rows[1], one)


def straight_through(y: Tensor, decisions: Tensor, difference: Tensor) -> Tensor:
    """y as it is, as if it were `decisions * one(x) + (1 - decisions) * zero(x)`.

    Args:
        y: (B, T, C), the branch that was chosen.
        decisions: (B, H) of exact 0 / 1, one for each of H equal parts of the channels.
        difference: (B, T, C), one(x) - zero(x); no gradient goes into it.
    """
    same: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
        y, decisions, difference
    )
    return same


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, decisions: Tensor, difference: Tensor) -> Tensor:
        ctx.parts, ctx.dtype = decisions.shape[1], decisions.dtype
        ctx.save_for_backward(difference)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (difference,) = ctx.saved_tensors
        product = (gradient * difference).unflatten(-1, (ctx.parts, -1))
        return gradient, product.sum((1, 3), dtype=ctx.dtype), None
