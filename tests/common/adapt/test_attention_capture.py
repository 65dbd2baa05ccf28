"""Captured attention: the weights that the model used, without a change of what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.attention import set_attention
from common.adapt.attention_capture import Attended, capture, count_zeros, zero_share
from common.adapt.encoder import AdaptiveOptions
from common.errors import ConfigError
from common.modules.attention import AttentionOptions
from tests.common.tiny_models import (
    ADAPTIVE,
    BATCH,
    FAMILIES,
    drift_layers,
    pretrained,
    random_decisions,
    run,
)

MECHANISMS = {
    "softmax": AttentionOptions(),
    "span": AttentionOptions(span="distance", initial_span=0.3),
    "entmax": AttentionOptions("entmax", "keys", initial_span=0.5, initial_alpha=1.8),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def model_of(family: str, mechanism: str, strategy: str = "standard", **options: object):
    model = pretrained(family)
    set_attention(model, MECHANISMS[mechanism])
    torch.manual_seed(4)
    adapt(model, strategy, options=AdaptiveOptions(**options))
    drift_layers(model, 0.3)
    return model.eval()


def check_weights(found: list[Attended]) -> None:
    """They sum to 1, leave padding out, and make of the values what the model made of them."""
    for each in found:
        sums = each.weights.sum(-1).transpose(1, 2)[each.query_there]
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-6, atol=1e-6)
        context = (each.weights.to(each.values.dtype) @ each.values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(context, each.context, rtol=1e-6, atol=1e-7)
        padding = ~each.key_there[:, None, None].expand_as(each.weights)
        assert not each.weights[padding].any(), f"{each.layer}: padding has weight"


def real_weights(found: Attended, place: int) -> Tensor:
    """(H, T', S') of one sample, without its padding."""
    return found.weights[place][:, found.query_there[place]][..., found.key_there[place]]


@every_family
@every_mechanism
def test_the_weights_reproduce_the_context_and_the_output_stays(family, mechanism):
    model = model_of(family, mechanism)
    expected = run(model, family)
    with capture(model) as found:
        assert torch.equal(run(model, family), expected)
    assert torch.equal(run(model, family), expected)
    assert len({(each.layer, each.queries, each.keys) for each in found}) == len(found) > 0
    assert all(torch.equal(each.rows, torch.arange(BATCH)) for each in found)
    check_weights(found)


@every_family
@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", ["gathered", "dense"])
def test_each_sample_shows_the_branch_that_it_ran(family, strategy, executor):
    """As alone in its batch with its own decisions."""
    model = model_of(family, "entmax", strategy, eval_executor=executor)
    decisions = random_decisions(model)
    part = adaptive_part(model)

    def captured(rows: list[int]) -> dict[tuple[str, str, str, int], Tensor]:
        inputs = {name: x[rows] for name, x in FAMILIES[family].inputs(BATCH).items()}
        with part.force(decisions[rows]), capture(model) as found, torch.no_grad():
            model(**inputs)
        check_weights(found)
        return {
            (each.layer, each.queries, each.keys, rows[int(row)]): real_weights(each, place)
            for each in found
            for place, row in enumerate(each.rows)
        }

    together = captured(list(range(BATCH)))
    some = range(0, BATCH, 2)
    alone = [captured([row]) for row in some]
    assert {key for key in together if key[3] in some} == {key for each in alone for key in each}
    for each in alone:
        for key, weights in each.items():
            torch.testing.assert_close(together[key], weights, rtol=1e-6, atol=1e-7)
    skipped = BATCH * len({key[:3] for key in together}) > len(together)
    assert skipped == (strategy in ("BlockDrop", "BlockReplace"))


@every_family
def test_zeros_are_counted_where_queries_and_keys_are(family):
    plain, sparse = model_of(family, "softmax"), model_of(family, "span")
    with count_zeros(plain) as none, count_zeros(sparse) as some, capture(sparse) as found:
        run(sparse, family)
    assert none.share is None
    real = [real_weights(each, place) for each in found for place in range(len(each.rows))]
    zeros = torch.cat([weights.flatten() == 0 for weights in real])
    assert zeros.any() and not zeros.all()
    assert zero_share(found) == some.share == pytest.approx(float(zeros.double().mean()))
    with count_zeros(plain) as none:
        run(plain, family)
    assert none.share == 0


def test_a_model_in_training_mode_is_refused():
    model = model_of("lxmert", "softmax").train()
    with pytest.raises(ConfigError, match="model.eval"), capture(model):
        pass


@every_mechanism
@pytest.mark.parametrize("family", ["vilbert", "vlbert"])
def test_what_a_backbone_returns_as_attention_is_what_is_captured(family, mechanism):
    """Row by row, whatever the order in which VL-BERT's places stand within its layers."""
    model = model_of(family, mechanism)
    inner = model.bert if family == "vilbert" else model.vlbert
    forward, outputs = inner.forward, []

    def with_attention(*args: object, **more: object):
        outputs.append(forward(*args, **more, attention=True))
        return outputs[-1]

    inner.forward = with_attention
    with capture(model) as found:
        run(model, family)
    returned = outputs[0].attention
    tables = list(returned.values()) if family == "vilbert" else [{"hidden": x} for x in returned]
    layers = list(dict.fromkeys(each.layer for each in found))
    whole = [each for each in found if each.weights.shape[2] > 1]  # the last ones are narrowed
    assert len(whole) > 1
    for each in whole:
        expected = tables[layers.index(each.layer)][each.queries]
        ours, theirs = (x.sort(-1).values.sort(-2).values for x in (each.weights, expected))
        torch.testing.assert_close(ours, theirs)
