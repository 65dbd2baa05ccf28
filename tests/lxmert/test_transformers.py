"""Our LXMERT against that of `transformers`, and adaptive finetuning of theirs."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LxmertConfig as HFConfig
from transformers import LxmertForPreTraining, LxmertForQuestionAnswering, LxmertModel

from common.adapt.adapting import adapt, adaptive_part, parameter_groups
from common.adapt.merging import merge
from common.errors import ConfigError
from common.tasks.vqa import vqa_loss
from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.pretraining_losses import pretraining_losses, total_loss
from lxrt.sizes import LxmertConfig

ADAPTIVE = ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop", "BlockReplace")
TWINS = ADAPTIVE[:3]
DECISIONS = {
    "SpotTune_Block": 5,
    "SpotTune_Res": 16,
    "BlockDrop": 5,
    "BlockReplace": 5,
    "SpotTune": 3 * (3 + 3) + 2 * (3 * 3 + 3 + 4),
}
SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "l_layers": 2,
    "x_layers": 2,
    "r_layers": 1,
    "visual_feat_dim": 7,
    "max_position_embeddings": 16,
}


def inputs(
    batch: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype = torch.float32,
    tokens: int = 7,
    regions: int = 5,
) -> dict[str, Tensor]:
    """Inputs of our models, with irregular masks of both streams and both segments."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.arange(batch) % 3 + tokens - 2
    mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
    counts = torch.arange(batch) % 2 + regions - 1
    present = (torch.arange(regions)[None] < counts[:, None]).long()
    return {
        "input_ids": torch.randint(1, vocabulary, (batch, tokens), generator=generator) * mask,
        "input_mask": mask,
        "region_mask": present,
        "segment_ids": torch.randint(0, 2, (batch, tokens), generator=generator),
        "features": torch.randn(batch, regions, width, generator=generator, dtype=dtype),
        "boxes": torch.rand(batch, regions, 4, generator=generator, dtype=dtype),
    }


def theirs(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs under the names of `transformers`."""
    names = {
        "input_ids": "input_ids",
        "input_mask": "attention_mask",
        "segment_ids": "token_type_ids",
        "features": "visual_feats",
        "boxes": "visual_pos",
        "region_mask": "visual_attention_mask",
    }
    return {names[key]: tensor for key, tensor in ours.items()}


def hf_name(name: str) -> str:
    """Ours to theirs, as the specification of the state dicts has it."""
    if name.startswith("logit_fc."):
        return f"answer_head.{name}"
    return name.replace("lxrt_encoder.model.bert.", "lxmert.")


def randomise(model: nn.Module, std: float) -> None:
    """Random values for every parameter, also biases and LayerNorms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1.0)


