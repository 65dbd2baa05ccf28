"""The difference of two branches in low precision, against float64."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.differences import Differences
from common.adapt.encoder import AdaptiveOptions, run_steps
from common.adapt.experts import UnknownUse
from common.adapt.steps import ExpandStep, bert_steps
from common.modules.layers import BertLayer
from tests.common.tiny_models import SingleStream, single_inputs

WIDTH = 32
# Of the difference, whatever the weights' drift: products, of a few factors, are rounded.
LIMITS = {torch.bfloat16: 8e-3, torch.float16: 2e-3}


def two_layers(drift: float, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """A layer whose weights have moved, and as it was; float64."""
    torch.manual_seed(3)
    layer = BertLayer(WIDTH, 4, 2 * WIDTH, dropout, dropout).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    twin = deepcopy(layer)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * drift)
    return layer, twin


def state_of() -> dict[str, Tensor | None]:
    torch.manual_seed(5)
    mask = torch.zeros(4, 1, 1, 9, dtype=torch.float64)
    mask[1, ..., 6:] = -10000.0
    x = torch.randn(4, 9, WIDTH, dtype=torch.float64)
    return {"hidden": x, "hidden.mask": mask, "pair": None}


def single(state: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {slot: None if x is None else x.float() for slot, x in state.items()}


def propagated(layer: nn.Module, twin: nn.Module, dtype: torch.dtype | None, steps=None) -> Tensor:
    layer, twin = deepcopy(layer).float(), deepcopy(twin).float()
    torch.manual_seed(7)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        Differences(layer, twin) as differences,
    ):
        written = run_steps(steps or bert_steps("hidden"), layer, single(state_of()))
    return differences.of(written["hidden"]).double()


def subtracted(layer: nn.Module, twin: nn.Module, steps=None) -> Tensor:
    found = []
    for branch in (layer, twin):
        torch.manual_seed(7)
        with torch.no_grad():
            found.append(run_steps(steps or bert_steps("hidden"), branch, state_of())["hidden"])
    return found[0] - found[1]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("drift", [1.0, 1e-1, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", LIMITS)
def test_the_error_is_relative_to_the_difference_at_any_drift(drift, dtype):
    layer, twin = two_layers(drift)
    # Weights in float32 say their drift to 1e-7 of themselves.
    limit = LIMITS[dtype] + 1e-7 / drift
    assert error(propagated(layer, twin, dtype), subtracted(layer, twin)) < limit


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("drift", [1.0, 1e-2])
def test_in_float32_it_is_the_difference(drift, narrow):
    layer, twin = two_layers(drift)
    steps = tuple(bert_steps("hidden"))
    if narrow:
        steps = tuple(step.__class__(**vars(step) | {"first_only": True}) for step in steps)
    found, wanted = propagated(layer, twin, None, steps), subtracted(layer, twin, steps)
    assert found.shape[1] == (1 if narrow else 9)
    assert error(found, wanted) < 1e-6 / drift


def test_dropout_masks_are_those_that_the_branches_draw():
    layer, twin = (module.train() for module in two_layers(1e-2, dropout=0.3))
    found = propagated(layer, twin, torch.bfloat16)
    assert error(found, subtracted(layer, twin)) < 0.02
    assert error(found, subtracted(layer.eval(), twin.eval())) > 0.2


@pytest.mark.parametrize("function", [F.relu, F.silu, torch.tanh, F.gelu])
def test_other_activations_go_element_by_element(function):
    layer, twin = two_layers(1e-2)
    steps = tuple(bert_steps("hidden", activation=function))
    found = propagated(layer, twin, torch.bfloat16, steps)
    assert error(found, subtracted(layer, twin, steps)) < 0.02


def strange(x: Tensor) -> Tensor:
    return torch.cumsum(x, -1)


def test_what_has_no_form_is_said_and_computed_in_float32(recwarn):
    layer, twin = two_layers(1e-2)
    with pytest.raises(UnknownUse, match="cumsum"):
        propagated(layer, twin, torch.bfloat16, tuple(bert_steps("hidden", activation=strange)))

    torch.manual_seed(3)
    model = SingleStream()
    encoder = model.encoder
    layers = [
        type(one)(**vars(one) | {"steps": tuple(strangely(step) for step in one.steps)})
        for one in encoder.layers()
    ]
    encoder.layers = lambda: layers
    adapt(model, "SpotTune_Block", "small", options=AdaptiveOptions(full_precision=True))
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(**single_inputs(2)).sum().backward()
    assert any("difference is computed in float32: cumsum" in str(w.message) for w in recwarn)
    assert adaptive_part(model) is not None


def strangely(step):
    """The same step with an activation that is not known."""
    if isinstance(step, ExpandStep):
        return step.__class__(**vars(step) | {"activation": strange})
    return step
