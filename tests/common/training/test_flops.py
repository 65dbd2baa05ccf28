"""Counted operations against those counted by hand, whatever way a layer takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.attention import set_attention
from common.adapt.encoder import AdaptiveOptions
from common.modules.attention import AttentionOptions
from common.modules.packing import CHANNELS, PackedWeights
from common.training.flops import FlopCounter
from tests.common.tiny_models import FAMILIES, pretrained, random_decisions, run

B, H, T, S, C = 2, 4, 5, 7, 6
ATTENTION = 2 * 2 * B * H * T * S * C  # two products, two operations each


def heads(*sizes: int) -> torch.Tensor:
    return torch.randn(B, H, *sizes, requires_grad=True)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_a_cpu_counts(grad, masked):
    mask = torch.zeros(B, 1, 1, S) if masked else None
    with grad(), FlopCounter() as counter:
        nn.functional.scaled_dot_product_attention(
            heads(T, C), heads(S, C), heads(S, C), attn_mask=mask
        )
    assert counter.total == ATTENTION


def test_the_backward_pass_of_attention_counts_its_five_products():
    q, k, v = heads(T, C), heads(S, C), heads(S, C)
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    with FlopCounter() as counter:
        y.sum().backward()
    assert counter.total == ATTENTION // 2 * 5  # the scores again, and four gradients


def test_a_linear_layer_counts_a_multiplication_and_an_addition_and_no_activation():
    layer = nn.Sequential(nn.Linear(C, 3 * C), nn.GELU(), nn.LayerNorm(3 * C))
    with torch.no_grad(), FlopCounter() as counter:
        layer(torch.randn(B, T, C))
    assert counter.total == 2 * B * T * C * 3 * C


@pytest.mark.parametrize("computed", [6, 5])
def test_products_by_group_count_every_row_of_a_group_once_forward_and_backward(computed):
    rows, groups, width = 6, 2, 16
    x = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(groups, width, 8, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([2, computed], dtype=torch.int32)
    with FlopCounter() as counter:
        y = nn.functional.grouped_mm(x, weights, offs=ends)
        forward = counter.total
        y.backward(torch.ones_like(y))
    assert forward == 2 * computed * width * 8 and counter.total == 3 * forward


def operations(family: str, strategy: str, mechanism: str = "softmax", **options) -> int:
    """Of an evaluation with half of the decisions 1, made from outside."""
    torch.manual_seed(3)
    model = pretrained(family)
    set_attention(model, AttentionOptions(mechanism))
    adapt(model, strategy, options=AdaptiveOptions(**options))
    part = adaptive_part(model.eval())
    with torch.no_grad(), FlopCounter() as counter:
        if part is None:
            run(model, family)
        else:
            with part.force(random_decisions(model)):
                run(model, family)
    return counter.total


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_through_a_layer_counts_the_same(family):
    """Torch's attention, our own products for a mechanism, and routed layers and heads: a sample
    takes one branch at every site."""
    plain = operations(family, "standard")
    assert operations(family, "standard", "sparsemax") == plain
    for strategy in ("SpotTune_Block", "SpotTune"):
        assert operations(family, strategy) == plain
        assert operations(family, strategy, eval_executor="dense") > 1.5 * plain
    assert operations(family, "BlockDrop") < 0.8 * plain


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_product_with_a_weight_that_was_laid_out_counts_as_it_did():
    layer, x = nn.Linear(CHANNELS, CHANNELS + 32), torch.randn(3, 16, CHANNELS)
    with torch.no_grad(), PackedWeights() as packed, FlopCounter() as counter:
        layer(x)
    assert packed.bytes and counter.total == 2 * 3 * 16 * CHANNELS * (CHANNELS + 32)
