"""Entmax and adaptive span: the published numbers, and what ours promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import ConfigError
from common.modules.attention import (
    LEAST_ALPHA,
    AdaptiveSpan,
    AttentionOptions,
    AttentionWeights,
    LearnedEntmax,
)
from common.modules.masks import additive_mask
from common.modules.published_attention import PublishedSpan

HEADS = 4


@pytest.fixture(scope="module")
def published(goldens: Path) -> dict[str, torch.Tensor]:
    return load_file(goldens / "adaptive" / "span.safetensors")


@pytest.mark.parametrize("case", ["s20", "s36", "cross_s20_q36", "batch_mismatch"])
def test_the_published_span_gives_the_published_numbers(goldens, published, case):
    given = {n.removeprefix(f"{case}."): x for n, x in published.items() if n.startswith(case)}
    expected = json.loads((goldens / "adaptive" / "config.json").read_text())["span"]["cases"][case]
    span = PublishedSpan(*given["current_val"].shape[:2])
    span.current_val.data.copy_(given["current_val"])
    weights = given["attn"].clone().requires_grad_()
    found = span.apply_to(weights)
    torch.testing.assert_close(found, given["out"], rtol=1e-5, atol=1e-7)
    found.backward(given["dY"])
    torch.testing.assert_close(weights.grad, given["d_attn"], rtol=5e-5, atol=1e-6)
    if "d_current_val" in given:
        torch.testing.assert_close(
            span.current_val.grad, given["d_current_val"], rtol=5e-5, atol=1e-6
        )
    assert float(span.loss().detach()) == pytest.approx(expected["loss"], rel=1e-5)
    assert span.reported() == {
        key: expected[key] for key in ("avg_span", "max_span", "trim_len", "cache_size")
    }
    span.clamp()
    assert torch.equal(span.current_val, given["current_val_clamped"])
    assert span.reported()["avg_span"] == expected["avg_span_after_clamp"]
    assert float(span.loss().detach()) == pytest.approx(expected["loss_after_clamp"], rel=1e-5)


def test_learned_entmax_gives_the_published_numbers(goldens):
    given = load_file(goldens / "adaptive" / "entmax.safetensors")
    alphas = given["alpha_per_head"]
    module = LearnedEntmax(len(alphas), 1.5)
    share = (alphas - LEAST_ALPHA) / (2 - LEAST_ALPHA)
    module.logit.data.copy_(torch.log(share / (1 - share)))
    torch.testing.assert_close(module.alpha, alphas)
    scores = given["X"].clone().requires_grad_()
    found = module(scores)
    torch.testing.assert_close(found, given["bisect.P"], rtol=1e-5, atol=1e-6)
    found.backward(given["dY"])
    torch.testing.assert_close(scores.grad, given["bisect.dX"], rtol=1e-4, atol=1e-5)
    by_alpha = (2 - LEAST_ALPHA) * share * (1 - share)  # of the way in which α is stored
    torch.testing.assert_close(
        module.logit.grad / by_alpha, given["bisect.d_alpha"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", ["entmax15", "sparsemax"])
def test_fixed_entmax_is_the_library_s_exact_one(goldens, name):
    given = load_file(goldens / "adaptive" / "entmax.safetensors")
    module = AttentionWeights(HEADS, AttentionOptions(name), text=True)
    scores = given["X"].clone().requires_grad_()
    found = module(scores, None)
    torch.testing.assert_close(found, given[f"{name}.P"], rtol=1e-5, atol=1e-6)
    found.backward(given["dY"])
    torch.testing.assert_close(scores.grad, given[f"{name}.dX"], rtol=1e-4, atol=1e-5)
    learned = LearnedEntmax(HEADS, 1.5 if name == "entmax15" else 2.0)
    torch.testing.assert_close(learned(given["X"]), found.detach(), rtol=1e-3, atol=1e-3)


def test_alpha_stays_in_its_limits_and_has_a_gradient_at_both_ends():
    module = LearnedEntmax(3, 1.5)
    module.logit.data.copy_(torch.tensor([-40.0, 0.0, 40.0]))
    scores = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1)) * 5
    scores.requires_grad_()
    module(scores).square().sum().backward()
    alpha = module.alpha.detach()
    assert float(alpha.min()) >= LEAST_ALPHA - 1e-6 and float(alpha.max()) <= 2
    assert bool(module.logit.grad.isfinite().all() & scores.grad.isfinite().all())


def random_scores(batch: int, queries: int, keys: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, HEADS, queries, keys, generator=generator, dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> torch.Tensor:
    present = torch.arange(width) < torch.tensor(lengths)[:, None]
    return additive_mask(present, torch.float64)


@pytest.mark.parametrize("normaliser", ["softmax", "entmax", "entmax15", "sparsemax"])
@pytest.mark.parametrize("span", ["none", "keys", "distance"])
def test_weights_sum_to_one_and_depend_on_the_sample_alone(normaliser, span):
    """However much padding its batch has; masked keys get exactly 0."""
    options = AttentionOptions(normaliser, span, initial_span=0.3, initial_alpha=1.5)
    module = AttentionWeights(HEADS, options, text=True).double()
    if module.span is not None:
        module.span.span.data.copy_(torch.tensor([0.0, 0.2, 0.7, 1.0]))
    scores, mask = random_scores(3, 9, 9), mask_of([9, 4, 6], 9)
    found = module(scores, mask).detach()
    for sample, length in enumerate([9, 4, 6]):
        own = found[sample, :, :length]
        torch.testing.assert_close(own.sum(-1), torch.ones(HEADS, length, dtype=torch.float64))
        assert float(own[..., length:].abs().sum()) == 0
        alone = module(scores[sample : sample + 1, :, :length, :length], None).detach()[0]
        torch.testing.assert_close(own[..., :length], alone, rtol=1e-6, atol=1e-9)
        if normaliser != "softmax" or span != "none":
            assert float((alone == 0).double().mean()) > 0.05


@pytest.mark.parametrize("normaliser", ["softmax", "entmax15"])
@pytest.mark.parametrize("span", ["keys", "distance"])
def test_a_full_span_changes_nothing(normaliser, span):
    scores, mask = random_scores(2, 6, 8), mask_of([8, 5], 8)
    plain = AttentionWeights(HEADS, AttentionOptions(normaliser), text=True)
    spanned = AttentionWeights(HEADS, AttentionOptions(normaliser, span), text=True).double()
    torch.testing.assert_close(spanned(scores, mask), plain(scores, mask))


def test_a_span_keeps_what_is_near_or_early():
    """Against the formula, key by key."""
    lengths, width = [8, 5], 8
    for distance in (False, True):
        span = AdaptiveSpan(HEADS, 0.25, 1.0, distance).double()
        shares = [0.0, 0.25, 0.5, 1.0]
        span.span.data.copy_(torch.tensor(shares))
        keys = torch.tensor(lengths, dtype=torch.float64)
        found = span(width, keys, width).expand(2, HEADS, width, width)
        for b, length in enumerate(lengths):
            ramp = max(1.0, 0.25 * length)
            for h, share in enumerate(shares):
                for t in range(width):
                    for s in range(width):
                        order = abs(t - s) if distance else s
                        wanted = min(1.0, max(0.0, (share * length - order) / ramp + 1))
                        assert found[b, h, t, s].item() == pytest.approx(wanted), (b, h, t, s)


def test_spans_have_a_gradient_and_are_clamped():
    span = AdaptiveSpan(HEADS, 0.25, 0.5, distance=True)
    span(6, torch.tensor([6.0]), 6).sum().backward()
    assert bool((span.span.grad > 0).all())
    span.span.data.copy_(torch.tensor([-1.0, 0.3, 1.5, 1.0]))
    span.clamp()
    torch.testing.assert_close(span.span.data, torch.tensor([0.0, 0.3, 1.0, 1.0]))


def test_weights_are_computed_in_float32_inside_autocast():
    module = AttentionWeights(HEADS, AttentionOptions("entmax", "keys"), text=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(random_scores(2, 3, 5).bfloat16(), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(2, HEADS, 3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"normaliser": "softmin"}, "attention 'softmin': valid: softmax, entmax"),
        ({"span": "far"}, "span 'far': valid: none, keys, distance"),
        ({"ramp": 0.0}, "span ramp 0.0: give a share of the keys"),
        ({"initial_span": 1.5}, "initial span 1.5"),
        ({"initial_alpha": 1.0}, "initial alpha 1.0: give a number from 1.01 to 2"),
    ],
)
def test_options_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        AttentionOptions(**values)
    assert AttentionOptions().plain and not AttentionOptions(span="keys").plain
