"""Files in: released models, partial loading, BERT and RoBERTa folders, answer rows, bad files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, RobertaConfig, RobertaForMaskedLM

from common.data.tokenizer import Tokenizer, small_vocabulary
from common.errors import CheckpointError, ConfigError, DataError
from tests.common.tiny_models import vlbert_config, vlbert_inputs
from tests.vlbert.models import IMAGES, pretraining_config, randomise
from vlbert.loading import answer_pieces, classifier_rows, load_bert, load_partial, load_strictly
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.vqa_network import ResNetVLBERT, set_classifier_rows

CHANGES = [
    "vlbert.mlm_head.predictions.transform->final_mlp.0",
    "module.vlbert.mlm_head.predictions.transform->module.final_mlp.0",
    "vlbert->vlbert",
    "module.vlbert->module.vlbert",
]
DECODER = "vlbert.mlm_head.predictions.decoder.weight"


def silent(text: str) -> None:
    """Takes the place of print."""


def pretrained(**changes: object) -> ResNetVLBERTForPretraining:
    config = pretraining_config(**changes)
    encoder = replace(config.encoder, with_pooler=False)
    return randomise(ResNetVLBERTForPretraining(replace(config, encoder=encoder)))


def write_model(
    path: Path, weights: dict[str, Tensor], module: bool = True, half: bool = False
) -> Path:
    """A file as the original's training wrote it: nested, with `module.`, perhaps in half."""
    prefix = "module." if module else ""
    weights = {
        prefix + name: x.half() if half and x.is_floating_point() else x
        for name, x in weights.items()
    }
    torch.save(
        {
            "state_dict": weights,
            "optimizer": {"state": {}, "param_groups": []},
            "validation_monitor": {"best_epoch": 3, "best_val": 0.7},
        },
        path,
    )
    return path


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, ResNetVLBERTForPretraining]:
    source = pretrained()
    return write_model(tmp_path / "vl-bert-base-prec.model", source.state_dict()), source


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("image", ["prec", "e2e"])
def test_released_layouts_load_strictly(image, module, half, tmp_path):
    changes = {"image": IMAGES} if image == "e2e" else {}
    source = pretrained(**changes)
    assert ("image_feature_extractor.head.0.0.conv1.weight" in source.state_dict()) == bool(changes)
    path = write_model(tmp_path / f"vl-bert-base-{image}.model", source.state_dict(), module, half)
    target = ResNetVLBERTForPretraining(source.config)
    load_strictly(target, tmp_path / f"vl-bert-base-{image}")
    for name, x in target.state_dict().items():
        expected = source.state_dict()[name]
        assert x.dtype == expected.dtype
        assert torch.equal(
            x, expected.half().to(x.dtype) if half and x.is_floating_point() else expected
        ), (path, name)
    assert (
        target.vlbert.mlm_head["predictions"].decoder.weight is target.vlbert.word_embeddings.weight
    )


def test_a_file_of_another_layout_is_refused_with_the_names(released):
    path, source = released
    single = ResNetVLBERTForPretraining(replace(source.config, multitask=False))
    with pytest.raises(CheckpointError, match="aux_text_visual_embedding"):
        load_strictly(single, path)
    with pytest.raises(CheckpointError, match="final_mlp"):
        load_strictly(ResNetVLBERT(vlbert_config()), path)


@pytest.mark.parametrize("module", [False, True])
def test_partial_pretrain_fills_all_of_the_vqa_network_but_its_last_layer(module, tmp_path):
    source = pretrained()
    path = write_model(tmp_path / "base.model", source.state_dict(), module)
    network, said = ResNetVLBERT(vlbert_config()), []
    plan = load_partial(network, path, CHANGES, said.append)
    assert plan.missing == ["final_mlp.2.weight", "final_mlp.2.bias"]
    own = source.state_dict()
    for ours, theirs in plan.loaded.items():
        assert torch.equal(network.state_dict()[ours], own[theirs.removeprefix("module.")])
    transform = network.final_mlp[0].dense.weight
    assert torch.equal(transform, source.vlbert.mlm_head["predictions"].transform.dense.weight)
    dropped = {name.removeprefix("module.") for name in plan.dropped}
    assert {"aux_text_visual_embedding.weight", DECODER} <= dropped
    assert "2 of the model not in the file (final_mlp.2.weight, final_mlp.2.bias)" in said[0]


