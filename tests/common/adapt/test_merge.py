"""A merged model computes what the adaptive one computes with one decision per site."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from transformers import LxmertConfig as HFConfig
from transformers import LxmertForQuestionAnswering

from common.adapt.adapting import adapt, adaptive_part, set_global_decisions
from common.adapt.encoder import RoutedEncoder
from common.adapt.merging import merge
from common.errors import ConfigError
from tests.common.tiny_models import ADAPTIVE, FAMILIES, adapted, drift_layers, pretrained, run

TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")


def mixed(model: nn.Module, seed: int = 3) -> Tensor:
    """(D,) of 0 / 1, both of them among the live decisions."""
    part = adaptive_part(model)
    generator = torch.Generator().manual_seed(seed)
    decisions = torch.randint(0, 2, (len(part.live),), generator=generator).double()
    chosen = decisions[part.live]
    assert 0 < chosen.mean() < 1
    return decisions


def globally(model: nn.Module, family: str, decisions: Tensor) -> Tensor:
    """Logits of the adaptive model in global evaluation."""
    part = adaptive_part(model)
    part.options.policy_eval = "global"
    part.global_decisions.copy_(decisions)
    with torch.no_grad():
        return run(model.eval(), family)


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_the_global_evaluation(family, strategy, seed):
    model = adapted(family, strategy, drift=0.3)
    decisions = mixed(model, seed)
    expected = globally(model, family, decisions)
    plain, own = pretrained(family).eval(), deepcopy(model)
    merged = merge(model)
    assert adaptive_part(model) is None
    assert merged.strategy == strategy and bool(merged.dropped) == (strategy == "BlockDrop")
    live = adaptive_part(own).live
    assert len(merged.ones) == int(decisions[live].sum())
    assert len(merged.ones) + len(merged.zeros) == int(live.sum())
    with torch.no_grad():
        same(run(model, family), expected)
        # Neither of the two branches alone gives that.
        assert (run(plain, family) - expected).abs().max() > 1e-3
        assert (globally(own, family, torch.ones_like(decisions)) - expected).abs().max() > 1e-3


def test_a_published_policy_goes_as_a_whole():
    """It is a LXMERT of its own inside the model, which must not be taken for the encoder."""
    model = adapted("lxmert", "SpotTune", policy="published")
    expected = globally(model, "lxmert", mixed(model))
    merge(model)
    assert model.state_dict().keys() == pretrained("lxmert").state_dict().keys()
    with torch.no_grad():
        same(run(model, "lxmert"), expected)


@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_has_exactly_the_names_of_a_standard_one(family, strategy):
    model = adapted(family, strategy)
    merge(model, mixed(model))
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    assert shapes == {name: x.shape for name, x in pretrained(family).state_dict().items()}


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_ones_are_the_finetuned_weights(family, strategy):
    model = adapted(family, strategy)
    finetuned = {
        name: x for name, x in deepcopy(model).state_dict().items() if ".adaptive." not in name
    }
    merged = merge(model, torch.ones(len(adaptive_part(model).live)))
    assert not merged.zeros and not merged.dropped
    state = model.state_dict()
    assert state.keys() == finetuned.keys()
    assert all(torch.equal(state[name], x) for name, x in finetuned.items())


@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_zeros_are_the_pretrained_weights_wherever_something_is_read(family, strategy):
    model = adapted(family, strategy)
    merge(model, torch.zeros(len(adaptive_part(model).live)))
    with torch.no_grad():
        same(run(model.eval(), family), run(pretrained(family).eval(), family))


def test_heads_are_taken_one_by_one():
    """Each row of a projection is the twin's or the finetuned one, as its head was decided."""
    model = adapted("single", "SpotTune")
    part = adaptive_part(model)
    before = deepcopy(model)
    decisions = torch.ones(len(part.live))
    decisions[[1, 2]] = 0  # heads 2 and 3 of the first layer
    assert part.decision_names[:3] == ["layer.1.head.1", "layer.1.head.2", "layer.1.head.3"]
    merged = merge(model, decisions)
    assert merged.zeros == ["layer.1.head.2", "layer.1.head.3"]
    own, mine = (m.encoder.layer[0].attention.self for m in (before, model))
    twin = adaptive_part(before).twin("layer.1").attention.self
    for name in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            found, finetuned, frozen = (getattr(getattr(a, name), kind) for a in (mine, own, twin))
            assert torch.equal(found[:4], finetuned[:4]) and torch.equal(found[4:], frozen[4:])
            assert not torch.equal(finetuned[4:], frozen[4:])


