"""--loadLXMERT and --loadLXMERTQA: pretraining snapshots, upstream's and ours; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import CheckpointError, DataError
from common.training.checkpoint import save_checkpoint
from lxrt.answers import convert_answer
from lxrt.loading import load_lxmert, load_lxmert_qa
from lxrt.modeling import VQAModel
from tests.lxmert.snapshots import (
    ANSWERS,
    KNOWN,
    all_answers,
    encoder_is,
    fresh,
    pretraining_weights,
    upstream_file,
)

FOUND = {0: "yes", 1: "man", 2: "2", 4: "gray"}  # place among ANSWERS: which of KNOWN it is


def our_file(folder: Path, weights: dict[str, Tensor], **meta: object) -> Path:
    """`folder/model_LXRT.safetensors` as our export writes it: float16, tied weight left out."""
    weights = {n: x.half() for n, x in weights.items() if n != "cls.predictions.decoder.weight"}
    save_checkpoint(folder / "model_LXRT.safetensors", {"model": weights}, meta)
    return folder / "model"


def head_of(model: VQAModel) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.logit_fc.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_loadlxmert_takes_the_encoder_of_an_upstream_file_and_leaves_the_head(tmp_path, prefix):
    weights, model = pretraining_weights(), fresh()
    before, said = head_of(model), []
    path = load_lxmert(model, upstream_file(tmp_path, weights, prefix), say=said.append)
    assert path == tmp_path / "model_LXRT.pth" and said == []
    encoder_is(model, weights)
    assert all(torch.equal(x, before[n]) for n, x in model.logit_fc.state_dict().items())


@pytest.mark.parametrize("kind", ["ours", "bare safetensors", "upstream", "upstream module."])
def test_loadlxmertqa_takes_encoder_and_answer_head_of_every_kind_of_file(tmp_path, kind):
    weights, model = pretraining_weights(), fresh()
    data, tolerance, said = all_answers(tmp_path), 0.0, []
    if kind == "ours":
        name, tolerance = our_file(tmp_path, weights, answers=KNOWN), 2e-3
        (data / "lxmert" / "all_ans.json").unlink()  # ours carry their answers
    elif kind == "bare safetensors":
        save_file({n: x.clone() for n, x in weights.items()}, tmp_path / "model_LXRT.safetensors")
        name = tmp_path / "model"
    else:
        name = upstream_file(tmp_path, weights, kind.partition(" ")[2])
    load_lxmert_qa(model, name, ANSWERS, data, say=said.append)
    encoder_is(model, weights, tolerance)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    head = "answer_head.logit_fc"
    for part in ("0.weight", "0.bias", "2.weight", "2.bias"):
        torch.testing.assert_close(
            model.logit_fc.state_dict()[part],
            weights[f"{head}.{part}"],
            rtol=tolerance,
            atol=tolerance,
        )
    assert "answer head with 4 answers from pretraining, 2 set to zero" in said[-1]


def test_known_answers_get_their_rows_after_conversion_and_unknown_ones_zeros(tmp_path):
    weights, model = pretraining_weights(), fresh()
    load_lxmert_qa(model, upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path))
    for row, answer in enumerate(ANSWERS):
        for part in ("weight", "bias"):
            ours = model.logit_fc.state_dict()[f"3.{part}"][row]
            if row in FOUND:
                assert convert_answer(answer) == FOUND[row]
                theirs = weights[f"answer_head.logit_fc.3.{part}"][KNOWN.index(FOUND[row])]
                assert torch.equal(ours, theirs), answer
            else:
                assert not ours.any(), answer


def test_the_file_itself_and_its_prefix_name_the_same_weights(tmp_path):
    weights = pretraining_weights()
    prefix = upstream_file(tmp_path, weights)
    for name in (prefix, f"{prefix}_LXRT.pth", f"{prefix}_LXRT"):
        model = fresh()
        load_lxmert(model, name)
        encoder_is(model, weights)


def test_ours_is_preferred_where_both_files_are_there(tmp_path):
    ours = {name: x + 1 for name, x in pretraining_weights().items()}
    upstream_file(tmp_path, pretraining_weights())
    model = fresh()
    assert load_lxmert(model, our_file(tmp_path, ours)).suffix == ".safetensors"
    encoder_is(model, ours, 4e-3)


def test_a_model_with_fewer_layers_than_the_file_loads_strictly(tmp_path):
    weights, model, said = pretraining_weights(), fresh((1, 1, 0)), []
    load_lxmert_qa(
        model, upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path), say=said.append
    )
    encoder_is(model, weights)
    unused = len([n for n in weights if n.startswith("bert.")]) - len(model.bert.state_dict())
    assert f"0 of the model not in the file, {unused} of the file not in the model" in said[0]


def test_a_model_with_more_layers_than_the_file_is_refused_by_qa_and_reported_without(tmp_path):
    weights = pretraining_weights()
    name, data = upstream_file(tmp_path, weights), all_answers(tmp_path)
    model, said = fresh((3, 2, 1)), []
    with pytest.raises(CheckpointError) as error:
        load_lxmert_qa(model, name, ANSWERS, data)
    message = str(error.value)
    assert f"{name}_LXRT.pth: 16 parameters of the model are not in the file" in message
    assert "encoder.layer.2." in message
    assert "(--llayers, --xlayers, --rlayers), or --loadLXMERT" in message
    fresh_layer = {n: x.clone() for n, x in model.bert.encoder.layer[2].state_dict().items()}
    load_lxmert(model, name, say=said.append)
    loaded = len(model.bert.state_dict()) - 16
    assert f"{loaded} tensors loaded, 16 of the model not in the file" in said[0]
    assert all(
        torch.equal(x, fresh_layer[n]) for n, x in model.bert.encoder.layer[2].state_dict().items()
    )
    assert torch.equal(
        model.bert.encoder.layer[0].output.dense.weight,
        weights["bert.encoder.layer.0.output.dense.weight"],
    )


def test_nothing_is_loaded_when_a_strict_load_fails(tmp_path):
    model = fresh((3, 2, 1))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_lxmert_qa(
            model, upstream_file(tmp_path, pretraining_weights()), ANSWERS, all_answers(tmp_path)
        )
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_another_width_is_an_error_with_name_and_both_shapes(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights(visual_feat_dim=9))
    with pytest.raises(
        CheckpointError,
        match=r"(?s)model_LXRT.pth does not fit.*visn_fc.weight "
        r"\[12, 9\] instead of \[12, 5\]",
    ):
        load_lxmert(fresh(), name)


def test_a_missing_file_says_what_was_tried_where_it_comes_from_and_names_fromscratch(tmp_path):
    name = tmp_path / "snap" / "model"
    for load in (
        lambda: load_lxmert(fresh(), name),
        lambda: load_lxmert_qa(fresh(), name, ANSWERS, tmp_path),
    ):
        with pytest.raises(CheckpointError) as error:
            load()
        message = str(error.value)
        for part in (
            f"{name}_LXRT.safetensors",
            f"{name}_LXRT.pth",
            "model_LXRT.pth of the original authors (870 MB)",
            f"put the file at {name}_LXRT.pth",
            "--fromScratch",
        ):
            assert part in message


def test_missing_all_ans_json_is_an_error_that_names_it_and_the_way_out(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights())
    with pytest.raises(DataError) as error:
        load_lxmert_qa(fresh(), name, ANSWERS, tmp_path / "data")
    message = str(error.value)
    assert str(tmp_path / "data" / "lxmert" / "all_ans.json") in message
    assert "9,500 answers" in message and f"{name}_LXRT.pth" in message
    assert "--loadLXMERT loads it without" in message


@pytest.mark.parametrize("content", [["cat", "man"], [{"answer": "cat"}], 7])
def test_a_list_of_answers_of_another_form_is_refused(tmp_path, content):
    name, data = upstream_file(tmp_path, pretraining_weights()), all_answers(tmp_path)
    (data / "lxmert" / "all_ans.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError,
        match=r"all_ans.json: not a list of entries with `ans`.*"
        r"--loadLXMERT",
    ):
        load_lxmert_qa(fresh(), name, ANSWERS, data)


@pytest.mark.parametrize(
    ("key", "theirs", "difference"),
    [
        (
            "features",
            {"width": 5, "detector": "Faster R-CNN"},
            "features.detector is 'Faster R-CNN' in the file, this run has 'pixels'",
        ),
        (
            "vocabulary",
            {"count": 30, "sha256": "b"},
            "vocabulary.sha256 is 'b' in the file, this run has 'a'",
        ),
    ],
)
def test_a_snapshot_of_other_features_or_another_vocabulary_is_refused(
    tmp_path, key, theirs, difference
):
    """Same shapes, other meanings: it would load and be worthless."""
    ours = {
        "features": {"width": 5, "detector": "pixels"},
        "vocabulary": {"count": 30, "sha256": "a"},
    }
    name = our_file(tmp_path, pretraining_weights(), **(ours | {key: theirs, "answers": KNOWN}))
    for load in (
        lambda fits: load_lxmert(fresh(), name, fits),
        lambda fits: load_lxmert_qa(fresh(), name, ANSWERS, tmp_path, fits),
    ):
        with pytest.raises(CheckpointError) as error:
            load(ours)
        assert f"{name}_LXRT.safetensors: made with other settings: {difference}" in str(
            error.value
        )
        load(ours | {key: theirs})


def test_an_upstream_snapshot_remembers_neither_features_nor_vocabulary_and_is_taken(tmp_path):
    load_lxmert(
        fresh(),
        upstream_file(tmp_path, pretraining_weights()),
        {"features": {"width": 5, "detector": "Faster R-CNN"}},
    )


@pytest.mark.parametrize("change", [-1, 1])
def test_a_list_of_answers_of_another_length_than_the_head_is_refused(tmp_path, change):
    """Rows would go to the wrong answers."""
    name, data = upstream_file(tmp_path, pretraining_weights()), all_answers(tmp_path)
    rows = ([*KNOWN, "zebra"])[: len(KNOWN) + change]
    (data / "lxmert" / "all_ans.json").write_text(json.dumps([{"ans": a} for a in rows]))
    with pytest.raises(
        CheckpointError,
        match=rf"model_LXRT.pth: the answer head has 7 rows, but "
        rf"the list of its answers has {7 + change}; give "
        r"the lxmert/all_ans.json .* or use --loadLXMERT",
    ):
        load_lxmert_qa(fresh(), name, ANSWERS, data)


def test_a_head_that_is_not_whole_is_refused(tmp_path):
    weights = pretraining_weights()
    del weights["answer_head.logit_fc.0.bias"]
    with pytest.raises(
        CheckpointError,
        match=r"the answer head is not whole, "
        r"answer_head.logit_fc.0.bias is missing; use "
        r"--loadLXMERT",
    ):
        load_lxmert_qa(fresh(), upstream_file(tmp_path, weights), ANSWERS, all_answers(tmp_path))


def test_files_without_answer_head_or_encoder_are_refused(tmp_path):
    weights = pretraining_weights()
    encoder = {n: x for n, x in weights.items() if n.startswith("bert.")}
    with pytest.raises(
        CheckpointError,
        match=r"model_LXRT.pth has no answer head "
        r"\(answer_head.\*\); use --loadLXMERT",
    ):
        load_lxmert_qa(fresh(), upstream_file(tmp_path, encoder), ANSWERS, all_answers(tmp_path))
    other = upstream_file(tmp_path, {"resnet.layer1.conv.weight": torch.zeros(2)})
    with pytest.raises(
        CheckpointError, match="not a LXMERT snapshot, none of its 1 tensors belongs to the encoder"
    ):
        load_lxmert(fresh(), other)


def test_a_truncated_download_is_an_error_not_a_wrong_model(tmp_path):
    name = upstream_file(tmp_path, pretraining_weights())
    file = tmp_path / "model_LXRT.pth"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="truncated or damaged .* fetch it again"):
        load_lxmert(fresh(), name)
