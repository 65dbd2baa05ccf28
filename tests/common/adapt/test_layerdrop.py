"""LayerDrop on all backbones: what is left out, and what is left of the model."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.families import find_encoder
from common.adapt.layerdrop import LayerDrop, LayerDropping, kept_layers, prune, stacks_of
from common.errors import ConfigError
from tests.common.tiny_models import ADAPTIVE, FAMILIES, adapted, gradients, pretrained, run, shared

every_family = pytest.mark.parametrize("family", FAMILIES)


def names_of(family):
    return [layer.name for layer in find_encoder(pretrained(family)).layers()]


@every_family
def test_a_dropped_layer_is_a_model_without_it(family):
    """Each layer, the last one included; its parameters get gradients of exactly 0."""
    names = names_of(family)
    for name in names:
        model = adapt(pretrained(family), "standard").train()
        find_encoder(model).dropped = frozenset([name])
        ours = run(model, family)
        ours.square().sum().backward()
        keep = ",".join(n for n in names if n != name)
        smaller = pretrained(family).train()
        assert prune(smaller, keep) == [name]
        torch.testing.assert_close(ours, run(smaller, family), rtol=0, atol=1e-12)
        path = next(x.path for x in find_encoder(model).layers() if x.name == name)
        for parameter in find_encoder(model).get_submodule(path).parameters():
            assert parameter.grad is None or not parameter.grad.any()
        assert any(g is not None and g.any() for g in gradients(model).values())


@every_family
def test_evaluation_is_the_full_model(family):
    model = pretrained(family).eval()
    expected = run(model, family)
    find_encoder(model).dropped = frozenset(names_of(family)[:-1])
    assert torch.equal(run(model, family), expected)


@cache
def without_the_last(family):
    """Logits and gradients of plain finetuning with the last layer dropped."""
    model = adapt(pretrained(family), "standard").train()
    find_encoder(model).dropped = frozenset(names_of(family)[-1:])
    logits = run(model, family)
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", ["exact", "dense", "grouped"])
def test_strategies_keep_their_identities_without_a_layer(family, strategy, executor, monkeypatch):
    """All decisions 1 is plain finetuning with the same layer dropped, gradients included."""
    expected, expected_grads = without_the_last(family)
    model = shared(family, strategy, executor, drift=0.0).train()
    part = adaptive_part(model)
    monkeypatch.setattr(find_encoder(model), "dropped", frozenset(names_of(family)[-1:]))
    with part.force(torch.ones(len(part.live), dtype=torch.float64)):
        ours = run(model, family)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    ours.square().sum().backward()
    found = gradients(model)
    for key, gradient in expected_grads.items():
        if gradient is not None and gradient.any():
            torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-9)


def test_draws_depend_on_seed_and_step_alone_and_have_the_rate():
    model, options = pretrained("lxmert"), LayerDrop(rate=0.3)
    encoder = find_encoder(model)
    stacks = stacks_of(encoder)
    drawn = [options.draw(stacks, (1, step)) for step in range(2000)]
    assert drawn == [options.draw(stacks, (1, step)) for step in range(2000)]
    assert drawn != [options.draw(stacks, (2, step)) for step in range(2000)]
    count = len([name for names in stacks.values() for name in names])
    assert sum(map(len, drawn)) / (2000 * count) == pytest.approx(0.3, abs=0.02)
    assert all(len(names) < count for names in drawn)
    LayerDropping(model, options).draw(1, 7)
    assert encoder.dropped == drawn[7]


def test_never_are_all_layers_left_out():
    stacks = {"layer": ["lang.1", "lang.2"]}
    drawn = [LayerDrop(rate=0.95).draw(stacks, (1, step)) for step in range(50)]
    assert max(map(len, drawn)) == 1 and {len(names) for names in drawn} == {1}


def test_a_number_of_layers_is_left_out_of_each_stack():
    stacks = stacks_of(find_encoder(pretrained("lxmert")))
    for step in range(20):
        out = LayerDrop(count=1).draw(stacks, (3, step))
        assert all(len(out & set(names)) == 1 for names in stacks.values())


@pytest.mark.parametrize(
    ("layers", "rule", "kept"),
    [
        (6, "every_other", ["lang.1", "lang.3", "lang.5"]),
        (6, "spread", ["lang.1", "lang.4", "lang.6"]),
        (5, "spread", ["lang.1", "lang.3", "lang.5"]),
        (6, "1", ["lang.1", "lang.2", "lang.4", "lang.5", "lang.6"]),
        (6, "5", ["lang.1"]),
        (6, "lang.6,lang.2", ["lang.2", "lang.6"]),
    ],
)
def test_rules_keep_layers_of_each_stack(layers, rule, kept):
    class Layer:
        def __init__(self, number):
            self.name, self.path = f"lang.{number}", f"layer.{number - 1}"

    class Encoder:
        def layers(self):
            return [Layer(number) for number in range(1, layers + 1)]

    found = kept_layers(Encoder(), rule)
    assert found == kept
    assert all(a < b for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("rule", "message"),
    [("9", "pruning 9 layers of each stack"), ("lang.1,other.2", "'other.2' is no layer")],
)
def test_rules_that_fit_no_layer_are_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        prune(pretrained("lxmert"), rule)


def test_an_adapted_model_is_not_pruned():
    with pytest.raises(ConfigError, match=r"BlockDrop decides about layers.*common\.export"):
        prune(adapted("lxmert", "BlockDrop"), "1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 1.0}, "LayerDrop rate 1.0"),
        ({"count": -1}, "LayerDrop count -1"),
        ({"rate": 0.1, "count": 1}, "a rate, or a number"),
    ],
)
def test_options_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        LayerDrop(**values)
