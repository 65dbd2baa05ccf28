"""Splitting and merging rows, and the straight-through gradient."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from common.adapt.row_routing import merge_rows, split_rows, straight_through

BATCH, TOKENS, CHANNELS = 5, 3, 4


def random(*shape, grad=True, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def rows_of(decisions):
    return tuple((torch.tensor(decisions) == value).nonzero().squeeze(1) for value in (0, 1))


CHOICES = [rows_of(d) for d in ([0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1])]


@pytest.mark.parametrize("rows", CHOICES)
def test_split_then_merge_is_the_identity_and_both_pass_gradcheck(rows):
    x = random(BATCH, TOKENS)
    zero, one = split_rows(x, rows)
    assert (len(zero), len(one)) == (len(rows[0]), len(rows[1]))
    assert torch.equal(merge_rows(zero, one, rows), x)
    assert gradcheck(
        lambda x: merge_rows(2 * split_rows(x, rows)[0], split_rows(x, rows)[1] ** 2, rows), x
    )


def test_merging_promotes_to_the_wider_type_and_gives_each_branch_a_gradient_of_its_own():
    zero, one = torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(3, 3, requires_grad=True)
    y = merge_rows(zero.requires_grad_(), one, CHOICES[0])
    assert y.dtype == torch.float32
    y.sum().backward()
    assert zero.grad.dtype == torch.bfloat16 and one.grad.dtype == torch.float32


@pytest.mark.parametrize("heads", [1, 2])
def test_straight_through_is_the_chosen_branch_with_the_gradient_of_the_blend(heads):
    zero, one = random(BATCH, TOKENS, CHANNELS), random(BATCH, TOKENS, CHANNELS, seed=1)
    decisions = torch.tensor(
        [[0.0] * heads, [1.0] * heads] * 2 + [[1.0] + [0.0] * (heads - 1)], dtype=torch.float64
    ).requires_grad_()
    wide = decisions.repeat_interleave(CHANNELS // heads, 1)[:, None]
    blend = wide * one + (1 - wide) * zero
    weights = random(BATCH, TOKENS, CHANNELS, grad=False, seed=2)
    (expected,) = torch.autograd.grad((blend * weights).sum(), decisions)
    y = blend.detach().requires_grad_()
    out = straight_through(y, decisions, (one - zero).detach())
    assert torch.equal(out, y)
    (out * weights).sum().backward()
    torch.testing.assert_close(decisions.grad, expected)
    assert torch.equal(y.grad, weights)
