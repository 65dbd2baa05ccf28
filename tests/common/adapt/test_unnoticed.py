"""Mistakes in the core that no other test noticed once: each has its own here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.budget import BudgetOptions, budget_losses
from common.adapt.encoder import AdaptiveOptions
from common.adapt.gumbel import keyed_uniform
from common.adapt.policy import SmallPolicy
from common.adapt.steps import DenseStep, Layer, bert_steps, live_steps
from common.adapt.strategies import find_strategy, plan_sites
from common.errors import ConfigError
from common.modules.layers import BertLayer
from tests.common.tiny_models import ADAPTIVE, BATCH, FAMILIES, adapted, run

SHARE = torch.tensor([0.2, 0.9, 0.4], dtype=torch.float64)
LIVE = torch.tensor([True, False, True])


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_model_s_temperature_is_that_of_the_policy_s_gradient(temperature):
    """At forced noise it is s (1 - s) / T with s = sigmoid((logits + noise) / T)."""
    model = adapted("single", "SpotTune_Block", temperature=temperature).train()
    part = adaptive_part(model)
    part.tell(3, 7, list(range(BATCH)))
    run(model, "single")
    logits = part.last.logits
    (found,) = torch.autograd.grad(part.last.decisions.sum(), logits)
    from common.adapt.policy import uniform_noise

    noise = uniform_noise((3, 7, list(range(BATCH))), BATCH, 2 * len(part.live), logits.device)
    gumbel = -torch.log(-torch.log(noise.double())).view_as(logits)
    difference = (logits + gumbel)[..., 1] - (logits + gumbel)[..., 0]
    soft = torch.sigmoid(difference / temperature)
    expected = soft * (1 - soft) / temperature
    torch.testing.assert_close(found[..., 1], expected)
    torch.testing.assert_close(found[..., 0], -expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_the_small_policy_learns(family):
    model = adapted(family, "SpotTune_Block").train()
    part = adaptive_part(model)
    run(model, family)
    assert isinstance(part.policy, SmallPolicy)
    weights = torch.arange(1.0, 1 + part.last.decisions.numel(), dtype=torch.float64)
    (part.last.decisions.flatten() * weights).sum().backward()
    for name, parameter in part.policy.named_parameters():
        if name.endswith("key.bias"):
            continue  # adds the same number to all scores of a query
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_read_out_token_changes_the_decisions_odds():
    model = adapted("single", "SpotTune_Block").eval()
    part = adaptive_part(model)
    run(model, "single")
    before = part.last.logits
    with torch.no_grad():
        part.policy.read_out.add_(torch.randn(part.policy.read_out.shape).double())
    run(model, "single")
    assert not torch.allclose(before, part.last.logits)


def test_scales_and_targets_of_budget_losses_count_also_at_0():
    def loss(**options: float) -> float:
        found = budget_losses(SHARE, LIVE, BudgetOptions(**options))
        return float(sum(found.values()))

    assert loss(target_rate=0.0) == pytest.approx(0.3**2)
    assert loss(target_rate=0.0, target_rate_scale=3.0) == pytest.approx(3 * 0.3**2)
    assert loss(constrain_k=0.0) == pytest.approx(0.6**2)
    assert loss(constrain_k=1.0, constrain_k_scale=3.0) == pytest.approx(3 * 0.4**2)
    assert loss(deterministic_scale=2.0) > 0


@pytest.mark.parametrize(
    "options", [{"target_rate": 0.0}, {"constrain_k": 0.0}, {"deterministic_scale": 0.1}]
)
def test_each_budget_alone_is_active(options):
    assert BudgetOptions(**options).active and not BudgetOptions().active


def test_sampling_noise_is_drawn_for_every_site_by_itself():
    """With one column for all, rows would be sampled at all sites or at none."""
    model = adapted("single", "SpotTune_Block", executor="sampled", sampled_share=0.5).train()
    part = adaptive_part(model)
    seen = []
    import common.adapt.encoder as encoder

    original = encoder.execute

    def watch(site, index, state, routing):
        seen.append(routing.sampling_noise[:, index])
        return original(site, index, state, routing)

    encoder.execute = watch
    try:
        part.tell(1, 2, list(range(BATCH)))
        run(model, "single")
    finally:
        encoder.execute = original
    assert len(seen) == 3
    for first in range(3):
        for second in range(first):
            assert not torch.equal(seen[first], seen[second])


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_dead_sites_are_sites_of_their_own(strategy):
    """They have columns, so that decisions of one model fit another that reads more."""
    part = adaptive_part(adapted("lxmert", strategy))
    names = [name for site in part.sites for name in site.columns]
    assert names == list(range(len(part.live))) and len(set(part.decision_names)) == len(names)
    counts = {"SpotTune_Block": 5, "SpotTune_Res": 16, "BlockDrop": 5, "BlockReplace": 5}
    assert len(part.live) == counts.get(strategy, 50)
    dead = [
        n for n, alive in zip(part.decision_names, part.live.tolist(), strict=True) if not alive
    ]
    if strategy in ("SpotTune", "SpotTune_Res"):
        assert len(dead) >= 2 and all(name.startswith("cross.2") for name in dead)


def test_steps_in_an_order_that_the_sites_would_change_are_refused():
    """A site runs its steps together: what another site writes between them would be lost."""
    layer = BertLayer(12, 3, 24, 0.0, 0.0)
    steps = bert_steps("hidden")
    heads, attended, expand, output = steps
    between = replace(expand, reads=heads.writes)  # of the other part, and needed by this one
    mixed = (heads, between, replace(attended, reads=(*expand.writes, "hidden")), output)
    row = find_strategy("SpotTune_Res")[0]
    plan_sites([Layer("layer.1", "layer.0", layer, steps, {"hidden": 12}, 3)], row, ("hidden",))
    with pytest.raises(ConfigError, match="not closed under its dependencies"):
        plan_sites([Layer("layer.1", "layer.0", layer, mixed, {"hidden": 12}, 3)], row, ("hidden",))


def test_rows_of_padding_get_no_gradient():
    """Upstream's tables have padding_idx 0."""
    model = adapted("lxmert", "standard").train()
    run(model, "lxmert").square().sum().backward()
    tables = [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)
    ]
    assert len(tables) == 3
    for name, table in tables:
        assert table.padding_idx == 0, name
        assert not table.weight.grad[0].any(), name
        if "token_type" not in name:  # all tokens of a question are of type 0
            assert table.weight.grad[1:].abs().sum() > 0, name