def test_without_the_changes_the_classifier_keeps_its_start(released):
    path, _ = released
    network = ResNetVLBERT(vlbert_config())
    before = network.final_mlp[0].dense.weight.clone()
    plan = load_partial(network, path, [], silent)
    assert torch.equal(network.final_mlp[0].dense.weight, before)
    assert "final_mlp.0.dense.weight" in plan.missing


def test_a_precomputed_network_starts_from_an_end_to_end_file(tmp_path):
    """The CNN is dropped; the visual embedding, whose input is as wide, is taken over."""
    image = replace(vlbert_config().image, feature_size=IMAGES.region_size)
    path = write_model(tmp_path / "e2e.model", pretrained(image=IMAGES).state_dict())
    plan = load_partial(ResNetVLBERT(replace(vlbert_config(), image=image)), path, CHANGES, silent)
    assert plan.missing == ["final_mlp.2.weight", "final_mlp.2.bias"]
    assert any(".backbone.layer3.0.conv1" in name for name in plan.dropped)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["vlbert"], ConfigError, "'vlbert' is not of the form old->new"),
        (["module.vlbert.position->module.vlbert.word"], CheckpointError, "both become"),
        (["module.->module.other."], CheckpointError, "no name in .* fits"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes, error, message, released):
    with pytest.raises(error, match=message):
        load_partial(ResNetVLBERT(vlbert_config()), released[0], changes, silent)


def test_another_width_is_refused_with_both_shapes(released):
    tiny = vlbert_config()
    wide = replace(
        tiny,
        encoder=replace(tiny.encoder, hidden_size=24, visual_size=24),
        image=replace(tiny.image, final_dim=24),
    )
    with pytest.raises(CheckpointError, match=r"\[12\] instead of \[24\]"):
        load_partial(ResNetVLBERT(wide), released[0], CHANGES, silent)


def test_files_with_code_missing_files_and_folders_are_refused(tmp_path):
    class Run:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"state_dict": {"a": Run()}}, tmp_path / "evil.model")
    network = ResNetVLBERT(vlbert_config())
    with pytest.raises(CheckpointError, match="refused.*nothing was executed"):
        load_partial(network, tmp_path / "evil.model", CHANGES, silent)
    with pytest.raises(CheckpointError, match="tried: .*vl-bert-large-prec.model.*released"):
        load_partial(network, tmp_path / "vl-bert-large-prec", CHANGES, silent)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(small_vocabulary(["yes no red cat"])) + "\n")
    return Tokenizer(folder)


def test_answer_rows_are_mean_word_embeddings(vocabulary):
    answers = ["yes", "red cat", "b7", "no", "cat-red"]
    pieces = answer_pieces(answers, vocabulary)
    assert [len(p) for p in pieces] == [1, 2, 2, 1, 3]
    words = torch.randn(len(vocabulary), 12)
    rows = classifier_rows(words, pieces)
    torch.testing.assert_close(rows[1], (words[pieces[1][0]] + words[pieces[1][1]]) / 2)
    network = ResNetVLBERT(vlbert_config())
    set_classifier_rows(network, rows)
    assert torch.equal(network.final_mlp[-1].weight, rows)
    assert network.final_mlp[-1].bias.abs().max() == 0
    two = ResNetVLBERT(replace(vlbert_config(), classifier="2fc", classifier_hidden_size=8))
    with pytest.raises(ConfigError, match="2fc classifier.*mlm or 1fc"):
        set_classifier_rows(two, rows)
    with pytest.raises(DataError, match="answer 2, ' ', has no word pieces"):
        answer_pieces(["yes", " "], vocabulary)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 30,
}


def bert(folder: Path, **changes: object) -> BertForPreTraining:
    model = randomise(BertForPreTraining(BertConfig(**SIZES | changes)))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("old", [False, True])
