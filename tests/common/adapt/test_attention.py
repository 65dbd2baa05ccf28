"""Spans and entmax in the encoders of all backbones: alone, and with every strategy."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.attention import LearnedSpans, attention_record, set_attention
from common.adapt.encoder import AdaptiveOptions, RoutedEncoder
from common.adapt.merging import merge
from common.adapt.steps import HeadsStep
from common.errors import ConfigError
from common.modules.attention import AdaptiveSpan, AttentionOptions, LearnedEntmax
from tests.common.tiny_models import (
    ADAPTIVE,
    FAMILIES,
    drift_layers,
    gradients,
    pretrained,
    random_decisions,
    run,
)

MECHANISMS = {
    "span": AttentionOptions(span="distance", initial_span=0.4),
    "entmax": AttentionOptions("entmax", initial_alpha=1.4),
    "both": AttentionOptions("entmax", "keys", initial_span=0.3, initial_alpha=1.6),
    "sparsemax": AttentionOptions("sparsemax", "distance", initial_span=0.5),
    "read": AttentionOptions(span="keys", ramp=0.1, initial_span=0.4, span_policy=True),
}
TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def with_attention(family: str, mechanism: str) -> nn.Module:
    """The pretrained model with spans and α that differ between heads."""
    model = pretrained(family)
    set_attention(model, MECHANISMS[mechanism])
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            module.span.data += 0.2 * torch.rand(module.span.shape, generator=generator).double()
            if module.shift is not None:
                shape = module.shift.weight.shape
                module.shift.weight.data += torch.randn(shape, generator=generator).double()
        if isinstance(module, LearnedEntmax):
            module.logit.data += torch.randn(module.logit.shape, generator=generator).double()
    return model


def adapted(family: str, mechanism: str, strategy: str, **options: object) -> nn.Module:
    model = with_attention(family, mechanism)
    torch.manual_seed(4)
    adapt(model, strategy, options=AdaptiveOptions(**options))
    drift_layers(model, 0.1)
    return model


def learned(model: nn.Module, decisions: torch.Tensor | None = None):
    """Logits, and gradients of all parameters."""
    part = adaptive_part(model)
    model.train().zero_grad()
    if part is None:
        logits = run(model, next(n for n in FAMILIES if n == model.family))
    else:
        with part.force(decisions):
            logits = run(model, model.family)
    logits.square().sum().backward()
    return logits.detach(), gradients(model)


def named(model: nn.Module, family: str) -> nn.Module:
    object.__setattr__(model, "family", family)
    return model


@cache
def shared(family: str, mechanism: str, strategy: str) -> nn.Module:
    """`adapted`, for tests that leave its weights as they are."""
    return named(adapted(family, mechanism, strategy), family)


@cache
def plain(family: str, mechanism: str, strategy: str):
    """Logits, and gradients of what is trained, without decisions."""
    model = named(adapt(with_attention(family, mechanism), strategy), family)
    if strategy == "standard":
        drift_layers(model, 0.1)
    logits, grads = learned(model)
    return logits, {n: grads[n] for n, p in model.named_parameters() if p.requires_grad}


@cache
def outcome(family: str, mechanism: str, strategy: str, executor: str):
    """Logits, all gradients, and that of random decisions."""
    model = shared(family, mechanism, strategy)
    adaptive_part(model).options.executor = executor
    decisions = random_decisions(model).requires_grad_()
    return (*learned(model, decisions), decisions.grad)


@every_family
def test_softmax_without_a_span_leaves_the_model_as_it_is(family):
    model = pretrained(family)
    names = set(model.state_dict())
    set_attention(model, AttentionOptions())
    assert set(model.state_dict()) == names
    full = pretrained(family)
    set_attention(full, AttentionOptions(span="distance"))
    torch.testing.assert_close(run(full, family), run(model, family), rtol=1e-9, atol=1e-9)


@every_family
@every_mechanism
def test_a_mechanism_changes_the_model_and_is_learned(family, mechanism):
    model = named(adapt(with_attention(family, mechanism), "standard"), family)
    logits, grads = learned(model)
    assert (logits - run(pretrained(family), family)).abs().max() > 1e-7
    own = {n: g for n, g in grads.items() if "weighting" in n}
    options = MECHANISMS[mechanism]
    kinds = {"span": options.span != "none", "normaliser": options.normaliser == "entmax"}
    for kind, there in kinds.items():
        found = [g for n, g in own.items() if kind in n and g is not None]
        assert bool(found) == there and all(bool(g.isfinite().all()) for g in found)
        assert not there or any(float(g.abs().sum()) > 0 for g in found)


@every_family
@every_mechanism
@pytest.mark.parametrize("strategy", TWINS)
def test_all_ones_is_finetuning_and_all_zeros_is_the_frozen_model(family, mechanism, strategy):
    """In outputs and gradients: frozen twins keep spans and α too."""
    model = shared(family, mechanism, strategy)
    count = len(adaptive_part(model).live)
    for value, other in ((1.0, "standard"), (0.0, "Frozen")):
        decisions = torch.full((count,), value, dtype=torch.float64)
        logits, grads = learned(model, decisions)
        expected, expected_grads = plain(family, mechanism, other)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        for name, gradient in expected_grads.items():
            if gradient is not None:
                torch.testing.assert_close(grads[name], gradient, rtol=1e-7, atol=1e-8, msg=name)


@every_family
@pytest.mark.parametrize("mechanism", ["span", "both", "read"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("fast", ["exact", "grouped"])
def test_fast_executors_are_the_dense_one(family, mechanism, strategy, fast):
    dense, dense_grads, dense_policy = outcome(family, mechanism, strategy, "dense")
    exact, exact_grads, exact_policy = outcome(family, mechanism, strategy, fast)
    torch.testing.assert_close(exact, dense, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact_policy, dense_policy, rtol=1e-7, atol=1e-8)
    for name, gradient in dense_grads.items():
        if gradient is not None and exact_grads[name] is not None:
            torch.testing.assert_close(exact_grads[name], gradient, rtol=1e-7, atol=1e-8, msg=name)


@every_family
@pytest.mark.parametrize("mechanism", ["span", "both", "read"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_the_executor_of_evaluation_is_the_dense_one(family, mechanism, strategy):
    dense, *_ = outcome(family, mechanism, strategy, "dense")
    model = shared(family, mechanism, strategy).eval()
    with torch.no_grad(), adaptive_part(model).force(random_decisions(model)):
        gathered = run(model, family)
    torch.testing.assert_close(gathered, dense, rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "BlockDrop", "SpotTune"])
def test_a_merged_model_keeps_its_mechanism_or_is_refused(family, strategy):
    """Heads that decide for themselves have spans that no one module can hold."""
    model = adapted(family, "both", strategy).eval()
    part = adaptive_part(model)
    decisions = torch.ones(len(part.live))
    decisions[::2] = 0
    with torch.no_grad(), part.force(decisions.double()):
        expected = run(model, family)
    if strategy == "SpotTune":
        with pytest.raises(ConfigError, match="parameters that are not split by head"):
            merge(model, decisions)
        return
    merge(model, decisions)
    torch.testing.assert_close(run(model, family), expected, rtol=1e-9, atol=1e-9)


def test_spans_are_counted_clamped_and_recorded():
    model = with_attention("vilbert", "both")
    encoder = next(m for m in model.modules() if isinstance(m, RoutedEncoder))
    record = attention_record(model)
    steps = [s for layer in encoder.layers() for s in layer.steps if isinstance(s, HeadsStep)]
    assert len(record) == len(steps)
    assert {key for entry in record.values() for key in entry} == {"span", "alpha"}
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            module.span.data.fill_(3.0)
    assert LearnedSpans(model).loss(1.0).item() == 1.0
    LearnedSpans(model).clamp()
    assert all(v == 1.0 for entry in attention_record(model).values() for v in entry["span"])
    assert LearnedSpans(pretrained("single")).loss(1.0) is None
    adapt(model, "SpotTune")
    assert set(attention_record(model)) == set(record), "twins are not counted"


def test_attention_is_set_once_and_before_adapting():
    model = with_attention("single", "span")
    with pytest.raises(ConfigError, match="has a mechanism of attention already"):
        set_attention(model, MECHANISMS["span"])
    model = adapt(pretrained("single"), "SpotTune")
    with pytest.raises(ConfigError, match="set before the model is adapted"):
        set_attention(model, MECHANISMS["span"])


def test_words_are_counted_from_the_query_and_regions_in_their_order():
    model = with_attention("lxmert", "span")
    found = {
        name: module.distance
        for name, module in model.named_modules()
        if isinstance(module, AdaptiveSpan)
    }
    by_kind = {name.split("encoder.")[-1].split(".weighting")[0]: d for name, d in found.items()}
    assert {d for n, d in by_kind.items() if "visual_attention" in n or "visn" in n} == {False}
    assert {d for n, d in by_kind.items() if "lang_self" in n or n.startswith("layer.")} == {True}


def test_spans_that_are_read_from_the_pair_are_those_of_the_sample():
    """They differ between samples, and do not depend on who else is in the batch."""
    model = adapt(with_attention("lxmert", "read"), "standard").eval()
    six = run(model, "lxmert")
    record = attention_record(model)
    assert all(max(entry["span_sd"]) > 0.01 for entry in record.values())
    assert all(0 <= v <= 1 for entry in record.values() for v in entry["span"])
    two = model(**{name: x[:2] for name, x in FAMILIES["lxmert"].inputs(6).items()})
    torch.testing.assert_close(two, six[:2], rtol=1e-9, atol=1e-9)
    model.train()
    torch.testing.assert_close(run(model, "lxmert"), six, rtol=1e-9, atol=1e-9)
    spans = LearnedSpans(model)
    loss = spans.loss(0.5)
    loss.backward()
    means = torch.tensor([entry["span"] for entry in record.values()])
    assert float(loss.detach()) == pytest.approx(0.5 * float(means.mean()), rel=1e-4)
    assert len(spans.spans) == len(record)
    assert float(model.bert.encoder.span_policy.normalise.weight.grad.abs().sum()) > 0
    assert model.bert.encoder.pair is None, "used once"


def test_before_training_a_span_policy_gives_every_pair_the_same_spans():
    model = pretrained("lxmert")
    set_attention(model, MECHANISMS["read"])
    run(model.eval(), "lxmert")
    for entry in attention_record(model).values():
        assert max(entry["span_sd"]) < 1e-6 and entry["span"] == pytest.approx([0.4] * 3)


def test_what_is_frozen_keeps_the_spans_that_it_had():
    model = pretrained("lxmert")
    set_attention(model, MECHANISMS["read"])
    expected = run(model.eval(), "lxmert")
    adapt(model, "SpotTune_Block")
    for module in LearnedSpans(model).spans:
        module.shift.weight.data += 1.0
    part = adaptive_part(model)
    for value, same in ((0.0, True), (1.0, False)):
        with part.force(torch.full((len(part.live),), value, dtype=torch.float64)):
            found = run(model.eval(), "lxmert")
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9) is same
    frozen = adapt(with_attention("lxmert", "read"), "Frozen")
    assert not any(p.requires_grad for p in frozen.bert.encoder.span_policy.parameters())


def test_published_spans_have_the_published_loss_and_are_clamped():
    model = pretrained("lxmert")
    set_attention(model, AttentionOptions("published", "published", batch=6))
    spans = LearnedSpans(model)
    wanted = sum(float(m.loss().detach()) for m in spans.spans)
    assert float(spans.loss(None).detach()) == pytest.approx(wanted)
    record = attention_record(model)
    assert {key for entry in record.values() for key in entry} == {"span", "alpha"}
    spans.clamp()
    assert all(float(m.current_val.detach().min()) >= 0 for m in spans.spans)
    assert run(model, "lxmert").shape == (6, 5)
