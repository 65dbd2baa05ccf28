"""The published policy network of VL-BERT: its start, what it reads, what it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from tests.common.tiny_models import adapted, vlbert_config, vlbert_inputs
from tests.vlbert.models import IMAGES, randomise
from vlbert.vqa_network import ResNetVLBERT


def published(strategy: str = "SpotTune", **settings: object) -> ResNetVLBERT:
    torch.manual_seed(0)
    return adapt(ResNetVLBERT(vlbert_config()).double(), strategy, "published", **settings)


def test_its_visual_gains_start_at_one_and_the_backbones_at_zero():
    model = published()
    for kind in ("text", "object"):
        gain = f"visual_ln_{kind}"
        own = getattr(adaptive_part(model).policy.network.vlbert, gain).weight
        assert torch.equal(own, torch.ones_like(own))
        assert getattr(model.vlbert, gain).weight.abs().max() == 0


def test_it_starts_at_random_values_of_its_own_and_two_layers():
    model = published()
    network = adaptive_part(model).policy.network
    assert len(network.vlbert.encoder.layer) == 2
    assert network.vlbert.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(
        network.vlbert.word_embeddings.weight, model.vlbert.word_embeddings.weight
    )
    head, count = network.final_mlp[-1], len(adaptive_part(model).live)
    bound = (6 / (12 + 2 * count)) ** 0.5
    assert 0.9 * bound < head.weight.abs().max() <= bound  # Xavier, uniform
    assert head.bias.abs().max() == 0


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_initial_share_sets_its_last_bias(share):
    bias = adaptive_part(published(initial_share=share)).policy.network.final_mlp[-1].bias
    odds = bias.view(-1, 2).softmax(-1)[:, 1]
    torch.testing.assert_close(odds, torch.full_like(odds, share), rtol=0, atol=1e-6)


def test_all_of_it_learns_and_nothing_reaches_the_backbone_through_it():
    model = randomise(published("SpotTune_Block")).double().train()
    with torch.no_grad():  # both branches must differ for the policy to have a gradient
        for parameter in model.vlbert.encoder.layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    part = adaptive_part(model)
    part.tell(1, 2, list(range(4)))
    model(**vlbert_inputs(4)).square().sum().backward()
    # Half of the padding row and of position and type rows is not read; the tensors are.
    still = [
        name
        for name, p in part.policy.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert still == []
    model.zero_grad()
    logits = part.policy.network(**vlbert_inputs(4))
    logits.sum().backward()
    ours = {id(p) for p in part.policy.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in ours)


def test_its_decisions_depend_on_the_image_from_the_start():
    model = published().eval()
    inputs = vlbert_inputs(3)
    changed = inputs["boxes"].clone()
    changed[..., 4:] *= -2
    found = []
    with torch.no_grad():
        for boxes in (inputs["boxes"], changed):
            model(**inputs | {"boxes": boxes})
            found.append(adaptive_part(model).last.logits)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_its_sizes_can_be_chosen():
    encoder = replace(
        vlbert_config().encoder,
        num_hidden_layers=1,
        hidden_size=6,
        visual_size=6,
        intermediate_size=9,
    )
    model = ResNetVLBERT(vlbert_config(), encoder)
    adapt(model, "BlockDrop", "published")
    network = adaptive_part(model).policy.network
    assert len(network.vlbert.encoder.layer) == 1 and network.config.encoder.hidden_size == 6
    assert model.eval()(
        **{k: v.float() if v.is_floating_point() else v for k, v in vlbert_inputs(2).items()}
    ).shape == (2, 5)


def test_from_images_it_reads_the_backbones_region_features_without_a_resnet_of_its_own():
    config = replace(vlbert_config(), image=IMAGES)
    model = adapt(randomise(ResNetVLBERT(config), 0.1), "SpotTune_Block", "published").eval()
    network = adaptive_part(model).policy.network
    assert not hasattr(network.image_feature_extractor, "backbone")
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in vlbert_inputs(2).items()}
    inputs["boxes"] = inputs["boxes"][..., :4]
    with torch.no_grad():
        outputs = model.run(**inputs, image=torch.randn(2, 3, 80, 96))
        features = torch.cat([outputs.regions.boxes, outputs.regions.features], -1)
        direct = network(features, inputs["im_info"], inputs["question"])
    torch.testing.assert_close(adaptive_part(model).last.logits.flatten(1), direct)


def test_a_copy_of_a_model_has_a_policy_of_its_own():
    from copy import deepcopy

    model = adapted("vlbert", "SpotTune", policy="published").eval()
    copy = deepcopy(model)
    inputs = vlbert_inputs(2)
    with torch.no_grad():
        expected = model(**inputs)
        for parameter in adaptive_part(model).policy.parameters():
            parameter.zero_()
        assert torch.equal(copy(**inputs), expected)