def test_a_bert_folder_starts_encoder_and_heads(old, tmp_path):
    source = bert(tmp_path)
    if old:  # as in 2018: a pickle with TensorFlow's names
        weights = {
            re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name): x
            for name, x in source.state_dict().items()
        }
        weights = {
            re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name): x for name, x in weights.items()
        }
        (tmp_path / "model.safetensors").unlink()
        torch.save(weights, tmp_path / "pytorch_model.bin")
    network = ResNetVLBERTForPretraining(pretraining_config(relationship=True))
    third = network.vlbert.token_type_embeddings.weight[2].clone()
    load_bert(network, tmp_path, silent)
    ours, theirs = network.vlbert, source.bert
    embeddings = theirs.embeddings
    assert torch.equal(ours.word_embeddings.weight, embeddings.word_embeddings.weight)
    assert torch.equal(ours.position_embeddings.weight, embeddings.position_embeddings.weight[:24])
    assert torch.equal(
        ours.token_type_embeddings.weight[:2], embeddings.token_type_embeddings.weight
    )
    assert torch.equal(ours.token_type_embeddings.weight[2], third)
    assert torch.equal(ours.embedding_LayerNorm.bias, embeddings.LayerNorm.bias)
    for name, x in ours.encoder.state_dict().items():  # three of its four layers
        assert torch.equal(x, theirs.encoder.state_dict()[name])
    assert torch.equal(ours.pooler.dense.weight, theirs.pooler.dense.weight)
    words = ours.mlm_head["predictions"]
    assert torch.equal(words.bias, source.cls.predictions.bias)
    assert torch.equal(
        words.transform.LayerNorm.weight, source.cls.predictions.transform.LayerNorm.weight
    )
    head = ours.relationsip_head["caption_image_relationship"]
    assert torch.equal(head.weight, source.cls.seq_relationship.weight)


def test_a_bert_folder_starts_the_classifier_of_vqa(tmp_path):
    source, network = bert(tmp_path), ResNetVLBERT(vlbert_config())
    load_bert(network, tmp_path, silent)
    assert torch.equal(
        network.final_mlp[0].dense.weight, source.cls.predictions.transform.dense.weight
    )
    assert (
        network(
            **{k: v.float() if v.is_floating_point() else v for k, v in vlbert_inputs(2).items()}
        )
        .isfinite()
        .all()
    )


def test_a_roberta_folder_starts_all_token_types_and_the_word_head(tmp_path):
    source = randomise(RobertaForMaskedLM(RobertaConfig(**SIZES, type_vocab_size=1)))
    source.save_pretrained(tmp_path)
    network = ResNetVLBERTForPretraining(pretraining_config())
    load_bert(network, tmp_path, silent)
    types = source.roberta.embeddings.token_type_embeddings.weight
    assert torch.equal(network.vlbert.token_type_embeddings.weight, types.expand(3, -1))
    words = network.vlbert.mlm_head["predictions"]
    assert torch.equal(words.bias, source.lm_head.bias)
    assert torch.equal(words.transform.dense.weight, source.lm_head.dense.weight)
    assert torch.equal(words.transform.LayerNorm.bias, source.lm_head.layer_norm.bias)


def test_frozen_words_get_their_special_copy_from_bert(tmp_path):
    source = bert(tmp_path)
    tiny = vlbert_config()
    network = ResNetVLBERT(replace(tiny, encoder=replace(tiny.encoder, word_embedding_frozen=True)))
    load_bert(network, tmp_path, silent)
    words = source.bert.embeddings.word_embeddings.weight
    assert torch.equal(network.vlbert.special_word_embeddings.weight[:40], words)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 41}, r"word_embeddings.weight is \(41, 12\) in the file, \(40, 12\)"),
        ({"hidden_size": 24}, "hidden_size"),
        ({"num_hidden_layers": 2}, "tensors are missing, e.g. encoder.layer.2"),
        ({"max_position_embeddings": 20}, r"position_embeddings.weight is \(20, 12\)"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(changes, message, tmp_path):
    bert(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_bert(ResNetVLBERT(vlbert_config()), tmp_path, silent)


def test_a_folder_without_weights_is_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="neither model.safetensors nor pytorch_model.bin"):
        load_bert(ResNetVLBERT(vlbert_config()), tmp_path, silent)
