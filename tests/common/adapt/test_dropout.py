"""Masks that both branches share, kept as such: what a CUDA graph can hold."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.adapt import dropout, executors
from common.adapt.adapting import adaptive_part
from common.adapt.dropout import MaskReplay, get_generator_state
from tests.common.tiny_models import BATCH, FAMILIES, adapted

TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")
CPU = torch.device("cpu")


def keep_masks(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(
        executors, "replay_for", lambda device, on, together: MaskReplay(device, on)
    )


def test_the_masks_of_a_key_are_drawn_once():
    replay, x = MaskReplay(CPU, True), torch.ones(4, 50)
    with replay.draw(0):
        first = F.dropout(x, 0.5), F.dropout(x, 0.25)
    state = get_generator_state(CPU)
    with replay.draw(1):
        other = F.dropout(x, 0.5)
    with replay.draw(0):
        again = F.dropout(3 * x, 0.5), F.dropout(x, 0.25)
    assert torch.equal(again[0], 3 * first[0]) and torch.equal(again[1], first[1])
    assert not torch.equal(first[0], other) and not torch.equal(first[0] > 0, first[1] > 0)
    with replay.draw(0):
        assert not torch.equal(get_generator_state(CPU), state)  # by the other key alone
        assert torch.equal(F.dropout(x, 0.5, training=False), x)


def test_what_is_kept_is_scaled_as_torch_does():
    x = torch.randn(200, 300)
    with MaskReplay(CPU, True).draw(0):
        y = F.dropout(x, 0.2)
    kept = y != 0
    assert abs(float(kept.float().mean()) - 0.8) < 0.01
    torch.testing.assert_close(y[kept], x[kept] / 0.8)
    half = x.bfloat16()
    with MaskReplay(CPU, True).draw(0):
        y = F.dropout(half, 0.1)
    kept = y != 0
    torch.testing.assert_close(y[kept], (half[kept].float() / 0.9).bfloat16())


def test_attention_with_kept_masks_is_that_of_torch(monkeypatch):
    q, k, v = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64)
    mask = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    mask[1, ..., 3:] = -10000.0
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with MaskReplay(CPU, True).draw(0), monkeypatch.context() as patch:
        patch.setattr(dropout._Masked, "_dropout", lambda self, x, p: x)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    ones = torch.ones(400, 1, 2, 1, dtype=torch.float64)
    with MaskReplay(CPU, True).draw(0):
        found = F.scaled_dot_product_attention(ones, ones, ones, dropout_p=0.5)
    assert set(found.unique().tolist()) == {0.0, 1.0, 2.0}  # two weights, each dropped or doubled


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("executor", executors.STATIC)
@pytest.mark.parametrize("precision", ["low", "high"])
def test_masks_do_not_teach_the_policy(monkeypatch, family, strategy, executor, precision):
    """Where the branches are the same, so is what they give, and decisions have no gradient."""
    keep_masks(monkeypatch)
    model = adapted(
        family,
        strategy,
        drift=0.0,
        dropout=0.3,
        executor=executor,
        full_precision=precision == "high",
    ).train()
    model = model.float() if precision == "high" else model
    part = adaptive_part(model)
    decisions = (torch.rand(BATCH, len(part.live)) < 0.5).to(next(model.parameters()).dtype)
    decisions.requires_grad_()
    with part.force(decisions), torch.autocast("cpu", torch.bfloat16, enabled=precision == "high"):
        inputs = FAMILIES[family].inputs(BATCH).items()
        own = {k: x.to(decisions.dtype) if x.is_floating_point() else x for k, x in inputs}
        model(**own).double().square().sum().backward()
    assert decisions.grad.abs().max() < 1e-12


@pytest.mark.parametrize("strategy", TWINS)
def test_grouped_and_dense_draw_the_same_masks(monkeypatch, strategy):
    keep_masks(monkeypatch)
    found = []
    for executor in executors.STATIC:
        model = adapted("lxmert", strategy, dropout=0.3, drift=0.2, executor=executor).train()
        part = adaptive_part(model)
        torch.manual_seed(6)
        decisions = (torch.rand(BATCH, len(part.live), dtype=torch.float64) < 0.5).double()
        decisions.requires_grad_()
        with part.force(decisions):
            model(**FAMILIES["lxmert"].inputs(BATCH)).square().sum().backward()
        found.append([decisions.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
