"""Projections of which every (sample, head) takes those of one of two branches."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from common.adapt.head_projections import project_by_head
from tests.common.adapt.test_row_routing import BATCH, CHANNELS, CHOICES, TOKENS, random, rows_of

HEADS, WIDTH = 2, 2


def projections(learns=(True, True), names=2):
    weights = [
        random(HEADS * WIDTH, CHANNELS, grad=learns[i // names], seed=i) for i in range(2 * names)
    ]
    biases = [random(HEADS * WIDTH, grad=learns[i // names], seed=9 + i) for i in range(2 * names)]
    return weights, biases


ONE_OF_TEN = [rows_of([0, 0, 1, 0, 0]), CHOICES[1]]  # few enough for the others to go together
ROWS = {
    "half": [CHOICES[0], CHOICES[1]],
    "most": [CHOICES[2], CHOICES[0]],
    "few": ONE_OF_TEN,
    "nearly all": [tuple(reversed(both)) for both in ONE_OF_TEN],
}


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_projections_by_head_are_those_of_each_sample_and_pass_gradcheck(rows, names, both):
    x = random(BATCH, TOKENS, CHANNELS)
    weights, biases = projections(names=names)
    found = project_by_head(x, rows, weights, biases, both)
    assert len(found) == (2 * names if both else names)
    assert all(y.shape == (BATCH, HEADS, TOKENS, WIDTH) for y in found)
    assert [y.requires_grad for y in found] == [True] * names + [False] * names * both
    for place, y in enumerate(found):
        other, name = divmod(place, names)
        for head in range(HEADS):
            for value in (0, 1):
                of_branch = F.linear(x, weights[value * names + name], biases[value * names + name])
                of_head = of_branch.unflatten(-1, (HEADS, WIDTH))[:, :, head]
                for sample in rows[head][value ^ other]:
                    torch.testing.assert_close(y[sample, head], of_head[sample])
    assert gradcheck(
        lambda x, *rest: project_by_head(x, rows, rest[: 2 * names], rest[2 * names :], both)[
            :names
        ],
        (x, *weights, *biases),
    )


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_how_the_input_lies_in_memory_changes_no_gradient(rows):
    weights, biases = projections()
    found = []
    for x in (random(TOKENS, BATCH, CHANNELS).detach().transpose(0, 1),) * 2:
        x = (x if found else x.contiguous()).requires_grad_()
        sum(
            y.square().sum() for y in project_by_head(x, rows, weights, biases, both=True)
        ).backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("both", [False, True])
def test_a_projection_that_nothing_reads_gets_a_gradient_of_zero(both):
    x, (weights, biases) = random(BATCH, TOKENS, CHANNELS), projections((False, True))
    project_by_head(x, ONE_OF_TEN, weights, biases, both)[0].sum().backward()
    assert weights[3].grad.abs().sum() == biases[3].grad.abs().sum() == 0
    assert weights[2].grad.abs().sum() > 0


def test_only_the_branch_that_learns_gets_gradients_and_zeros_where_no_sample_chose_it():
    x, (weights, biases) = random(BATCH, TOKENS, CHANNELS), projections((False, True))
    sum(
        y.square().sum() for y in project_by_head(x, [CHOICES[1], CHOICES[0]], weights, biases)
    ).backward()
    assert all(p.grad is None for p in (*weights[:2], *biases[:2]))
    unchosen, chosen = weights[2].grad.unflatten(0, (HEADS, WIDTH))
    assert unchosen.abs().sum() == 0 and chosen.abs().sum() > 0
    assert biases[3].grad[:WIDTH].abs().sum() == 0


@pytest.mark.parametrize("both", [False, True])
def test_projections_by_head_keep_x_once_and_no_copy_of_it_or_of_the_weights(both):
    x, (weights, biases) = random(BATCH, TOKENS, CHANNELS), projections((False, True))
    kept = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.add(t.untyped_storage().data_ptr()), t)[1], lambda t: t
    ):
        project_by_head(x, [CHOICES[0]] * HEADS, weights, biases, both)
    assert kept <= {t.untyped_storage().data_ptr() for t in (x, *weights, *biases)}


def test_under_autocast_both_directions_run_in_low_precision():
    x = torch.randn(BATCH, TOKENS, CHANNELS, requires_grad=True)
    weights, biases = (
        [t.detach().float().requires_grad_() for t in group] for group in projections()
    )
    rows = [CHOICES[0]] * HEADS
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.stack(project_by_head(x, rows, weights, biases))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert x.grad.dtype == weights[2].grad.dtype == torch.float32
    exact = torch.stack(project_by_head(x, rows, weights, biases))
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
