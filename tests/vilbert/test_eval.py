"""eval_tasks.py: what it answers, where it writes to, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.data.vqa_metric import score
from common.features.lmdb_records import import_lmdb, lmdb_store
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.weights import load_weights
from tests.common.lmdb_files import arrays, write_lmdb
from tests.lxmert.runs import strict_json
from tests.vilbert.runs import (
    ANSWERS,
    MINIVAL,
    PRETRAINED,
    SIDES,
    SIZES,
    TESTED,
    WIDTH,
    refused,
    region_record,
    without,
    write_cache,
    write_task,
)
from vilbert.finetuning import EVALUATE, evaluate, train
from vilbert.heads import VILBertForVLTasks
from vilbert.sizes import ViLBertConfig, read_config
from vilbert.tasks import chosen_tasks
from vilbert.vqa_data import read_part, task_dataset


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """A run whose answers differ between questions, under the original's name for its folder."""
    out = tmp_path_factory.mktemp("save")
    run = files.run("unused", "--strategy", "SpotTune_Block", "--learning_rate", "2e-2")
    run = without(run, "--output")
    run += ["--output_dir", str(out), "--save_name", "first", "--epochs", "4"]
    assert train(run) == 0
    return out / "VQA_tiny-first"


def examples_of(files, split: str):
    (task,) = chosen_tasks("1", files.tasks)
    return read_part(files.questions, task_dataset(task, "vqa", None).kind.splits[split])


def test_the_best_epoch_gives_its_accuracy_again(files, trained, tmp_path, capsys):
    """The reported split is the default; rows are what EvalAI takes."""
    assert evaluate(files.test(trained / "BEST", tmp_path)) == 0
    result = strict_json(trained / "result.json")
    found = result["accuracy"]["val"]
    shown = capsys.readouterr().out
    assert f"minival of vqa, SpotTune_Block: overall {found['overall']:.2f}" in shown
    rows = strict_json(tmp_path / "minival_result.json")
    assert len(rows) == MINIVAL
    for row in rows:
        assert row.keys() == {"question_id", "answer"} and row["answer"] in ANSWERS
    predictions = {row["question_id"]: row["answer"] for row in rows}
    assert score(predictions, examples_of(files, "minival")) == {
        k: v for k, v in found.items() if k != "count"
    }


def test_others_are_the_eight_likeliest_answers_in_falling_order(files, trained, tmp_path):
    assert evaluate(files.test(trained / "BEST", tmp_path)) == 0
    rows = strict_json(tmp_path / "minival_result.json")
    others = strict_json(tmp_path / "minival_others.json")
    assert [row["question_id"] for row in others] == [row["question_id"] for row in rows]
    for row, other in zip(rows, others, strict=True):
        assert other.keys() == {"question_id", "answer"}
        assert len(other["answer"]) == len(set(other["answer"])) == 8
        assert other["answer"][0] == row["answer"] and set(other["answer"]) <= set(ANSWERS)
    assert len({tuple(other["answer"]) for other in others}) > 1


@pytest.mark.parametrize(("split", "images"), [("test", TESTED), ("test-dev", TESTED[:2])])
def test_test_splits_have_every_question_once(files, trained, tmp_path, split, images, capsys):
    assert evaluate(files.test(trained / "BEST", tmp_path, "--split", split)) == 0
    rows = strict_json(tmp_path / f"{split}_result.json")
    asked = {10 * image + n for image in images for n in range(len(SIDES))}
    assert {row["question_id"] for row in rows} == asked and len(rows) == len(asked)
    assert (tmp_path / f"{split}_others.json").is_file()
    assert "overall" not in capsys.readouterr().out


