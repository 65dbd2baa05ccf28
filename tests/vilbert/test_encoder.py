"""ViLBERT's encoder: its formulas, connections left out, fixed layers, padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from common.adapt.adapting import adapt, adaptive_part
from common.errors import ConfigError, DataError
from tests.common.tiny_models import ADAPTIVE, drift_layers, vilbert_config
from tests.vilbert.formulas import affine, connection, normed, own_layer
from tests.vilbert.models import (
    BATCH,
    agree,
    bare_model,
    close,
    inputs_of,
    randomise,
    tasks_model,
    under,
    without_gradient,
)
from vilbert.baseline import BaseBertForVLTasks
from vilbert.heads import VILBertForVQA, output_of


def test_streams_attention_and_pooled_vectors_are_those_of_the_paper():
    """Order of the tiny model: lang.1, connection.1, vision.1, lang.2, connection.2, …"""
    model, inputs = bare_model(), inputs_of(BATCH)
    found = model(**inputs, connected=True, attention=True)
    masks = (inputs["attention_mask"], inputs["image_attention_mask"])
    embeddings, regions, encoder = model.embeddings, model.v_embeddings, model.encoder
    text = normed(
        embeddings.word_embeddings.weight[inputs["input_ids"]]
        + embeddings.position_embeddings.weight[: masks[0].shape[1]]
        + embeddings.token_type_embeddings.weight[inputs["token_type_ids"]],
        embeddings.LayerNorm,
    )
    image = normed(
        affine(inputs["features"], regions.image_embeddings)
        + affine(inputs["places"], regions.image_location_embeddings),
        regions.LayerNorm,
    )
    close(found.embedded["lang"], text)
    close(found.embedded["vision"], image)
    seen = {}
    seen["lang.1"], text = own_layer(text, encoder.layer[0], 3, masks[0])
    seen["connection.1"], text, image = connection(text, image, encoder.c_layer[0], 4, masks)
    close(found.connected[0]["lang"], text)
    close(found.connected[0]["vision"], image)
    seen["vision.1"], image = own_layer(image, encoder.v_layer[0], 2, masks[1])
    seen["lang.2"], text = own_layer(text, encoder.layer[1], 3, masks[0])
    seen["connection.2"], text, image = connection(text, image, encoder.c_layer[1], 4, masks)
    seen["vision.2"], image = own_layer(image, encoder.v_layer[1], 2, masks[1])
    seen["lang.3"], text = own_layer(text, encoder.layer[2], 3, masks[0])
    close(found.lang, text)
    close(found.vision, image)
    close(found.pooled_lang, affine(text[:, 0], model.t_pooler.dense).clamp(min=0))
    close(found.pooled_vision, affine(image[:, 0], model.v_pooler.dense).clamp(min=0))
    assert set(found.attention) == set(seen) and len(found.connected) == 2
    for name, heads in seen.items():
        streams = found.attention[name]
        if name.startswith("connection"):
            close(streams["lang"], torch.stack(heads[0], 1))
            close(streams["vision"], torch.stack(heads[1], 1))
        else:
            close(streams[name.split(".")[0]], torch.stack(heads, 1))


def test_attention_of_an_adapted_model_is_refused():
    model = adapt(VILBertForVQA(vilbert_config()).double(), "SpotTune")
    with pytest.raises(ConfigError, match="attention probabilities are those of a plain model"):
        model.bert(**inputs_of(2), attention=True)


def test_without_connections_every_stream_is_alone():
    model, inputs = bare_model(with_coattention=False), inputs_of(BATCH)
    found = model(**inputs)
    other = model(**inputs | {"features": inputs["features"] * 2})
    close(other.lang, found.lang)
    assert (other.vision - found.vision).abs().max() > 1e-3
    words = inputs["input_ids"].clone()
    words[:, 0] = 39
    close(model(**inputs | {"input_ids": words}).vision, found.vision)
    assert not any(p.requires_grad for p in model.encoder.c_layer.parameters())
    names = [layer.name for layer in model.encoder.layers()]
    assert sorted(names) == ["lang.1", "lang.2", "lang.3", "vision.1", "vision.2"]
    with_them = bare_model()(**inputs)
    assert (with_them.lang - found.lang).abs().max() > 1e-3


def test_fixed_layers_and_the_embeddings_before_them_get_no_gradient_and_say_the_same():
    sizes = {"num_hidden_layers": 4, "t_biattention_id": (2, 3), "v_biattention_id": (1, 1)}
    inputs = inputs_of(BATCH)
    plain = tasks_model(**sizes)
    fixed = tasks_model(**sizes, fixed_t_layer=2, fixed_v_layer=1)
    for model in (plain, fixed):
        model.use(["vil_prediction"])
    close(fixed(**inputs).vil_prediction, plain(**inputs).vil_prediction)
    for model in (plain, fixed):
        model(**inputs).vil_prediction.square().sum().backward()
    more = without_gradient(fixed) - without_gradient(plain)
    # The last FFN of the text is no more fixed than that of the image.
    wanted = under(
        dict(fixed.named_parameters()),
        *("bert.embeddings.", "bert.v_embeddings.", "bert.encoder.v_layer.0."),
        *("bert.encoder.layer.0.", "bert.encoder.layer.1."),
    )
    assert more == wanted
    grads = dict(plain.named_parameters())
    for name, p in fixed.named_parameters():
        if p.grad is not None:
            close(p.grad, grads[name].grad)


@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
def test_fixed_layers_stay_fixed_when_the_model_is_adapted(strategy):
    config = vilbert_config(fixed_t_layer=1)
    model = adapt(randomise(VILBertForVQA(config)).double(), strategy)
    model(**inputs_of(BATCH)).square().sum().backward()
    own = [n for n, _ in model.named_parameters() if "adaptive" not in n]
    assert under(own, "bert.embeddings.", "bert.encoder.layer.0.") <= without_gradient(model)


@pytest.mark.parametrize("model", ["two streams", "baseline", "SpotTune"])
def test_padding_changes_nothing(model):
    config = vilbert_config()
    if model == "baseline":
        network = randomise(BaseBertForVLTasks(config)).double().eval()
    else:
        network = randomise(VILBertForVQA(config)).double().eval()
    if model == "SpotTune":
        adapt(network, "SpotTune")
        drift_layers(network, 0.3)
        randomise(adaptive_part(network).policy)
    inputs = inputs_of(BATCH)
    more = {
        "input_ids": F.pad(inputs["input_ids"], (0, 3), value=17),
        "token_type_ids": F.pad(inputs["token_type_ids"], (0, 3), value=1),
        "attention_mask": F.pad(inputs["attention_mask"], (0, 3)),
        "features": F.pad(inputs["features"], (0, 0, 0, 2), value=9.0),
        "places": F.pad(inputs["places"], (0, 0, 0, 2), value=0.7),
        "image_attention_mask": F.pad(inputs["image_attention_mask"], (0, 2)),
    }
    with torch.no_grad():
        close(network(**more), network(**inputs))
        dirty = inputs["features"].masked_fill(inputs["image_attention_mask"][..., None] == 0, 5.0)
        close(network(**inputs | {"features": dirty}), network(**inputs))


def test_padding_changes_no_head():
    model, inputs = tasks_model(), inputs_of(BATCH)
    longer = inputs | {
        "input_ids": F.pad(inputs["input_ids"], (0, 2), value=5),
        "token_type_ids": F.pad(inputs["token_type_ids"], (0, 2)),
        "attention_mask": F.pad(inputs["attention_mask"], (0, 2)),
    }
    found, expected = output_of(model(**longer)), output_of(model(**inputs))
    for head, x in expected.items():
        text = head.startswith("linguisic")
        close(found[head][:, : x.shape[1]] if text else found[head], x)


def test_no_masks_and_types_mean_that_all_is_there_and_types_are_0():
    model, inputs = bare_model(), inputs_of(BATCH)
    plain = {name: inputs[name] for name in ("input_ids", "features", "places")}
    ones = {
        "attention_mask": torch.ones_like(inputs["attention_mask"]),
        "image_attention_mask": torch.ones_like(inputs["image_attention_mask"]).bool(),
        "token_type_ids": torch.zeros_like(inputs["input_ids"]),
    }
    agree(model(**plain), model(**plain, **ones))


def test_a_text_that_is_longer_than_the_model_has_positions_is_refused():
    inputs = inputs_of(2)
    model = bare_model(max_position_embeddings=5)
    with pytest.raises(DataError, match="6 word pieces, the model has 5 positions"):
        model(**inputs)


@pytest.mark.parametrize(
    ("rate", "changed"),
    [("v_attention_probs_dropout_prob", "lang"), ("attention_probs_dropout_prob", "vision")],
)
def test_a_connection_drops_probabilities_at_the_rate_of_what_is_attended_to(rate, changed):
    """Of a connection alone, before any layer: a text asks its image with the image's rate."""
    none = dict.fromkeys(
        (
            *("hidden_dropout_prob", "attention_probs_dropout_prob"),
            *("v_hidden_dropout_prob", "v_attention_probs_dropout_prob"),
        ),
        0.0,
    )
    sizes = {"num_hidden_layers": 0, "v_num_hidden_layers": 0}
    model = bare_model(
        **none | sizes | {rate: 0.5, "v_biattention_id": (0,), "t_biattention_id": (0,)}
    )
    inputs = inputs_of()
    expected = model(**inputs)
    found = model.train()(**inputs)
    for stream in ("lang", "vision"):
        same = torch.equal(getattr(found, stream), getattr(expected, stream))
        assert same == (stream != changed), stream
