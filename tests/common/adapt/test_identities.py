"""The identities that define the strategies, in float64 and (but for one test) without dropout."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions, RoutedEncoder
from common.adapt.executors import AUTO
from tests.common.tiny_models import (
    ADAPTIVE,
    BATCH,
    FAMILIES,
    adapted,
    drift_layers,
    gradients,
    pretrained,
    random_decisions,
    run,
    shared,
)

TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")
EXECUTORS = ("dense", "exact", "sampled", "grouped")
every_family = pytest.mark.parametrize("family", FAMILIES)


def forced(model, family, value: float, training: bool = True):
    """Logits and gradients with every decision equal to `value`."""
    part = adaptive_part(model)
    model.train(training).zero_grad()
    with part.force(torch.full((len(part.live),), value, dtype=torch.float64)):
        logits = run(model, family)
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


def plain(model, family):
    model.train().zero_grad()
    logits = run(model, family)
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


@cache
def standard(family):
    """Logits and gradients of plain finetuning."""
    model = pretrained(family)
    adapt(model, "standard")
    drift_layers(model, 0.1)
    return plain(model, family)


@cache
def frozen(family):
    """Logits and gradients of what is trained where the encoder is not."""
    model = adapt(pretrained(family), "Frozen")
    logits, grads = plain(model, family)
    return logits, {n: grads[n] for n, p in model.named_parameters() if p.requires_grad}


def same_gradients(ours, theirs):
    for name, expected in theirs.items():
        if expected is None:
            expected = torch.zeros(())
        found = ours[name] if ours[name] is not None else torch.zeros(())
        torch.testing.assert_close(
            found.expand(expected.shape) if found.ndim == 0 else found,
            expected.expand(found.shape) if expected.ndim == 0 else expected,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda m, n=name: n + m,
        )


@every_family
@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("executor", ["dense", "exact", "grouped"])
def test_all_ones_is_standard_in_outputs_and_gradients(family, strategy, executor):
    logits, grads = forced(shared(family, strategy, executor), family, 1.0)
    expected, expected_grads = standard(family)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    assert any(g is not None and g.abs().sum() > 0 for g in expected_grads.values())
    same_gradients(grads, expected_grads)


@every_family
@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("executor", ["dense", "exact", "grouped"])
def test_all_zeros_is_frozen_in_outputs_and_gradients(family, strategy, executor):
    model = shared(family, strategy, executor)
    logits, grads = forced(model, family, 0.0)
    expected, expected_grads = frozen(family)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    assert expected_grads
    same_gradients(grads, expected_grads)
    encoder = next(m for m in model.modules() if isinstance(m, RoutedEncoder))
    for layer in encoder.layers():
        for parameter in layer.module.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.abs().sum() == 0


@every_family
@pytest.mark.parametrize("executor", ["dense", "exact", "grouped"])
def test_blockdrop_all_zeros_is_the_encoder_without_layers(family, executor):
    logits, _ = forced(shared(family, "BlockDrop", executor), family, 0.0)
    bare = pretrained(family)
    encoder = next(m for m in bare.modules() if isinstance(m, RoutedEncoder))
    encoder.run_layers = lambda state, raw=None: state
    torch.testing.assert_close(logits, run(bare, family), rtol=0, atol=1e-12)


@every_family
@pytest.mark.parametrize("strategy", ["BlockDrop", "BlockReplace"])
def test_all_blocks_kept_is_standard(family, strategy):
    logits, grads = forced(shared(family, strategy, AUTO), family, 1.0)
    expected, expected_grads = standard(family)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    same_gradients(grads, expected_grads)


@every_family
def test_blockreplace_all_zeros_is_its_chain_of_linear_maps(family):
    model = shared(family, "BlockReplace", AUTO)
    logits, _ = forced(model, family, 0.0)
    maps = adaptive_part(model).linears
    bare = pretrained(family)
    encoder = next(m for m in bare.modules() if isinstance(m, RoutedEncoder))

    def chain(state, raw=None):
        for layer in encoder.layers():
            for stream, linear in maps[layer.name.replace(".", "_")].items():
                state = state | {stream: linear(state[stream])}
        return state

    encoder.run_layers = chain
    torch.testing.assert_close(logits, run(bare, family), rtol=1e-11, atol=1e-11)


@cache
def outcome(family, strategy, which, executor):
    """Logits, all gradients, and the gradient of decisions that are not the policy's."""
    model = shared(family, strategy, executor).train()
    part = adaptive_part(model)
    if which == "policy":
        part.tell(1, 2, list(range(BATCH)))
        logits = run(model, family)
        leaf = None
    else:
        values = random_decisions(model)
        if which != "random":
            values = torch.full_like(values, float(which == "ones"))
        leaf = values.requires_grad_()
        with part.force(leaf):
            logits = run(model, family)
    logits.square().sum().backward()
    return logits.detach(), gradients(model), None if leaf is None else leaf.grad


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("which", ["random", "zeros", "ones", "policy"])
@pytest.mark.parametrize("other", ["exact", "grouped"])
def test_exact_and_grouped_are_dense_in_outputs_and_all_gradients(family, strategy, which, other):
    dense, dense_grads, dense_leaf = outcome(family, strategy, which, "dense")
    exact, exact_grads, exact_leaf = outcome(family, strategy, which, other)
    torch.testing.assert_close(exact, dense, rtol=1e-11, atol=1e-12)
    for name, expected in dense_grads.items():
        if expected is None:
            assert exact_grads[name] is None, name
        else:
            assert exact_grads[name] is not None, f"{name}: None, not zeros"
            torch.testing.assert_close(exact_grads[name], expected, rtol=1e-9, atol=1e-9)
    if which == "policy":
        policy = [g for n, g in exact_grads.items() if ".policy." in n and g is not None]
        assert policy and sum(g.abs().sum() for g in policy) > 0
    else:
        torch.testing.assert_close(exact_leaf, dense_leaf, rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("other", ["gathered", "grouped"])
def test_gathered_and_grouped_are_dense_in_evaluation(family, strategy, other):
    model = shared(family, strategy, AUTO).eval()
    part = adaptive_part(model)
    for decisions in (None, random_decisions(model)):
        outputs = []
        for executor in ("dense", other):
            part.options.eval_executor = executor
            with torch.no_grad():
                if decisions is None:
                    outputs.append(run(model, family))
                else:
                    with part.force(decisions):
                        outputs.append(run(model, family))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune", "BlockDrop"])
def test_sampled_policy_gradient_is_unbiased(strategy):
    """Its mean over many draws converges to that of exact, at the rate 1 / sqrt(draws)."""
    family = "single"
    model = adapted(family, strategy, executor="exact").train()
    part = adaptive_part(model)
    values, inputs = random_decisions(model), FAMILIES[family].inputs(BATCH)

    def policy_gradient(times=1):
        """(times, B, D): so many draws, whose samples stand in one batch."""
        leaf = values.repeat(times, 1).requires_grad_()
        with part.force(leaf):
            logits = model(**{name: torch.cat([x] * times) for name, x in inputs.items()})
        return torch.autograd.grad(logits.square().sum(), leaf)[0].view(times, *values.shape)

    (exact,) = policy_gradient()
    part.options.executor, part.options.sampled_share = "sampled", 0.25
    torch.manual_seed(11)
    draws = torch.cat([policy_gradient(50) for _ in range(6)])
    error = (draws.mean(0) - exact).abs()
    standard_error = draws.std(0) / len(draws) ** 0.5
    assert draws.std(0).max() > 0, "nothing was sampled"
    assert (error <= 4.5 * standard_error + 1e-12).all()
    part.options.sampled_share = 1.0
    torch.testing.assert_close(policy_gradient()[0], exact, rtol=1e-9, atol=1e-10)


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_every_live_decision_has_an_effect_and_a_gradient_and_dead_ones_have_none(family, strategy):
    model = shared(family, strategy, "exact").train()
    part = adaptive_part(model)
    decisions = random_decisions(model, 4).requires_grad_()
    with part.force(decisions):
        base = run(model, family, 4)
    base.square().sum().backward()
    with part.force(decisions.detach()), torch.no_grad():
        base = run(model, family, 4)  # no branch is computed for a gradient
    for column in range(len(part.live)):
        flipped = decisions.detach().clone()
        flipped[:, column] = 1 - flipped[:, column]
        with part.force(flipped), torch.no_grad():
            change = (run(model, family, 4) - base).abs().max()
        gradient = decisions.grad[:, column].abs().max()
        name = part.decision_names[column]
        if part.live[column]:
            assert change > 1e-9 and gradient > 1e-12, name
        else:
            assert change == 0 and gradient == 0, name


@every_family
@pytest.mark.parametrize("strategy", TWINS)
def test_twins_never_change_in_training(family, strategy):
    model = adapted(family, strategy).train()
    part = adaptive_part(model)
    before = {n: p.clone() for n, p in part.twins.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.1)
    start = [p.detach().clone() for p in trained]
    for _ in range(3):
        optimizer.zero_grad()
        run(model, family).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in part.twins.named_parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(start, trained, strict=True)) > 10


