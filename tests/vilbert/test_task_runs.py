"""Runs of VCR, retrieval, referring expressions and several tasks: the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.training.checkpoint import load_checkpoint, load_meta, save_checkpoint
from tests.common.lmdb_files import write_lmdb
from tests.common.on_gpu import everything_on_gpu, same_learning, without_dropout
from tests.lxmert.runs import same_state, strict_json
from tests.vilbert.other_tasks import IMAGES, OtherFiles, record, write_other_files, write_sections
from tests.vilbert.runs import refused, without
from vilbert.caption_data import HardNegatives
from vilbert.finetuning import TRAIN, evaluate, train
from vilbert.options import EASY
from vilbert.retrieval_command import main as retrieve

ALL = {"6": "VCR_Q-A", "7": "VCR_QA-R", "9": "RetrievalFlickr30k", "11": "refcoco+"}
HEADS = {"6": ["vil_logit"], "11": ["vision_logit"], "6,11": ["vil_logit", "vision_logit"]}


@pytest.fixture(scope="module")
def joint(others, tmp_path_factory) -> Path:
    """A run of three tasks with dropout that nothing interrupted."""
    out = tmp_path_factory.mktemp("joint")
    assert train(others.train("6,9,11", out, *DROPOUT)) == 0
    return out


DROPOUT = ("--strategy", "SpotTune_Block", "--dropout", "0.2", "--plateau")


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        ("6", "standard"),
        ("6", "SpotTune"),
        ("7", "BlockDrop"),
        ("9", "standard"),
        ("9", "SpotTune"),
        ("11", "SpotTune"),
        ("11", "BlockDrop"),
    ],
)
def test_a_task_is_trained_and_its_best_epoch_gives_its_score_again(
    others, tmp_path, capsys, task, strategy
):
    assert train(others.train(task, tmp_path / "run", "--strategy", strategy)) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert (result["task"], result["dataset"]) == (ALL[task], ALL[task])
    score = result["accuracy"]["val"]["overall"]
    assert score is not None and 0 < result["baselines"]["chance"]["overall"] < 100
    capsys.readouterr()
    assert evaluate(others.eval(task, tmp_path / "run" / "BEST", tmp_path / "out")) == 0
    assert f"{ALL[task]}, {strategy}: overall {score:.2f}" in capsys.readouterr().out
    rows = strict_json(tmp_path / "out" / "val_result.json")
    assert len(rows) == result["accuracy"]["val"]["count"] == 2 * len(IMAGES["val"])


def test_options_about_one_image_share_what_depends_on_it_alone(others, joint, tmp_path, capsys):
    rows = []
    for name, more in (("shared", []), ("apart", ["--every-sample"])):
        out = tmp_path / name
        assert evaluate(others.eval("6,11", joint / "BEST", out, *more)) == 0
        found = [strict_json(out / f"{task}_val_result.json") for task in ("VCR_Q-A", "refcoco+")]
        rows.append(({row["question_id"]: row["answer"] for row in found[0]}, found[1]))
        said = "pairs about 8 images; what depends on the image alone" in capsys.readouterr().out
        assert said == (name == "shared")
    assert rows[0][0].keys() == rows[1][0].keys()
    for question, answer in rows[0][0].items():
        assert answer == pytest.approx(rows[1][0][question], abs=1e-5)
    assert [row["target"] for row in rows[0][1]] == [row["target"] for row in rows[1][1]]


def test_rows_are_those_of_the_original(others, joint, tmp_path):
    """VCR: four probabilities; referring expressions: the region and its overlap."""
    assert evaluate(others.eval("6,9,11", joint / "BEST", tmp_path)) == 0
    rows = strict_json(tmp_path / "VCR_Q-A_val_result.json")
    assert {row["question_id"] for row in rows} == {
        f"val-{n}-{k}" for n in IMAGES["val"] for k in range(2)
    }
    for row in rows:
        assert len(row["answer"]) == 4 and sum(row["answer"]) == pytest.approx(1, abs=1e-5)
    rows = strict_json(tmp_path / "refcoco+_val_result.json")
    for row in rows:
        assert row.keys() == {"id", "target", "IOU"} and 0 <= row["IOU"] <= 1
    found = strict_json(joint / "result.json")["accuracy"]["val"]
    right = sum(row["IOU"] > 0.5 for row in rows)
    assert found["refcoco+"] == pytest.approx(100 * right / len(rows))


def test_a_split_without_answers_is_answered(others, joint, tmp_path, capsys):
    run = others.eval("6", joint / "BEST", tmp_path, "--split", "test")
    assert evaluate(run) == 0
    rows = strict_json(tmp_path / "VCR_Q-A_test_result.json")
    assert rows[0]["question_id"] == "test-100-0" and len(rows) == 16
    assert "overall" not in capsys.readouterr().out


def test_several_tasks_share_a_model_and_are_told_apart(others, joint):
    result = strict_json(joint / "result.json")
    val = result["accuracy"]["val"]
    names = {"VCR_Q-A", "RetrievalFlickr30k", "refcoco+"}
    assert val.keys() == names | {"overall", "count"}
    assert val["overall"] == pytest.approx(sum(val[name] for name in names) / 3)
    assert result["task"] == "VCR_Q-A,RetrievalFlickr30k,refcoco+"
    by_type = result["decisions"]["share_by_type"]
    assert {n: by_type[n]["count"] for n in by_type} == {
        "VCR_Q-A": 64,
        "RetrievalFlickr30k": 64,
        "refcoco+": 16,
    }
    assert set(result["epochs"][-1]["train_losses"]) == names
    assert result["baselines"]["chance"]["VCR_Q-A"] == 25.0
    meta = load_meta(joint / "BEST.safetensors")
    assert meta["heads"] == ["vil_logit", "vision_logit"]


@pytest.mark.parametrize("stop", ["2", pytest.param("7", marks=pytest.mark.slow)])
def test_a_joint_run_that_was_stopped_goes_on_bit_for_bit(others, joint, tmp_path, stop):
    run = others.train("6,9,11", tmp_path, *DROPOUT)
    torch.manual_seed(123)
    assert train([*run, "--max-steps", stop]) == 0
    torch.manual_seed(321)
    assert train([*run, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(*(folder / f"{name}.safetensors" for folder in (joint, tmp_path)))
    first, second = (strict_json(folder / "result.json") for folder in (joint, tmp_path))
    for key in ("accuracy", "decisions", "best_epoch", "baselines"):
        assert first[key] == second[key], key


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (["--tasks", "6,9"], "task is 'VCR_Q-A,RetrievalFlickr30k,refcoco+' in the file"),
        (["--batchSize", "4"], "batch_size is 8 in the file, this run has 4"),
        (["--train_iter_gap", "2"], "plateau.every is 4 in the file, this run has 2"),
    ],
)
def test_other_settings_do_not_resume(others, joint, capsys, change, difference):
    run = others.train("6,9,11", joint, *DROPOUT)
    run = [*without(run, "--tasks"), "--tasks", "6,9,11", "--resume", *change]
    assert difference in refused(capsys, run)


def test_one_task_of_a_joint_run_is_evaluated_alone(others, joint, tmp_path, capsys):
    """And a task that it was not trained on is refused."""
    assert evaluate(others.eval("11", joint / "BEST", tmp_path)) == 0
    assert (tmp_path / "refcoco+_val_result.json").is_file(), "as if all were evaluated"
    both = strict_json(joint / "result.json")["accuracy"]["val"]["refcoco+"]
    assert f"refcoco+, SpotTune_Block: overall {both:.2f}" in capsys.readouterr().out
    shown = refused(capsys, others.eval("7", joint / "BEST", tmp_path), evaluate)
    assert "was finetuned on VCR_Q-A,RetrievalFlickr30k,refcoco+, not on VCR_QA-R" in shown


@pytest.mark.parametrize(
    ("tasks", "numbers", "found"),
    [
        ("6-7", "readme", ["VCR_Q-A", "VCR_QA-R"]),
        ("TASK6-TASK7", "readme", ["VCR_Q-A", "VCR_QA-R"]),
        ("1-2", "beta", ["VCR_Q-A", "VCR_QA-R"]),
        ("5-6", "12in1", ["VCR_Q-A", "VCR_QA-R"]),
        ("3", "beta", ["RetrievalFlickr30k"]),
        ("4", "beta", ["refcoco+"]),
        ("8", "12in1", ["RetrievalFlickr30k"]),
        ("10", "12in1", ["refcoco+"]),
        ("9", "readme", ["RetrievalFlickr30k"]),
        ("11", "readme", ["refcoco+"]),
        ("vcr_q-a-VCR_QA-R", "readme", ["VCR_Q-A", "VCR_QA-R"]),
        ("VQA-CP", "readme", ["VQA-CP"]),
        ("VQA,RetrievalFlickr30k", "beta", ["VQA", "RetrievalFlickr30k"]),
    ],
)
def test_tasks_are_chosen_by_number_or_name(tasks, numbers, found):
    options = TRAIN.parse(["--tasks", tasks, "--task-numbers", numbers, "--dataset", EASY])
    assert [task.name for task in options.model.tasks] == found


def test_the_commands_of_the_readme_are_understood(tmp_path):
    model = "save/bert_base_6_layer_6_connect_freeze_0/pytorch_model_8.bin"
    common = ["--bert_model", "bert-base-uncased", "--from_pretrained", model]
    common += ["--config_file", "config/bert_base_6layer_6conect.json", "--num_workers", "16"]
    common += ["--save_name", "pretrained"]
    for tasks, name in (("6-7", "VCR_Q-A-VCR_QA-R"), ("11", "refcoco+"), ("9", ALL["9"])):
        words = [*common, "--learning_rate", "2e-5", "--tasks", tasks, "--dataset", EASY]
        options = TRAIN.parse(words)
        assert options.run.folder == Path(f"save/{name}_bert_base_6layer_6conect-pretrained")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "66"], "has no task '66'; there are 1 (VQA), 11 (refcoco+)"),
        (["--tasks", "6-6"], "--tasks 6-6: VCR_Q-A is there twice"),
        (["--tasks", "11", "--task-numbers", "12in1"], "has no task '11' (refcocog)"),
        (["--tasks", "6", "--dataset", "vqa"], "those are the data of task VQA, not of VCR_Q-A"),
        (["--tasks", "6", "--dataset", "easy_vqa_cp"], "--dataset easy_vqa_cp: data of questions"),
        (["--tasks", "6,9", "--data", "x"], "--data x: 2 tasks have a folder each"),
        (["--tasks", "6", "--baseline"], "the single-stream model answers questions only"),
        (["--tasks", "6,9", "--plateau", "--train_iter_gap", "0"], "give 1 at least"),
        (["--tasks", "6", "--questions", "99"], "task VCR_Q-A has 3"),
        (["--tasks", "6", "--train", "val"], "--train val --valid val: give two splits"),
        (
            ["--tasks", "6", "--valid", "test"],
            "split test: sample test-100-0: what is right is not",
        ),
        (
            ["--tasks", "6", "--train", "test"],
            "split test: sample test-100-0: what is right is not",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(others, tmp_path, capsys, words, message):
    run = without(others.train("6", tmp_path / "x"), "--tasks")
    assert message in refused(capsys, [*run, *words])


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("6", "VCR/train.jsonl", "line 3: "),
        ("6", "VCR/unisex_names_table.csv", "no names in it"),
        ("9", "retrieval/train.jsonline", "line 3: "),
        ("11", "refer/refcoco+/instances.json", "instances.json: "),
        ("11", "refer/refcoco+/refs(unc).p", "refs(unc).p: "),
        ("9", "retrieval/hard_negative.pkl", "hard_negative.pkl: "),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, capsys, task, spoil, message):
    files = write_other_files(tmp_path)
    path = tmp_path / spoil
    content = path.read_bytes()
    lines = content.split(b"\n")
    cut = b"\n".join([*lines[:2], lines[2][:9]]) if message == "line 3: " else content[:8]
    path.write_bytes(b",name\n" if spoil.endswith("csv") else cut)
    shown = refused(capsys, files.train(task, tmp_path / "run"))
    assert message in shown and path.name in shown


def test_what_is_missing_is_named_with_the_way_out(tmp_path, capsys):
    files = write_other_files(tmp_path)
    (tmp_path / "retrieval" / "hard_negative.pkl").unlink()
    shown = refused(capsys, files.train("9", tmp_path / "run"))
    assert "hard_negative.pkl: no such file: make it with `python make_hard_negatives.py" in shown
    captions = tmp_path / "retrieval" / "val.jsonline"
    line = {"img_path": "777.jpg", "sentences": ["a ball", "a box"]}
    captions.write_text(captions.read_text() + json.dumps(line) + "\n")
    shutil.copy(captions, tmp_path / "other.jsonline")
    write_sections(files, {"TASK9": {"train_split": "other", "train_annotations_jsonpath": ""}})
    (tmp_path / "retrieval" / "hard_negative.pkl").write_bytes(b"")
    shown = refused(capsys, files.train("9", tmp_path / "run"))
    assert "all_data_final_other_set0_2014.jsonline" in shown
    write_sections(files)
    pool = HardNegatives(tuple(map(str, IMAGES["train"])), np.tile(np.arange(4), (20, 1)))
    pool.write(tmp_path / "retrieval" / "hard_negative.pkl")
    shown = refused(capsys, files.train("9", tmp_path / "run"))
    assert "no region features of image '777', which sample caption of 777 shows" in shown


@pytest.mark.long
@pytest.mark.parametrize("tasks", ["9", "6,11"])
def test_an_adaptive_run_is_exported_as_a_plain_model(others, tmp_path, capsys, tasks):
    """It scores as the run does with the majority's decisions."""
    from common.export import main as export

    run = others.train(
        tasks, tmp_path / "run", "--strategy", "SpotTune_Block", "--policy-lr", "0.1"
    )
    assert train([*run, "--policy-eval", "global"]) == 0
    found = strict_json(tmp_path / "run" / "result.json")["accuracy"]["val"]
    for name, folder in (("made", tmp_path / "made"), ("given", tmp_path / "given")):
        if name == "made":  # the decisions are counted again
            state, meta = load_checkpoint(tmp_path / "run" / "BEST.safetensors")
            saved = {k: x for k, x in state["model"].items() if "global_decisions" in k}
            (key,) = saved
            state["model"][key] = torch.full_like(saved[key], -1.0)
            shutil.copytree(tmp_path / "run", tmp_path / "without")
            save_checkpoint(tmp_path / "without" / "BEST.safetensors", state, meta)
        source = tmp_path / ("without" if name == "made" else "run")
        words = ["--run", str(source), "--out", str(folder), "--gpus", "cpu", "--quiet"]
        assert export(words) == 0
        assert f"eval_tasks.py --tasks {meta['task']} --from_pretrained" in capsys.readouterr().out
        assert evaluate(others.eval(tasks, folder / "model", tmp_path / f"{name}_out")) == 0
        shown = capsys.readouterr().out
        assert "standard: overall" in shown
        for task in tasks.split(","):
            score = found["overall"] if tasks == task else found[ALL[task]]
            assert f"{ALL[task]}, standard: overall {score:.2f}" in shown


