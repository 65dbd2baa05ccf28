"""The commands of LXMERT's visual question answering, run as a user runs them on small data."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.adapt import parameter_counts
from common.annotations import read_lxmert_json
from common.checkpoint import load_checkpoint, load_meta
from common.files import repository_root
from common.tracking import Tracker
from common.vqa_data import VQADataset, open_features, resolve_dataset
from common.vqa_metric import score
from common.vqa_task import VQATask
from lxrt.modeling import VQAModel
from lxrt.options import parse, vqa_parser
from lxrt.vqa import build, main, training_examples
from lxrt.vqa_inputs import LxmertInputs

LXMERT = repository_root() / "LXMERT"
ADAPTIVE = ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop", "BlockReplace")
DROPOUT_RUN = ["--strategy", "SpotTune_Block", "--dropout", "0.2", "--epochs", "2"]
TIMES = ("seconds", "step_seconds")
LAYERS = ["lang.1", "lang.2", "vision.1", "vision.2", "cross.1", "cross.2"]


@pytest.fixture
def flags(vqa_data: Path, pretrained: Path) -> list[str]:
    return small_run(vqa_data, pretrained)


def small_run(vqa_data: Path, pretrained: Path) -> list[str]:
    """Flags of a run of 4 steps an epoch on 64 questions, without plots."""
    return ["--dataset", "vqa", "--data", str(vqa_data), "--size", "small", "--gpus", "cpu",
            "--loadLXMERTQA", str(pretrained), "--questions", "64", "--batchSize", "16",
            "--epochs", "1", "--quiet", "--no-plots", "--no-tensorboard"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one error of a command that has to fail with exit status 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("error: ") == 1, shown
    assert "Traceback" not in shown
    return shown


def strict_json(path: Path) -> Any:
    """JSON without NaN and Infinity, which the standard does not have."""
    def not_json(word: str) -> None:
        raise AssertionError(f"{path}: {word} is not JSON")
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=not_json)


# The run scripts -------------------------------------------------------------------------------


def bash(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of LXMERT/ with this interpreter."""
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
           "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "Agg", **environment}
    return subprocess.run(["bash", *arguments], cwd=LXMERT, env=env, capture_output=True,
                          text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def run_name() -> Iterator[str]:
    """Name of a run that nobody else has; its folder is removed in the end."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    shutil.rmtree(LXMERT / "snap" / "vqa" / name, ignore_errors=True)
    for folder in (LXMERT / "snap" / "vqa", LXMERT / "snap"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@pytest.fixture(scope="module")
def finetuned(run_name: str, vqa_data: Path, pretrained: Path
              ) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two epochs of SpotTune_Block by run/vqa_finetune.bash on GPU 0, and its output."""
    done = bash("run/vqa_finetune.bash", "0", run_name, "--dataset", "vqa",
                "--data", str(vqa_data), "--size", "small", "--loadLXMERTQA", str(pretrained),
                "--strategy=SpotTune_Block", "--questions", "64", "--batchSize", "16",
                "--epochs", "2", "--quiet", "--dropout", "0.2", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return LXMERT / "snap" / "vqa" / run_name, done


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_no_gpu_is_present_a_gpu_number_is_answered_and_the_cpu_computes(finetuned):
    _, done = finetuned
    assert re.search(r"No GPU is usable here .*, but GPU 0 was asked for: running on the CPU",
                     done.stdout)
    assert "CPU (1 threads), fp32" in done.stdout


def test_a_run_leaves_result_log_checkpoints_vocabulary_code_plots_and_report(finetuned):
    folder, _ = finetuned
    for name in ("result.json", "log.log", "BEST.safetensors", "LAST.safetensors", "vocab.txt",
                 "run.bash", "report.html", "src/lxrt/vqa.py", "src/tasks/vqa.py",
                 "src/common/training.py"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "run.bash").read_text() == (LXMERT / "run" / "vqa_finetune.bash").read_text()
    assert not list((folder / "src").rglob("__pycache__"))
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    plots = {path.name for path in (folder / "visualizations").glob("*.png")}
    assert {"SpotTune_Block_heldout_epoch_0.png", "SpotTune_Block_heldout_epoch_1.png"} <= plots
    for plot in plots:
        assert (folder / "visualizations" / plot).read_bytes().startswith(b"\x89PNG"), plot
    report = (folder / "report.html").read_text()
    assert "SpotTune_Block" in report and "http" not in report.replace("http://www.w3.org", "")
    assert not list(folder.glob(".*saving*")) and not list(folder.glob("*.tmp"))


def test_the_log_has_upstreams_lines_for_every_epoch(finetuned):
    folder, done = finetuned
    log = (folder / "log.log").read_text()
    result = strict_json(folder / "result.json")
    assert log.splitlines()[0] == result["command"]
    for epoch, record in enumerate(result["epochs"]):
        assert (f"\n\nEpoch {epoch}: Train {record['train_accuracy']:.2f}\n"
                f"Epoch {epoch}: Valid {record['heldout_score']:.2f}\n"
                f"Epoch {epoch}: Best {record['best_score']:.2f}\n") in log
    assert "vqa: 64 training, " in log and " held-out and 100 validation questions" in log
    assert log.strip() in done.stdout or all(line in done.stdout for line in log.splitlines())


def test_the_command_of_the_result_is_one_that_can_be_run_again(finetuned):
    folder, _ = finetuned
    command = strict_json(folder / "result.json")["command"]
    assert command.startswith("python src/tasks/vqa.py --gpus 0 --version test_")
    assert "--strategy=SpotTune_Block" in command and "--questions 64" in command
    assert (LXMERT / "src" / "tasks" / "vqa.py").is_file()


def test_result_json_has_the_schema_of_the_design(finetuned):
    folder, _ = finetuned
    result = strict_json(folder / "result.json")
    fixed = {"backbone": "lxmert", "task": "vqa", "dataset": "vqa", "strategy": "SpotTune_Block",
             "policy": "small", "size": "small", "seed": 9595, "precision": "fp32",
             "name": folder.name, "policy_eval": "argmax"}
    assert {key: result[key] for key in fixed} == fixed
    assert {"python", "torch", "transformers", "package", "commit"} <= result["versions"].keys()
    assert result["versions"]["torch"] == torch.__version__
    assert result["device"].startswith(("cpu", "cuda"))
    for part, count in (("train", 64), ("val", 100)):
        accuracy = result["accuracy"][part]
        assert accuracy.keys() == {"overall", "yes/no", "number", "other", "count"}
        assert accuracy["count"] == count and accuracy["number"] is None
        assert all(0 <= accuracy[kind] <= 100 for kind in ("overall", "yes/no", "other"))
    assert result["generalization_error"] == pytest.approx(
        result["accuracy"]["train"]["overall"] - result["accuracy"]["val"]["overall"])
    assert result["parameters"].keys() == {"trainable", "frozen", "policy"}
    assert result["time"].keys() >= {"train_step_s", "eval_sample_s"}
    assert all(value > 0 for value in result["time"].values())
    assert result["memory"]["peak_rss_bytes"] > 1e8 and result["memory"]["peak_cuda_bytes"] >= 0
    assert re.fullmatch(r"10 % of the training images held out \(\d+ questions\)",
                        result["selection"])
    assert result["baselines"].keys() == {"majority", "question_only"}
    assert isinstance(result["warnings"], list)


def test_the_decisions_of_the_result_are_shares_of_the_validation_questions(finetuned):
    folder, _ = finetuned
    decisions = strict_json(folder / "result.json")["decisions"]
    assert decisions["names"] == decisions["layers"] == LAYERS
    assert decisions["live"] == [True] * 6 and decisions["count"] == 100
    for share in decisions["share"]:
        assert 0 <= share <= 1 and share * 100 == pytest.approx(round(share * 100))
    assert decisions["mean_live"] == pytest.approx(sum(decisions["share"]) / 6)
    by_type = decisions["share_by_type"]
    assert sum(entry["count"] for entry in by_type.values()) == 100
    for place, share in enumerate(decisions["share"]):
        ones = sum(entry["count"] * entry["share"][place] for entry in by_type.values())
        assert ones == pytest.approx(100 * share)


def test_the_epochs_of_the_result_and_the_choice_of_the_best_one(finetuned):
    folder, _ = finetuned
    result = strict_json(folder / "result.json")
    assert [record["epoch"] for record in result["epochs"]] == [0, 1]
    scores = [record["heldout_score"] for record in result["epochs"]]
    assert result["best_epoch"] == scores.index(max(scores))
    assert [record["best_score"] for record in result["epochs"]] == \
        [max(scores[:n + 1]) for n in range(2)]
    for record in result["epochs"]:
        assert record["train_loss"] == pytest.approx(sum(record["train_losses"].values()))
        assert record["heldout_score"] == record["heldout"]["overall"]
        assert len(record["decisions"]["share"]) == len(record["train_decisions"]["share"]) == 6
        assert record["train_decisions"]["count"] == 64
    assert result["epochs"][-1]["lr"] == 0.0


@torch.no_grad()
def evaluate(checkpoint: Path, data: Path, part: str) -> tuple[Any, VQAModel]:
    """Accuracy of a checkpoint on its training or validation questions, one by one."""
    args = parse(vqa_parser(), ["--dataset", "vqa", "--data", str(data), "--questions", "64",
                                "--load", str(checkpoint)])
    dataset = resolve_dataset("vqa", data_root=data)
    features = open_features(dataset, "train,minival")
    with Tracker(checkpoint.parent, enabled=False) as tracker:
        built = build(args, dataset, features, tracker)
    examples = training_examples(args, dataset)[0] if part == "train" else \
        read_lxmert_json(data / "vqa" / "minival.json")
    questions = VQADataset(examples, features, dataset.vocabulary())
    inputs, model, predictions = LxmertInputs(built.tokenizer), built.model.eval(), {}
    for place, example in enumerate(examples):
        best = int(model(**inputs(questions.read([place]))).argmax())
        predictions[example.question_id] = dataset.vocabulary().answers[best]
    assert len(set(predictions.values())) > 2, "always the same answer: nothing is compared"
    return score(predictions, examples), model


def test_accuracies_are_those_of_the_best_epoch_in_evaluation_mode_on_single_questions(
        flags, vqa_data, tmp_path, monkeypatch):
    """Not of the last epoch, not with dropout, not with drawn decisions, not of padded batches."""
    validate, left = VQATask.validate, [2.0, 1.0]

    def worse_every_epoch(task: VQATask, model: VQAModel) -> Any:
        found = validate(task, model)
        found.score = left.pop(0)
        return found

    monkeypatch.setattr(VQATask, "validate", worse_every_epoch)
    assert main([*flags, *DROPOUT_RUN, "--dropout", "0.5", "--lr", "0.002", "--output",
                 str(tmp_path)]) == 0
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


def test_vqa_test_reproduces_the_validation_accuracy_exactly_from_best(
        finetuned, run_name, vqa_data, answers):
    folder, _ = finetuned
    done = bash("run/vqa_test.bash", "cpu", run_name, "--load", f"snap/vqa/{run_name}/BEST",
                "--test", "minival", "--dataset", "vqa", "--data", str(vqa_data), "--quiet")
    assert done.returncode == 0, done.stderr
    result = strict_json(folder / "result.json")
    examples = read_lxmert_json(vqa_data / "vqa" / "minival.json")
    text = (folder / "minival_predict.json").read_text()
    predictions = json.loads(text)
    assert {row["question_id"] for row in predictions} == {e.question_id for e in examples}
    assert all(list(row) == ["answer", "question_id"] and row["answer"] in answers
               for row in predictions)
    assert text == json.dumps(predictions, indent=4, sort_keys=True) + "\n"
    found = score({row["question_id"]: row["answer"] for row in predictions}, examples)
    assert found == {k: v for k, v in result["accuracy"]["val"].items() if k != "count"}
    assert f"minival of vqa, SpotTune_Block: overall {found['overall']:.2f}, " in done.stdout
    assert strict_json(folder / "result.json") == result, "testing changed the result"
    assert (folder / "run.bash").read_text() == \
        (LXMERT / "run" / "vqa_finetune.bash").read_text(), "testing changed what made the run"


@pytest.mark.parametrize("arguments", [[], ["0"], ["", "name"]])
@pytest.mark.parametrize(("script", "example"), [
    ("vqa_finetune.bash", "bash run/vqa_finetune.bash GPU NAME [flags …]"),
    ("vqa_test.bash", "bash run/vqa_test.bash GPU NAME --load snap/vqa/NAME/BEST")])
def test_a_run_script_without_its_arguments_prints_its_usage(script, example, arguments):
    done = bash(f"run/{script}", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert example in done.stderr and "set -euo" not in done.stderr
    assert "unbound" not in done.stderr and "#" not in done.stderr


def test_the_pretraining_script_without_arguments_prints_its_usage():
    done = bash("run/lxmert_pretrain.bash")
    assert done.returncode == 2 and "bash run/lxmert_pretrain.bash GPU [flags …]" in done.stderr


# Strategies in process -------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "more"), [
    *((name, []) for name in ADAPTIVE),
    ("spottune", ["--policy", "published", "--policy_llayers", "1"]),
    ("standard", []), ("Frozen_Bert", []), ("last_2", []),
    ("FrozenLayers", ["--frozen-layers", "1,cross.2"])])
def test_every_strategy_trains_and_is_restored_with_its_policy(flags, tmp_path, strategy, more):
    """Testing BEST needs no strategy flags, and gives the decisions and accuracy of the run."""
    out = tmp_path / "run"
    assert main([*flags, "--strategy", strategy, *more, "--output", str(out)]) == 0
    result = strict_json(out / "result.json")
    assert main([*flags[:4], "--gpus", "cpu", "--quiet", "--test", "minival", "--load",
                 str(out / "BEST"), "--output", str(out)]) == 0
    predictions = {row["question_id"]: row["answer"]
                   for row in strict_json(out / "minival_predict.json")}
    examples = read_lxmert_json(Path(flags[3]) / "vqa" / "minival.json")
    found = score(predictions, examples)
    assert found["overall"] == result["accuracy"]["val"]["overall"]
    adaptive = strategy in ADAPTIVE or strategy == "spottune"
    assert (result["decisions"] is not None) == adaptive
    assert (result["parameters"]["policy"] > 0) == adaptive
    if adaptive:
        assert result["policy"] == (more[1] if more else "small")
        assert len(result["decisions"]["share"]) == len(result["decisions"]["names"])
    else:
        assert result["policy"] is None and result["policy_eval"] is None


@pytest.mark.parametrize(("k", "share"), [(None, None), ("2", 2 / 6), ("0", 0.0)])
def test_a_global_policy_decides_the_same_for_all_samples_and_is_saved_in_best(
        flags, tmp_path, k, share):
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
    assert main([*flags[:4], "--gpus", "cpu", "--quiet", "--test", "minival", "--policy-eval",
                 "global", "--load", str(tmp_path / "BEST"), "--output", str(tmp_path)]) == 0
    predictions = {row["question_id"]: row["answer"]
                   for row in strict_json(tmp_path / "minival_predict.json")}
    examples = read_lxmert_json(Path(flags[3]) / "vqa" / "minival.json")
    assert score(predictions, examples)["overall"] == result["accuracy"]["val"]["overall"]


def test_a_global_policy_that_was_never_computed_is_an_error(stopped, vqa_data, tmp_path, capsys):
    out, _ = stopped
    shown = refused(capsys, "--dataset", "vqa", "--data", str(vqa_data), "--gpus", "cpu", "--test",
                    "minival", "--policy-eval", "global", "--load", str(out / "BEST"), "--output",
                    str(tmp_path), "--quiet")
    assert "policy evaluation 'global' needs global decisions: none were computed or loaded" in shown


def test_the_test_split_without_answers_gets_predictions_and_no_score(flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*flags, "--output", str(out)]) == 0
    capsys.readouterr()
    assert main([*flags[:4], "--gpus", "cpu", "--quiet", "--test", "test", "--load",
                 str(out / "BEST"), "--output", str(out)]) == 0
    predictions = strict_json(out / "test_predict.json")
    shown = capsys.readouterr().out
    assert len(predictions) == 30 and f"30 predictions in {out / 'test_predict.json'}" in shown
    assert "overall" not in shown


