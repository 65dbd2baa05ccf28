"""Only what is read is computed: the last layer at the first position ≡ at all of them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.adapt.encoder import RoutedEncoder
from common.adapt.executors import AUTO
from common.adapt.steps import first_position, live_steps
from common.errors import ConfigError
from common.training.flops import FlopCounter
from tests.common.tiny_models import (
    ADAPTIVE,
    BATCH,
    FAMILIES,
    adapted,
    gradients,
    random_decisions,
    run,
    shared,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


def encoder_of(model):
    return next(m for m in model.modules() if isinstance(m, RoutedEncoder))


def outcome(family, strategy, executor, narrowed, decided):
    """Logits, decisions, all gradients, and the gradient of forced decisions."""
    torch.manual_seed(0)
    training = executor != "gathered"
    model = shared(family, strategy, executor, narrowed=narrowed)
    part = adaptive_part(model)
    model.train(training)
    leaf, context = None, nullcontext()
    if part is not None:
        part.tell(1, 2, list(range(BATCH)))
        if decided == "forced":
            leaf = random_decisions(model).requires_grad_(training)
            context = part.force(leaf)
    with context:
        logits = run(model, family)
    logits.square().sum().backward()
    decisions = None if part is None else part.last.decisions.detach()
    return logits.detach(), decisions, gradients(model), None if leaf is None else leaf.grad


@every_family
@pytest.mark.parametrize(
    "strategy, executor, decided",
    [
        ("standard", "dense", None),
        *(
            (strategy, executor, decided)
            for strategy in ADAPTIVE
            for decided, executors in {
                # That these are the dense one is in test_identities.py.
                "forced": ("exact", "sampled", "gathered", "grouped"),
                "policy": ("exact", "grouped"),
            }.items()
            for executor in executors
        ),
    ],
)
def test_narrowed_is_full_in_outputs_decisions_and_all_gradients(
    family, strategy, executor, decided
):
    """`sampled` draws its rows from the same keyed noise in both."""
    logits, decisions, grads, leaf = outcome(family, strategy, executor, True, decided)
    expected, same, full_grads, full_leaf = outcome(family, strategy, executor, False, decided)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    assert decisions is None or torch.equal(decisions, same)
    assert grads.keys() == full_grads.keys()
    for name, gradient in full_grads.items():
        assert (gradient is None) == (grads[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(grads[name], gradient, rtol=1e-9, atol=1e-9)
    if leaf is not None:
        torch.testing.assert_close(leaf, full_leaf, rtol=1e-9, atol=1e-10)
        assert full_leaf.abs().sum() > 0


@every_family
@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
def test_narrowing_saves_work_and_changes_no_layer_but_the_last(family, strategy, monkeypatch):
    flops, handed_on = [], []
    for narrowed in (True, False):
        model = shared(family, strategy, AUTO, narrowed=narrowed).eval()
        encoder = encoder_of(model)
        run_layers, passed = encoder.run_layers, []
        monkeypatch.setattr(
            encoder,
            "run_layers",
            lambda state, raw=None, go=run_layers, to=passed: go(state, raw, to),
        )
        part = adaptive_part(model)
        with (
            FlopCounter() as counter,
            torch.no_grad(),
            part.force(random_decisions(model)) if part else nullcontext(),
        ):
            run(model, family)
        flops.append(counter.total)
        handed_on.append(passed)
    assert flops[0] < flops[1]
    stream = encoder.reads[0]
    for narrow, full in zip(*(states[:-1] for states in handed_on), strict=True):
        torch.testing.assert_close(narrow[stream], full[stream], rtol=1e-11, atol=1e-12)
    last, whole = handed_on[0][-1][stream], handed_on[1][-1][stream]
    assert last.shape[1] == 1 < whole.shape[1]
    torch.testing.assert_close(last, first_position(whole), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "SpotTune"])
@pytest.mark.parametrize("executor", ["dense", "exact", "sampled", "grouped"])
def test_narrowed_branches_still_share_their_dropout_masks(strategy, executor):
    """With equal branches the policy gradient is exactly zero, dropout or not."""
    model = adapted("single", strategy, drift=0.0, dropout=0.3, executor=executor).train()
    decisions = random_decisions(model).requires_grad_()
    with adaptive_part(model).force(decisions):
        run(model, "single").square().sum().backward()
    assert decisions.grad.abs().max() < 1e-12


def test_which_steps_of_the_last_cross_layer_are_narrowed():
    layers = encoder_of(adapted("lxmert", "standard")).layers()
    steps, _ = live_steps(layers, ("lang",), first=("lang",))
    assert [(step.component, step.first_only) for step in steps[-1]] == [
        ("cross.head", False),
        ("cross.output", False),
        ("lang.head", True),
        ("lang.attention.output", True),
        ("lang.intermediate", True),
        ("lang.output", True),
    ]
    assert not any(step.first_only for layer in steps[:-1] for step in layer)
    whole, _ = live_steps(layers, ("lang", "vision"))
    assert not any(step.first_only for layer in whole for step in layer)


def test_the_first_position_of_a_slot_that_is_not_read_is_refused():
    with pytest.raises(ConfigError, match="slots that are read are lang"):
        encoder_of(adapted("lxmert", "standard")).set_reads(("lang",), first=("vision",))
