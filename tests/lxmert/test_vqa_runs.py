"""Finetuning and testing with every strategy, in this process."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.adapt.adapting import parameter_counts
from common.data.annotations import AnswerVocabulary, Example, read_lxmert_json
from common.data.datasets import open_features, resolve_dataset
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset
from common.data.vqa_metric import Scores, score
from common.features.writer import RegionFeatureWriter
from common.tasks.questions import training_examples
from common.tasks.vqa import VQATask
from common.training.checkpoint import load_checkpoint, load_meta
from lxrt.building import build
from lxrt.finetuning import PROGRAM, main
from lxrt.inputs import LxmertInputs
from lxrt.modeling import VQAModel
from lxrt.sizes import size_config
from tests.common.on_gpu import everything_on_gpu, same_learning, without_dropout
from tests.common.recording import recording
from tests.lxmert.runs import ADAPTIVE, DROPOUT_RUN, same_state, score_of_predictions, strict_json


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        *((name, []) for name in ADAPTIVE),
        ("spottune", ["--policy", "published", "--policy_llayers", "1"]),
        ("standard", []),
        ("Frozen_Bert", []),
        ("last_2", []),
        ("FrozenLayers", ["--frozen-layers", "1,cross.2"]),
    ],
)
def test_every_strategy_trains_and_is_restored_with_its_policy(flags, tmp_path, strategy, more):
    """Testing BEST needs no strategy flags, and gives the decisions and accuracy of the run."""
    out = tmp_path / "run"
    assert main([*flags, "--strategy", strategy, *more, "--output", str(out)]) == 0
    result = strict_json(out / "result.json")
    assert (
        main(
            [
                *flags[:4],
                "--gpus",
                "cpu",
                "--quiet",
                "--test",
                "minival",
                "--load",
                str(out / "BEST"),
                "--output",
                str(out),
            ]
        )
        == 0
    )
    found = score_of_predictions(out / "minival_predict.json", Path(flags[3]))
    assert found["overall"] == result["accuracy"]["val"]["overall"]
    adaptive = strategy in ADAPTIVE or strategy == "spottune"
    assert (result["decisions"] is not None) == adaptive
    assert (result["parameters"]["policy"] > 0) == adaptive
    if adaptive:
        assert result["policy"] == (more[1] if more else "small")
        assert len(result["decisions"]["share"]) == len(result["decisions"]["names"])
    else:
        assert result["policy"] is None and result["policy_eval"] is None


@torch.no_grad()
def evaluate(checkpoint: Path, data: Path, part: str) -> tuple[Scores, VQAModel]:
    """Accuracy of a checkpoint on its training or validation questions, one by one."""
    options = PROGRAM.parse(
        ["--dataset", "vqa", "--data", str(data), "--questions", "64", "--load", str(checkpoint)]
    )
    dataset = resolve_dataset("vqa", data_root=data)
    train, valid = dataset.choose_splits(None, None)
    features = open_features(dataset, "train,minival")
    built = build(options, dataset, features, lambda line: None)
    wanted = replace(options.data, train=train, valid=valid)
    examples = (
        training_examples(wanted, dataset, options.run.seed)[0]
        if part == "train"
        else read_lxmert_json(data / "vqa" / "minival.json")
    )
    questions = VQADataset(examples, features, dataset.vocabulary())
    inputs, model, predictions = LxmertInputs(built.tokenizer), built.model.eval(), {}
    for place, example in enumerate(examples):
        best = int(model(**inputs(questions.read([place]))).argmax())
        predictions[example.question_id] = dataset.vocabulary().answers[best]
    assert len(set(predictions.values())) > 2, "always the same answer: nothing is compared"
    return score(predictions, examples), model


def test_accuracies_are_those_of_the_best_epoch_in_evaluation_mode_on_single_questions(
    flags, vqa_data, tmp_path, monkeypatch
):
    """Not of the last epoch, not with dropout, not with drawn decisions, not of padded batches."""
    validate, left = VQATask.validate, [2.0, 1.0]

    def worse_every_epoch(task: VQATask, model: VQAModel) -> Any:
        found = validate(task, model)
        found.score = left.pop(0)
        return found

    monkeypatch.setattr(VQATask, "validate", worse_every_epoch)
    assert (
        main([*flags, *DROPOUT_RUN, "--dropout", "0.5", "--lr", "0.002", "--output", str(tmp_path)])
        == 0
    )
    result = strict_json(tmp_path / "result.json")
    assert result["best_epoch"] == 0
    for part in ("train", "val"):
        scores, model = evaluate(tmp_path / "BEST.safetensors", vqa_data, part)
        expected = {k: v for k, v in result["accuracy"][part].items() if k != "count"}
        assert scores == pytest.approx(expected)
    assert parameter_counts(model) == result["parameters"]
    last = load_checkpoint(tmp_path / "LAST.safetensors")[0]["model"]
    best = load_checkpoint(tmp_path / "BEST.safetensors")[0]["model"]
    assert not torch.equal(last["logit_fc.3.weight"], best["logit_fc.3.weight"])


@torch.no_grad()
def test_a_question_gets_the_same_logits_alone_and_in_a_batch_with_longer_ones(
    pretrained, tmp_path
):
    """Padding of words and of regions is masked; without padding there is no mask of regions."""
    with RegionFeatureWriter(tmp_path / "store", 5) as writer:
        for number, regions in enumerate((2, 5, 3)):
            boxes = torch.tensor([[1.0, 2.0, 8.0, 10.0]] * regions)
            writer.add(str(number), 16, 20, boxes, torch.randn(regions, 5))
        features = writer.finish()
    questions = ["red?", "what color is the triangle in the image?", "is it blue?"]
    examples = [Example(n, str(n), text, {"yes": 1.0}) for n, text in enumerate(questions)]
    data = VQADataset(examples, features, AnswerVocabulary(["yes", "no"]))
    inputs = LxmertInputs(Tokenizer(pretrained.parent))
    torch.manual_seed(0)
    model = VQAModel(
        size_config("small", vocab_size=len(inputs.tokenizer), num_answers=2, visual_feat_dim=5)
    ).eval()
    given = inputs(data.read([0, 1, 2]))
    assert given["region_mask"].sum(1).tolist() == [2, 5, 3]
    assert (given["input_mask"] == 0).any()
    batch = model(**given)
    for place in range(3):
        single = inputs(data.read([place]))
        assert single["region_mask"] is None and single["input_mask"].all()
        torch.testing.assert_close(model(**single)[0], batch[place], rtol=1e-5, atol=1e-5)
    assert (model(**(given | {"region_mask": None})) - batch).abs().max() > 1e-3


@pytest.mark.parametrize(("k", "share"), [(None, None), ("2", 2 / 6), ("0", 0.0)])
def test_a_global_policy_decides_the_same_for_all_samples_and_is_saved_in_best(
    flags, tmp_path, k, share
):
    more = ["--policy-eval", "global", *(["--global-k", k] if k else [])]
    assert main([*flags, "--strategy", "BlockDrop", *more, "--output", str(tmp_path)]) == 0
    result = strict_json(tmp_path / "result.json")
    assert result["policy_eval"] == "global" and set(result["decisions"]["share"]) <= {0.0, 1.0}
    assert not any("collapsed" in warning for warning in result["warnings"])
    if share is not None:
        assert result["decisions"]["mean_live"] == pytest.approx(share)
    saved = load_checkpoint(tmp_path / "BEST.safetensors")[0]["model"]
    decisions = saved["lxrt_encoder.model.bert.encoder.adaptive.global_decisions"]
    assert decisions.tolist() == result["decisions"]["share"]
    assert (
        main(
            [
                *flags[:4],
                "--gpus",
                "cpu",
                "--quiet",
                "--test",
                "minival",
                "--policy-eval",
                "global",
                "--load",
                str(tmp_path / "BEST"),
                "--output",
                str(tmp_path),
            ]
        )
        == 0
    )
    found = score_of_predictions(tmp_path / "minival_predict.json", Path(flags[3]))
    assert found["overall"] == result["accuracy"]["val"]["overall"]


def test_the_test_split_without_answers_gets_predictions_and_no_score(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*flags, "--output", str(out)]) == 0
    capsys.readouterr()
    assert (
        main(
            [
                *flags[:4],
                "--gpus",
                "cpu",
                "--quiet",
                "--test",
                "test",
                "--load",
                str(out / "BEST"),
                "--output",
                str(out),
            ]
        )
        == 0
    )
    predictions = strict_json(out / "test_predict.json")
    shown = capsys.readouterr().out
    assert len(predictions) == 30 and f"30 predictions in {out / 'test_predict.json'}" in shown
    assert "overall" not in shown


def test_without_a_data_set_easy_vqa_is_taken_and_small_is_its_default(
    easy_vqa_root, pretrained, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    out = tmp_path / "run"
    assert (
        main(
            [
                "--gpus",
                "cpu",
                "--loadLXMERTQA",
                str(pretrained),
                "--questions",
                "32",
                "--epochs",
                "1",
                "--quiet",
                "--no-plots",
                "--no-tensorboard",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "No --dataset given and no VQA v2 files" in shown and "using easy_vqa" in shown
    assert "model size small (default for easy_vqa; choose with --size)" in shown
    result = strict_json(out / "result.json")
    assert (result["dataset"], result["size"]) == ("easy_vqa", "small")


def test_a_run_repeated_with_the_same_seed_is_the_same_and_with_another_is_not(flags, tmp_path):
    weights = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*flags, "--seed", seed, "--output", str(tmp_path / name)]) == 0
        weights.append(load_checkpoint(tmp_path / name / "LAST.safetensors")[0]["model"])
    same = [torch.equal(x, weights[1][n]) for n, x in weights[0].items()]
    other = [torch.equal(x, weights[2][n]) for n, x in weights[0].items()]
    assert all(same) and not all(other)


def test_budget_losses_and_temperature_are_recorded_for_every_epoch(flags, tmp_path):
    out = tmp_path / "run"
    assert (
        main(
            [
                *flags,
                "--strategy",
                "BlockDrop",
                "--constrain-k",
                "2",
                "--target_rate",
                "0.5",
                "--temperature",
                "4",
                "--temperature-end",
                "1",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    record = strict_json(out / "result.json")["epochs"][0]
    assert set(record["train_losses"]) == {"answer", "constrain_k", "target_rate"}
    assert record["policy_temperature"] == pytest.approx(1.0)


def test_a_collapsed_policy_and_an_accuracy_below_the_majority_are_warned_of(flags, tmp_path):
    out = tmp_path / "run"
    assert (
        main(
            [
                *flags,
                "--strategy",
                "SpotTune_Block",
                "--policy-training",
                "published",
                "--policy-init",
                "0.999999",
                "--policy-lr",
                "0",
                "--lr",
                "0",
                "--output",
                str(out),
            ]
        )
        == 0
    )
    result = strict_json(out / "result.json")
    assert result["decisions"]["share"] == [1.0] * 6
    collapsed, below = result["warnings"]
    assert collapsed == (
        "the policy has collapsed: every one of 6 live decisions is the same for all samples. What "
        "to try: teach it first (--policy-training started), hold it meanwhile, or for good "
        "(--policy-hold 1), a lower --temperature (1), a budget (--target-rate 0.5)"
    )
    majority = result["baselines"]["majority"]["overall"]
    assert result["accuracy"]["val"]["overall"] < majority
    assert re.match(
        rf"accuracy [\d.]+ is below always answering the majority answer "
        rf"\({majority:.2f}\)",
        below,
    )
    log = (out / "log.log").read_text()
    assert f"warning: {collapsed}" in log and f"warning: {below}" in log


def test_a_standard_model_can_be_the_start_of_an_adaptive_one(flags, tmp_path):
    """Twins and finetuned weights both start from it (`standard -> SpotTune_Block`)."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*flags, "--output", str(first)]) == 0
    assert (
        main(
            [
                *flags[:6],
                *flags[8:],
                "--gpus",
                "cpu",
                "--load",
                str(first / "BEST"),
                "--strategy",
                "SpotTune_Block",
                "--lr",
                "0",
                "--output",
                str(second),
            ]
        )
        == 0
    )
    start = load_checkpoint(first / "BEST.safetensors")[0]["model"]
    state = load_checkpoint(second / "LAST.safetensors")[0]["model"]
    prefix = "lxrt_encoder.model.bert.encoder"
    assert all(torch.equal(state[name], value) for name, value in start.items())
    assert torch.equal(
        state[f"{prefix}.adaptive.twins.lang_2.output.dense.weight"],
        start[f"{prefix}.layer.1.output.dense.weight"],
    )
    results = [strict_json(folder / "result.json") for folder in (first, second)]
    assert results[0]["accuracy"]["val"] == results[1]["accuracy"]["val"]


