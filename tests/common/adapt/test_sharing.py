"""What depends on an image alone is computed once for rows about it, and nothing changes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.attention_capture import capture
from common.adapt.families import find_encoder
from common.adapt.sharing import ComputedRows, SameRows, same_rows, streams_alone
from common.modules.attention import AttentionOptions
from common.modules.shapes import static_shapes
from lxrt.modeling import VQAModel
from tests.common.tiny_models import (
    ADAPTIVE,
    FAMILIES,
    adapted,
    lxmert_config,
    random_decisions,
    shared,
    vilbert_config,
)
from vilbert.heads import VILBertForVQA

IMAGES = [2, 0, 2, 2, 0, 1, 0, 2]
OF_IMAGES = {
    "lxmert": ("features", "boxes", "region_mask"),
    "vilbert": ("features", "places", "image_attention_mask"),
    "vlbert": ("boxes", "im_info"),
}
STACKS = {"lxmert": "r_layers", "vilbert": "v_layer"}
EMBEDDINGS = {
    "lxmert": "lxrt_encoder.model.bert.encoder.visn_fc",
    "vilbert": "bert.v_embeddings",
    "vlbert": "image_feature_extractor",
}
EXACT = {"rtol": 0.0, "atol": 1e-12}
every_family = pytest.mark.parametrize("family", OF_IMAGES)


def questions(family: str) -> dict[str, torch.Tensor]:
    """Eight questions about three images."""
    given = FAMILIES[family].inputs(len(IMAGES))
    return {k: x[IMAGES] if k in OF_IMAGES[family] else x for k, x in given.items()}


def asked(model: nn.Module, family: str, same: SameRows | None, decisions=None):
    """Logits (8, 5) in evaluation, and what was computed."""
    part, computed = adaptive_part(model), ComputedRows()
    given = part.force(decisions) if decisions is not None else nullcontext()
    streams = {} if same is None else {"vision": same}
    with torch.no_grad(), given, same_rows(computed, **streams):
        return model.eval()(**questions(family)), computed


class Rows:
    """How many rows a module is given, in all passes."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, module, args, kwargs) -> None:
        self.count += len(args[0])


@every_family
@pytest.mark.parametrize("strategy", ["standard", "Frozen", *ADAPTIVE])
@pytest.mark.parametrize("executor", ["gathered", "dense", "grouped"])
def test_logits_are_those_of_every_question_by_itself(family, strategy, executor):
    model = shared(family, strategy, executor)
    same = SameRows.of(IMAGES)
    wanted = [None]
    if adaptive_part(model) is not None:  # of the policy, at random, all equal
        wanted += [random_decisions(model, len(IMAGES), seed) for seed in (1, 2)]
        wanted.append(wanted[-1][:1])
    for decisions in wanted:
        expected, _ = asked(model, family, None, decisions)
        found, computed = asked(model, family, same, decisions)
        torch.testing.assert_close(found, expected, **EXACT)
        assert computed.times < computed.rows


