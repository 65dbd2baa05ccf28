"""What pretraining starts from: snapshots of ours and of upstream, BERT with its heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import CheckpointError, ConfigError
from common.training.checkpoint import save_checkpoint
from lxrt.modeling import PretrainingModel
from lxrt.options import WeightOptions
from lxrt.pretraining_weights import check_weights, load_start, load_whole, load_without_answers
from tests.lxmert.snapshots import KNOWN, config, pretraining_weights, upstream_file

TIED = "cls.predictions.decoder.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


def fresh(
    layers: tuple[int, int, int] = (2, 2, 1),
    answers: int = len(KNOWN),
    losses: tuple[str, ...] = ("obj", "attr", "feat"),
    qa: bool = True,
) -> PretrainingModel:
    torch.manual_seed(2)
    return PretrainingModel(config(answers, layers), losses, qa)


def file_of(folder: Path, weights: dict[str, Tensor], kind: str, **meta: object) -> Path:
    """`folder/model_LXRT.*` as upstream (with that prefix) or as we save it."""
    if kind != "ours":
        return upstream_file(folder, weights, kind)
    save_checkpoint(
        folder / "model_LXRT.safetensors",
        {"model": {n: x for n, x in weights.items() if n != TIED}},
        meta,
    )
    return folder / "model"


def copied(model: PretrainingModel) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["", "module.", "ours"])
def test_loadlxmert_takes_everything_but_the_answer_head(tmp_path, kind):
    """Upstream kept only names that start with `module.`: of other files it loaded nothing."""
    weights, model, said = pretraining_weights(), fresh(answers=3), []
    before = copied(model)
    load_without_answers(model, file_of(tmp_path, weights, kind), {}, said.append)
    for name, value in model.state_dict().items():
        expected = before[name] if name.startswith("answer_head") else weights[name]
        assert torch.equal(value, expected), name
    loaded = sum(not n.startswith("answer") for n in weights) - (kind == "ours")
    assert (
        f"{loaded} tensors loaded, 0 of the model not in the file, 0 of the file not in the "
        "model; answer head: 6 tensors of the file left out" in said[0]
    )


@pytest.mark.parametrize("kind", ["", "module.", "ours"])
def test_load_takes_every_tensor_of_a_snapshot(tmp_path, kind):
    weights, model, said = pretraining_weights(), fresh(), []
    load_whole(model, file_of(tmp_path, weights, kind, answers=KNOWN), {}, KNOWN, said.append)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert "tensors loaded" in said[0]


def test_what_only_one_side_has_is_counted(tmp_path):
    weights, said = pretraining_weights(), []
    name, model = upstream_file(tmp_path, weights), fresh((3, 1, 1), losses=("obj",), qa=False)
    before = copied(model)
    load_without_answers(model, name, {}, said.append)
    own, theirs = set(model.state_dict()), {n for n in weights if "answer" not in n}
    missing, left = own - theirs, theirs - own
    assert len(missing) == 16 and left
    assert (
        f"{len(own & theirs)} tensors loaded, 16 of the model not in the file, {len(left)} of "
        "the file not in the model; answer head: 6 tensors of the file left out, not trained"
        in said[0]
    )
    assert all(torch.equal(model.state_dict()[n], before[n]) for n in missing)


@pytest.mark.parametrize("change", ["fewer layers in the file", "other heads"])
def test_load_refuses_what_does_not_fit_exactly_and_names_loadlxmert(tmp_path, change):
    model = fresh((3, 2, 1)) if change.startswith("fewer") else fresh(losses=("obj",))
    before = copied(model)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)does not fit the PretrainingModel.*--load "
        r"needs .* the same layers and objectives; "
        r"--loadLXMERT takes what fits",
    ):
        load_whole(model, upstream_file(tmp_path, pretraining_weights()), {}, KNOWN)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_load_refuses_a_head_for_other_answers_of_the_same_number(tmp_path):
    """Rows would stand for other answers."""
    name = file_of(tmp_path, pretraining_weights(), "ours", answers=KNOWN[::-1])
    with pytest.raises(
        CheckpointError,
        match="its answer head is for 7 answers that are not the 7 "
        "of this run in their order; use --loadLXMERT",
    ):
        load_whole(fresh(), name, {}, KNOWN)
    load_without_answers(fresh(), name, {})


def test_a_file_without_anything_of_the_encoder_is_an_error(tmp_path):
    weights = pretraining_weights()
    heads = {n: x for n, x in weights.items() if not n.startswith("bert.")}
    for content in (heads, {"resnet.conv.weight": torch.zeros(3)}):
        with pytest.raises(CheckpointError, match="not a LXMERT snapshot, none of its"):
            load_without_answers(fresh(), upstream_file(tmp_path, content), {})


def test_another_shape_is_an_error_with_both_shapes(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights(obj_id_num=9))
    with pytest.raises(
        CheckpointError,
        match=r"(?s)decoder_dict.obj.weight \[9, 12\] instead of "
        r"\[4, 12\]",
    ):
        load_without_answers(fresh(), name, {})


@pytest.mark.parametrize(
    "load", [load_without_answers, lambda model, name, fits: load_whole(model, name, fits, KNOWN)]
)
def test_a_snapshot_of_other_features_or_another_vocabulary_is_refused(tmp_path, load):
    name = file_of(tmp_path, pretraining_weights(), "ours", vocabulary={"sha256": "a"})
    with pytest.raises(
        CheckpointError, match="vocabulary.sha256 is 'a' in the file, this run has 'b'"
    ):
        load(fresh(), name, {"vocabulary": {"sha256": "b"}})
    load(fresh(), name, {"vocabulary": {"sha256": "a"}})


def bert_folder(folder: Path, heads: bool) -> dict[str, Tensor]:
    """A BERT of the tiny model's sizes as TensorFlow's conversion names it; returns its tensors."""
    weights, found = pretraining_weights(), {}
    for name, x in weights.items():
        if name.startswith(("bert.embeddings", "bert.encoder.layer.", "bert.pooler")) or (
            heads and name.startswith("cls.")
        ):
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            found[name.replace("LayerNorm.bias", "LayerNorm.beta")] = x
    torch.save(found, folder / "pytorch_model.bin")
    return weights


@pytest.mark.parametrize("heads", [True, False])
def test_bert_starts_the_language_half_and_the_heads_of_words_and_matching(tmp_path, heads):
    weights, model, said = bert_folder(tmp_path, heads), fresh(), []
    before = copied(model)
    load_start(model, WeightOptions(bert=tmp_path), False, {}, KNOWN, said.append)
    start = ("bert.embeddings", "bert.encoder.layer.", "bert.pooler", *(("cls.",) if heads else ()))
    for name, value in model.state_dict().items():
        loaded = name.startswith(start) or name == TIED
        assert torch.equal(value, weights[name] if loaded else before[name]), name
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert f"{7 if heads else 0} tensors of the heads of masked words and matching" in said[-1]


def test_fromscratch_leaves_random_weights_and_load_overrides_it(tmp_path):
    bert_folder(tmp_path, True)
    model, said = fresh(), []
    before = copied(model)
    load_start(model, WeightOptions(bert=tmp_path, from_scratch=True), True, {}, KNOWN, said.append)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert said == ["all weights start at random values"]
    weights = pretraining_weights()
    name = upstream_file(tmp_path, weights)
    load_start(
        model, WeightOptions(load=str(name), from_scratch=True), True, {}, KNOWN, said.append
    )
    assert torch.equal(model.state_dict()[WORDS], weights[WORDS])


def test_weights_that_are_not_there_are_refused_before_any_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lxrt.pretraining_weights.BERT", tmp_path / "none")
    for given, from_bert, message in (
        ({"load": "a", "load_lxmert": "b"}, False, "--load and --loadLXMERT both name"),
        ({"load": str(tmp_path / "x")}, False, "x_LXRT.pth"),
        ({"bert": tmp_path}, False, f"no BERT weights in {tmp_path}"),
        ({}, True, "no weights to start from: .*--fromScratch for random weights"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=message):
            check_weights(WeightOptions(**given), from_bert)
    check_weights(WeightOptions(from_scratch=True), True)
    check_weights(WeightOptions(), False)
