"""ViLBERT computes what the original system computed (tests/goldens: its numbers, not its code)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.parity import main
from common.reading import read_json
from common.training.weights import load_into
from tests.lxmert.test_parity import change_tensor, lines_of, write_case
from vilbert.heads import VILBertForVQA
from vilbert.parity import Case, model_inputs

TENSORS = 77
ANSWERS = {
    *(f"{variant}/vil_prediction" for variant in ("vltasks", "fast_mode", "other_fusion")),
    *("vqa/loss", "fixed_t_layer/loss"),
}


def check(folder: Path, *more: str) -> int:
    """The exit status of the comparison of one case."""
    return main(["--backbone", "vilbert", "--case", str(folder), *more])


@pytest.fixture
def case(goldens: Path, tmp_path: Path) -> Path:
    return write_case(goldens / "vilbert", tmp_path / "case")


def test_every_tensor_of_the_original_agrees(goldens, capsys):
    assert main(["--backbone", "vilbert"]) == 0
    shown = capsys.readouterr().out
    wanted = load_file(goldens / "vilbert" / "outputs.safetensors")
    assert len(wanted) == TENSORS and set(wanted) == set(
        read_json(goldens / "vilbert" / "meta.json")["outputs"]
    )
    assert sorted(lines_of(shown, "ok")) == sorted(wanted)
    assert f"vilbert: {TENSORS} tensors\n" in shown and shown.endswith("all tensors agree\n")


@pytest.mark.parametrize(
    ("weight", "must_fail", "must_agree"),
    [
        ("vil_prediction.main.0.weight_g", ANSWERS, {"vltasks/vil_logit", "bert/pooled_output_t"}),
        (
            # Written to the text by the last connection, which the image reads no more.
            "bert.encoder.c_layer.1.biOutput.dense2.bias",
            {
                "bert/after_connection_1_t",
                "bert/sequence_output_t",
                "in_batch_pairs/pooled_output_t",
            }
            | ANSWERS,
            {
                *("bert/after_connection_0_t", "bert/after_connection_1_v"),
                *("bert/sequence_output_v", "bert/pooled_output_v", "pretrain/prediction_scores_v"),
                *("without_coattention/sequence_output_t", "bert/coattention0_text_over_image"),
            },
        ),
        (
            "bert.encoder.v_layer.0.attention.self.value.bias",
            {
                *("bert/after_connection_1_v", "bert/after_connection_1_t"),
                *("without_coattention/sequence_output_v", "pretrain/seq_relationship_score"),
            },
            {"bert/after_connection_0_v", "without_coattention/sequence_output_t"},
        ),
        (
            "cls.imagePredictions.transform.dense.bias",
            {"pretrain_kl/masked_img_loss", "pretrain_regress/masked_img_loss"},
            {
                "pretrain_kl/masked_lm_loss",
                "pretrain_kl/next_sentence_loss",
                "vltasks/vision_logit",
            },
        ),
    ],
)
def test_a_changed_weight_is_noticed_and_only_where_it_matters(
    weight, must_fail, must_agree, case, capsys
):
    change_tensor(case / "weights.safetensors", weight, 0.5)
    assert check(case) == 1
    shown = capsys.readouterr().out
    failed = set(lines_of(shown, "FAIL"))
    assert must_fail <= failed and must_agree <= set(lines_of(shown, "ok"))
    assert shown.endswith(f"{len(failed)} tensors are off\n")


def test_a_changed_bias_of_one_head_moves_nothing_but_that_head(case, capsys):
    """A loss over options does not see a bias that they share."""
    change_tensor(case / "weights.safetensors", "vil_logit.bias", 0.5)
    assert check(case) == 1
    assert set(lines_of(capsys.readouterr().out, "FAIL")) == {
        f"{variant}/vil_logit" for variant in ("vltasks", "fast_mode", "other_fusion")
    }


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("weights.safetensors", "bert.encoder.c_layer.0.biOutput.q_dense1.weight"),
        ("weights.safetensors", "bert.encoder.c_layer.1.biOutput.q_dense2.bias"),
        ("inputs.safetensors", "co_attention_mask"),
    ],
)
def test_what_the_original_only_stores_changes_nothing(file, name, case, capsys):
    change_tensor(case / file, name, 5)
    assert check(case) == 0
    assert len(lines_of(capsys.readouterr().out, "ok")) == TENSORS


def test_a_case_without_outputs_writes_all_tensors_of_its_kind(goldens, tmp_path):
    folder = write_case(goldens / "vilbert", tmp_path / "case", "outputs.safetensors")
    assert check(folder, "--write", str(tmp_path / "ours.safetensors")) == 0
    ours = load_file(tmp_path / "ours.safetensors")
    theirs = load_file(goldens / "vilbert" / "outputs.safetensors")
    assert set(theirs) <= set(ours)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=2e-5)


def test_weights_that_are_missing_are_a_one_line_error(case, capsys):
    change_tensor(case / "weights.safetensors", "vil_logit.bias", None)
    assert check(case) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: golden case does not fit") and "vil_logit.bias" in shown


def golden(folder: Path) -> Case:
    values = read_json(folder / "config.json") | {"folder": str(folder)}
    weights, inputs = (load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs"))
    return Case(values, weights, inputs, [])


def test_the_model_that_is_finetuned_gives_the_originals_answers(goldens):
    """It computes the first position alone; what is compared above computes all of them."""
    case = golden(goldens / "vilbert")
    model = VILBertForVQA(case.config).eval()
    load_into(model, case.weights)
    logits = model(**model_inputs(case.inputs))
    wanted = load_file(goldens / "vilbert" / "outputs.safetensors")["vltasks/vil_prediction"]
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_exactly_the_parameters_without_a_gradient_in_the_original_get_none(goldens):
    """Listed for a fixed first text layer, where only answers are read."""
    case = golden(goldens / "vilbert")
    model = case.tasks(fixed_t_layer=1)
    model(**model_inputs(case.inputs)).vil_prediction.sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    listed = read_json(goldens / "vilbert" / "meta.json")["fixed_t_layer_1_params_without_grad"]
    assert sorted(without) == sorted(listed)