def same_gradients(
    ours: nn.Module, hf: nn.Module, rename: Any, relative: float, absolute: float
) -> int:
    """Compare the gradients of all parameters; returns how many there are."""
    other = dict(hf.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        expected = other.pop(rename(name)).grad
        assert (parameter.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(
                parameter.grad,
                expected,
                rtol=0,
                atol=relative * expected.abs().max().item() + absolute,
                msg=lambda text, n=name: f"{n}: {text}",
            )
            compared += 1
    assert not other, f"only in transformers: {list(other)[:3]}"
    return compared


@pytest.fixture(scope="module")
def base_models() -> tuple[VQAModel, LxmertForQuestionAnswering]:
    """Ours and theirs at base size (9-5-5, width 768, 3,129 answers) on the same memory."""
    with torch.device("meta"):
        ours = VQAModel(LxmertConfig().without_dropout())
        hf = LxmertForQuestionAnswering(
            HFConfig(num_qa_labels=3129, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        )
    ours.to_empty(device="cpu")
    randomise(ours, 0.03)
    weights = {hf_name(name): tensor for name, tensor in ours.state_dict().items()}
    hf.load_state_dict(weights, strict=True, assign=True)
    assert not [name for name, buffer in hf.named_buffers() if buffer.is_meta]
    return ours.eval(), hf.eval()


@pytest.mark.slow
def test_at_base_size_outputs_and_all_gradients_equal_those_of_transformers(base_models):
    ours, hf = base_models
    arguments = inputs(2, 2048, 30522)
    target = torch.rand(2, 3129, generator=torch.Generator().manual_seed(4))
    ours.bert.encoder.set_reads(("lang", "vision"))
    out = ours.bert(**arguments)
    logits = ours.logit_fc(out.pooled)
    expected = hf.lxmert(**theirs(arguments))
    expected_logits = hf.answer_head(expected.pooled_output)
    for name, mine, their in (
        ("lang", out.lang, expected.language_output),
        ("vision", out.vision, expected.vision_output),
        ("pooled", out.pooled, expected.pooled_output),
        ("logits", logits, expected_logits),
    ):
        torch.testing.assert_close(
            mine, their, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        assert their.std() > 0.1, f"{name} is nearly constant: nothing is compared"
    # All of lang, vision and logits, so that no parameter is left without a gradient.
    (vqa_loss(logits, target) + out.lang.square().mean() + out.vision.square().mean()).backward()
    (
        vqa_loss(expected_logits, target)
        + expected.language_output.square().mean()
        + expected.vision_output.square().mean()
    ).backward()
    assert same_gradients(ours, hf, hf_name, 5e-5, 1e-6) == 455
    ours.zero_grad()
    hf.zero_grad()


def test_the_vqa_model_gives_the_logits_of_transformers_question_answering(base_models):
    ours, hf = base_models
    arguments = inputs(2, 2048, 30522) | {"region_mask": None, "segment_ids": None}
    ours.bert.encoder.set_reads(("lang",), first=("lang",))
    with torch.no_grad():
        expected = hf(**theirs(arguments)).question_answering_score
        torch.testing.assert_close(ours(**arguments), expected, rtol=0, atol=1e-5)


def test_state_dict_names_are_those_of_transformers(base_models):
    ours, hf = base_models
    shapes = {hf_name(name): x.shape for name, x in ours.state_dict().items()}
    assert shapes == {name: x.shape for name, x in hf.state_dict().items()}
    assert {f"lxmert.{name}" for name in ours.bert.state_dict()} == {
        name for name in hf.state_dict() if name.startswith("lxmert.")
    }


def pretraining_pair() -> tuple[PretrainingModel, LxmertForPreTraining]:
    """Ours and theirs with the same weights, small, in float64."""
    ours = PretrainingModel(
        LxmertConfig.from_dict(
            SMALL | {"num_answers": 9, "obj_id_num": 6, "attr_id_num": 5}
        ).without_dropout()
    ).double()
    randomise(ours, 0.3)
    hf = LxmertForPreTraining(
        HFConfig(
            **SMALL,
            num_qa_labels=9,
            num_object_labels=6,
            num_attr_labels=5,
            visual_loss_normalizer=1 / 0.15,
        )
    ).double()
    hf.load_state_dict(
        {
            name.replace("bert.", "lxmert.", 1) if name.startswith("bert.") else name: tensor
            for name, tensor in ours.state_dict().items()
        },
        strict=True,
    )
    return ours.eval(), hf.eval()


def test_the_pretraining_model_equals_transformers_in_heads_losses_and_gradients():
    ours, hf = pretraining_pair()
    arguments = inputs(3, 7, 40, torch.float64)
    generator = torch.Generator().manual_seed(6)
    shape = arguments["features"].shape[:2]
    words = torch.where(torch.rand(3, 7, generator=generator) < 0.4, arguments["input_ids"], -1)
    assert (words >= 0).any() and (words < 0).any()
    labels = {
        "word_labels": words,
        "matched_label": torch.tensor([1, 0, 1]),
        "obj_labels": torch.randint(0, 6, shape, generator=generator),
        "obj_conf": torch.rand(shape, generator=generator, dtype=torch.float64),
        "attr_labels": torch.randint(0, 5, shape, generator=generator),
        "attr_conf": torch.rand(shape, generator=generator, dtype=torch.float64),
        "feat_target": torch.randn(*shape, 7, generator=generator, dtype=torch.float64),
        "feat_mask": (torch.rand(shape, generator=generator) < 0.5).double(),
        "answer_label": torch.tensor([4, 0, 8]),
    }
    heads = ours(**arguments)
    loss = total_loss(pretraining_losses(heads, labels))
    expected = hf(
        **theirs(arguments),
        labels=words.masked_fill(words < 0, -100),
        matched_label=labels["matched_label"],
        ans=labels["answer_label"],
        obj_labels={
            "obj": (labels["obj_labels"], labels["obj_conf"]),
            "attr": (labels["attr_labels"], labels["attr_conf"]),
            "feat": (labels["feat_target"], labels["feat_mask"]),
        },
    )
    regions = hf.obj_predict_head(hf.lxmert(**theirs(arguments)).vision_output)
    for name, tensor in {
        "words": expected.prediction_logits,
        "matched": expected.cross_relationship_score,
        "answers": expected.question_answering_score,
        **regions,
    }.items():
        torch.testing.assert_close(heads[name], tensor, rtol=1e-9, atol=1e-9)
    # Ours computes losses in float32 at least; theirs in float64 here.
    torch.testing.assert_close(loss.double(), expected.loss.double(), rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    count = same_gradients(
        ours,
        hf,
        lambda n: n.replace("bert.", "lxmert.", 1) if n.startswith("bert.") else n,
        1e-5,
        1e-6,
    )
    assert count == len(dict(ours.named_parameters()))


def hf_model(
    seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> LxmertModel:
    torch.manual_seed(seed)
    model = LxmertModel(
        HFConfig(**SMALL, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    ).to(dtype)
    randomise(model, 0.3)
    return model


def drift(model: nn.Module) -> None:
    """Move the layers' weights by fixed amounts, as finetuning would; twins stay."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for stack in (model.encoder.layer, model.encoder.x_layers, model.encoder.r_layers):
            for parameter in stack.parameters():
                parameter += 0.1 * torch.randn(
                    parameter.shape, generator=generator, dtype=parameter.dtype
                )


def outputs(model: nn.Module, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Language (B, T, C), vision (B, R, C) and pooled (B, C) output."""
    arguments = theirs(inputs(batch, 7, 40, next(model.parameters()).dtype))
    out = model(**arguments)
    return out.language_output, out.vision_output, out.pooled_output


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_adapting_a_transformers_model_keeps_its_names_and_adds_encoder_adaptive(strategy):
    plain = hf_model()
    names, values = list(plain.state_dict()), [x.clone() for x in plain.state_dict().values()]
    model = adapt(plain, strategy=strategy, policy="small")
    assert model is plain
    state = model.state_dict()
    added = set(state) - set(names)
    assert added and all(name.startswith("encoder.adaptive.") for name in added)
    for name, value in zip(names, values, strict=True):
        assert torch.equal(state[name], value), name
    part = adaptive_part(model)
    assert len(part.decision_names) == DECISIONS[strategy]
    assert part.live.all(), "language and vision output are both read"
    # What remains without the adaptive part is a plain model of transformers.
    rest = {name: x for name, x in state.items() if name not in added}
    hf_model(seed=5).load_state_dict(rest, strict=True)


def test_strategy_standard_leaves_a_transformers_model_as_it_was():
    plain, model = hf_model().eval(), adapt(hf_model(), "standard").eval()
    assert list(plain.state_dict()) == list(model.state_dict())
    assert all(p.requires_grad for p in model.parameters())
    for mine, expected in zip(outputs(model), outputs(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "layers"),
    [
        ("Frozen", {}),
        ("LastK", {"trainable_layers": "last:2"}),
        ("FrozenLayers", {"frozen_layers": "1,vision.1"}),
    ],
)
def test_static_strategies_freeze_layers_of_a_transformers_model(strategy, layers):
    model = adapt(hf_model(), strategy, **layers)
    frozen = {
        ".".join(name.split(".")[:3]) for name, p in model.named_parameters() if not p.requires_grad
    }
    expected = {
        "Frozen": {
            "encoder.layer.0",
            "encoder.layer.1",
            "encoder.r_layers.0",
            "encoder.x_layers.0",
            "encoder.x_layers.1",
        },
        "LastK": {"encoder.layer.0", "encoder.layer.1", "encoder.r_layers.0"},
        "FrozenLayers": {"encoder.layer.0", "encoder.r_layers.0"},
    }[strategy]
    assert frozen == expected
    for mine, plain in zip(outputs(model.eval()), outputs(hf_model().eval()), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_all_ones_is_the_unadapted_transformers_model(strategy, training):
    model, plain = adapt(hf_model(), strategy).train(training), hf_model().train(training)
    drift(model)
    drift(plain)
    part = adaptive_part(model)
    with part.force(torch.ones(len(part.live), dtype=torch.float64)):
        found = outputs(model)
    for mine, expected in zip(found, outputs(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("strategy", TWINS)
def test_all_zeros_is_the_pretrained_transformers_model(strategy):
    model, plain = adapt(hf_model(), strategy).eval(), hf_model().eval()
    drift(model)
    part = adaptive_part(model)
    with part.force(torch.zeros(len(part.live), dtype=torch.float64)):
        found = outputs(model)
    for mine, expected in zip(found, outputs(plain), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_plain_torch_loop_trains_an_adapted_transformers_model_and_its_policy(strategy):
    model = adapt(hf_model(dropout=0.1, dtype=torch.float32), strategy, policy="small").train()
    drift(model)
    groups = parameter_groups(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        [{"params": groups["trainable"], "lr": 1e-3}, {"params": groups["policy"], "lr": 1e-2}]
    )
    torch.manual_seed(1)
    for _ in range(2):
        lang, vision, pooled = outputs(model)
        loss = pooled.square().sum() + (lang - 1).square().sum() + vision.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    part = adaptive_part(model)
    assert groups["policy"] and all(p.grad is not None for p in part.policy.parameters())
    assert sum(p.grad.abs().sum() for p in part.policy.parameters()) > 0
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        if ".twins." in name:
            assert not moved and not parameter.requires_grad, name
        elif ".policy." in name and name.endswith("weight"):
            assert moved, name
    assert any(
        not torch.equal(p, before[n])
        for n, p in model.named_parameters()
        if n.startswith("encoder.layer.")
    )


def test_the_published_policy_on_a_transformers_model_is_a_clear_error_and_small_still_works():
    model = hf_model()
    with pytest.raises(
        ConfigError, match="RoutedHFEncoder has no published policy network; use 'small'"
    ):
        adapt(model, "SpotTune_Block", policy="published")
    assert adaptive_part(adapt(model, "SpotTune_Block", policy="small")) is not None


@pytest.mark.parametrize("strategy", ["standard", "SpotTune"])
def test_hidden_states_of_an_adapted_transformers_model_are_those_after_every_layer(strategy):
    model, plain = adapt(hf_model(), strategy).eval(), hf_model().eval()
    arguments = theirs(inputs(3, 7, 40, torch.float64)) | {"output_hidden_states": True}
    part = adaptive_part(model)
    with part.force(torch.ones(len(part.live), dtype=torch.float64)) if part else nullcontext():
        found = model(**arguments)
    expected = plain(**arguments)
    for name in ("language_hidden_states", "vision_hidden_states"):
        assert len(found[name]) == len(expected[name]) == (4 if "lang" in name else 3)
        for mine, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("strategy", "total", "dead"),
    [("SpotTune_Block", 19, 0), ("SpotTune_Res", 53, 2), ("SpotTune", 425, 15)],
)
def test_of_transformers_question_answering_the_unused_vision_half_is_dead(strategy, total, dead):
    config = HFConfig(
        **(SMALL | {"l_layers": 9, "x_layers": 5, "r_layers": 5, "num_attention_heads": 12}),
        num_qa_labels=6,
    )
    torch.manual_seed(0)
    model = adapt(LxmertForQuestionAnswering(config), strategy)
    part = adaptive_part(model)
    assert len(part.live) == total and int((~part.live).sum()) == dead
    frozen = [
        n for n, p in model.named_parameters() if not p.requires_grad and ".adaptive." not in n
    ]
    assert len(frozen) == 16
    assert all("x_layers.4.visn_" in name for name in frozen)


def test_question_answering_of_transformers_gives_the_same_answers_adapted():
    config = HFConfig(**SMALL, num_qa_labels=6)
    plain = LxmertForQuestionAnswering(config).double().eval()
    model = LxmertForQuestionAnswering(config).double()
    model.load_state_dict(plain.state_dict())
    adapt(model, "SpotTune").train()
    arguments = theirs(inputs(3, 7, 40, torch.float64))
    part = adaptive_part(model)
    with part.force(torch.ones(len(part.live), dtype=torch.float64)):
        found = model.eval()(**arguments).question_answering_score
    expected = plain(**arguments).question_answering_score
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    out = model(**arguments, output_hidden_states=True)
    unread = "what is not read is not computed: no number may pass for it"
    assert out.vision_hidden_states[-1].isnan().all(), unread
    assert out.language_hidden_states[-1][:, 1:].isnan().all(), unread
    assert not out.language_hidden_states[-1][:, 0].isnan().any()
    for states in (out.vision_hidden_states, out.language_hidden_states):
        assert not any(state.isnan().any() for state in states[:-1])
    model.train()(**arguments, labels=torch.tensor([1, 5, 2])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_adapting_twice_is_refused():
    model = adapt(hf_model(), "SpotTune_Block")
    with pytest.raises(ConfigError, match="adapted already; build it anew for another strategy"):
        adapt(model, "BlockDrop")


def test_what_an_adapted_transformers_encoder_cannot_do_is_an_error_not_a_wrong_result():
    model = adapt(hf_model(), "SpotTune_Block")
    with pytest.raises(ConfigError, match="does not return attentions"):
        model(**theirs(inputs(2, 7, 40, torch.float64)), output_attentions=True)
    with pytest.raises(ConfigError, match="hidden_act 'relu' is not supported, only gelu"):
        adapt(LxmertModel(HFConfig(**SMALL, hidden_act="relu")), "SpotTune_Block")
    with pytest.raises(ConfigError, match="Linear has 0 encoders that can be adapted.*lxmert"):
        adapt(nn.Linear(2, 2), "SpotTune_Block")


def test_a_base_transformers_model_has_19_53_and_425_decisions_all_of_them_live():
    for strategy, decisions in (("SpotTune_Block", 19), ("SpotTune_Res", 53), ("SpotTune", 425)):
        with torch.device("meta"):
            model = adapt(LxmertModel(HFConfig()), strategy)
        assert len(adaptive_part(model).decision_names) == decisions


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["query", "value"])


def test_peft_is_refused_on_an_adapted_model_and_leaves_it_as_it_was():
    model = adapt(hf_model(), strategy="SpotTune_Block")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ConfigError, match="Put the adapters in first, then call adapt"):
        get_peft_model(model, lora())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_peft_first_and_then_adapt_trains_adapters_and_policy_alone():
    model = get_peft_model(hf_model(), lora()).base_model.model
    adapt(model, strategy="SpotTune_Block")
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any(".policy." in name for name in trained)
    assert all("lora_" in name or ".policy." in name for name in trained)
    assert not any("twins" in name for name in trained)
    outputs(model)[2].sum().backward()
    part = adaptive_part(model)
    assert all(p.grad is not None for p in part.policy.parameters())


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_save_pretrained_of_an_adapted_model_is_refused_until_it_is_merged(tmp_path, strategy):
    model = adapt(hf_model(), strategy=strategy)
    for copy in (model, deepcopy(model)):
        with pytest.raises(ConfigError, match="save model.state_dict\\(\\) instead"):
            copy.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    merge(model, torch.ones(len(adaptive_part(model).live)))
    model.save_pretrained(tmp_path / "folder")
    assert (tmp_path / "folder" / "config.json").is_file()
    model.encoder.layer[0].attention = nn.Identity()  # a plain model is the user's again


def test_an_adapted_model_in_half_precision_answers_and_learns_in_it():
    """Also where it is converted afterwards; the policy stays in float32 where `adapt` made it."""
    for dtype in (torch.bfloat16, torch.float16):
        for strategy in ADAPTIVE:
            for late in (False, True):
                model = hf_model() if late else hf_model().to(dtype)
                model = adapt(model, strategy=strategy).to(*([dtype] if late else []))
                model.train()
                found = outputs(model)
                assert {x.dtype for x in found} == {dtype}, (strategy, late)
                sum(x.float().square().mean() for x in found).backward()
                policy = adaptive_part(model).policy
                assert {p.dtype for p in policy.parameters()} == {dtype if late else torch.float32}
                assert all(p.grad is not None for p in policy.parameters())