def test_adapting_keeps_options_of_the_caller():
    options = AdaptiveOptions(executor="dense", temperature=2.0, full_precision=False)
    model = FAMILIES["single"].build(0.0).double()
    assert adaptive_part(adapt(model, "SpotTune", options=options)).options == options


def test_a_site_samples_by_its_own_column(monkeypatch):
    """At site 0 no row is sampled, at site 1 all: only there does the policy learn something."""
    import common.adapt.encoder as encoder

    original = encoder.uniform_noise

    def noise(key, batch, count, device):
        if count != 3:
            return original(key, batch, count, device)
        return torch.tensor([[0.99, 0.01, 0.99]]).expand(batch, -1)

    monkeypatch.setattr(encoder, "uniform_noise", noise)
    model = adapted("single", "SpotTune_Block", executor="sampled", sampled_share=0.5).train()
    asked = torch.ones(BATCH, 3, dtype=torch.float64, requires_grad=True)
    with adaptive_part(model).force(asked):
        run(model, "single").square().sum().backward()
    learned = asked.grad.abs().sum(0)
    assert learned[0] == learned[2] == 0 and learned[1] > 0


def test_where_a_layer_may_be_skipped_what_came_before_it_is_needed():
    """Both layers write `a` from `b`: without skipping, what the first one writes is lost."""

    def layer(number: int) -> Layer:
        step = DenseStep("d", "d", "d", ("b", "b"), ("a",))
        return Layer(
            f"layer.{number}", f"layer.{number}", nn.Module(), (step,), {"a": 4, "b": 4}, 1
        )

    layers = [layer(1), layer(2)]
    for skippable, alive in ((False, [0, 1]), (True, [1, 1])):
        steps, streams = live_steps(layers, ("a",), skippable)
        assert [len(s) for s in steps] == alive
        assert ("a" in streams[0]) == skippable


def test_keyed_noise_lies_between_its_ends():
    """On the grid (k + 1/2) / 2^23: neither 0 nor 1, whose logarithms are infinite."""
    values = keyed_uniform(1, 2, list(range(50)), 200).double() * 2**23
    assert bool((values % 1 == 0.5).all())


def test_global_decisions_are_those_that_were_set():
    model = adapted("single", "SpotTune_Block").eval()
    part = adaptive_part(model)
    part.options.policy_eval = "global"
    part.global_decisions.copy_(torch.tensor([1.0, 0.0, 1.0]))
    run(model, "single")
    assert part.last.decisions.tolist() == [[1, 0, 1]] * BATCH