def test_the_name_of_a_run_finds_its_best_epoch(files, trained, capsys):
    """--save_name alone, as the run was named; the answers are beside it."""
    words = files.test("unused", "unused", "--save_name", "first")
    words = without(words, "--from_pretrained", "--output")
    words += ["--output_dir", str(trained.parent), "--config_file", str(files.config)]
    assert evaluate(words) == 0
    found = strict_json(trained / "result.json")["accuracy"]["val"]["overall"]
    assert f"SpotTune_Block: overall {found:.2f}" in capsys.readouterr().out
    best, other = (trained / f"minival_{name}.json" for name in ("result", "others"))
    assert best.is_file() and other.is_file()
    best.unlink()
    other.unlink()
    words[words.index("first")] = "second"
    shown = refused(capsys, words, evaluate)
    assert f"{trained.parent / 'VQA_tiny-second' / 'BEST'}" in shown


def test_answers_go_to_the_folder_that_the_original_gives_them(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    options = EVALUATE.parse(
        ["--task", "1", "--from_pretrained", "VQA_tiny-first/BEST", "--save_name", "mine"]
    )
    assert options.run.folder == Path("results/VQA_tiny-first-mine")
    assert options.test == "minival"
    options = EVALUATE.parse(["--from_pretrained", "VQA_tiny-first/BEST", "--split", "test"])
    assert (options.run.folder, options.test) == (Path("results/VQA_tiny-first"), "test")


def test_batches_of_another_size_change_nothing(files, trained, tmp_path):
    for size in ("1", "1000"):
        run = files.test(trained / "BEST", tmp_path / size, "--batch_size", size)
        assert evaluate(run) == 0
    first, second = (strict_json(tmp_path / n / "minival_others.json") for n in ("1", "1000"))
    assert first == second


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_finetuned_file_of_the_original_is_evaluated(files, tmp_path, prefix, capsys):
    """A state dict of all heads, with or without `module.`, whose classifier always says one."""
    config = read_config(
        files.config, v_feature_size=WIDTH, vocab_size=117, num_labels=len(ANSWERS)
    )
    torch.manual_seed(3)
    state = VILBertForVLTasks(config).state_dict()
    state["vil_prediction.main.3.bias"][6] = 1e4
    path = tmp_path / "finetuned.bin"
    torch.save({prefix + name: x for name, x in state.items()}, path)
    run = files.test(path, tmp_path / "out", "--config_file", str(files.config))
    assert evaluate(run) == 0
    assert "standard: overall" in capsys.readouterr().out
    answers = task_dataset(chosen_tasks("1", files.tasks)[0], "vqa", None).vocabulary().answers
    rows = strict_json(tmp_path / "out" / "minival_result.json")
    assert {row["answer"] for row in rows} == {answers[6]}


def test_the_whole_file_is_used(files, trained, tmp_path):
    """Another bias of one answer gives other predictions; else the file would not be read."""
    shutil.copytree(trained, tmp_path / "run")
    state, meta = load_checkpoint(trained / "BEST.safetensors")
    state["model"]["vil_prediction.main.3.bias"][2] = 1e4
    save_checkpoint(tmp_path / "run" / "BEST.safetensors", state, meta)
    assert evaluate(files.test(tmp_path / "run" / "BEST", tmp_path / "out")) == 0
    answers = strict_json(trained / "answers.json")
    rows = strict_json(tmp_path / "out" / "minival_result.json")
    assert {row["answer"] for row in rows} == {answers[2]}


def test_a_checkpoint_of_other_features_is_refused(own_files, trained, tmp_path, capsys):
    """Of another width, and of another detector."""
    narrow = own_files.folder / "coco" / "narrow.lmdb"
    write_lmdb(narrow, {"200": arrays("200")})
    import_lmdb(narrow, lmdb_store(narrow), 6, progress=False)
    write_task(own_files.tasks, own_files, features_h5path1=str(narrow))
    shown = refused(capsys, own_files.test(trained / "BEST", tmp_path), evaluate)
    assert "features.width is 2048 in the file, this run has 6" in shown
    other = own_files.folder / "coco" / "other.lmdb"
    write_lmdb(other, {"200": region_record(200, arrays)})
    import_lmdb(other, lmdb_store(other), detector="mine", progress=False)
    write_task(own_files.tasks, own_files, features_h5path1=str(other))
    shown = refused(capsys, own_files.test(trained / "BEST", tmp_path), evaluate)
    assert "features.detector is" in shown and "this run has 'mine'" in shown


@pytest.mark.parametrize(
    ("answers", "difference"),
    [
        (ANSWERS[:9], "answers.count is 10 in the file, this run has 9"),
        (ANSWERS[::-1], "answers.sha256 is "),
    ],
)
def test_a_checkpoint_of_other_answers_is_refused(
    own_files, trained, tmp_path, capsys, answers, difference
):
    """Also where there are as many: every prediction would be a wrong answer."""
    write_cache(own_files.questions, answers, "val", ())
    shown = refused(capsys, own_files.test(trained / "BEST", tmp_path), evaluate)
    assert f"{trained / 'BEST.safetensors'}: made with other settings: " in shown
    assert difference in shown
    assert not (tmp_path / "minival_result.json").exists()


def test_a_checkpoint_with_another_vocabulary_is_refused(files, trained, tmp_path, capsys):
    shutil.copy(trained / "BEST.safetensors", tmp_path)
    words = (trained / "vocab.txt").read_text().split("\n")
    words[80], words[90] = words[90], words[80]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    shown = refused(capsys, files.test(tmp_path / "BEST", tmp_path), evaluate)
    assert "vocabulary.sha256 is " in shown


def test_what_is_no_finetuned_model_is_refused(files, trained, tmp_path, capsys):
    def said(load: Path | str, *more: str) -> str:
        words = files.test(load, tmp_path, "--config_file", str(files.config), *more)
        return refused(capsys, words, evaluate)

    assert f"{PRETRAINED} is not a finetuned model (no vil_prediction.*)" in said(files.pretrained)
    assert "no checkpoint 'nowhere'" in said("nowhere")
    of_12_in_1 = tmp_path / "multi.bin"
    torch.save({"vil_prediction.logit_fc.0.weight": torch.ones(2, 2)}, of_12_in_1)
    assert "is a model of the 12-in-1 system" in said(of_12_in_1)
    state, meta = load_checkpoint(trained / "BEST.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", state, meta | {"backbone": "lxmert"})
    assert "is not a finetuned ViLBERT (backbone 'lxmert', task 'vqa')" in said(tmp_path / "other")
    weights = load_weights(files.pretrained) | {"vil_prediction.main.0.bias": torch.ones(24)}
    torch.save(weights, tmp_path / "part.bin")
    assert f"{tmp_path / 'part.bin'}" in said(tmp_path / "part.bin")
    missing = "--from_pretrained is missing: give the finetuned model, or the --save_name"
    words = without(files.test("x", tmp_path), "--from_pretrained")
    assert missing in refused(capsys, words, evaluate)


def test_other_flags_than_those_of_the_checkpoint_are_refused(files, trained, tmp_path, capsys):
    for change, difference in (
        (["--strategy", "SpotTune"], "strategy is 'SpotTune_Block' in the file, this run has"),
        (["--policy", "published"], "policy is 'small' in the file, this run has 'published'"),
        (["--policy-eval", "global"], "needs global decisions: none were computed"),
        (["--split", "trian"], "'trian': use a split with `test` or `val` in its name"),
    ):
        words = files.test(trained / "BEST", tmp_path, *change)
        assert difference in refused(capsys, words, evaluate), change


def test_the_sizes_are_those_of_the_checkpoint(files, trained, tmp_path, capsys):
    """Whatever config is named: a run of ours brings its own."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(SIZES | {"num_hidden_layers": 4}))
    assert ViLBertConfig.from_upstream(json.loads(other.read_text())).num_hidden_layers == 4
    run = files.test(trained / "BEST", tmp_path, "--config_file", str(other))
    assert evaluate(run) == 0
    assert f"knows its sizes: {other} is not read" in capsys.readouterr().out
