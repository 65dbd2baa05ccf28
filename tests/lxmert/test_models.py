"""Names, sizes, decisions and policies of the LXMERT models, from the layers and never typed in.

The numbers that are typed in here were counted on the original system's modules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, adaptive_part, parameter_counts
from common.adapt.encoder import AdaptiveOptions
from common.errors import ConfigError
from lxrt.modeling import LXRTModel, PretrainingModel, VQAModel
from lxrt.sizes import LxmertConfig, size_config
from tests.common.tiny_models import drift_layers, lxmert_config, lxmert_inputs

ENCODER_LAYERS = 181_928_448
VQA_PARAMETERS = 213_930_297


def base(model: type[nn.Module] = VQAModel, **changes: int) -> nn.Module:
    """A model of base size without memory."""
    with torch.device("meta"):
        return model(LxmertConfig(**changes))


def adapted_base(strategy: str, policy: str = "small") -> nn.Module:
    with torch.device("meta"):
        return adapt(VQAModel(LxmertConfig()), strategy, policy)


def count(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def test_the_base_vqa_model_has_455_tensors_and_213930297_parameters():
    state = base().state_dict()
    assert len(state) == 455 and count(state.values()) == VQA_PARAMETERS
    assert count(base(num_answers=1842).parameters()) == 211_952_178, "GQA"


def test_the_base_pretraining_model_has_473_tensors_and_228051752_unique_parameters():
    model = base(PretrainingModel, num_answers=9500)
    assert len(model.state_dict()) == 473
    assert count(model.parameters()) == 228_051_752
    words = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is words, "the decoder is not tied"


def test_the_base_encoder_has_449_tensors_and_207936768_parameters_part_by_part():
    model = base(LXRTModel)
    state = model.state_dict()
    assert len(state) == 449 and count(state.values()) == 207_936_768
    parts = {
        "embeddings": 23_837_184,
        "encoder.visn_fc": 1_580_544,
        "encoder.layer.3": 7_087_872,
        "encoder.r_layers.4": 7_087_872,
        "encoder.x_layers.0": 16_539_648,
        "pooler": 590_592,
    }
    found = {name: count(model.get_submodule(name).parameters()) for name in parts}
    assert found == parts
    layers = [layer.module for layer in model.encoder.layers()]
    assert count(p for layer in layers for p in layer.parameters()) == ENCODER_LAYERS


def test_upstreams_order_of_modules_and_names_of_the_encoder():
    children = [name for name, _ in base(LXRTModel).encoder.named_children()]
    assert children == ["visn_fc", "layer", "x_layers", "r_layers"]
    names = set(base().state_dict())
    prefix = "lxrt_encoder.model.bert."
    assert {
        f"{prefix}embeddings.word_embeddings.weight",
        f"{prefix}pooler.dense.bias",
        f"{prefix}encoder.visn_fc.box_layer_norm.weight",
        f"{prefix}encoder.layer.8.attention.self.query.weight",
        f"{prefix}encoder.r_layers.4.intermediate.dense.bias",
        f"{prefix}encoder.x_layers.4.visual_attention.att.key.bias",
        f"{prefix}encoder.x_layers.4.visn_self_att.output.LayerNorm.weight",
        f"{prefix}encoder.x_layers.4.lang_inter.dense.weight",
        "logit_fc.3.bias",
    } <= names
    assert {name.split(".")[1] for name in names if name.startswith("logit_fc")} == {"0", "2", "3"}


def test_in_vqa_mode_exactly_the_16_tensors_without_a_gradient_are_frozen(goldens):
    config = json.loads((goldens / "lxmert" / "config.json").read_text())
    model = adapt(VQAModel(LxmertConfig.from_dict(config)), "standard")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(frozen) == 16 and frozen == config["params_without_gradient"]
    at_base = [
        name for name, p in adapted_base("standard").named_parameters() if not p.requires_grad
    ]
    assert at_base == [name.replace("x_layers.1.", "x_layers.4.") for name in frozen]


def dead_parameters() -> int:
    """Of the vision half of the last cross layer: attention (4 linear maps, LN) and FFN."""
    layer = base(LXRTModel).encoder.x_layers[-1]
    return count(
        p
        for m in (layer.visn_self_att, layer.visn_inter, layer.visn_output)
        for p in m.parameters()
    )


def test_frozen_trains_32_million_and_freezes_all_181_93_million_of_the_layers():
    counts = parameter_counts(adapted_base("Frozen"))
    assert counts == {
        "trainable": VQA_PARAMETERS - ENCODER_LAYERS,
        "frozen": ENCODER_LAYERS,
        "policy": 0,
    }
    assert round(counts["trainable"] / 1e6, 2) == 32.00


def test_standard_trains_all_but_the_dead_parameters():
    assert parameter_counts(adapted_base("standard")) == {
        "trainable": VQA_PARAMETERS - dead_parameters(),
        "frozen": dead_parameters(),
        "policy": 0,
    }


@pytest.mark.parametrize(
    ("strategy", "policy", "twins", "linears"),
    [
        ("SpotTune", 66_302_290, 1, 0),
        ("SpotTune_Block", 65_054_246, 1, 0),
        ("BlockDrop", 65_054_246, 0, 0),
        ("BlockReplace", 65_054_246, 0, (9 + 5 + 5 + 4) * (768 * 768 + 768)),
    ],
)
def test_parameters_of_the_adaptive_strategies_with_the_published_policy(
    strategy, policy, twins, linears
):
    """66.30 M and 65.05 M in the original; the last cross layer hands on language only."""
    found = parameter_counts(adapted_base(strategy, "published"))
    assert found == {
        "policy": policy,
        "frozen": twins * ENCODER_LAYERS + dead_parameters(),
        "trainable": VQA_PARAMETERS - dead_parameters() + linears,
    }


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop"])
def test_the_small_policy_is_small_at_base_size(strategy):
    policy = parameter_counts(adapted_base(strategy, "small"))["policy"]
    assert 100_000 < policy < 3_000_000


@pytest.mark.parametrize(
    ("strategy", "total", "dead"),
    [
        ("SpotTune_Block", 19, []),
        ("BlockDrop", 19, []),
        ("BlockReplace", 19, []),
        ("SpotTune_Res", 53, ["cross.5.vision.attention", "cross.5.vision.ffn"]),
        (
            "SpotTune",
            425,
            [
                *(f"cross.5.vision.head.{n}" for n in range(1, 13)),
                "cross.5.vision.attention.output",
                "cross.5.vision.intermediate",
                "cross.5.vision.output",
            ],
        ),
    ],
)
def test_decisions_of_a_base_vqa_model_and_which_of_them_are_dead(strategy, total, dead):
    with torch.device("meta"):
        model = VQAModel(LxmertConfig())
        encoder = model.bert.encoder
    adapt(model, strategy)
    part = adaptive_part(model)
    assert len(part.decision_names) == len(set(part.decision_names)) == total
    live = [alive for site in part.sites for alive in [site.live] * len(site.columns)]
    found = [name for name, alive in zip(part.decision_names, live, strict=True) if not alive]
    assert sorted(found) == sorted(dead)
    layers = [
        *(f"lang.{n}" for n in range(1, 10)),
        *(f"vision.{n}" for n in range(1, 6)),
        *(f"cross.{n}" for n in range(1, 6)),
    ]
    assert list(dict.fromkeys(part.decision_layers)) == layers
    assert [layer.name for layer in encoder.layers()] == layers


def test_the_425_decisions_are_in_the_order_of_the_original():
    """Language 9 * 15, vision 5 * 15, cross 5 * 43 in the original's order."""
    names = adaptive_part(adapted_base("SpotTune")).decision_names
    expected = {
        0: "lang.1.head.1",
        11: "lang.1.head.12",
        12: "lang.1.attention.output",
        13: "lang.1.intermediate",
        14: "lang.1.output",
        15: "lang.2.head.1",
        134: "lang.9.output",
        135: "vision.1.head.1",
        209: "vision.5.output",
        210: "cross.1.cross.head.1",
        222: "cross.1.cross.output",
        223: "cross.1.lang.head.1",
        235: "cross.1.lang.attention.output",
        236: "cross.1.vision.head.1",
        248: "cross.1.vision.attention.output",
        249: "cross.1.lang.intermediate",
        250: "cross.1.vision.intermediate",
        251: "cross.1.lang.output",
        252: "cross.1.vision.output",
        253: "cross.2.cross.head.1",
        424: "cross.5.vision.output",
    }
    assert {index: names[index] for index in expected} == expected


