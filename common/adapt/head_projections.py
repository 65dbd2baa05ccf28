"""Projections of which every (sample, head) takes those of one of two branches.

In evaluation, and where nothing learns from the other branch, each head projects its samples by
themselves. Where the other branch is needed as well, the two together are both branches on all
samples: two plain products, of which each (sample, head) is given one. In the backward pass the
gradient into the branch that was not chosen is 0, so that the products are those of the chosen
ones: head by head, or, for a branch that most have chosen, one product with zeros elsewhere, which
a CPU multiplies sooner than it gathers. Shape legend: B batch, T tokens, H heads, C channels,
c channels of a head, n projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.adapt.row_routing import Rows
from common.modules.packing import PackedWeights, active_packing, pack, packed_linear

FEW = 0.25  # share of the (sample, head) pairs below which the other branch is computed whole
Parameters = list[tuple[Tensor, Tensor]]  # weight (H * c, C) and bias (H * c) of n projections


def project_by_head(
    x: Tensor,
    rows: Sequence[Rows],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    both: bool = False,
) -> tuple[Tensor, ...]:
    """Project x with weights of one of two branches for every (sample, head).

    Args:
        x: (B, T, C).
        rows: for every head the samples that take branch 0 and those that take branch 1.
        weights, biases: of branch 0, then those of branch 1: n matrices (H * c, C) and n
            vectors (H * c) each.
        both: whether the projections of the branch that was not chosen are wanted too.

    Returns:
        n tensors (B, H, T, c); with `both` n more, of the other branch, without gradients.
    """
    packing = None if both else active_packing(x, weights[0])
    if packing is not None:
        found = _from_packed(x, rows, weights, biases, packing)
        return tuple(y.transpose(1, 2) for y in found)
    tensors = (x, *weights, *biases)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        # Autocast does not reach into the backward pass of a function of our own.
        tensors = tuple(t.to(torch.get_autocast_dtype(x.device.type)) for t in tensors)
    routed: tuple[Tensor, ...] = _ProjectByHead.apply(  # type: ignore[no-untyped-call]
        rows, both, *tensors
    )
    return tuple(y.transpose(1, 2) for y in routed)


class _ProjectByHead(torch.autograd.Function):
    """n, or 2 n, tensors (B, T, H, c).

    Autograd would keep a copy of x for every head, and add up a gradient for every one.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Sequence[Rows], both: bool, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.rows = rows
        ctx.save_for_backward(x, *parameters)
        ctx.set_materialize_grads(False)
        branches = _branches(parameters)
        if not both:
            return _gathered(x, rows, branches)
        taken = _heads_of_branch(rows, 1, len(x))
        zeros, ones = (
            [F.linear(x, *pair).unflatten(-1, (len(rows), -1)) for pair in branch]
            for branch in branches
        )
        pairs = list(zip(zeros, ones, strict=True))
        chosen = [torch.where(taken, one, zero) for zero, one in pairs]
        others = [torch.where(taken, zero, one) for zero, one in pairs]
        ctx.mark_non_differentiable(*others)
        return (*chosen, *others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        rows, branches = ctx.rows, _branches(parameters)
        count = len(branches[0])
        heads = len(rows)
        given = [
            x.new_zeros(*x.shape[:2], heads, len(weight) // heads) if y is None else y
            for y, (weight, _) in zip(gradients[:count], branches[0], strict=True)
        ]
        learns = ctx.needs_input_grad[3 : 3 + 2 * count : count]  # each branch does or does not
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        most = _taken_by_most(rows, len(x))
        grads: list[list[Tensor] | list[None]] = []
        for value in (0, 1):
            into: Parameters | None = None
            if learns[value]:
                into = [(torch.empty_like(w), torch.empty_like(b)) for w, b in branches[value]]
            weights = [weight for weight, _ in branches[value]]
            if value == most:
                _whole_gradient(
                    x, _heads_of_branch(rows, value, len(x)), given, weights, grad_x, into
                )
            else:
                chosen = [both[value] for both in rows]
                _gathered_gradient(x, chosen, given, weights, grad_x, into)
            for kind in (0, 1):
                grads.append([None] * count if into is None else [pair[kind] for pair in into])
        ordered = (grads[0], grads[2], grads[1], grads[3])  # weights first
        return None, None, grad_x, *(p for group in ordered for p in group)


def _branches(parameters: Sequence[Tensor]) -> tuple[Parameters, Parameters]:
    """Weights and biases of branch 0 and of branch 1."""
    half = len(parameters) // 2
    pairs = list(zip(parameters[:half], parameters[half:], strict=True))
    return pairs[: half // 2], pairs[half // 2 :]


def _heads_of_branch(rows: Sequence[Rows], value: int, batch: int) -> Tensor:
    """(B, 1, H, 1) bool: which (sample, head) takes the branch."""
    chosen = torch.zeros(len(rows), batch, dtype=torch.bool, device=rows[0][value].device)
    for head, both in enumerate(rows):
        chosen[head].index_fill_(0, both[value], True)
    return chosen.T[:, None, :, None]


def _taken_by_most(rows: Sequence[Rows], batch: int) -> int | None:
    """The branch that nearly all (sample, head) pairs take, if there is one."""
    share = sum(len(one) for _, one in rows) / (batch * len(rows))
    return 0 if share <= FEW else 1 if share >= 1 - FEW else None


def _gathered(
    x: Tensor, rows: Sequence[Rows], branches: tuple[Parameters, Parameters]
) -> tuple[Tensor, ...]:
    """Each head projects its samples of either branch: n tensors (B, T, H, c)."""
    heads, width, count = len(rows), len(branches[0][0][0]) // len(rows), len(branches[0])
    y = x.new_empty(heads, *x.shape[:2], count, width)
    for head, both in enumerate(rows):
        of_head = slice(head * width, (head + 1) * width)
        for chosen, branch in zip(both, branches, strict=True):
            part = x.index_select(0, chosen).flatten(0, 1)
            found = y.new_empty(len(part), count, width)
            for place, (weight, bias) in enumerate(branch):
                torch.addmm(bias[of_head], part, weight[of_head].T, out=found[:, place])
            y[head].index_copy_(0, chosen, found.unflatten(0, (-1, x.shape[1])))
    return y.permute(3, 1, 2, 0, 4).unbind(0)


def _from_packed(
    x: Tensor,
    rows: Sequence[Rows],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packing: PackedWeights,
) -> tuple[Tensor, ...]:
    """As `_gathered`, with the weights of every head laid out by `packing`."""
    heads, count = len(rows), len(weights) // 2

    def by_head(parameters: Sequence[Tensor]) -> Tensor:
        """(H, n * c, …): the n projections of a head beside each other."""
        return torch.cat([p.detach().unflatten(0, (heads, -1)) for p in parameters], 1)

    def branch(part: slice) -> list[tuple[Tensor, Tensor]]:
        """By head the laid out weights and the biases."""
        own = weights[part]
        packed = packing.kept(("heads", heads), own, lambda: [*map(pack, by_head(own))])
        return list(zip(packed, by_head(biases[part]), strict=True))

    branches = branch(slice(count)), branch(slice(count, None))
    y = x.new_empty(heads, *x.shape[:2], len(weights[0]) // heads * count)
    for head, both in enumerate(rows):
        for chosen, by_place in zip(both, branches, strict=True):
            if len(chosen):
                part = packed_linear(x.index_select(0, chosen), *by_place[head])
                y[head].index_copy_(0, chosen, part)
    by_projection: Tensor = y.unflatten(-1, (count, -1))
    return by_projection.permute(3, 1, 2, 0, 4).unbind(0)


def _gathered_gradient(
    x: Tensor,
    chosen: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    grad_x: Tensor,
    into: Parameters | None,
) -> None:
    """The gradient of one branch, head by head.

    Args:
        x: (B, T, C).
        chosen: for every head the samples that take the branch.
        gradients: n times (B, T, H, c).
        weights: n times (H * c, C).
        grad_x: (B, T, C), to which that of x is added.
        into: receives those of weights and biases; None: they do not learn.
    """
    for head, samples in enumerate(chosen):
        rows = None if into is None else x.index_select(0, samples).flatten(0, 1)
        added = x.new_zeros(len(samples) * x.shape[1], x.shape[2])
        for place, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
            width = gradient.shape[-1]
            of_head = slice(head * width, (head + 1) * width)
            part = gradient[:, :, head].index_select(0, samples).flatten(0, 1)
            added.addmm_(part, weight[of_head])
            if into is not None and rows is not None:
                torch.mm(part.T, rows, out=into[place][0][of_head])
                torch.sum(part, 0, out=into[place][1][of_head])
        grad_x.index_add_(0, samples, added.unflatten(0, (-1, x.shape[1])))


def _whole_gradient(
    x: Tensor,
    taken: Tensor,
    gradients: Sequence[Tensor],
    weights: Sequence[Tensor],
    grad_x: Tensor,
    into: Parameters | None,
) -> None:
    """As `_gathered_gradient`, with zeros where a (sample, head) did not take the branch.

    `taken` (B, 1, H, 1) says where it did.
    """
    flat = grad_x.flatten(0, 1)
    for place, (gradient, weight) in enumerate(zip(gradients, weights, strict=True)):
        part = torch.where(taken, gradient, 0).flatten(2).flatten(0, 1)
        flat.addmm_(part, weight)
        if into is not None:
            torch.mm(part.T, x.flatten(0, 1), out=into[place][0])
            torch.sum(part, 0, out=into[place][1])