def test_a_run_of_another_task_answers_no_questions(joint, capsys):
    from common.ask.command import main as ask

    words = ["--run", str(joint), "--image-id", "1", "--question", "what?"]
    assert ask(words) == 2
    shown = capsys.readouterr().err
    assert "is not the checkpoint of a visual-question-answering run" in shown


def test_one_task_of_a_joint_run_is_trained_further_alone(others, joint, tmp_path):
    """Its head alone; the run is about that task."""
    run = without(others.train("11", tmp_path, "--load", str(joint / "BEST")), "--from_pretrained")
    assert train(run) == 0
    assert strict_json(tmp_path / "result.json")["task"] == "refcoco+"
    assert load_meta(tmp_path / "BEST.safetensors")["heads"] == ["vision_logit"]


def test_a_task_without_answers_is_evaluated_from_a_run_with_answers(files, others, tmp_path):
    """VQA and retrieval in one model; features of one detector."""
    both = OtherFiles(tmp_path)
    for name in ("bert", "tiny.json", "pytorch_model_9.bin"):
        (tmp_path / name).symlink_to(others.folder / name)
    write_sections(both, other=others, questions=files)
    words = both.train("1,9", tmp_path / "run", "--questions", "16", "--epochs", "1")
    assert train(words) == 0
    load = tmp_path / "run" / "BEST"
    for tasks in ("9", "1", "1,9"):
        assert evaluate(both.eval(tasks, load, tmp_path / tasks)) == 0
    assert retrieve(both.eval("9", load, tmp_path / "retrieval")) == 0


