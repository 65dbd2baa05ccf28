"""Sizes of ViLBERT: config files, what is refused in them, and counts of the models they make.

The numbers of parameters were counted on the original system's models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, adaptive_part, parameter_counts
from common.adapt.strategies import STRATEGIES
from common.errors import ConfigError, DataError
from tests.common.tiny_models import vilbert_config
from vilbert.baseline import BaseBertForVLTasks, baseline_sizes
from vilbert.heads import BertForMultiModalPreTraining, VILBertForVLTasks, VILBertForVQA
from vilbert.sizes import BASE_CONFIG, CONFIGS, ViLBertConfig, read_config

TEXT, IMAGE, CONNECTION = 7_087_872, 6_301_696, 16_013_568


def count(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() for x in tensors)


def base(model: type[nn.Module] = VILBertForVLTasks, name: str = BASE_CONFIG.name) -> nn.Module:
    """A model of a config file without memory."""
    with torch.device("meta"):
        return model(read_config(CONFIGS / name))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_config_file_makes_a_model_and_survives_json(path):
    config = read_config(path)
    assert ViLBertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.size_name() == next(n for n in ("large", "small", "base") if n in path.stem)
    with torch.device("meta"):
        model = VILBertForVQA(config)
    order = [layer.name for layer in model.bert.encoder.layers()]
    for number, (v_id, t_id) in enumerate(
        zip(config.v_biattention_id, config.t_biattention_id, strict=True), 1
    ):
        before = order[: order.index(f"connection.{number}")]
        # A connection stands before the layers that it is numbered by.
        assert sum(name.startswith("vision") for name in before) == v_id
        assert sum(name.startswith("lang") for name in before) == t_id
    with torch.device("meta"):
        BaseBertForVLTasks(config)


def test_layers_run_in_the_originals_order():
    order = [layer.name for layer in base().bert.encoder.layers()]
    expected = [f"lang.{n}" for n in range(1, 7)] + ["connection.1"]
    for n in range(1, 6):
        expected += [f"vision.{n}", f"lang.{n + 6}", f"connection.{n + 1}"]
    assert order == [*expected, "vision.6", "lang.12"]


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [(2, 160_782_973), (4, 205_413_501), (6, 250_044_029), (8, 294_674_557)],
)
def test_pretraining_models_have_as_many_parameters_as_the_originals(layers, parameters):
    name = f"bert_base_{layers}layer_{layers}conect.json"
    assert count(base(BertForMultiModalPreTraining, name).parameters()) == parameters


def test_the_6_layer_model_of_tasks_has_545_tensors_and_258557371_parameters():
    model = base()
    assert count(model.parameters()) == 258_557_371
    assert len(list(model.parameters())) == 544 and len(model.state_dict()) == 545, "one is tied"
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert count(model.bert.parameters()) == 246_726_656
    encoder = model.bert.encoder
    assert [count(stack[0].parameters()) for stack in (encoder.layer, encoder.v_layer)] == [
        TEXT,
        IMAGE,
    ]
    assert {count(layer.parameters()) for layer in encoder.c_layer} == {CONNECTION}


def test_tensors_have_the_originals_names_and_shapes():
    state = {name: tuple(x.shape) for name, x in base().state_dict().items()}
    connection = "bert.encoder.c_layer.5"
    expected = {
        "bert.embeddings.word_embeddings.weight": (30522, 768),
        "bert.embeddings.token_type_embeddings.weight": (2, 768),
        "bert.v_embeddings.image_embeddings.weight": (1024, 2048),
        "bert.v_embeddings.image_location_embeddings.weight": (1024, 5),
        "bert.v_embeddings.LayerNorm.bias": (1024,),
        "bert.encoder.layer.11.attention.self.query.weight": (768, 768),
        "bert.encoder.v_layer.5.intermediate.dense.weight": (1024, 1024),
        f"{connection}.biattention.query1.weight": (1024, 1024),
        f"{connection}.biattention.key2.weight": (1024, 768),
        f"{connection}.biOutput.q_dense1.weight": (1024, 1024),
        f"{connection}.biOutput.dense2.weight": (768, 1024),
        f"{connection}.biOutput.LayerNorm2.weight": (768,),
        f"{connection}.v_output.LayerNorm.weight": (1024,),
        f"{connection}.t_intermediate.dense.weight": (3072, 768),
        "bert.t_pooler.dense.weight": (1024, 768),
        "bert.v_pooler.dense.weight": (1024, 1024),
        "cls.predictions.bias": (30522,),
        "cls.predictions.decoder.weight": (30522, 768),
        "cls.bi_seq_relationship.weight": (2, 1024),
        "cls.imagePredictions.transform.LayerNorm.weight": (1024,),
        "cls.imagePredictions.decoder.weight": (1601, 1024),
        "vil_prediction.main.0.weight_g": (),
        "vil_prediction.main.0.weight_v": (2048, 1024),
        "vil_prediction.main.3.weight_v": (3129, 2048),
        "vil_logit.weight": (1, 1024),
        "vision_logit.weight": (1, 1024),
        "linguisic_logit.weight": (1, 768),
    }
    assert {name: state.get(name) for name in expected} == expected


def adapted(strategy: str, policy: str = "small") -> VILBertForVQA:
    with torch.device("meta"):
        return adapt(VILBertForVQA(ViLBertConfig()), strategy, policy)


@pytest.mark.parametrize(
    ("strategy", "decisions"),
    [
        # 12 text layers of 12 heads and 3 dense layers, 6 of images of 8 and 3, 6 connections
        # with two of either.
        ("SpotTune", 12 * 15 + 6 * 11 + 6 * 22),
        ("SpotTune_Block", 12 + 6 + 6),
        # Attention and FFN of every stream.
        ("SpotTune_Res", 2 * 12 + 2 * 6 + 4 * 6),
        ("BlockDrop", 24),
        ("BlockReplace", 24),
    ],
)
def test_decisions_of_the_6_layer_model(strategy, decisions):
    part = adaptive_part(adapted(strategy))
    assert len(part.decision_names) == len(set(part.decision_names)) == decisions
    assert all(site.live for site in part.sites), "both pooled vectors are read"


def test_378_decisions_stand_in_the_order_of_the_layers():
    names = adaptive_part(adapted("SpotTune")).decision_names
    assert len(names) == 378
    expected = {
        0: "lang.1.head.1",
        11: "lang.1.head.12",
        12: "lang.1.attention.output",
        13: "lang.1.intermediate",
        14: "lang.1.output",
        90: "connection.1.lang.head.1",
        98: "connection.1.vision.head.1",
        106: "connection.1.lang.attention.output",
        107: "connection.1.vision.attention.output",
        108: "connection.1.lang.intermediate",
        109: "connection.1.vision.intermediate",
        110: "connection.1.lang.output",
        111: "connection.1.vision.output",
        112: "vision.1.head.1",
        119: "vision.1.head.8",
        122: "vision.1.output",
        123: "lang.7.head.1",
        377: "lang.12.output",
    }
    assert {place: names[place] for place in expected} == expected


def test_frozen_freezes_all_layers_and_standard_none_but_those_that_nothing_reads():
    layers = 12 * TEXT + 6 * IMAGE + 6 * CONNECTION
    # Two maps from connection to stream in every connection are in files only.
    stored = 6 * (1024 * 1024 + 1024 + 1024 * 768 + 768)
    words = 768 * 768 + 768 + 2 * 768 + 30522
    classes = 1024 * 1024 + 1024 + 2 * 1024 + 1601 * 1024 + 1601
    heads_of_others = words + classes + 2 * 1024 + 2 + 1025 + 1025 + 769
    standard, frozen = (parameter_counts(adapted(name)) for name in ("standard", "Frozen"))
    assert standard == {
        "trainable": 258_557_371 - heads_of_others - stored,
        "frozen": heads_of_others + stored,
        "policy": 0,
    }
    assert frozen["frozen"] == heads_of_others + layers
    assert frozen["trainable"] + frozen["frozen"] == 258_557_371


def test_the_published_policy_has_two_text_one_connection_and_one_image_layer():
    with torch.device("meta"):
        model = adapt(VILBertForVQA(ViLBertConfig()), "SpotTune", "published")
    policy = adaptive_part(model).policy
    encoder = policy.bert.encoder
    assert [len(s) for s in (encoder.layer, encoder.c_layer, encoder.v_layer)] == [2, 1, 1]
    assert [layer.name for layer in encoder.layers()] == [
        *("lang.1", "connection.1", "vision.1", "lang.2")
    ]
    assert tuple(policy.head[-1].weight.shape) == (2 * 378, 2048)


@pytest.mark.parametrize("strategy", [n for n, row in STRATEGIES.items() if row.adaptive])
def test_the_small_policy_is_small_at_base_size(strategy):
    assert 100_000 < parameter_counts(adapted(strategy))["policy"] < 3_000_000


def written(folder: Path, **changes: object) -> Path:
    """The 6-layer config file with some other values."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(BASE_CONFIG.read_text()) | changes))
    return path


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"vocab_size": 0}, "key vocab_size: 0: give a whole number from 1 on"),
    ({"num_hidden_layers": -1}, "key num_hidden_layers: -1: give a whole number from 0 on"),
    ({"intermediate_size": -4}, "key intermediate_size: -4: give a whole number"),
    ({"hidden_size": "768"}, "key hidden_size: '768': give a whole number"),
    ({"v_hidden_size": 1024.0}, "key v_hidden_size: 1024.0: give a whole number"),
    ({"num_labels": True}, "key num_labels: True: give a whole number"),
    ({"hidden_size": 770}, "key hidden_size: 770 is not a multiple of num_attention_heads = 12"),
    ({"v_num_attention_heads": 5}, "key v_hidden_size: 1024 is not a multiple of v_num_atten"),
    ({"bi_num_attention_heads": 3}, "key bi_hidden_size: 1024 is not a multiple of bi_num_atten"),
    ({"hidden_dropout_prob": 1.5}, "key hidden_dropout_prob: 1.5: give a number from 0 to 1"),
    ({"v_hidden_dropout_prob": "0"}, "key v_hidden_dropout_prob: '0': give a number from 0 to 1"),
    ({"initializer_range": float("nan")}, "key initializer_range: nan: give a number from 0 to 1"),
    ({"with_coattention": 1}, "key with_coattention: 1: give true or false"),
    ({"fast_mode": "no"}, "key fast_mode: 'no': give true or false"),
    ({"hidden_act": "tanh"}, "key hidden_act: 'tanh': valid: gelu, relu, swish"),
    ({"v_hidden_act": ["gelu"]}, r"key v_hidden_act: \['gelu'\]: valid: gelu, relu, swish"),
    ({"fusion_method": "max"}, "key fusion_method: 'max': valid: mul, sum"),
    ({"v_biattention_id": 5}, "key v_biattention_id: 5: give a list"),
    ({"t_biattention_id": "6789"}, "key t_biattention_id: '6789': give a list"),
    ({"v_biattention_id": [0, 1, 2, 3, 4, "5"]}, "key v_biattention_id: .*: give a list of whole"),
    ({"v_biattention_id": [0, 1, 2, 3, 4, 6]}, "key v_biattention_id: 6: .* 6 layers, 0 to 5"),
    ({"t_biattention_id": [6, 7, 8, 9, 10, 12]}, "key t_biattention_id: 12: .*12 layers, 0 to 11"),
    ({"t_biattention_id": [6, 8, 7, 9, 10, 11]}, r"key t_biattention_id: \[6, 8, .*must rise"),
    ({"v_biattention_id": [-1, 1, 2, 3, 4, 5]}, r"key v_biattention_id: \[-1.*from 0 at least"),
    ({"t_biattention_id": [6, 7]}, "keys v_biattention_id, t_biattention_id: 6 and 2 places"),
    ({"v_num_hidden_layers": 2}, "key v_biattention_id: 5: that stream has 2 layers, 0 to 1"),
    ({"fixed_t_layer": 7}, "key fixed_t_layer: 7: .*before the first connection.*0 to 6 of"),
    ({"fixed_v_layer": 1}, "key fixed_v_layer: 1: .*before the first connection.*0 to 0 of"),
    ({"v_hiden_size": 3}, "key 'v_hiden_size' is unknown: did you mean 'v_hidden_size'"),
    ({"colour": 3}, "key 'colour' is unknown; known are attention_probs_dropout_prob, bi_hidden"),
    ({"dynamic_attention": True}, "key dynamic_attention: True: .*12-in-1.*set it to false"),
    ({"task_specific_tokens": True}, "key task_specific_tokens: True: .*not supported"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    REFUSED,
    ids=["-".join(map(str, c)) + str(n) for n, (c, _) in enumerate(REFUSED)],
)
def test_sizes_that_make_no_model_are_refused_with_file_key_and_value(changes, message, tmp_path):
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError, match=f"^{path}: {message}") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"\[1\]: a config is an object with keys"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_no_config_file_is_refused(content, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises((ConfigError, DataError), match=f"^{path}: .*{message}"):
        read_config(path)


def test_a_missing_file_names_those_that_are_there(tmp_path):
    """`config/bert_config.json` is the original's default, and was never there."""
    with pytest.raises(DataError, match="bert_config.json: no such file; .*bert_base_6layer_6con"):
        read_config(tmp_path / "bert_config.json")


def test_keys_that_nothing_reads_change_nothing(tmp_path):
    dead = {
        "bi_intermediate_size": 7,
        "bi_attention_type": 3,
        "pooling_method": "sum",
        "v_initializer_range": 9,
        "intra_gate": True,
        # Of the 12-in-1 system.
        "visual_target": 0,
        "dynamic_attention": False,
    }
    assert read_config(written(tmp_path, **dead)) == read_config(BASE_CONFIG)


def test_keys_that_a_file_leaves_out_have_the_values_of_the_originals_code(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"vocab_size": 9}')
    config = read_config(path)
    assert (config.v_hidden_size, config.v_num_hidden_layers, config.v_intermediate_size) == (
        *(768, 3, 3072),
    )
    assert (config.v_num_attention_heads, config.bi_num_attention_heads) == (12, 16)
    assert (config.v_biattention_id, config.t_biattention_id) == ((0, 1), (10, 11))
    assert (config.fusion_method, config.with_coattention, config.hidden_size) == ("mul", True, 768)


def test_what_data_decide_takes_the_place_of_a_files_values_and_is_checked_too(tmp_path):
    path = written(tmp_path)
    config = read_config(path, vocab_size=50, v_feature_size=7, num_labels=3)
    assert config == replace(read_config(path), vocab_size=50, v_feature_size=7, num_labels=3)
    with pytest.raises(ConfigError, match=f"^{path}: key v_feature_size: 0"):
        read_config(path, v_feature_size=0)


def test_layers_that_are_taken_out_leave_the_rest_in_its_order():
    config = vilbert_config(num_hidden_layers=4, t_biattention_id=(2, 3))
    left = config.without(["lang.1", "vision.1"])
    assert (left.num_hidden_layers, left.v_num_hidden_layers) == (3, 1)
    assert (left.t_biattention_id, left.v_biattention_id) == ((1, 2), (0, 0))
    left = config.without(["connection.1", "lang.4"])
    assert (left.t_biattention_id, left.v_biattention_id) == ((3,), (1,))
    assert left.order() == [
        *(("vision", 0), ("lang", 0), ("lang", 1), ("lang", 2), ("connection", 0), ("vision", 1))
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fast_mode": True}, "key fast_mode: True: the single-stream model has none"),
        ({"in_batch_pairs": True}, "key in_batch_pairs: True"),
        ({"fixed_t_layer": 1}, "key fixed_t_layer: 1: .*leave it out"),
        ({"type_vocab_size": 1}, "key type_vocab_size: 1: .*give 2"),
    ],
)
def test_one_stream_refuses_what_only_two_have(changes, message):
    with pytest.raises(ConfigError, match=message):
        baseline_sizes(vilbert_config(**changes))