def test_without_a_data_set_easy_vqa_is_taken_and_small_is_its_default(
        easy_vqa_root, pretrained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.datasets.repository_root", lambda: easy_vqa_root)
    out = tmp_path / "run"
    assert main(["--gpus", "cpu", "--loadLXMERTQA", str(pretrained), "--questions", "32",
                 "--epochs", "1", "--quiet", "--no-plots", "--no-tensorboard", "--output",
                 str(out)]) == 0
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
    assert main([*flags, "--strategy", "BlockDrop", "--constrain-k", "2", "--target_rate", "0.5",
                 "--temperature", "4", "--temperature-end", "1", "--output", str(out)]) == 0
    record = strict_json(out / "result.json")["epochs"][0]
    assert set(record["train_losses"]) == {"answer", "constrain_k", "target_rate"}
    assert record["policy_temperature"] == pytest.approx(1.0)


def test_a_collapsed_policy_and_an_accuracy_below_the_majority_are_warned_of(flags, tmp_path):
    out = tmp_path / "run"
    assert main([*flags, "--strategy", "SpotTune_Block", "--policy-init", "0.999999",
                 "--policy-lr", "0", "--lr", "0", "--output", str(out)]) == 0
    result = strict_json(out / "result.json")
    assert result["decisions"]["share"] == [1.0] * 6
    collapsed, below = result["warnings"]
    assert collapsed == ("the policy has collapsed: every one of 6 live decisions is the same for "
                         "all samples")
    majority = result["baselines"]["majority"]["overall"]
    assert result["accuracy"]["val"]["overall"] < majority
    assert re.match(rf"accuracy [\d.]+ is below always answering the majority answer "
                    rf"\({majority:.2f}\)", below)
    log = (out / "log.log").read_text()
    assert f"warning: {collapsed}" in log and f"warning: {below}" in log


# Resuming --------------------------------------------------------------------------------------


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a checkpoint's state, by path; wall-clock times left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in TIMES:
                yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from tensors(item, f"{name}.{place}")
    else:
        yield name, value


def same_state(a: Path, b: Path) -> int:
    """Compare two checkpoints bit for bit; returns how many values they have."""
    ours, theirs = (dict(tensors(load_checkpoint(path)[0])) for path in (a, b))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        equal = torch.equal(value, theirs[name]) if isinstance(value, Tensor) else \
            bool((value == theirs[name]).all()) if hasattr(value, "all") else \
            value == theirs[name]
        assert equal, f"{name} differs"
    return len(ours)


@pytest.fixture(scope="module")
def whole(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with dropout that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*small_run(vqa_data, pretrained), *DROPOUT_RUN, "--output", str(out)]) == 0
    return out