def test_a_task_has_its_own_number_of_epochs(others, tmp_path):
    """That of the task file, unless --epochs is given."""
    files = OtherFiles(tmp_path)
    for name in ("bert", "tiny.json", "pytorch_model_9.bin"):
        (tmp_path / name).symlink_to(others.folder / name)
    write_sections(files, {"TASK6": {"num_epoch": 2}, "TASK11": {"num_epoch": 1}}, other=others)
    run = without(files.train("6,11", tmp_path / "run"), "--epochs")
    assert train(run) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    meta = load_meta(tmp_path / "run" / "BEST.safetensors")["training"]["tasks"]
    assert {name: task["epochs"] for name, task in meta.items()} == {"VCR_Q-A": 2, "refcoco+": 1}
    assert "refcoco+" not in result["epochs"][0]["train_losses"], "it starts in the second epoch"
    assert "refcoco+" in result["epochs"][1]["train_losses"]


def test_annotated_regions_are_needed_of_training_images_alone(tmp_path, capsys):
    """Referring expressions; features that an import skipped are left out where they may be."""
    files = write_other_files(tmp_path)
    train_only = {str(n): record(n, 1 + n % 2, offset=5) for n in IMAGES["train"]}
    shutil.rmtree(tmp_path / "coco_gt.lmdb")
    write_lmdb(tmp_path / "coco_gt.lmdb", train_only)
    assert train(files.train("11", tmp_path / "run")) == 0
    detected = {str(n): record(n, 3) for n in [*IMAGES["train"], *IMAGES["val"]]}
    detected["3"] = b"nothing"
    shutil.rmtree(tmp_path / "coco.lmdb")
    shutil.rmtree(tmp_path / "coco_features")
    write_lmdb(tmp_path / "coco.lmdb", detected)
    assert "entry '3'" in refused(capsys, files.train("9", tmp_path / "second"))
    assert train(files.train("9", tmp_path / "second", "--skip-bad")) == 0
    shown = capsys.readouterr().out
    assert "RetrievalFlickr30k: 2 of 40 samples are left out" in shown


@pytest.mark.long
@pytest.mark.parametrize("task", ["6", "11"])
def test_batches_as_for_a_gpu_teach_the_same(others, tmp_path, task):
    """Features in half precision, fixed lengths, evaluation batches that grow."""
    results = []
    for name, device in (("cpu", without_dropout), ("gpu", everything_on_gpu)):
        out = tmp_path / name
        more = ("--strategy", "SpotTune_Block", "--eval-batch-size", "auto")
        with device():
            assert train(others.train(task, out, *more)) == 0
        results.append(strict_json(out / "result.json"))
        told = "evaluation in batches of" in (out / "log.log").read_text()
        assert told == (name == "gpu")
    same_learning(*reversed(results))
