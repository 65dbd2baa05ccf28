"""The two branches of a site as two experts: products by group, parameters used in unknown ways.

That the executor `grouped` is `dense` is in test_identities.py and its neighbours, with products of
both matrices; here they are computed group by group, which the CPU can do in float32 and bfloat16.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.adapt import experts
from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions
from common.adapt.experts import Chosen, Experts, UnknownUse, arrange, grouped_linear
from tests.common.tiny_models import (
    BATCH,
    FAMILIES,
    SingleStream,
    adapted,
    drift_layers,
    gradients,
    random_decisions,
)

TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")


@pytest.fixture
def by_group(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products are computed group by group; the number of samples of each that was."""
    counted: list[int] = []
    linear = grouped_linear

    def watched(x, pairs, ends):
        counted.append(len(x))
        return linear(x, pairs, ends)

    monkeypatch.setattr(experts, "groups", lambda x: True)
    monkeypatch.setattr(experts, "grouped_linear", watched)
    return counted


def wide(strategy: str, executor: str) -> nn.Module:
    """A single stream whose matrices the kernels take in bfloat16."""
    torch.manual_seed(3)
    model = SingleStream(channels=32, heads=4).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    adapt(model, strategy, "small", options=AdaptiveOptions(executor=executor))
    drift_layers(model, 0.1)
    return model


def step(model: nn.Module, family: str = "single", autocast: bool = False):
    """Logits, gradients and the gradient of the decisions, in float32."""
    model = model.float().train()
    part = adaptive_part(model)
    decisions = random_decisions(model).float()
    decisions[:, 0], decisions[:, 1] = 0.0, 1.0  # sites where everybody chooses alike
    decisions.requires_grad_()
    inputs = {
        k: v.float() if v.is_floating_point() else v
        for k, v in FAMILIES[family].inputs(BATCH).items()
    }
    with part.force(decisions), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(**inputs)
    logits.float().square().sum().backward()
    return logits.detach().float(), gradients(model), decisions.grad


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", TWINS)
def test_products_by_group_are_those_of_dense(by_group, family, strategy):
    grouped, grads, policy = step(adapted(family, strategy, executor="grouped"), family)
    assert by_group, "nothing was computed by group"
    del by_group[:]
    dense_model = adapted(family, strategy, executor="dense")
    dense, dense_grads, dense_policy = step(dense_model, family)
    assert not by_group
    torch.testing.assert_close(grouped, dense, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy, dense_policy, rtol=2e-4, atol=1e-5)
    for name, wanted in dense_grads.items():
        assert (wanted is None) == (grads[name] is None), name
        if wanted is not None:
            torch.testing.assert_close(grads[name], wanted, rtol=2e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("strategy", TWINS)
def test_in_bfloat16_they_are_as_near_to_float32_as_those_of_dense(by_group, strategy):
    exact, exact_grads, _ = step(wide(strategy, "dense"))
    errors = {}
    for executor in ("grouped", "dense"):
        logits, grads, _ = step(wide(strategy, executor), autocast=True)
        assert bool(by_group) or executor == "dense"
        distance = sum(
            float((grads[n] - g).square().sum()) for n, g in exact_grads.items() if g is not None
        )
        errors[executor] = torch.tensor([float((logits - exact).norm()), distance**0.5])
    assert (errors["grouped"] < 1.5 * errors["dense"]).all(), errors


def test_rows_are_sorted_by_expert_and_come_back(by_group):
    decisions = torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.0]])
    x = torch.arange(5.0)[:, None, None]
    found = arrange(decisions, {"x": x, "mask": None})
    assert found.chosen.ends.tolist() == [3, 5]
    assert found.arranged({"x": x, "mask": None})["x"].flatten().tolist() == [1, 3, 4, 0, 2]
    assert found.arranged({"x": x, "mask": None})["mask"] is None
    assert found.back(found.arranged({"x": x}))["x"].equal(x)


def test_a_use_that_is_not_known_is_refused_by_name():
    module, twin = nn.Linear(3, 3), nn.Linear(3, 3)
    chosen = Chosen(torch.tensor([True, False]))
    with Experts(module, twin, chosen, flip=False):
        assert module.weight.shape == (3, 3) and module.weight.requires_grad
        with pytest.raises(UnknownUse, match="matmul.*--executor exact"):
            torch.matmul(torch.ones(2, 3), module.weight)
    other, x = nn.Linear(3, 3), torch.randn(2, 4, 3)
    with Experts(module, twin, chosen, flip=False):
        found, plain = module(x), other(x)
    torch.testing.assert_close(plain, other(x))
    torch.testing.assert_close(found, torch.stack([module(x)[0], twin(x)[1]]))
