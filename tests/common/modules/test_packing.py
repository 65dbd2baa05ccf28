"""Products with weights that were laid out once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.modules import packing
from common.modules.packing import PackedWeights, packed_weights

WIDTH = packing.CHANNELS
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def linear(inputs=WIDTH, outputs=WIDTH + 16, bias=True):
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias=bias)


def rows(*shape, width=WIDTH):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, width, generator=generator)


def exact(layer, x):
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def assert_is_product(y, layer, x):
    torch.testing.assert_close(y.double(), exact(layer, x), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "x",
    [rows(40), rows(3, 7), rows(16, 20)[:, :1], rows(4, 5).transpose(0, 1)],
    ids=["plain", "batch", "first positions", "transposed"],
)
@torch.no_grad()
def test_products_are_those_of_the_weights_but_for_rounding(x, bias):
    layer = linear(bias=bias)
    with PackedWeights() as packed:
        y = layer(x)
    assert packed.bytes == layer.weight.numel() * 4
    assert y.shape == (*x.shape[:-1], WIDTH + 16) and y.dtype == torch.float32
    assert_is_product(y, layer, x)


@needs_onednn
@torch.no_grad()
def test_a_weight_is_laid_out_once_for_all_batches(monkeypatch):
    calls = []
    pack = packing.pack
    monkeypatch.setattr(packing, "pack", lambda weight: (calls.append(1), pack(weight))[1])
    layer, other, packed = linear(), linear(outputs=WIDTH), PackedWeights()
    for _ in range(3):
        with packed:
            layer(rows(8))
            other(rows(8))
    assert len(calls) == 2


def fused_step(layer):
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        loss = F.linear(rows(8), layer.weight, layer.bias).square().sum()
    loss.backward()
    optimizer.step()


def loaded(layer):
    layer.load_state_dict({name: x + 1 for name, x in layer.state_dict().items()})


def assigned(layer):
    state = {name: x + 1 for name, x in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def one_number(layer):
    with torch.no_grad():
        layer.weight[3, 5] += 10


CHANGES = {
    "fused optimiser": fused_step,  # which torch does not count as a change in place
    "loaded": loaded,
    "loaded by assignment": assigned,
    "one number": one_number,
    "behind torch's back": lambda layer: layer.weight.data.mul_(2),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
    "other parameter": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight + 1)),
}


@needs_onednn
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_changed_are_never_taken_as_they_were(change, within):
    layer, packed, x = linear(), PackedWeights(), rows(8)
    with torch.no_grad(), packed:
        before = layer(x)
    with packed if within else nullcontext():
        change(layer)
    with torch.no_grad(), packed:
        after = layer(x)
    assert (after - before).abs().max() > 0.1
    with torch.no_grad():
        assert_is_product(after, layer, x)


@needs_onednn
def test_training_goes_on_as_ever_and_gives_the_memory_back():
    layer, packed, x = linear(), PackedWeights(), rows(8)
    with packed, torch.no_grad():
        layer(x)
    assert packed.bytes > 0
    with packed:
        y = layer(x)
    assert packed.bytes == 0
    assert torch.equal(y, layer(x))
    assert y.grad_fn is not None


NARROW = linear(WIDTH - 1)


@pytest.mark.parametrize(
    ("layer", "x", "context"),
    [
        (linear().double(), rows(8).double(), nullcontext()),
        (linear().bfloat16(), rows(8).bfloat16(), nullcontext()),
        (linear(), rows(8), torch.autocast("cpu", torch.bfloat16)),
        (NARROW, rows(8, width=WIDTH - 1), nullcontext()),
        (linear(), rows(packing.ROWS - 1), nullcontext()),
    ],
    ids=["float64", "bfloat16", "autocast", "narrow", "few rows"],
)
@torch.no_grad()
def test_what_gains_nothing_is_computed_bit_for_bit_as_ever(layer, x, context):
    with context:
        expected = layer(x)
        with PackedWeights() as packed:
            found = layer(x)
    assert torch.equal(found, expected) and packed.bytes == 0


@torch.no_grad()
def test_a_tensor_that_is_no_parameter_is_not_kept():
    with PackedWeights() as packed:
        for _ in range(2):
            F.linear(rows(8), torch.randn(WIDTH, WIDTH))
    assert packed.bytes == 0


def test_small_models_are_left_alone():
    assert isinstance(packed_weights(nn.Linear(128, 512)), nullcontext)
    if torch.backends.mkldnn.is_available():
        assert isinstance(packed_weights(linear()), PackedWeights)
        assert isinstance(packed_weights(linear().double()), nullcontext)


@needs_onednn
@torch.no_grad()
def test_a_bias_that_does_not_lie_in_one_piece_and_words_of_the_arguments_are_those_of_torch():
    layer = linear()
    layer.bias = nn.Parameter(torch.randn(2 * (WIDTH + 16))[::2])
    x = rows(40)
    with PackedWeights():
        assert_is_product(layer(x), layer, x)
        assert_is_product(F.linear(input=x, weight=layer.weight, bias=layer.bias), layer, x)
        plain = F.linear(x, layer.weight, torch.ones(1))
    torch.testing.assert_close(plain, F.linear(x, layer.weight) + 1)
