"""Splitting and merging rows, the straight-through gradient, and projections by head."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from common.adapt.row_routing import merge_rows, project_by_head, split_rows, straight_through

BATCH, TOKENS, HEADS, WIDTH, CHANNELS = 5, 3, 2, 2, 4


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


def projections(learns=(True, True), names=2):
    weights = [
        random(HEADS * WIDTH, CHANNELS, grad=learns[i // names], seed=i) for i in range(2 * names)
    ]
    biases = [random(HEADS * WIDTH, grad=learns[i // names], seed=9 + i) for i in range(2 * names)]
    return weights, biases


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("rows", [[CHOICES[0], CHOICES[1]], [CHOICES[2], CHOICES[0]]])
def test_projections_by_head_are_those_of_each_sample_and_pass_gradcheck(rows, names):
    x = random(BATCH, TOKENS, CHANNELS)
    weights, biases = projections(names=names)
    found = project_by_head(x, rows, weights, biases)
    assert found.shape == (names, BATCH, HEADS, TOKENS, WIDTH)
    for name in range(names):
        for head in range(HEADS):
            for value in (0, 1):
                y = F.linear(x, weights[value * names + name], biases[value * names + name])
                y = y.unflatten(-1, (HEADS, WIDTH))[:, :, head]
                for sample in rows[head][value]:
                    torch.testing.assert_close(found[name, sample, head], y[sample])
    assert gradcheck(
        lambda x, *rest: project_by_head(x, rows, rest[: 2 * names], rest[2 * names :]),
        (x, *weights, *biases),
    )


def test_only_the_branch_that_learns_gets_gradients_and_zeros_where_no_sample_chose_it():
    x, (weights, biases) = random(BATCH, TOKENS, CHANNELS), projections((False, True))
    project_by_head(x, [CHOICES[1], CHOICES[0]], weights, biases).square().sum().backward()
    assert all(p.grad is None for p in (*weights[:2], *biases[:2]))
    unchosen, chosen = weights[2].grad.unflatten(0, (HEADS, WIDTH))
    assert unchosen.abs().sum() == 0 and chosen.abs().sum() > 0
    assert biases[3].grad[:WIDTH].abs().sum() == 0


def test_projections_by_head_keep_x_once_and_no_copy_of_it_or_of_the_weights():
    x, (weights, biases) = random(BATCH, TOKENS, CHANNELS), projections((False, True))
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.add(t.untyped_storage().data_ptr()), t)[1], lambda t: t
    ):
        project_by_head(x, [CHOICES[0]] * HEADS, weights, biases)
    assert kept <= {t.untyped_storage().data_ptr() for t in (x, *weights, *biases)}


def test_under_autocast_both_directions_run_in_low_precision():
    x = torch.randn(BATCH, TOKENS, CHANNELS, requires_grad=True)
    weights, biases = (
        [t.detach().float().requires_grad_() for t in group] for group in projections()
    )
    rows = [CHOICES[0]] * HEADS
    with torch.autocast("cpu", torch.bfloat16):
        y = project_by_head(x, rows, weights, biases)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype == weights[2].grad.dtype == torch.float32
    exact = project_by_head(x, rows, weights, biases)
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
