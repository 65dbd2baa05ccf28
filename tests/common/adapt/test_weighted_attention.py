"""Keys and heads outside every span are not computed in evaluation, and nothing changes by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.adapt.attention import set_attention
from common.adapt.weighted_attention import head_groups
from common.modules.attention import AdaptiveSpan, AttentionOptions
from tests.common.tiny_models import FAMILIES, pretrained, run

NORMALISERS = ("softmax", "entmax15", "entmax")


def spanned(family: str, shares: list[float], **options: object) -> nn.Module:
    """With these spans, in turn, for the heads of every module, in evaluation mode."""
    model = pretrained(family)
    set_attention(model, AttentionOptions(**{"span": "keys", "ramp": 0.05} | options))
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            wanted = torch.tensor([shares[i % len(shares)] for i in range(len(module.span))])
            module.span.data.copy_(wanted.double())
    return model.eval()


def whole(model: nn.Module, family: str) -> torch.Tensor:
    """With all keys, as in training."""
    model.train()
    found = run(model, family)
    model.eval()
    return found


def flops(model: nn.Module, family: str) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(model, family)
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("shares", [[0.0], [0.0, 0.4, 1.0], [0.3, 0.3, 0.9], [1.0]])
def test_a_cut_is_exact(family, normaliser, shares):
    model = spanned(family, shares, normaliser=normaliser)
    torch.testing.assert_close(run(model, family), whole(model, family), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_shorter_spans_cost_less(family):
    found = [flops(spanned(family, shares), family) for shares in ([1.0], [0.0, 1.0, 0.0], [0.0])]
    assert found[0] > found[1] > found[2]


def test_a_span_of_one_key_asks_nothing():
    """Queries and keys are not projected: 9 queries and keys, 12 channels, 3 heads."""
    model = spanned("single", [0.0])
    attention = model.encoder.layer[0].attention.self
    called = []
    for name in ("query", "key"):
        getattr(attention, name).register_forward_hook(lambda *_, n=name: called.append(n))
    run(model, "single")
    assert called == []


def test_spans_that_are_read_are_cut_by_the_longest_of_the_batch():
    model = spanned("lxmert", [0.1], span_policy=True)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            shape = module.shift.weight.shape
            module.shift.weight.data += torch.randn(shape, generator=generator).double()
    torch.testing.assert_close(run(model, "lxmert"), whole(model, "lxmert"), rtol=1e-8, atol=1e-9)


def test_spans_around_queries_are_not_cut():
    model = spanned("single", [0.0])
    alone = pretrained("lxmert")
    set_attention(alone, AttentionOptions(span="distance", ramp=0.05, initial_span=0.0))
    torch.testing.assert_close(
        run(alone.eval(), "lxmert"), whole(alone, "lxmert"), rtol=1e-8, atol=1e-9
    )
    weights = alone.bert.encoder.layer[0].attention.self.weighting
    assert weights.reaches(None, 20) is None
    assert model.encoder.layer[0].attention.self.weighting.reaches(None, 20) == [1, 1, 1]


def test_a_span_that_has_changed_is_looked_up_again():
    model = spanned("single", [0.0])
    weights = model.encoder.layer[0].attention.self.weighting
    assert weights.reaches(None, 9) == [1, 1, 1]
    weights.load_state_dict({"span.span": torch.tensor([0.0, 0.5, 1.0]).double()})
    assert weights.reaches(None, 9) == [1, 6, 9]


@pytest.mark.parametrize(
    ("reaches", "groups"),
    [
        ([9, 9, 9], [([0, 1, 2], 9)]),
        ([3, 9, 1], [([2], 1), ([0], 3), ([1], 9)]),
        ([1, 1, 1], [([0, 1, 2], 1)]),
        ([8, 9, 9], [([0, 1, 2], 9)]),
        ([2, 3, 12, 5], [([0, 1, 3], 5), ([2], 12)]),
        ([2, 3, 12, 11], [([0, 1, 2, 3], 12)]),
    ],
)
def test_heads_of_like_reach_are_computed_together(reaches, groups):
    assert head_groups(reaches) == groups