@pytest.mark.parametrize("stop", ["3", "4", "6"])
def test_a_resumed_run_is_bit_identical_to_one_without_interruption(
        flags, whole, tmp_path, capsys, stop):
    """SpotTune_Block with dropout; stopped in an epoch, at its end, in the second one."""
    run, parts = [*flags, *DROPOUT_RUN], tmp_path
    torch.manual_seed(123)  # whatever happened in this process before
    assert main([*run, "--max-steps", stop, "--output", str(parts)]) == 0
    assert load_checkpoint(parts / "LAST.safetensors")[0]["progress"]["step"] == int(stop)
    assert not (parts / "result.json").exists(), "a result of a run that has not ended"
    assert f"stopped after {stop} of 8 steps; go on with --resume and without --max-steps" in \
        capsys.readouterr().out
    torch.manual_seed(321)
    assert main([*run, "--resume", "--output", str(parts)]) == 0
    assert f"resumed at step {stop} of 8" in capsys.readouterr().out
    assert same_state(whole / "LAST.safetensors", parts / "LAST.safetensors") > 400
    assert same_state(whole / "BEST.safetensors", parts / "BEST.safetensors") > 100
    first, second = (strict_json(folder / "result.json") for folder in (whole, parts))
    for key in ("accuracy", "decisions", "best_epoch", "generalization_error", "baselines"):
        assert first[key] == second[key], key
    for a, b in zip(first["epochs"], second["epochs"], strict=True):
        assert dict(tensors(a)) == dict(tensors(b))