def test_block_drop_leaves_a_shorter_model_whose_config_says_so():
    model = adapted("lxmert", "BlockDrop")
    part = adaptive_part(model)
    assert part.decision_names == ["lang.1", "lang.2", "vision.1", "cross.1", "cross.2"]
    second = model.bert.encoder.layer[1].output.dense.weight
    merged = merge(model, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))
    assert merged.dropped == ["lang.1", "cross.2"]
    config = model.config
    assert (config.l_layers, config.r_layers, config.x_layers) == (1, 1, 1)
    assert config == model.bert.config == model.bert.encoder.config
    assert model.bert.encoder.layer[0].output.dense.weight is second
    assert "lxrt_encoder.model.bert.encoder.layer.1.output.dense.weight" not in model.state_dict()
    fresh = type(model)(config).double()
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        same(run(fresh.eval(), "lxmert"), run(model.eval(), "lxmert"))


def test_a_merged_model_can_be_adapted_again():
    model = adapted("lxmert", "BlockDrop")
    merge(model, torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0]))
    with torch.no_grad():
        expected = run(model.eval(), "lxmert")
        adapt(model, "SpotTune_Block")
        drift_layers(model, 0.2)
        part = adaptive_part(model)
        assert part.decision_names == ["lang.1", "lang.2", "vision.1", "cross.1"]
        same(globally(model, "lxmert", torch.zeros(4)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_replace_is_refused_unless_every_block_is_kept(family):
    model = adapted(family, "BlockReplace")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    decisions = torch.ones(len(adaptive_part(model).live))
    decisions[1] = 0
    with pytest.raises(ConfigError, match=r"linear map at 1 of \d layers \(\w+\.\d\).*--global-k"):
        merge(model, decisions)
    after = model.state_dict()
    assert adaptive_part(model) is not None and before.keys() == after.keys()
    assert all(torch.equal(after[name], x) for name, x in before.items())


def test_what_cannot_be_merged_is_a_clear_error():
    with pytest.raises(ConfigError, match="has no decisions to merge"):
        merge(pretrained("single"))
    model = adapted("single", "SpotTune_Block")
    with pytest.raises(ConfigError, match=r"3 sites have no global decision \(layer.1, layer.2"):
        merge(model)
    with pytest.raises(ConfigError, match="no global decision"):
        merge(model, torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(ConfigError, match="every layer is dropped"):
        merge(adapted("single", "BlockDrop"), torch.zeros(3))


def test_dead_decisions_need_no_value_and_change_nothing():
    """The vision half of LXMERT's last cross layer is not read: its decisions are not asked."""
    models = [adapted("lxmert", "SpotTune") for _ in range(2)]
    dead = ~adaptive_part(models[0]).live
    assert dead.sum() == 6
    decisions = mixed(models[0])
    for model, value in zip(models, (-1.0, 0.0), strict=True):
        merge(model, torch.where(dead, value, decisions))
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_the_k_most_used_sites_make_a_model_of_k_layers():
    model = adapted("lxmert", "BlockDrop")
    part = adaptive_part(model)
    set_global_decisions(part, torch.tensor([0.9, 0.1, 0.3, 0.8, 0.2]), k=3)
    expected = globally(model, "lxmert", part.global_decisions.clone())
    merged = merge(model)
    assert merged.dropped == ["lang.2", "cross.2"]
    encoder = next(m for m in model.modules() if isinstance(m, RoutedEncoder))
    assert len(encoder.layers()) == 3
    with torch.no_grad():
        same(run(model.eval(), "lxmert"), expected)


@pytest.mark.parametrize("strategy", ["SpotTune", "BlockDrop"])
def test_an_adapted_transformers_model_merges_and_saves_as_a_plain_one(strategy, tmp_path):
    torch.manual_seed(0)
    config = HFConfig(
        vocab_size=40,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        l_layers=2,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=7,
        num_qa_labels=5,
        max_position_embeddings=16,
        initializer_range=0.3,
    )
    model = adapt(LxmertForQuestionAnswering(config).double(), strategy).eval()
    drift_layers(model, 0.2)
    inputs = FAMILIES["lxmert"].inputs(4)
    inputs = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "visual_feats": inputs["features"],
        "visual_pos": inputs["boxes"],
    }
    part = adaptive_part(model)
    part.options.policy_eval = "global"
    part.global_decisions.copy_(mixed(model, 5))
    with torch.no_grad():
        expected = model(**inputs).question_answering_score
        merged = merge(model)
        model.save_pretrained(tmp_path)
        loaded = LxmertForQuestionAnswering.from_pretrained(tmp_path).eval()
        same(loaded(**inputs).question_answering_score, expected)
    assert loaded.dtype == torch.float64
    counts = loaded.config.num_hidden_layers
    assert sum(counts.values()) == 5 - len(merged.dropped)
    assert len(loaded.lxmert.encoder.x_layers) == counts["cross_encoder"]


def test_a_model_that_ran_before_it_was_adapted_runs_its_remaining_layers():
    model = pretrained("single").eval()
    with torch.no_grad():
        run(model, "single")
        adapt(model, "BlockDrop")
        decisions = torch.tensor([1.0, 0.0, 1.0])
        expected = globally(model, "single", decisions)
        merge(model)
        same(run(model.eval(), "single"), expected)