def deep(family: str, strategy: str) -> nn.Module:
    """With two layers that read the image alone where the encoder has any."""
    torch.manual_seed(3)
    if family == "lxmert":
        model = VQAModel(replace(lxmert_config(), r_layers=3))
    else:
        model = VILBertForVQA(vilbert_config(v_biattention_id=(2, 2)))
    model = adapt(model.double(), strategy, "small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("family", STACKS)
@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune", "BlockDrop"])
def test_a_row_is_computed_for_every_image_and_what_was_decided_about_it_so_far(family, strategy):
    model = deep(family, strategy)
    part, encoder = adaptive_part(model), find_encoder(model)
    layers = [n for n, name in enumerate(streams_alone(encoder.layers())) if name == "vision"]
    assert len(layers) >= 2
    decisions = random_decisions(model, len(IMAGES), 11)
    expected, _ = asked(model, family, None, decisions)
    found, computed = asked(model, family, SameRows.of(IMAGES), decisions)
    torch.testing.assert_close(found, expected, **EXACT)
    names = [encoder.layers()[n].name for n in layers]
    columns: list[int] = []
    distinct = [set(IMAGES)]
    for name in names:
        columns += [n for n, layer in enumerate(part.decision_layers) if layer == name]
        rows = decisions[:, columns].tolist()
        distinct.append({(image, *row) for image, row in zip(IMAGES, rows, strict=True)})
    assert computed.times == sum(map(len, distinct))
    assert computed.rows == len(IMAGES) * len(distinct)


@pytest.mark.parametrize("family", STACKS)
def test_layers_of_the_image_see_each_image_once(family):
    model = deep(family, "standard")
    embedding = Rows(model.get_submodule(EMBEDDINGS[family]))
    first = Rows(getattr(find_encoder(model), STACKS[family])[1].output)
    asked(model, family, SameRows.of(IMAGES))
    assert (embedding.count, first.count) == (3, 3)
    asked(model, family, None)
    assert (embedding.count, first.count) == (3 + 8, 3 + 8)


@every_family
def test_a_policy_of_the_backbones_own_family_shares_as_well(family):
    model = adapted(family, "SpotTune_Block", policy="published")
    network = adaptive_part(model).policy
    inner = next(m for n, m in network.named_modules() if n.endswith(EMBEDDINGS[family][-12:]))
    expected, _ = asked(model, family, None)
    logits = adaptive_part(model).last.logits
    rows = Rows(inner)
    found, _ = asked(model, family, SameRows.of(IMAGES))
    torch.testing.assert_close(found, expected, **EXACT)
    torch.testing.assert_close(adaptive_part(model).last.logits, logits, **EXACT)
    assert rows.count == 3


@pytest.mark.parametrize("family", STACKS)
def test_decisions_made_once_for_all_share_as_a_plain_model(family):
    model = deep(family, "SpotTune")
    part = adaptive_part(model)
    part.global_decisions.copy_(random_decisions(model, 1)[0])
    part.options.policy_eval = "global"
    expected, _ = asked(model, family, None)
    found, computed = asked(model, family, SameRows.of(IMAGES))
    torch.testing.assert_close(found, expected, **EXACT)
    assert computed.times * len(IMAGES) == computed.rows * 3


@pytest.mark.parametrize("family", STACKS)
def test_nothing_is_shared_where_it_may_not_be(family):
    model = deep(family, "SpotTune_Block")
    same, inputs = SameRows.of(IMAGES), questions(family)

    def run(**streams):
        computed = ComputedRows()
        with same_rows(computed, **streams):
            model(**inputs)
        return computed.times

    model.eval()
    assert run(vision=same) == 0  # gradients are wanted
    with torch.no_grad():
        assert run() == 0 and run(vision=same) > 0
        with static_shapes():
            part = adaptive_part(model)
            part.options.eval_executor = "grouped"
            assert run(vision=same) == 0
            part.options.eval_executor = "auto"
        with capture(model) as found:
            assert run(vision=same) == 0
        assert sum(len(each.rows) for each in found if each.layer == "vision.1") == len(IMAGES)
        find_encoder(model).train()
        assert run(vision=same) == 3  # the embedding, of which no mask is drawn


@pytest.mark.parametrize("family", STACKS)
def test_spans_that_are_read_from_the_pair_keep_layers_apart(family):
    model = adapted(family, "standard", attention=AttentionOptions(span="keys", span_policy=True))
    expected, _ = asked(model, family, None)
    found, computed = asked(model, family, SameRows.of(IMAGES))
    torch.testing.assert_close(found, expected, **EXACT)
    assert computed.rows == len(IMAGES)  # of the embedding


def test_spans_that_belong_to_places_in_the_batch_keep_layers_apart():
    """They have a form for 20 or 36 regions alone."""
    span = AttentionOptions(span="published", batch=len(IMAGES))
    model = adapted("lxmert", "standard", attention=span)
    assert find_encoder(model).by_place
    _, computed = asked(model, "lxmert", SameRows.of(IMAGES))
    assert computed.rows == len(IMAGES)  # of the embedding


def test_rows_of_another_batch_are_an_error():
    model = shared("lxmert", "standard", "gathered")
    with pytest.raises(ValueError, match="7 rows were compared, but there are 8"):
        asked(model, "lxmert", SameRows.of(IMAGES[:-1]))


def test_groups_are_those_of_the_keys():
    same = SameRows.of("abacb")
    assert same.first.tolist() == [0, 1, 3] and same.group.tolist() == [0, 1, 0, 2, 1]
    x = torch.arange(5.0)
    assert same.spread(same.take(x)).tolist() == [0, 1, 0, 3, 1]
    apart = same.refined(torch.tensor([[0, 1], [1, 1], [0, 0], [1, 1], [1, 1]]))
    assert apart.group.tolist() == [0, 1, 2, 3, 1]
    assert same.refined(torch.ones(5, 2)) is same


@pytest.mark.parametrize(
    ("family", "alone"),
    [
        ("lxmert", ["lang", "lang", "vision", None, None]),
        ("vilbert", ["lang", None, "vision", "lang", None, "vision", "lang"]),
        ("single", ["hidden"] * 3),
    ],
)
def test_a_stream_is_alone_until_it_has_met_the_other(family, alone):
    layers = find_encoder(shared(family, "standard", "gathered")).layers()
    first = alone.index(None) if None in alone else len(alone)
    expected = [*alone[:first], *[None] * (len(alone) - first)]
    assert streams_alone(layers) == expected