@every_family
@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
def test_a_sample_does_not_depend_on_its_batch_and_evaluation_repeats(family, strategy):
    model = shared(family, strategy, AUTO).eval()
    with torch.no_grad():
        whole, again = run(model, family), run(model, family)
        inputs = FAMILIES[family].inputs(BATCH)
        for rows in (slice(0, 1), slice(2, 5)):
            part = model(**{k: v[rows] for k, v in inputs.items()})
            torch.testing.assert_close(part, whole[rows], rtol=1e-11, atol=1e-12)
    assert torch.equal(whole, again)


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_the_policy_decides_by_sample_and_learns(family, strategy):
    model = shared(family, strategy, AUTO)
    part = adaptive_part(model)
    with torch.no_grad():
        run(model.eval(), family)
    decisions = part.last.decisions
    assert set(decisions.unique().tolist()) <= {0.0, 1.0}
    assert (decisions.std(0) > 0).any(), "the same decisions for all samples"
    model.train()
    run(model, family).square().sum().backward()
    assert all(p.grad is not None for p in part.policy.parameters())


@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_with_dropout_equal_branches_give_exactly_no_policy_gradient(strategy, executor):
    """Both branches draw the same masks, so that the difference is no mask noise."""
    model = adapted("lxmert", strategy, drift=0.0, dropout=0.3, executor=executor).train()
    part = adaptive_part(model)
    decisions = random_decisions(model).requires_grad_()
    torch.manual_seed(0)
    with part.force(decisions):
        first = run(model, "lxmert")
    first.square().sum().backward()
    assert decisions.grad.abs().max() < 1e-12
    with part.force(decisions.detach()):
        assert (run(model, "lxmert") - first).abs().max() > 1e-3, "dropout is not active"