def test_other_layer_counts_give_other_totals_without_any_number_typed_in():
    with torch.device("meta"):
        model = adapt(VQAModel(LxmertConfig(l_layers=12, x_layers=3, r_layers=0)), "SpotTune")
    assert len(adaptive_part(model).decision_names) == 12 * 15 + 3 * 43


def tiny(strategy: str, policy: str, **options: object) -> VQAModel:
    torch.manual_seed(3)
    model = VQAModel(lxmert_config()).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.manual_seed(4)
    return adapt(model, strategy, policy, options=AdaptiveOptions(**options))


def test_the_published_policy_starts_from_copies_of_the_backbones_weights():
    model = tiny("SpotTune", "published")
    policy, backbone = adaptive_part(model).policy, model.bert.state_dict()
    names = list(policy.bert.state_dict())
    assert any("x_layers.0." in n for n in names) and any("visn_fc." in n for n in names)
    assert any("r_layers.0." in n for n in names) and any("embeddings." in n for n in names)
    for name, weight in policy.bert.state_dict().items():
        assert torch.equal(weight, backbone[name]), name
        assert weight.data_ptr() != backbone[name].data_ptr(), f"{name} is shared"
    before = {name: weight.clone() for name, weight in policy.bert.state_dict().items()}
    drift_layers(model, 0.1)
    assert all(torch.equal(w, before[n]) for n, w in policy.bert.state_dict().items())