def test_dropout_is_active_in_training(flags, tmp_path):
    """Else the test above would show less than it says."""
    run = [*flags, "--strategy", "SpotTune_Block"]
    for name, rate in (("with", "0.2"), ("without", "0")):
        assert main([*run, "--dropout", rate, "--output", str(tmp_path / name)]) == 0
    losses = [strict_json(tmp_path / n / "result.json")["epochs"][0]["train_loss"]
              for n in ("with", "without")]
    assert losses[0] != losses[1]


def test_saving_often_and_reading_in_other_processes_changes_nothing(flags, whole, tmp_path):
    assert main([*flags, *DROPOUT_RUN, "--save-every", "1", "--numWorkers", "2", "--output",
                 str(tmp_path)]) == 0
    same_state(tmp_path / "LAST.safetensors", whole / "LAST.safetensors")


def test_resuming_a_finished_run_gives_its_result_again(flags, tmp_path):
    out = tmp_path / "run"
    run = [*flags, "--strategy", "BlockDrop", "--output", str(out)]
    assert main(run) == 0
    before = strict_json(out / "result.json")
    weights = (out / "LAST.safetensors").read_bytes()
    assert main([*run, "--resume"]) == 0
    after = strict_json(out / "result.json")
    assert (out / "LAST.safetensors").read_bytes() == weights
    for key in ("accuracy", "decisions", "epochs", "best_epoch", "parameters"):
        assert after[key] == before[key], key
    assert after["time"]["train_step_s"] == before["time"]["train_step_s"]


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(
        flags, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*flags, "--output", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shown = refused(capsys, *flags, "--strategy", "BlockDrop", "--output", str(out))
    assert shown == (f"error: {out / 'LAST.safetensors'} exists: add --resume to go on, "
                     "--overwrite to start again, or choose another name\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main([*flags, "--strategy", "BlockDrop", "--overwrite", "--output", str(out)]) == 0
    assert strict_json(out / "result.json")["strategy"] == "BlockDrop"


def test_resume_without_a_run_is_refused(flags, tmp_path, capsys):
    shown = refused(capsys, *flags, "--resume", "--output", str(tmp_path / "new"))
    assert shown == (f"error: nothing to resume: {tmp_path / 'new' / 'LAST.safetensors'} does not "
                     "exist; start without --resume\n")


@pytest.fixture(scope="module")
def stopped(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
            ) -> tuple[Path, list[str]]:
    """A SpotTune_Block run that stopped after its first epoch, and its command."""
    out = tmp_path_factory.mktemp("stopped")
    run = [*small_run(vqa_data, pretrained), "--epochs", "2", "--strategy", "SpotTune_Block",
           "--output", str(out)]
    assert main([*run, "--max-steps", "4"]) == 0
    return out, run


@pytest.mark.parametrize(("change", "difference"), [
    (["--strategy", "SpotTune"], "strategy is 'SpotTune_Block' in the file, this run has "
                                 "'SpotTune'"),
    (["--strategy", "standard"], "policy is 'small' in the file, this run has None"),
    (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
    (["--llayers", "1"], "config.l_layers is 2 in the file, this run has 1"),
    (["--seed", "3"], "seed is 9595 in the file, this run has 3"),
    (["--lr", "0.1"], "lr is 0.0005 in the file, this run has 0.1"),
    (["--batchSize", "32"], "batch_size is 16 in the file, this run has 32"),
    (["--questions", "65"], "training.questions.count is 64 in the file, this run has 65"),
])
def test_resuming_with_other_settings_is_one_error_that_names_them(
        stopped, capsys, change, difference):
    out, run = stopped
    before = (out / "LAST.safetensors").read_bytes()
    shown = refused(capsys, *run, "--resume", *change)
    assert f"{out / 'LAST.safetensors'}: made with other settings: " in shown
    assert difference in shown and "Run with the file's values" in shown
    assert (out / "LAST.safetensors").read_bytes() == before


# Wrong checkpoints and flags -------------------------------------------------------------------


def test_a_pretraining_snapshot_is_not_taken_for_a_finetuned_model(
        flags, pretrained, tmp_path, capsys):
    snapshot = f"{pretrained}_LXRT.safetensors"
    shown = refused(capsys, *flags, "--test", "minival", "--load", snapshot, "--output",
                    str(tmp_path))
    assert shown == (f"error: {snapshot} is not a finetuned VQA model (its task is 'pretraining'); "
                     "a pretraining snapshot is loaded with --loadLXMERTQA\n")


@pytest.mark.parametrize(("change", "difference"), [
    (["--strategy", "SpotTune"], "strategy is 'SpotTune_Block' in the file, this run has "
                                 "'SpotTune'"),
    (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
    (["--size", "base"], "size is 'small' in the file, this run has 'base'")])
def test_testing_a_checkpoint_of_another_strategy_policy_or_size_is_one_error(
        stopped, vqa_data, tmp_path, capsys, change, difference):
    out, _ = stopped
    shown = refused(capsys, "--dataset", "vqa", "--data", str(vqa_data), "--gpus", "cpu", "--test",
                    "minival", "--load", str(out / "BEST"), "--output", str(tmp_path), *change)
    assert f"{out / 'BEST.safetensors'}: made with other settings: " in shown
    assert difference in shown
    assert not (tmp_path / "minival_predict.json").exists()


def other_data(vqa_data: Path, folder: Path, answers: Sequence[str]) -> Path:
    """The same data with another list of answers."""
    shutil.copytree(vqa_data, folder, symlinks=True)
    rows = {"label2ans": list(answers), "ans2label": {a: n for n, a in enumerate(answers)}}
    for name, content in rows.items():
        (folder / "vqa" / f"trainval_{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(("change", "difference"), [
    (lambda answers: answers[:-1], "answers.count is 13 in the file, this run has 12"),
    (lambda answers: answers[::-1], "answers.sha256 is ")])
def test_a_checkpoint_for_other_answers_is_one_error(
        stopped, vqa_data, answers, tmp_path, capsys, change, difference):
    """Also where there are as many: every prediction would be a wrong answer."""
    out, _ = stopped
    data = other_data(vqa_data, tmp_path / "data", change(answers))
    shown = refused(capsys, "--dataset", "vqa", "--data", str(data), "--gpus", "cpu", "--test",
                    "minival", "--load", str(out / "BEST"), "--output", str(tmp_path))
    assert f"{out / 'BEST.safetensors'}: made with other settings: " in shown
    assert difference in shown


def test_a_checkpoint_with_another_vocabulary_is_one_error(stopped, vqa_data, tmp_path, capsys):
    """The words' numbers would mean other words."""
    out, _ = stopped
    shutil.copy(out / "BEST.safetensors", tmp_path)
    words = (out / "vocab.txt").read_text().split("\n")
    words[80], words[90] = words[90], words[80]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    shown = refused(capsys, "--dataset", "vqa", "--data", str(vqa_data), "--gpus", "cpu", "--test",
                    "minival", "--load", str(tmp_path / "BEST"), "--output", str(tmp_path))
    assert "vocabulary.sha256 is " in shown


def test_a_standard_model_can_be_the_start_of_an_adaptive_one(flags, tmp_path):
    """Twins and finetuned weights both start from it (`standard -> SpotTune_Block`)."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*flags, "--output", str(first)]) == 0
    assert main([*flags[:6], *flags[8:], "--gpus", "cpu", "--load", str(first / "BEST"),
                 "--strategy", "SpotTune_Block", "--lr", "0", "--output", str(second)]) == 0
    start = load_checkpoint(first / "BEST.safetensors")[0]["model"]
    state = load_checkpoint(second / "LAST.safetensors")[0]["model"]
    prefix = "lxrt_encoder.model.bert.encoder"
    assert all(torch.equal(state[name], value) for name, value in start.items())
    assert torch.equal(state[f"{prefix}.adaptive.twins.lang_2.output.dense.weight"],
                       start[f"{prefix}.layer.1.output.dense.weight"])
    results = [strict_json(folder / "result.json") for folder in (first, second)]
    assert results[0]["accuracy"]["val"] == results[1]["accuracy"]["val"]


def test_the_meta_of_a_checkpoint_says_what_it_is(stopped):
    out, _ = stopped
    meta = load_meta(out / "BEST.safetensors")
    assert {k: meta[k] for k in ("backbone", "task", "strategy", "policy", "size")} == {
        "backbone": "lxmert", "task": "vqa", "strategy": "SpotTune_Block", "policy": "small",
        "size": "small"}
    assert meta["answers"]["count"] == 13 and meta["features"]["width"] == 2048
    assert meta["config"]["l_layers"] == 2 and meta["config"]["num_answers"] == 13


@pytest.mark.parametrize(("given", "parts"), [
    (["--strategy", "SpotTun"], ["unknown strategy 'SpotTun'. Did you mean SpotTune?",
                                 "Valid: standard, Frozen, LastK", "frozen_bert"]),
    (["--policy", "big", "--strategy", "SpotTune"], ["unknown policy 'big'; valid: small, "
                                                     "published, random:<share>"]),
    (["--valid", "minivall"], ["split minivall of vqa: it has train, nominival, minival, test"]),
    (["--train", "train,trian"], ["split trian of vqa"]),
    (["--dataset", "vqa2"], ["unknown data set 'vqa2'; there are: vqa, easy_vqa, easy_vqa_cp"]),
    (["--questions", "9999"], ["--questions 9999: there are", "training questions in "
                               "train,nominival of vqa"]),
    (["--questions", "0"], ["--questions 0: there are"]),
    (["--holdout", "1.5"], ["--holdout 1.5: give a number between 0 and 1"]),
    (["--optim", "adamm"], ["unknown optimiser 'adamm'; valid: bert, adamw"]),
    (["--strategy", "LastK"], ["LastK needs to know how many layers: --trainable-layers last:4"]),
    (["--strategy", "FrozenLayers", "--frozen-layers", "7"],
     ["unknown layers 7; valid: 1..6 or lang.1, lang.2, vision.1"]),
    (["--strategy", "standard", "--frozen-layers", "1"],
     ["frozen layers ('1') belong to FrozenLayers, not standard"]),
    (["--test", "minival"], ["--test needs the finetuned model: --load snap/vqa/NAME/BEST"]),
    (["--test", "mini", "--load", "x"], ["--test 'mini': use a split with `test` or `val` in its "
                                         "name"]),
    (["--gpus", "zero"], ["GPUs 'zero': give different numbers separated by commas, such as 0 or "
                          "0,1, or cpu"]),
    (["--seed", "-1"], ["seed -1: give a whole number from 0 to 4294967295"]),
    (["--loadLXMERTQA", "nowhere/model"], ["no checkpoint 'nowhere/model'",
                                           "nowhere/model_LXRT.pth", "--fromScratch"]),
    (["--batchSize", "0"], ["--batch-size 0: give a number of at least 1"]),
    (["--epochs", "0"], ["--epochs 0: give a number of at least 1"]),
    (["--eval-batch-size", "-1"], ["--eval-batch-size -1: give a number of at least 1"]),
    (["--clip", "-3"], ["--clip -3.0: give a number of at least 0"]),
    (["--lr", "-1"], ["--lr -1.0: give a number of at least 0"]),
    (["--numWorkers", "-2"], ["--workers -2: give a number of at least 0"]),
    (["--max-steps", "-1"], ["--max-steps -1: give a number of at least 0"]),
    (["--save-every", "-1"], ["--save-every -1: give a number of at least 0"]),
    (["--dropout", "1.5"], ["--dropout 1.5: give a number from 0 to 1"]),
    (["--temperature", "0"], ["--temperature 0.0: give a number above 0"]),
    (["--temperature-end", "-1"], ["--temperature-end -1.0: give a number above 0"]),
    (["--policy-init", "1"], ["--policy-init 1.0: give a number between 0 and 1"]),
    (["--policy-clip", "-1"], ["--policy-clip -1.0: give a number of at least 0"]),
    (["--constrain-k", "-2"], ["--constrain-k -2.0: give a number of at least 0"]),
    (["--target-rate", "7"], ["--target-rate 7.0: give a number from 0 to 1"]),
    (["--temperature", "nan"], ["--temperature nan: give a number above 0"]),
    (["--constrain-k", "2", "--strategy", "standard"],
     ["--constrain-k 2.0: strategy standard decides nothing"]),
    (["--valid", "test"], ["split test of vqa has questions without answers"]),
    (["--global-k", "2", "--strategy", "BlockDrop"], ["--global-k 2 needs --policy-eval global"]),
    (["--policy-eval", "global", "--global-k", "7", "--strategy", "BlockDrop"],
     ["--global-k 7: the model has 6 live decisions"]),
    (["--sampled-share", "0", "--executor", "sampled", "--strategy", "BlockDrop"],
     ["--sampled-share 0.0: give a number between 0 and 1"]),
    (["--llayers", "0", "--xlayers", "0", "--rlayers", "0"],
     ["'l_layers': 0, 'x_layers': 0, 'r_layers': 0", "not all of them 0"]),
    (["--rlayers", "-1"], ["'r_layers': -1}: none may be negative"]),
    (["--load", "nowhere/BEST"], ["no checkpoint 'nowhere/BEST'", "nowhere/BEST.safetensors",
                                  "nowhere/BEST.pth"]),
])
def test_a_flag_that_makes_no_sense_is_one_error_with_the_way_out(
        flags, tmp_path, capsys, given, parts):
    shown = refused(capsys, *flags, "--output", str(tmp_path / "run"), *given)
    for part in parts:
        assert part in shown


def test_the_base_size_never_starts_from_weights_that_are_missing(
        vqa_data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = refused(capsys, "--dataset", "vqa", "--data", str(vqa_data), "--gpus", "cpu", "--size",
                    "base", "--llayers", "1", "--xlayers", "1", "--rlayers", "0", "--loadLXMERTQA",
                    "default", "--output", str(tmp_path / "run"))
    assert "no checkpoint 'snap/pretrained/model'" in shown
    assert "model_LXRT.pth of the original authors" in shown and "--fromScratch" in shown


def test_missing_data_is_one_error_that_lists_the_files_and_the_way_without(
        vqa_data, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    flags = ["--gpus", "cpu", "--output", str(tmp_path / "run"), "--dataset", "vqa", "--data"]
    shown = refused(capsys, *flags, str(empty))
    for name in ("vqa/train.json", "vqa/nominival.json", "vqa/minival.json",
                 "vqa/trainval_label2ans.json", "mscoco_imgfeat/val2014_obj36.tsv"):
        assert f"{empty / name}  from https://" in shown
    assert "--dataset easy_vqa" in shown
    part = tmp_path / "part"
    shutil.copytree(vqa_data, part, symlinks=True)
    (part / "vqa" / "nominival.json").unlink()
    shown = refused(capsys, *flags, str(part))
    assert "1 files are missing" in shown and str(part / "vqa" / "nominival.json") in shown


def test_truncated_questions_name_the_file_and_the_place(flags, vqa_data, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(vqa_data, data, symlinks=True)
    file = data / "vqa" / "minival.json"
    file.write_text(file.read_text()[:500])
    shown = refused(capsys, *flags, "--data", str(data), "--output", str(tmp_path / "run"))
    assert f"{file}: line 1, column " in shown and "truncated or damaged" in shown


def test_a_pickle_with_code_inside_is_refused_by_the_command(flags, tmp_path, capsys):
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"logit_fc.0.weight": Bomb()}, tmp_path / "BEST.pth")
    shown = refused(capsys, *flags, "--load", str(tmp_path / "BEST"), "--output",
                    str(tmp_path / "run"))
    assert f"{tmp_path / 'BEST.pth'}: refused" in shown and "nothing was executed" in shown
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_the_documented_command_on_the_embedded_data_takes_less_than_two_minutes(run_name):
    """`bash run/vqa_finetune.bash 0 v1 --strategy=SpotTune_Block --dataset easy_vqa --tiny`."""
    start = time.monotonic()
    name = f"{run_name}_easy"
    folder = LXMERT / "snap" / "vqa" / name
    try:
        done = bash("run/vqa_finetune.bash", "0", name, "--strategy=SpotTune_Block", "--dataset",
                    "easy_vqa", "--tiny")
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 120
        result = strict_json(folder / "result.json")
        assert result["dataset"] == "easy_vqa"
        assert result["accuracy"]["val"]["overall"] > \
            result["baselines"]["majority"]["overall"]
        assert not math.isnan(result["generalization_error"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