def test_wrong_numbers_of_forced_decisions_are_refused():
    part = adaptive_part(adapted("single", "SpotTune_Block"))
    with pytest.raises(ValueError, match="2 decisions given, 3 needed"), part.force(torch.ones(2)):
        pass


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "SpotTune"])
@pytest.mark.parametrize("executor", ["exact", "sampled", "dense", "grouped"])
def test_low_precision_forms_the_difference_in_float32(executor, strategy):
    """Under bf16 autocast the policy gradient stays within a few per cent of float32's."""
    found = {}
    for mode in ("float32", "high", "low"):
        model = adapted(
            "lxmert",
            strategy,
            drift=0.003,
            executor=executor,
            sampled_share=1.0,
            full_precision=mode != "low",
        )
        model = model.float().train()
        part = adaptive_part(model)
        decisions = random_decisions(model).float().requires_grad_()
        inputs = {
            k: v.float() if v.is_floating_point() else v
            for k, v in FAMILIES["lxmert"].inputs(BATCH).items()
        }
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=mode != "float32"),
            part.force(decisions),
        ):
            logits = model(**inputs)
        logits.float().sum().backward()
        found[mode] = decisions.grad[:, part.live]
    error = {
        m: ((found[m] - found["float32"]).norm() / found["float32"].norm()).item()
        for m in ("high", "low")
    }
    assert error["high"] < 0.05 and error["low"] > 0.1, error
    assert isinstance(AdaptiveOptions().full_precision, bool)


@every_family
@pytest.mark.parametrize("strategy", ["BlockDrop", "BlockReplace"])
def test_branches_that_are_far_apart_need_no_more_than_low_precision(family, strategy):
    """A layer and no layer, or a linear map: their difference is no small number."""
    found = []
    for autocast in (False, True):
        model = adapted(family, strategy, drift=0.003).float().train()
        part = adaptive_part(model)
        decisions = random_decisions(model).float().requires_grad_()
        inputs = {
            k: v.float() if v.is_floating_point() else v
            for k, v in FAMILIES[family].inputs(BATCH).items()
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), part.force(decisions):
            logits = model(**inputs)
        logits.float().square().sum().backward()
        found.append(decisions.grad[:, part.live])
    assert ((found[1] - found[0]).norm() / found[0].norm()).item() < 0.05
