"""The published policy network of ViLBERT: its layers, its start, what it reads, what it learns."""

from __future__ import annotations

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from tests.common.tiny_models import vilbert_config
from tests.vilbert.formulas import affine
from tests.vilbert.models import BATCH, bare_model, close, inputs_of, randomise, without_gradient
from vilbert.heads import VILBertForVQA
from vilbert.modeling import fuse


def published(layers: tuple[int, int, int] = (2, 1, 1), **changes: object) -> VILBertForVQA:
    torch.manual_seed(4)
    model = randomise(VILBertForVQA(vilbert_config(**changes), layers)).double()
    return adapt(model, "SpotTune_Block", "published")


@pytest.mark.parametrize(
    ("layers", "order"),
    [
        ((2, 1, 1), ["lang.1", "connection.1", "vision.1", "lang.2"]),
        ((1, 1, 1), ["connection.1", "vision.1", "lang.1"]),
        (
            (3, 2, 2),
            ["lang.1", "lang.2", "connection.1", "connection.2", "vision.1", "vision.2", "lang.3"],
        ),
        (
            (9, 9, 9),
            ["lang.1", "lang.2", "connection.1", "connection.2", "vision.1", "vision.2", "lang.3"],
        ),
    ],
)
def test_the_published_policy_has_the_layers_that_are_asked_for_and_there(layers, order):
    part = adaptive_part(published(layers))
    assert [layer.name for layer in part.policy.bert.encoder.layers()] == order
    assert part.policy.head[-1].out_features == 2 * len(part.live)


def test_the_published_policy_starts_from_copies_of_the_backbones_weights():
    model = published()
    backbone, policy = model.bert.state_dict(), adaptive_part(model).policy
    copies = policy.bert.state_dict()
    assert {"encoder.layer.1.output.dense.weight", "v_pooler.dense.bias"} <= set(copies)
    for name, x in copies.items():
        assert torch.equal(x, backbone[name]), name
        assert x.data_ptr() != backbone[name].data_ptr(), f"{name} is shared"


@pytest.mark.parametrize("changes", [{}, {"fusion_method": "sum"}, {"with_coattention": False}])
def test_the_published_policy_says_what_a_small_vilbert_says(changes):
    model, inputs = published(**changes).eval(), inputs_of(BATCH)
    part = adaptive_part(model)
    with torch.no_grad():
        model(**inputs)
    logits = part.last.logits
    policy = part.policy
    small = bare_model(
        **changes,
        num_hidden_layers=2,
        v_num_hidden_layers=1,
        t_biattention_id=(1,),
        v_biattention_id=(0,),
    )
    small.load_state_dict(policy.bert.state_dict())
    found = small(**inputs)
    pooled = fuse(small.config, found)
    hidden = affine(pooled, policy.head[0]).clamp(min=0)
    close(logits.flatten(1), affine(hidden, policy.head[2]))


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "features", "places"])
def test_the_published_policy_reads_question_and_image(name):
    model, inputs = published().eval(), inputs_of(BATCH)
    randomise(adaptive_part(model).policy)
    changed = inputs[name].clone()
    changed[:, 0] = 1 if name == "token_type_ids" else changed[:, 0] + 1
    found = []
    with torch.no_grad():
        for x in (inputs[name], changed):
            model(**inputs | {name: x})
            found.append(adaptive_part(model).last.logits)
    assert (found[0] - found[1]).abs().flatten(1).max(1).values.min() > 1e-6


def test_all_of_the_published_policy_learns_and_nothing_reaches_the_backbone_through_it():
    model = published()
    randomise(adaptive_part(model).policy)
    part = adaptive_part(model)
    model(**inputs_of(BATCH))
    part.last.logits.square().sum().backward()
    wanted = {n for n, p in part.policy.named_parameters() if p.requires_grad}
    assert not wanted & without_gradient(part.policy)
    assert "bert.encoder.c_layer.0.biOutput.q_dense1.weight" not in wanted
    assert all(p.grad is None for n, p in model.named_parameters() if ".adaptive." not in n)