def test_the_published_policy_has_two_language_one_cross_and_one_vision_layer():
    with torch.device("meta"):
        policy = adaptive_part(adapt(VQAModel(LxmertConfig()), "SpotTune", "published")).policy
    encoder = policy.bert.encoder
    assert [len(stack) for stack in (encoder.layer, encoder.x_layers, encoder.r_layers)] == [
        2,
        1,
        1,
    ]
    assert tuple(policy.logit_fc[-1].weight.shape) == (850, 1536)


@pytest.mark.parametrize("policy", ["published", "small"])
@pytest.mark.parametrize("strategy", ["SpotTune", "SpotTune_Block", "BlockDrop"])
def test_decisions_differ_between_samples_and_follow_question_and_image(strategy, policy):
    model = tiny(strategy, policy).eval()
    part = adaptive_part(model)
    inputs = lxmert_inputs(6)

    def decide(**changes: Tensor) -> Tensor:
        with torch.no_grad():
            model(**(inputs | changes))
        return part.last.logits

    logits = decide()
    assert (logits - logits[:1]).abs()[1:].flatten(1).max(1).values.min() > 1e-6
    words = inputs["input_ids"].clone()
    words[:, 1] = words[:, 1] % 38 + 2
    assert (decide(input_ids=words) - logits).abs().max() > 1e-6, "the question is not read"
    assert (decide(features=inputs["features"] + 1) - logits).abs().max() > 1e-6, "nor the image"
    assert (decide(boxes=inputs["boxes"] / 2) - logits).abs().max() > 1e-6, "nor the boxes"
    assert torch.equal(decide(), logits)


def test_the_published_policy_learns_and_sends_no_gradient_into_the_backbones_embeddings():
    """Through the policy; the backbone's own embeddings get theirs from the encoder."""
    model = tiny("SpotTune", "published").train()
    part = adaptive_part(model)
    model(**lxmert_inputs(6))
    part.last.logits.square().sum().backward()
    dead = [n for n, p in part.policy.named_parameters() if p.grad is None]
    assert all("x_layers.0.visn_" in name for name in dead), dead
    assert all(p.grad is None for n, p in model.named_parameters() if ".adaptive." not in n)


def test_new_models_are_drawn_as_upstream_draws_them():
    """N(0, 0.02) without exception for padding rows; biases 0; LayerNorm 1 and 0."""
    torch.manual_seed(0)
    model = PretrainingModel(size_config("small", vocab_size=500, num_answers=200))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            tolerance = 4 * 0.02 / (2 * module.weight.numel()) ** 0.5
            assert abs(module.weight.std().item() - 0.02) < tolerance, module
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert (module.bias == 0).all()
    assert (model.cls.predictions.bias == 0).all()
    embeddings = model.bert.embeddings
    for table in (
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        embeddings.token_type_embeddings,
    ):
        assert table.weight[0].std() > 0.01, "the padding row is drawn like the others"


def test_row_0_of_the_three_tables_gets_no_gradient():
    model = VQAModel(lxmert_config()).double()
    model(**lxmert_inputs(3)).sum().backward()
    embeddings = model.bert.embeddings
    for table in (
        embeddings.word_embeddings,
        embeddings.position_embeddings,
        embeddings.token_type_embeddings,
    ):
        assert table.weight.grad[0].abs().max() == 0
    assert embeddings.position_embeddings.weight.grad[1].abs().max() > 0


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="unknown size 'large'; valid: base, small"):
        size_config("large")
    with pytest.raises(ValueError, match="768 channels do not divide into 7 attention heads"):
        base(num_attention_heads=7)


def test_a_size_can_be_changed_in_some_values_and_none_keeps_the_default():
    config = size_config("small", l_layers=5, x_layers=None)
    assert (config.l_layers, config.x_layers, config.hidden_size) == (5, 2, 128)
    assert LxmertConfig.from_dict(config.to_dict() | {"kind": "other"}) == config
    assert config.without_dropout().hidden_dropout_prob == 0.0