def test_the_meta_of_a_checkpoint_says_what_it_is(stopped):
    out, _ = stopped
    meta = load_meta(out / "BEST.safetensors")
    assert {k: meta[k] for k in ("backbone", "task", "strategy", "policy", "size")} == {
        "backbone": "lxmert",
        "task": "vqa",
        "strategy": "SpotTune_Block",
        "policy": "small",
        "size": "small",
    }
    assert meta["answers"]["count"] == 13 and meta["features"]["width"] == 2048
    assert meta["config"]["l_layers"] == 2 and meta["config"]["num_answers"] == 13


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_a_run_whose_passes_are_recorded_gives_the_same(flags, tmp_path, monkeypatch, strategy):
    run = [*flags, *DROPOUT_RUN, "--strategy", strategy, "--eval-batch-size", "8"]
    run += ["--executor", "grouped"] if strategy != "standard" else []
    assert main([*run, "--output", str(tmp_path / "run")]) == 0
    recorder = recording(monkeypatch)
    assert main([*run, "--output", str(tmp_path / "recorded")]) == 0
    assert same_state(tmp_path / "run/LAST.safetensors", tmp_path / "recorded/LAST.safetensors")
    first, second = (strict_json(tmp_path / name / "result.json") for name in ("run", "recorded"))
    for key in ("accuracy", "decisions", "best_epoch", "generalization_error"):
        assert first[key] == second[key], key
    # On the CPU the decisions of an evaluation take samples apart, which is not recorded.
    assert recorder.repeats > 16 if strategy == "standard" else recorder.repeats == 8


@pytest.mark.long
def test_batches_as_for_a_gpu_teach_the_same(flags, tmp_path):
    """Features in half precision, fixed lengths, evaluation batches that grow."""
    results = []
    for name, device in (("cpu", without_dropout), ("gpu", everything_on_gpu)):
        with device():
            out = tmp_path / name
            assert main([*flags, "--strategy", "SpotTune_Block", "--output", str(out)]) == 0
        results.append(strict_json(out / "result.json"))
        told = "evaluation in batches of" in (out / "log.log").read_text()
        assert told == (name == "gpu")
    same_learning(*reversed(results))
