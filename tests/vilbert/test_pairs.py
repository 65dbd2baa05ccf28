"""One text with many images, and all texts of a batch with all its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, adaptive_part
from common.errors import ConfigError
from tests.common.tiny_models import ADAPTIVE, drift_layers, vilbert_config
from tests.vilbert.models import (
    BATCH,
    STREAMS,
    agree,
    bare_model,
    close,
    inputs_of,
    randomise,
    rows,
    tasks_model,
    without_gradient,
)
from vilbert.heads import HEADS, VILBertForVQA, output_of


def test_one_text_with_every_image_is_the_text_repeated():
    inputs = inputs_of(BATCH)
    one = rows(inputs, [1], [0, 1, 2, 3])
    expected = tasks_model()(**rows(inputs, [1] * BATCH, [0, 1, 2, 3]))
    found = tasks_model(fast_mode=True)(**one)
    for head, wanted in output_of(expected).items():
        close(output_of(found)[head], wanted)


def test_texts_before_the_connections_are_read_once_for_all_images():
    model, seen = bare_model(fast_mode=True), []
    for layer in (model.encoder.layer[0], model.encoder.layer[1]):
        layer.attention.self.query.register_forward_hook(lambda *a: seen.append(len(a[2])))
    model(**rows(inputs_of(BATCH), [1], [0, 1, 2, 3]))
    assert seen == [1, BATCH]


def test_pairs_in_a_batch_are_all_texts_with_all_images():
    inputs = inputs_of(3)
    found = bare_model(in_batch_pairs=True)(**inputs, connected=True, attention=True)
    plain = bare_model()
    for text in range(3):
        for image in range(3):
            pair = slice(text * 3 + image, text * 3 + image + 1)
            wanted = plain(**rows(inputs, [text], [image]), connected=True, attention=True)
            for name in STREAMS:
                close(getattr(found, name)[pair], getattr(wanted, name))
            for ours, theirs in zip(found.connected, wanted.connected, strict=True):
                close(ours["vision"][pair], theirs["vision"])
            for layer, streams in wanted.attention.items():
                for stream, x in streams.items():
                    own = found.attention[layer][stream]
                    place = slice(text, text + 1) if len(own) == 3 else pair
                    close(own[place], x)
    assert len(found.lang) == 9


def test_pairs_in_a_batch_have_heads_but_not_the_choice_of_a_region():
    inputs, model = inputs_of(3), tasks_model(in_batch_pairs=True)
    with pytest.raises(ConfigError, match="in_batch_pairs: vision_logit needs the mask"):
        model(**inputs)
    model.use([head for head in HEADS if head != "vision_logit"])
    texts, images = [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3
    expected = output_of(tasks_model()(**rows(inputs, texts, images)))
    for head, x in output_of(model(**inputs)).items():
        close(x, expected[head])


def decided(strategy: str, policy: str, **changes: object) -> VILBertForVQA:
    model = randomise(VILBertForVQA(vilbert_config(**changes))).double().eval()
    adapt(model, strategy, policy)
    drift_layers(model, 0.3)
    randomise(adaptive_part(model).policy)
    return model


def halve(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Let every decision be 1 for about half of the samples."""
    model(**inputs)
    part = adaptive_part(model)
    logits = part.last.logits
    centre = (logits[..., 1] - logits[..., 0]).median(0).values
    part.policy.head[-1].bias.view(-1, 2)[:, 1] -= centre + 1e-9


@torch.no_grad()
@pytest.mark.parametrize("policy", ["small", "published"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("mode", ["fast_mode", "in_batch_pairs"])
def test_an_adapted_model_decides_for_every_pair(mode, strategy, policy):
    inputs, images = inputs_of(3), [0, 1, 2]
    given, pairs = rows(inputs, [1], images), rows(inputs, [1] * 3, images)
    if mode == "in_batch_pairs":
        given, pairs = inputs, rows(inputs, [0, 0, 0, 1, 1, 1, 2, 2, 2], images * 3)
    plain, model = decided(strategy, policy), decided(strategy, policy, **{mode: True})
    halve(plain, pairs)
    model.load_state_dict(plain.state_dict())
    close(model(**given), plain(**pairs))
    found, expected = (adaptive_part(m).last.decisions for m in (model, plain))
    assert torch.equal(found, expected)
    assert len(found.unique(dim=0)) > 1, "the pairs are decided alike"


@pytest.mark.parametrize("mode", ["fast_mode", "in_batch_pairs"])
def test_gradients_reach_all_that_a_pair_reads(mode):
    model = randomise(VILBertForVQA(vilbert_config(**{mode: True}))).double()
    adapt(model)
    given = inputs_of(3)
    model(
        **(rows(given, [1], [0, 1, 2]) if mode == "fast_mode" else given)
    ).square().sum().backward()
    assert not {n for n, p in model.named_parameters() if p.requires_grad} & without_gradient(model)


@pytest.mark.parametrize("mode", ["fast_mode", "in_batch_pairs"])
def test_pairs_without_connections(mode):
    inputs = inputs_of(3)
    given = rows(inputs, [1], [0, 1, 2]) if mode == "fast_mode" else inputs
    texts = [1] * 3 if mode == "fast_mode" else [0, 0, 0, 1, 1, 1, 2, 2, 2]
    images = [0, 1, 2] if mode == "fast_mode" else [0, 1, 2] * 3
    found = bare_model(with_coattention=False, **{mode: True})(**given)
    agree(found, bare_model(with_coattention=False)(**rows(inputs, texts, images)))
