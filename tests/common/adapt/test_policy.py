"""Policy networks, Gumbel-softmax, keyed noise, budget losses."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part, set_global_decisions
from common.adapt.budget import (
    BudgetOptions,
    budget_losses,
    constrain_k,
    deterministic,
    target_rate,
)
from common.adapt.encoder import AdaptiveOptions
from common.adapt.gumbel import hard_gumbel, keyed_uniform
from common.adapt.policy import PolicyInputs, SharedPolicy, SmallPolicy
from common.errors import ConfigError
from tests.common.tiny_models import adapted, drift_layers, pretrained, run


def test_keyed_noise_is_uniform():
    noise = keyed_uniform(3, 5, list(range(2000)), 50).double()
    assert noise.min() > 0 and noise.max() < 1
    counts = torch.histc(noise, 20, 0, 1)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8, "19 degrees of freedom, p = 0.001"
    assert abs(noise.mean() - 0.5) < 0.005
    columns = noise - noise.mean(0)
    correlation = (columns.T @ columns) / len(noise) * 12
    assert (correlation - torch.eye(50)).abs().max() < 0.15


def test_keyed_noise_depends_on_seed_step_and_sample_only():
    whole = keyed_uniform(1, 2, [10, 20, 30], 6)
    assert torch.equal(keyed_uniform(1, 2, [30], 6), whole[2:])
    assert torch.equal(keyed_uniform(1, 2, [20, 10], 6), whole[[1, 0]])
    for other in (
        keyed_uniform(2, 2, [10], 6),
        keyed_uniform(1, 3, [10], 6),
        keyed_uniform(1, 2, [11], 6),
    ):
        assert not torch.isclose(other, whole[:1]).any()


def test_hard_gumbel_draws_exact_zeros_and_ones_with_the_softmax_probability():
    logits = torch.tensor([[[0.3, -0.9]]]).expand(20000, 1, 2)
    draws = hard_gumbel(logits, keyed_uniform(0, 0, range(20000), 2).view(-1, 1, 2), 5.0)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    expected = torch.softmax(logits[0, 0], -1)[1].item()
    assert abs(draws.mean().item() - expected) < 4 * math.sqrt(expected * (1 - expected) / 20000)


def test_its_gradient_is_that_of_the_soft_decision():
    logits = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    noise = torch.rand(4, 3, 2, dtype=torch.float64)
    weights = torch.randn(4, 3, dtype=torch.float64)
    (hard_gumbel(logits, noise, 2.0) * weights).sum().backward()
    copy = logits.detach().clone().requires_grad_()
    soft = torch.softmax((copy - torch.log(-torch.log(noise))) / 2.0, -1)[..., 1]
    (soft * weights).sum().backward()
    torch.testing.assert_close(logits.grad, copy.grad)
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        hard_gumbel(logits, noise, 0)


def test_noise_keys_make_training_decisions_independent_of_the_batch_split():
    model = adapted("single", "SpotTune").train()
    part = adaptive_part(model)
    inputs = {"input_ids": torch.randint(1, 40, (6, 5)), "mask": torch.ones(6, 5)}
    part.tell(1, 7, [3, 1, 4, 15, 9, 2])
    model(**inputs)
    whole = part.last.decisions.detach()
    part.tell(1, 7, [15, 9])
    model(**{k: x[3:5] for k, x in inputs.items()})
    assert torch.equal(part.last.decisions, whole[3:5])
    assert 0 < whole.mean() < 1
    part.tell(1, 7, [1])
    with pytest.raises(ValueError, match="keyed for 1 samples, the batch has 6"):
        model(**inputs)


def test_small_policy_starts_at_the_wanted_share_and_sends_no_gradient_to_the_embeddings():
    torch.manual_seed(0)
    policy = SmallPolicy({"lang": 64, "vision": 48}, 40, initial_share=0.9)
    state = {
        "lang": torch.randn(32, 7, 64, requires_grad=True),
        "vision": torch.randn(32, 5, 48),
        "lang.mask": None,
    }
    logits = policy(PolicyInputs(state))
    assert logits.shape == (32, 40, 2)
    assert abs(torch.softmax(logits, -1)[..., 1].mean().item() - 0.9) < 0.05
    logits.sum().backward()
    assert state["lang"].grad is None
    with pytest.raises(ValueError, match="1.5 is not in"):
        SmallPolicy({"x": 8}, 2, initial_share=1.5)


def test_small_policy_ignores_padding():
    policy = SmallPolicy({"x": 16}, 3).eval()
    x = torch.randn(2, 6, 16)
    mask = torch.zeros(2, 1, 1, 6)
    mask[..., 4:] = -10000.0
    padded = policy(PolicyInputs({"x": x, "x.mask": mask}))
    plain = policy(PolicyInputs({"x": x[:, :4], "x.mask": mask[..., :4]}))
    torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("training", [True, False])
def test_random_policy_has_the_given_share_also_in_evaluation_and_no_gradient(training):
    model = adapt(pretrained("single"), "SpotTune_Block", "random:0.3").train(training)
    part = adaptive_part(model)
    torch.manual_seed(0)
    mean = sum(run_decisions(model, part).mean() for _ in range(300)) / 300
    assert abs(mean - 0.3) < 0.03
    assert not part.last.decisions.requires_grad and not list(part.policy.parameters())


@pytest.mark.parametrize("how", ["train", "argmax", "sample"])
def test_the_oracle_decides_by_kind_alone_and_only_where_all_kinds_are_told(how):
    model = adapt(pretrained("single"), "SpotTune", "oracle:new").train(how == "train")
    part = adaptive_part(model)
    part.options.policy_eval = "argmax" if how == "train" else how
    kinds = ["new", "old", "old", "new", "other", "new"]
    part.tell(1, 2, range(6), kinds)
    found = run_decisions(model, part)
    wanted = torch.tensor([float(kind == "new") for kind in kinds], dtype=found.dtype)
    assert torch.equal(found, wanted[:, None].expand_as(found)) and len(found) == 6
    assert not list(part.policy.parameters())
    with pytest.raises(ConfigError, match="which is not known here"):
        run_decisions(model, part)  # what was told is about one pass
    for told in ((), ["new"], [*kinds[:5], None]):
        part.tell(1, 2, range(6), told)
        with pytest.raises(ConfigError, match="oracle:new decides by the kind of a sample"):
            run_decisions(model, part)


def run_decisions(model, part):
    with torch.no_grad():
        run(model, "single")
    return part.last.decisions


def test_policy_evaluations_argmax_sample_and_global():
    model = adapted("single", "SpotTune").eval()
    part = adaptive_part(model)
    first = run_decisions(model, part)
    assert torch.equal(first, (part.last.logits[..., 1] > part.last.logits[..., 0]).double())
    part.options.policy_eval = "sample"
    draws = torch.stack([run_decisions(model, part) for _ in range(8)])
    assert (draws.std(0) > 0).any(), "sample is not random"
    part.tell(1, -1, range(6))
    keyed = run_decisions(model, part)
    part.tell(1, -1, range(6))
    assert torch.equal(run_decisions(model, part), keyed), "a keyed draw does not repeat"
    part.options.policy_eval = "global"
    with pytest.raises(ConfigError, match="needs global decisions"):
        run_decisions(model, part)
    set_global_decisions(part, first.mean(0))
    assert torch.equal(run_decisions(model, part), (first.mean(0) > 0.5).double().expand(6, -1))
    assert part.last.logits is None, "the policy network was called"


def test_save_and_load_give_the_same_outputs_and_decisions():
    model = adapted("lxmert", "SpotTune").eval()
    other = adapt(pretrained("lxmert"), "SpotTune", options=AdaptiveOptions())
    other.load_state_dict(model.state_dict())
    other.eval()
    assert torch.equal(run(model, "lxmert"), run(other, "lxmert"))
    assert torch.equal(adaptive_part(model).last.decisions, adaptive_part(other).last.decisions)


def test_budget_losses_are_their_closed_forms_over_live_decisions():
    decisions = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]], requires_grad=True)
    live = torch.tensor([True, True, True, False])
    assert constrain_k(decisions.mean(0), live, 1.0).item() == pytest.approx(1.0)
    assert target_rate(decisions.mean(0), live, 0.5).item() == pytest.approx((2 / 3 - 0.5) ** 2)
    assert deterministic(decisions.mean(0), live).item() == pytest.approx(2 * math.log(2), abs=1e-4)
    assert budget_losses(decisions.mean(0), live, BudgetOptions()) == {}
    options = BudgetOptions(
        constrain_k=1, constrain_k_scale=3, deterministic_scale=2, target_rate=0.5
    )
    losses = budget_losses(decisions.mean(0), live, options)
    assert {k: round(v.item(), 3) for k, v in losses.items()} == {
        "constrain_k": 3.0,
        "deterministic": 2.773,
        "target_rate": 0.028,
    }
    sum(losses.values()).backward()
    assert decisions.grad[:, 3].abs().sum() == 0 and decisions.grad[:, 0].abs().sum() > 0


def test_the_entropy_of_decisions_is_symmetric_and_peaks_at_one_half():
    live = torch.tensor([True])

    def entropy(share):
        return deterministic(torch.tensor([share / 10]), live).item()

    values = [entropy(n) for n in range(11)]
    assert values == pytest.approx(values[::-1], abs=1e-5)
    assert max(values) == values[5] == pytest.approx(math.log(2), abs=1e-5)


def test_a_budget_pulls_a_policy_towards_its_target():
    model = adapted("single", "BlockDrop").train()
    part = adaptive_part(model)
    optimizer = torch.optim.Adam(part.policy.parameters(), lr=0.01)
    part.options.temperature = 1.0
    for step in range(150):
        part.tell(0, step, list(range(6)))
        run(model, "single")
        loss = constrain_k(part.last.decisions.mean(0), part.live, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shares = torch.softmax(part.last.logits, -1)[..., 1].mean(0).sum().item()
    assert abs(shares - 1.0) < 0.5


def test_a_model_can_be_copied_after_a_training_step_and_the_copy_is_independent():
    model = adapted("lxmert", "SpotTune").train()
    run(model, "lxmert").sum().backward()
    copy = deepcopy(model).eval()
    model.eval()
    before = run(model, "lxmert")
    assert torch.equal(run(copy, "lxmert"), before)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    assert torch.equal(run(model, "lxmert"), before)
    assert not torch.allclose(run(copy, "lxmert"), before)


@pytest.mark.parametrize("family", ["single", "lxmert", "vilbert", "vlbert"])
def test_a_shared_policy_learns_one_pair_of_logits_for_all_inputs(family):
    model = adapt(pretrained(family), "SpotTune_Block", "shared", initial_share=0.8).train()
    drift_layers(model, 0.1)
    part = adaptive_part(model)
    (parameter,) = part.policy.parameters()
    assert parameter.shape == (len(part.live), 2)
    part.tell(1, 2, range(6))
    run(model, family).square().sum().backward()
    p = part.last.logits.softmax(-1)[..., 1]
    torch.testing.assert_close(p, torch.full_like(p, 0.8))
    assert len(set(map(tuple, part.last.decisions.tolist()))) > 1, "decisions are drawn"
    live = part.live
    assert (parameter.grad[live].abs() > 0).all() and not parameter.grad[~live].any()
    model.eval()
    assert bool((run_decisions_of(model, part, family) == 1).all())
    with torch.no_grad():
        parameter[0] = parameter[0].flip(0)
    assert run_decisions_of(model, part, family).mean(0).tolist() == [0.0] + [1.0] * (len(live) - 1)
    with pytest.raises(ValueError, match="initial share of decisions 1 is not in"):
        SharedPolicy(3, 1)


def run_decisions_of(model, part, family):
    with torch.no_grad():
        run(model, family)
    return part.last.decisions
