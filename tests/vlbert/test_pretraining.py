"""The pretraining network and its losses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.errors import ConfigError
from tests.vlbert.models import (
    IMAGES,
    pretraining_config,
    pretraining_inputs,
    pretraining_labels,
    pretraining_network,
)
from vlbert.pretraining_losses import loss_weights, pretraining_losses

ALL = {"relationship": True}


def rows(tensors: dict, part: slice) -> dict:
    return {name: x[part] for name, x in tensors.items()}


def test_the_losses_are_cross_entropies_of_what_is_labelled():
    network, inputs = pretraining_network(**ALL), pretraining_inputs()
    outputs, labels = network(**inputs), pretraining_labels(inputs)
    losses = pretraining_losses(network.config, outputs, labels)
    assert list(losses) == ["relationship_loss", "mlm_loss_wvc", "mvrc_loss"]
    chosen = labels["words"] != -1
    expected = F.cross_entropy(outputs["words"][:, :6][chosen], labels["words"][chosen])
    torch.testing.assert_close(losses["mlm_loss_wvc"], expected)
    masked = inputs["masked"]
    expected = F.cross_entropy(outputs["regions"][masked], labels["regions"][masked])
    torch.testing.assert_close(losses["mvrc_loss"], expected)
    expected = F.cross_entropy(outputs["relationship"], labels["relationship"])
    torch.testing.assert_close(losses["relationship_loss"], expected)


@pytest.mark.parametrize("by_sample", [False, True])
def test_where_nothing_is_labelled_a_loss_is_0_and_weighs_nothing(by_sample):
    network = pretraining_network(words_by_sample=by_sample, regions_by_sample=by_sample)
    inputs = pretraining_inputs()
    labels = pretraining_labels(inputs)
    labels["words"].fill_(-1)
    labels["regions"].zero_()
    losses = pretraining_losses(network.config, network(**inputs), labels)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    assert loss_weights(network.config, labels) == {"mlm_loss_wvc": 0.0, "mvrc_loss": 0.0}


@pytest.mark.parametrize("by_sample", [False, True])
def test_parts_of_a_batch_are_put_together_with_the_weights(by_sample):
    network = pretraining_network(**ALL, words_by_sample=by_sample, regions_by_sample=by_sample)
    inputs = pretraining_inputs(5)
    labels = pretraining_labels(inputs)
    labels["words"][3] = -1  # a sample without a label
    whole = pretraining_losses(network.config, network(**inputs), labels)
    sums, counts = dict.fromkeys(whole, 0.0), dict.fromkeys(whole, 0.0)
    for part in (slice(0, 2), slice(2, 5)):
        own = rows(labels, part)
        weights = loss_weights(network.config, own)
        for name, loss in pretraining_losses(
            network.config, network(**rows(inputs, part)), own
        ).items():
            sums[name] += weights[name] * loss
            counts[name] += weights[name]
    for name, loss in whole.items():
        # Averaging over samples adds 1e-4 to its denominators, once in each part.
        torch.testing.assert_close(
            sums[name] / counts[name], loss, rtol=2e-4 if by_sample else 1e-10, atol=0
        )


def test_only_the_places_that_are_wanted_are_decoded():
    network, inputs = pretraining_network(), pretraining_inputs()
    aux = torch.tensor([[4, 5, 6, 7, 8, 9, 3, 2], [9, 3, 0, 0, 0, 0, 0, 0]])
    whole = network(**inputs, aux_text=aux)
    assert whole["words"].shape == (4, 8, 40) and whole["aux_words"].shape == (2, 8, 40)
    places = torch.zeros(6, 8, dtype=torch.bool)
    places[1, 2] = places[4, 0] = places[5, 1] = True
    some = network(**inputs, aux_text=aux, word_places=places)
    assert "aux_words" not in some
    expected = torch.stack(
        [whole["words"][1, 2], whole["aux_words"][0, 0], whole["aux_words"][1, 1]]
    )
    torch.testing.assert_close(some["words"], expected)


def test_texts_without_an_image_do_not_change_what_captions_predict():
    network, inputs = pretraining_network(**ALL), pretraining_inputs()
    alone = network(**inputs)
    aux = torch.tensor([[4, 5, 6, 7, 8, 9, 3, 2, 9, 9, 8, 8]])
    both = network(**inputs, aux_text=aux)
    for name in ("relationship", "regions"):
        torch.testing.assert_close(both[name], alone[name], rtol=0, atol=1e-11)
    tokens = inputs["text"] > 0
    torch.testing.assert_close(
        both["words"][:, :6][tokens], alone["words"][:, :6][tokens], rtol=0, atol=1e-11
    )


def test_a_masked_region_hides_its_features_and_an_open_one_does_not():
    network, inputs = pretraining_network(), pretraining_inputs()

    def change(region: int) -> float:
        changed = inputs | {"boxes": inputs["boxes"].clone()}
        changed["boxes"][:, region, 4:] += 1.0
        found, other = network(**inputs), network(**changed)
        return max((found[name] - other[name]).abs().max() for name in found)

    assert change(1) == 0 and change(2) > 1e-3
    untouched = pretraining_inputs()
    assert all(torch.equal(inputs[name], untouched[name]) for name in inputs)


@pytest.mark.parametrize(("mask_raw_pixels", "hidden"), [(False, True), (True, False)])
def test_from_images_features_are_hidden_unless_pixels_are(mask_raw_pixels, hidden):
    network = pretraining_network(image=IMAGES, mask_raw_pixels=mask_raw_pixels)
    assert hasattr(network, "object_mask_visual_embedding") == hidden
    inputs = pretraining_inputs(2)
    inputs["boxes"] = inputs["boxes"][..., :4]
    image = torch.randn(2, 3, 80, 96, dtype=torch.float64)
    regions, _, _ = network.embed_regions(
        inputs["boxes"], inputs["im_info"], inputs["masked"], image, 6
    )
    mask_feature = torch.zeros(())
    if hidden:
        mask_feature = network.object_mask_visual_embedding.weight[0]
    same = (regions.features == mask_feature).all(-1)
    assert torch.equal(same, inputs["masked"] & torch.tensor(hidden))


def test_heads_that_are_not_wanted_do_not_exist():
    network = pretraining_network(words=False, multitask=False)
    names = network.state_dict().keys()
    assert not [n for n in names if "mlm_head" in n or "aux_text" in n or "relationsip" in n]
    assert network(**pretraining_inputs()).keys() == {"regions"}
    with pytest.raises(ConfigError, match="ResNetVLBERTForPretrainingMultitask"):
        network(**pretraining_inputs(), aux_text=torch.tensor([[4, 5]]))


def test_the_relationship_loss_needs_the_pooler():
    from dataclasses import replace

    config = pretraining_config()
    with pytest.raises(ConfigError, match="with_pooler"):
        replace(config, relationship=True, encoder=replace(config.encoder, with_pooler=False))
