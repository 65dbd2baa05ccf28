"""LXMERT computes what the original system computed (tests/goldens: its numbers, not its code)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.data.answer_scores import answer_score
from common.data.tokenizer import Tokenizer
from common.parity import main
from common.tasks.vqa import vqa_loss
from common.training.optim import make_optimizer
from common.training.weights import load_into
from lxrt.answers import convert_answer
from lxrt.modeling import VQAModel
from lxrt.parity import model_inputs
from lxrt.sizes import LxmertConfig

CASES = ("lxmert", "lxmert_pretrain", "adaptive")


def write_case(source: Path, folder: Path, *leave_out: str) -> Path:
    """A copy of a golden case without some of its files."""
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors"):
        if name not in leave_out:
            shutil.copy(source / name, folder / name)
    return folder


def change_tensor(path: Path, name: str, change: float | None) -> None:
    """Add to the first entry of a tensor in a file, or remove the tensor (None)."""
    tensors = load_file(path)
    if change is None:
        del tensors[name]
    else:
        tensors[name].view(-1)[0] += change
    save_file(tensors, path)


@pytest.fixture
def golden_model(goldens: Path) -> VQAModel:
    """The model of the golden case, in evaluation mode, with vision read as well."""
    config = json.loads((goldens / "lxmert" / "config.json").read_text())
    model = VQAModel(LxmertConfig.from_dict(config)).eval()
    load_into(model, load_file(goldens / "lxmert" / "weights.safetensors"))
    return model


@pytest.fixture
def extra(goldens: Path) -> dict[str, Tensor]:
    return load_file(goldens / "lxmert" / "extra.safetensors")


def lines_of(output: str, verdict: str) -> list[str]:
    """Names of the tensors that got a verdict."""
    return [line.split()[1] for line in output.splitlines() if line.split()[:1] == [verdict]]


def test_all_cases_of_the_original_agree(goldens, capsys):
    assert main(["--backbone", "lxmert"]) == 0
    shown = capsys.readouterr().out
    wanted = {name for case in CASES for name in load_file(goldens / case / "outputs.safetensors")}
    assert set(lines_of(shown, "ok")) == wanted and not lines_of(shown, "FAIL")
    assert len(wanted) > 20 and shown.endswith("all tensors agree\n")
    assert all(f"{case}: " in shown for case in CASES)


@pytest.mark.parametrize(
    ("case", "weight", "must_fail", "must_agree"),
    [
        ("lxmert", "logit_fc.3.bias", {"logits", "loss"}, {"lang_output", "pooled_output"}),
        (
            "lxmert",
            "lxrt_encoder.model.bert.encoder.x_layers.0.visual_attention.att.value.bias",
            {"lang_output", "vision_output", "pooled_output", "logits", "loss"},
            set(),
        ),
        (
            "lxmert_pretrain",
            "obj_predict_head.decoder_dict.attr.bias",
            {"attr_logits", "total_loss"},
            {"obj_logits", "lm_logits", "qa_logits"},
        ),
    ],
)
def test_a_perturbed_weight_fails_and_names_the_tensors_it_reaches(
    goldens, tmp_path, capsys, case, weight, must_fail, must_agree
):
    folder = write_case(goldens / case, tmp_path / "case")
    change_tensor(folder / "weights.safetensors", weight, 0.1)
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 1
    shown = capsys.readouterr().out
    failed = set(lines_of(shown, "FAIL"))
    assert must_fail <= failed and must_agree <= set(lines_of(shown, "ok"))
    assert shown.endswith(f"{len(failed)} tensors are off\n")


def test_the_smallest_visible_deviation_fails(goldens, tmp_path, capsys):
    folder = write_case(goldens / "lxmert", tmp_path / "case")
    scale = load_file(folder / "outputs.safetensors")["logits"].abs().max().item()
    change_tensor(folder / "outputs.safetensors", "logits", 2e-5 * scale)
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 1
    assert lines_of(capsys.readouterr().out, "FAIL") == ["logits"]


def test_a_tensor_that_we_do_not_produce_fails(goldens, tmp_path, capsys):
    folder = write_case(goldens / "lxmert", tmp_path / "case")
    expected = load_file(folder / "outputs.safetensors")
    save_file(expected | {"hidden_state_7": torch.zeros(2)}, folder / "outputs.safetensors")
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert lines_of(shown, "FAIL") == ["hidden_state_7"] and "missing" in shown


def test_a_wrong_shape_fails_with_both_shapes(goldens, tmp_path, capsys):
    folder = write_case(goldens / "lxmert", tmp_path / "case")
    expected = load_file(folder / "outputs.safetensors")
    save_file(
        expected | {"logits": expected["logits"][:, :5].contiguous()},
        folder / "outputs.safetensors",
    )
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 1
    assert "shape (4, 11), expected (4, 5)" in capsys.readouterr().out


def test_a_case_without_outputs_writes_all_tensors_of_its_kind(goldens, tmp_path, capsys):
    folder = write_case(goldens / "lxmert", tmp_path / "case", "outputs.safetensors")
    written = tmp_path / "ours.safetensors"
    assert main(["--backbone", "lxmert", "--case", str(folder), "--write", str(written)]) == 0
    ours, theirs = load_file(written), load_file(goldens / "lxmert" / "outputs.safetensors")
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=2e-5)
    capsys.readouterr()


def test_missing_weights_and_unknown_kinds_are_one_line_errors(goldens, tmp_path, capsys):
    folder = write_case(goldens / "lxmert", tmp_path / "case")
    change_tensor(folder / "weights.safetensors", "logit_fc.3.bias", None)
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: golden case does not fit the VQAModel")
    assert "1 missing" in shown and "logit_fc.3.bias" in shown
    config = json.loads((folder / "config.json").read_text()) | {"kind": "vqa_net"}
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["--backbone", "lxmert", "--case", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert f"{folder / 'config.json'}: kind 'vqa_net' is not one of lxmert" in shown
    assert "lxmert_vqa, lxmert_pretrain" in shown
    assert main(["--backbone", "lxbert"]) == 2
    assert "unknown backbone 'lxbert'; installed: lxmert" in capsys.readouterr().err


def test_irregular_masks_segments_and_a_visual_mask_give_the_originals_numbers(golden_model, extra):
    inputs = {k.removeprefix("case2.in."): x for k, x in extra.items() if "case2.in." in k}
    expected = {k.removeprefix("case2.out."): x for k, x in extra.items() if "case2.out." in k}
    assert (inputs["input_mask"].sum(1) == 0).tolist() == [False, False, False, True]
    assert inputs["segment_ids"].any() and (inputs["visual_attention_mask"] == 0).any()
    golden_model.bert.encoder.set_reads(("lang", "vision"))
    with torch.no_grad():
        out = golden_model.bert(**model_inputs(inputs))
        logits = golden_model.logit_fc(out.pooled)
        loss = vqa_loss(logits, inputs["target"])
    found = {
        "lang_output": out.lang,
        "vision_output": out.vision,
        "pooled_output": out.pooled,
        "logits": logits,
    }
    for name, tensor in found.items():
        # The last row has no visible token: scores near -10000 are quantised in float32.
        torch.testing.assert_close(tensor[:3], expected[name][:3], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tensor[3], expected[name][3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-2, atol=1e-2)


def test_six_steps_of_bert_adam_follow_the_original(golden_model, goldens, extra):
    config = json.loads((goldens / "lxmert" / "config.json").read_text())["train_extra"]
    inputs = load_file(goldens / "lxmert" / "inputs.safetensors")
    arguments = model_inputs(inputs)
    optimizer = make_optimizer(
        "bert",
        list(golden_model.parameters()),
        config["lr"],
        config["t_total"],
        warmup=config["warmup"],
    )
    for step in range(config["steps"]):
        loss = vqa_loss(golden_model(**arguments), inputs["target"])
        optimizer.zero_grad()
        loss.backward()
        norm = optimizer.clip(config["clip"])
        assert optimizer.lr == pytest.approx(extra["train.lr"][step].item(), abs=1e-12)
        assert loss.item() == pytest.approx(extra["train.losses"][step].item(), rel=1e-4)
        assert norm.item() == pytest.approx(
            extra["train.grad_norms_before_clip"][step].item(), rel=1e-3
        )
        optimizer.step()
    with torch.no_grad():
        after = golden_model(**arguments)
    torch.testing.assert_close(after, extra["train.logits_after"], rtol=0, atol=2e-4)
    parameters = dict(golden_model.named_parameters())
    names = [n.removeprefix("train.param_after.") for n in extra if "param_after" in n]
    assert len(names) == 3
    for name in names:
        torch.testing.assert_close(
            parameters[name].detach(),
            extra[f"train.param_after.{name}"],
            rtol=0,
            atol=2e-4,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def test_the_golden_config_names_exactly_the_parameters_that_get_no_gradient(golden_model, goldens):
    config = json.loads((goldens / "lxmert" / "config.json").read_text())
    inputs = load_file(goldens / "lxmert" / "inputs.safetensors")
    vqa_loss(golden_model(**model_inputs(inputs)), inputs["target"]).backward()
    without = [name for name, p in golden_model.named_parameters() if p.grad is None]
    assert sorted(without) == sorted(config["params_without_gradient"])


@pytest.fixture(scope="module")
def tokenization(goldens, tmp_path_factory) -> tuple[Tokenizer, list[dict]]:
    facts = json.loads((goldens / "lxmert" / "tokenization.json").read_text())
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(facts["vocab"]) + "\n", encoding="utf-8")
    assert facts["max_seq_length"] == 20
    return Tokenizer(folder), facts["rows"]


def test_every_probe_sentence_has_the_originals_word_pieces(tokenization):
    tokenizer, rows = tokenization
    for row in rows:
        assert tokenizer.pieces(row["sent"]) == row["tokens"], row["sent"]
        # Ours pads to the longest sentence of a batch, the original always to 20.
        ids, mask = tokenizer.encode([row["sent"]])
        length = sum(row["input_mask"])
        assert ids[0].tolist() == row["input_ids"][:length], row["sent"]
        assert mask[0].tolist() == [1] * length


def test_a_batch_of_all_probe_sentences_is_the_originals_matrix(tokenization):
    tokenizer, rows = tokenization
    ids, mask = tokenizer.encode([row["sent"] for row in rows])
    assert torch.equal(ids, torch.tensor([row["input_ids"] for row in rows]))
    assert torch.equal(mask, torch.tensor([row["input_mask"] for row in rows]))
    assert not any(any(row["segment_ids"]) for row in rows)


def test_answers_are_converted_as_the_original_converted_them(goldens):
    facts = json.loads((goldens / "lxmert" / "data_formats.json").read_text())
    assert len(facts["answer_conversion"]) >= 20
    for row in facts["answer_conversion"]:
        assert convert_answer(row["ans"]) == row["converted"], row


def test_answers_score_as_the_original_scored_them(goldens):
    facts = json.loads((goldens / "lxmert" / "data_formats.json").read_text())
    for row in facts["scoring"]:
        assert answer_score(row["answer"], row["label"]) == row["score"], row
