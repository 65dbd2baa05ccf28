"""The single-stream baseline: its formulas, its gradients, adapting and freezing it."""

from __future__ import annotations

import pytest
import torch

from common.adapt.adapting import adapt, adaptive_part
from common.errors import ConfigError
from tests.common.tiny_models import ADAPTIVE, vilbert_config
from tests.vilbert.formulas import affine, normed, own_layer
from tests.vilbert.models import BATCH, close, inputs_of, randomise, under
from vilbert.baseline import BaseBertForVLTasks
from vilbert.loading import freeze_text


def test_the_baseline_is_one_bert_over_text_and_regions():
    config, inputs = vilbert_config(), inputs_of(BATCH)
    model = randomise(BaseBertForVLTasks(config)).double().eval()
    bert = model.bert
    mask = torch.cat([inputs["attention_mask"], inputs["image_attention_mask"]], 1)
    text, image = bert.embeddings, bert.v_embeddings
    lang = normed(
        text.word_embeddings.weight[inputs["input_ids"]]
        + text.position_embeddings.weight[:6]
        + text.token_type_embeddings.weight[inputs["token_type_ids"]],
        text.LayerNorm,
    )
    vision = normed(
        affine(inputs["features"], image.image_embeddings)
        + affine(inputs["places"], image.image_location_embeddings)
        + image.token_type_embeddings.weight[1],
        image.LayerNorm,
    )
    x = torch.cat([lang, vision], 1)
    for layer in bert.encoder.layer:
        _, x = own_layer(x, layer, config.num_attention_heads, mask)
    pooled = torch.tanh(affine(x[:, 0], bert.pooler.dense))
    close(model(**inputs), model.vil_prediction(pooled))
    bert.encoder.set_reads(("hidden",))
    whole = bert(**inputs)
    close(whole.lang, x[:, :6])
    close(whole.vision, x[:, 6:])
    close(whole.pooled, pooled)


def test_all_of_the_baseline_that_wants_a_gradient_gets_one():
    model = adapt(randomise(BaseBertForVLTasks(vilbert_config())).double())
    model(**inputs_of(BATCH)).square().sum().backward()
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == wanted
    assert under(wanted, "vil_prediction.", "bert.pooler.", "bert.v_embeddings.")
    assert not under(wanted, "cls.", "vil_logit.")


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_the_baseline_adapts_and_starts_as_it_was(strategy):
    plain = randomise(BaseBertForVLTasks(vilbert_config())).double().eval()
    inputs = inputs_of(BATCH)
    with torch.no_grad():
        expected = plain(**inputs)
        model = adapt(plain, strategy)
        part = adaptive_part(model)
        with part.force(torch.ones(len(part.live))):
            close(model(**inputs), expected)
    assert len({*part.decision_layers}) == 3


def test_the_baseline_has_no_published_policy():
    with pytest.raises(ConfigError, match="has no published policy network; use 'small'"):
        adapt(BaseBertForVLTasks(vilbert_config()), "SpotTune", "published")


def test_text_layers_of_the_baseline_can_be_frozen():
    model = BaseBertForVLTasks(vilbert_config())
    freeze_text(model, 0)
    assert not any(p.requires_grad for p in model.bert.encoder.layer[0].parameters())
    assert all(p.requires_grad for p in model.bert.encoder.layer[1].parameters())
