"""VQA v2 and VQA-CP in the folders of the original: questions, answers, region features."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.annotations import Example
from common.data.datasets import Dataset, load_split, open_features
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset
from common.errors import DataError
from common.features.lmdb_records import lmdb_store
from tests.common.lmdb_files import arrays, texts, write_lmdb
from tests.lxmert.runs import strict_json
from tests.vilbert.runs import (
    ANSWERS,
    MINIVAL,
    SIDES,
    TESTED,
    TRAIN,
    VAL,
    TaskFiles,
    answer_of,
    asked_and_answered,
    refused,
    region_record,
    without,
    write_cache,
    write_features,
    write_task,
)
from vilbert.finetuning import evaluate, train
from vilbert.inputs import Limits, ViLBertInputs
from vilbert.tasks import chosen_tasks
from vilbert.vqa_data import ORIGINAL_ANSWERS, coco_number, task_dataset


def dataset_of(files: TaskFiles) -> Dataset:
    (task,) = chosen_tasks("1", files.tasks)
    return task_dataset(task, "vqa" if task.name == "VQA" else "vqa_cp", None)


def remove_annotations(files: TaskFiles) -> None:
    for part in ("train2014", "val2014"):
        (files.questions / f"v2_mscoco_{part}_annotations.json").unlink()


def targets(files: TaskFiles, part: str = "train") -> list[dict[str, Any]]:
    return pickle.loads((files.questions / "cache" / f"{part}_target.pkl").read_bytes())


def write_targets(files: TaskFiles, rows: Any, part: str = "train") -> Path:
    path = files.questions / "cache" / f"{part}_target.pkl"
    path.write_bytes(rows if isinstance(rows, bytes) else pickle.dumps(rows, 3))
    return path


# Questions


def test_the_parts_are_those_of_the_original(files):
    """trainval: train, and val without its last questions, which are minival; sorted by id."""
    dataset = dataset_of(files)
    assert (dataset.kind.train, dataset.kind.valid) == ("train,nominival", "minival")
    ids = {name: [e.question_id for e in load_split(dataset, name)] for name in dataset.kind.splits}
    of = {
        name: [10 * image + n for image in images for n in range(len(SIDES))]
        for name, images in (("train", TRAIN), ("val", VAL), ("test", TESTED))
    }
    assert ids["train"] == of["train"] and ids["val"] == of["val"] and ids["test"] == of["test"]
    assert ids["minival"] == of["val"][-MINIVAL:] and ids["nominival"] == of["val"][:-MINIVAL]
    assert ids["test-dev"] == of["test"][: 2 * len(SIDES)]
    example = load_split(dataset, "train")[5]
    assert example.image_id == "101" and example.question == "what is right of it?"
    assert example.answers == {answer_of(101, 1): 1.0}
    assert load_split(dataset, "test")[0].answers is None


@pytest.mark.parametrize(
    ("name", "number"),
    [("COCO_train2014_000000000042", "42"), ("COCO_test2015_000000581929", "581929"), ("7", "7")],
)
def test_images_are_known_by_their_number(name, number):
    assert coco_number(Example(1, name, "what?"), Path("q.json")) == number


def test_an_image_without_a_number_is_one_error_with_its_question():
    with pytest.raises(DataError, match=r"q\.json: question 7: image_id 'img-a': expected the num"):
        coco_number(Example(7, "img-a", "what?"), Path("q.json"))


def test_minival_is_never_trained_on(files, tmp_path, capsys):
    for flags, said in (
        (["--train", "train,minival"], "split minival of vqa is there to report on"),
        (["--train", "train,val", "--valid", "val"], "split val would be trained on and reported"),
        (["--valid", "test"], "split test of vqa has questions without answers"),
        (["--train", "trian"], "split trian of vqa: it has train, val, nominival, minival, test"),
    ):
        assert said in refused(capsys, files.run(tmp_path, *flags)), flags


def test_the_answer_list_is_made_of_train_and_val(files):
    vocabulary = dataset_of(files).vocabulary()
    assert sorted(vocabulary.answers) == sorted(ANSWERS)
    assert (files.questions / "cache" / "answers_vqa" / "settings.json").is_file()


# Region features


def test_both_forms_of_the_lmdb_give_the_same_run(files, own_files, tmp_path):
    """Arrays as its successor wrote them, and base64 texts as the original did."""
    shutil.rmtree(own_files.features)
    write_features(own_files.features, [*TRAIN, *VAL, *TESTED], texts)
    results = []
    for name, where in (("arrays", files), ("texts", own_files)):
        assert train(where.run(tmp_path / name, "--strategy", "SpotTune_Block")) == 0
        results.append(strict_json(tmp_path / name / "result.json"))
    for key in ("accuracy", "decisions", "baselines"):
        assert results[0][key] == results[1][key], key
    assert results[0]["epochs"][0]["train_losses"] == results[1]["epochs"][0]["train_losses"]


def test_the_lmdb_is_imported_once_beside_itself(own_files, tmp_path, capsys):
    store = lmdb_store(own_files.features)
    assert store == own_files.folder / "coco" / "trainval_features"
    assert evaluate_random(own_files, tmp_path / "a") == 0
    assert f"{store}: not there yet: importing trainval.lmdb (once)" in capsys.readouterr().out
    shutil.rmtree(own_files.features)  # not needed any more
    assert evaluate_random(own_files, tmp_path / "b") == 0


def evaluate_random(files: TaskFiles, out: Path) -> int:
    """The shortest command that reads features: one update."""
    return train(files.run(out, "--max-steps", "1"))


def test_an_image_without_features_is_named(own_files, tmp_path, capsys):
    shutil.rmtree(own_files.features)
    write_features(own_files.features, [i for i in (*TRAIN, *VAL) if i != 105])
    shown = refused(capsys, own_files.run(tmp_path))
    assert "no region features of image '105', which question 1053 ('what is below of" in shown


def test_records_that_cannot_be_read_may_be_skipped_with_their_questions(
    own_files, tmp_path, capsys
):
    shutil.rmtree(own_files.features)
    records = {str(i): region_record(i, arrays) for i in (*TRAIN, *VAL)}
    records["105"] = records["105"] | {"num_boxes": 99}
    write_lmdb(own_files.features, records)
    assert "entry '105'" in refused(capsys, own_files.run(tmp_path / "a"))
    run = own_files.run(tmp_path / "b", "--skip-bad", "--max-steps", "1")
    assert train(run) == 0


# The original's prepared answers


def test_the_order_of_the_original_s_answers_is_that_of_the_classifier(own_files, tmp_path):
    answers = [*ANSWERS[::-1], "never"]
    write_cache(own_files.questions, answers, "train", TRAIN)
    dataset = dataset_of(own_files)
    assert list(dataset.vocabulary().answers) == answers
    assert train(own_files.run(tmp_path / "run")) == 0
    assert strict_json(tmp_path / "run" / "answers.json") == answers
    # Another list takes its place.
    write_cache(own_files.questions, ANSWERS, "train", TRAIN)
    assert list(dataset_of(own_files).vocabulary().answers) == ANSWERS
    assert not list((own_files.questions / "cache").glob("*.partial"))


def test_prepared_targets_are_used_where_there_are_no_annotations(own_files, tmp_path):
    """With the scores that they say; where there are annotations, those are used."""
    write_cache(own_files.questions, ANSWERS, "train", TRAIN)
    write_cache(own_files.questions, ANSWERS, "val", VAL)
    rows = targets(own_files)
    rows[0] |= {"labels": [3, 0], "scores": [0.3, 0.9]}
    rows[1] |= {"labels": [], "scores": []}
    write_targets(own_files, rows)
    assert load_split(dataset_of(own_files), "train")[0].answers == {answer_of(100, 0): 1.0}
    remove_annotations(own_files)
    dataset = dataset_of(own_files)
    first, second, third = load_split(dataset, "train")[:3]
    assert first.answers == {"grey": 0.3, "red": 0.9} and second.answers == {}
    assert third.answers == {answer_of(100, 2): 1.0}
    assert train(own_files.run(tmp_path / "run")) == 0
    assert strict_json(tmp_path / "run" / "result.json")["accuracy"]["val"]["count"] == MINIVAL


def test_targets_without_the_list_of_answers_mean_nothing(own_files, tmp_path, capsys):
    write_cache(own_files.questions, ANSWERS, "train", TRAIN)
    (own_files.questions / "cache" / "trainval_label2ans.pkl").unlink()
    remove_annotations(own_files)
    shown = refused(capsys, own_files.run(tmp_path))
    for part in ("train2014", "val2014"):
        path = own_files.questions / f"v2_mscoco_{part}_annotations.json"
        assert f"{path}  from https://visualqa.org/download.html" in shown


Change = Callable[[list[dict[str, Any]]], Any]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [rows[0] | {"labels": [10]}, *rows[1:]], "entry 1: label 10: there are 10"),
        (lambda rows: [rows[0] | {"labels": [-1]}, *rows[1:]], "entry 1: label -1: there are 10"),
        (lambda rows: [rows[0], rows[1] | {"labels": ["red"]}], "entry 2: label 'red': there are"),
        (lambda rows: [rows[0] | {"labels": [True]}], "entry 1: label True: there are 10"),
        (lambda rows: [rows[0] | {"scores": [0]}], "entry 1: score 0: expected a number above 0"),
        (lambda rows: [rows[0] | {"scores": [1.5]}], "entry 1: score 1.5: expected a number"),
        (lambda rows: [rows[0] | {"scores": ["1"]}], "entry 1: score '1': expected a number"),
        (lambda rows: [rows[0] | {"scores": [True]}], "entry 1: score True: expected a number"),
        (lambda rows: [rows[0] | {"scores": [float("nan")]}], "entry 1: score nan: expected"),
        (lambda rows: [rows[0] | {"scores": []}], "entry 1: 1 labels, 0 scores"),
        (lambda rows: [rows[0] | {"labels": 3}], "entry 1: labels and scores: expected two lists"),
        (
            lambda rows: [rows[0] | {"labels": [1, 1], "scores": [1, 0.3]}],
            "entry 1: label 1: is there twice",
        ),
        (lambda rows: [*rows, rows[0]], "entry 97: question_id 1000: is no id, or is there twice"),
        (lambda rows: [rows[0] | {"question_id": [1]}, *rows[1:]], "entry 1: question_id [1]"),
        (lambda rows: [{"question_id": 1000}], "expected labels, question_id, scores"),
        (lambda rows: [3], "entry 1: 3: expected labels, question_id, scores"),
        (lambda rows: {"a": 1}, "expected a list of targets"),
        (
            lambda rows: rows[:-1],
            "question 1233 has no target: the file belongs to other questions",
        ),
        (lambda rows: pickle.dumps(rows)[:50], "train_target.pkl"),
        (lambda rows: b"", "train_target.pkl"),
    ],
)
def test_wrong_targets_are_refused_with_file_entry_and_value(own_files, change: Change, said):
    write_cache(own_files.questions, ANSWERS, "train", TRAIN)
    write_cache(own_files.questions, ANSWERS, "val", VAL)
    remove_annotations(own_files)
    path = write_targets(own_files, change(targets(own_files)))
    with pytest.raises(DataError) as caught:
        load_split(dataset_of(own_files), "train")
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"red": 0}, "expected a list of texts"),
        (["red", 3], "expected a list of texts"),
        ([], "answers_original|label2ans"),
        (["red", "red"], "trainval_label2ans.pkl"),
    ],
)
def test_a_wrong_list_of_answers_is_refused_by_its_own_name(own_files, answers, said):
    write_cache(own_files.questions, ANSWERS, "train", ())
    path = own_files.questions / "cache" / "trainval_label2ans.pkl"
    path.write_bytes(pickle.dumps(answers, 3))
    with pytest.raises(DataError, match=said) as caught:
        dataset_of(own_files)
    assert str(path) in str(caught.value)
    assert not (own_files.questions / ORIGINAL_ANSWERS).exists()


@pytest.mark.parametrize("name", ["trainval_label2ans", "train_target"])
def test_code_in_a_prepared_file_is_refused_and_not_run(own_files, tmp_path, name, capsys):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    write_cache(own_files.questions, ANSWERS, "train", TRAIN)
    write_cache(own_files.questions, ANSWERS, "val", VAL)
    remove_annotations(own_files)
    path = own_files.questions / "cache" / f"{name}.pkl"
    path.write_bytes(pickle.dumps([Bomb()]))
    shown = refused(capsys, own_files.run(tmp_path / "run"))
    assert f"{path}" in shown and "system" in shown
    assert not (tmp_path / "ran").exists()


# Missing and damaged files


def test_missing_files_are_listed_with_their_sources(own_files, tmp_path, capsys):
    shutil.rmtree(own_files.features)
    (own_files.questions / "v2_OpenEnded_mscoco_val2014_questions.json").unlink()
    shown = refused(capsys, own_files.run(tmp_path))
    assert "task VQA: 2 files are missing" in shown and "--dataset easy_vqa" in shown
    path = own_files.questions / "v2_OpenEnded_mscoco_val2014_questions.json"
    assert f"  {path}  from https://visualqa.org/download.html" in shown
    assert f"  {own_files.features.with_suffix('')}  from the authors' coco_trainval" in shown


def test_test_splits_may_be_missing_until_they_are_asked_for(own_files, whole, tmp_path, capsys):
    for part in ("test2015", "test-dev2015"):
        (own_files.questions / f"v2_OpenEnded_mscoco_{part}_questions.json").unlink()
    assert evaluate(own_files.test(whole / "BEST", tmp_path)) == 0
    shown = refused(capsys, own_files.test(whole / "BEST", tmp_path, "--split", "test"), evaluate)
    assert "v2_OpenEnded_mscoco_test2015_questions.json" in shown


def test_truncated_questions_name_the_file_and_the_place(own_files, tmp_path, capsys):
    path = own_files.questions / "v2_OpenEnded_mscoco_train2014_questions.json"
    path.write_text(path.read_text()[:500])
    shown = refused(capsys, own_files.run(tmp_path))
    assert f"{path}: line 1, column " in shown


def test_the_folder_of_the_questions_can_be_another_one(own_files, files, tmp_path):
    """--data, as the task file's dataroot; the recipe is that of the task there too."""
    write_task(own_files.tasks, own_files, dataroot="nowhere", batch_size=24)
    words = without(own_files.run(tmp_path / "run"), "--batchSize")
    assert train([*words, "--data", str(files.questions)]) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert result["dataset"] == "vqa" and result["recipe"]["batch_size"] == 24


# VQA-CP


def write_changing_priors(files: TaskFiles) -> None:
    """The files of VQA-CP v2, which are plain lists, and their task."""
    for part, images in (("train", TRAIN), ("test", VAL)):
        asked, answered = asked_and_answered(images)
        for kind, rows in (("questions", asked), ("annotations", answered)):
            listed = [row | {"coco_split": "train2014"} for row in rows]
            (files.questions / f"vqacp_v2_{part}_{kind}.json").write_text(json.dumps(listed))
    write_task(files.tasks, files, "VQA-CP", train_split="train", val_split="test")


def test_vqa_cp_reports_its_test_part_and_chooses_on_a_part_of_train(own_files, tmp_path):
    write_changing_priors(own_files)
    assert train(own_files.run(tmp_path / "run", "--strategy", "SpotTune_Block")) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert result["dataset"] == "vqa_cp"
    assert result["accuracy"]["val"]["count"] == 4 * len(VAL)
    assert result["selection"].startswith("10 % of the training images held out")
    assert evaluate(own_files.test(tmp_path / "run" / "BEST", tmp_path / "out")) == 0
    assert len(strict_json(tmp_path / "out" / "test_result.json")) == 4 * len(VAL)


def test_the_answers_of_vqa_cp_are_those_of_train_alone(own_files):
    write_changing_priors(own_files)
    path = own_files.questions / "vqacp_v2_test_annotations.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["multiple_choice_answer"] = "unheard"
    path.write_text(json.dumps(rows))
    assert "unheard" not in dataset_of(own_files).vocabulary().answers


def test_without_any_file_of_the_task_embedded_data_are_used(
    own_files, easy_vqa_root, monkeypatch, capsys
):
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    shutil.rmtree(own_files.questions)
    shutil.rmtree(own_files.features)
    (task,) = chosen_tasks("1", own_files.tasks)
    assert task_dataset(task, None, None).name == "easy_vqa"
    said = capsys.readouterr().out
    assert f"No files of VQA in {own_files.questions}: using easy_vqa. It needs there: " in said
    assert "v2_mscoco_train2014_annotations.json" in said


def test_regions_reach_the_model_as_the_original_reads_them(files):
    """The image as a whole first: mean of its regions, and (0, 0, 1, 1, 1)."""
    dataset = dataset_of(files)
    features = open_features(dataset, "val")
    data = VQADataset(load_split(dataset, "val"), features, dataset.vocabulary())
    inputs = ViLBertInputs(Tokenizer(files.bert), Limits(16, 101))(data.read([0, 4]))
    found = features.read(["200", "201"])
    for row, count in ((0, 4), (1, 2)):  # regions of images 200 and 201
        mean = found.features[row, :count].mean(0)
        torch.testing.assert_close(inputs["features"][row, 0], mean)
        torch.testing.assert_close(
            inputs["features"][row, 1 : count + 1], found.features[row, :count]
        )
        assert inputs["places"][row, 0].tolist() == [0, 0, 1, 1, 1]
        assert inputs["image_attention_mask"][row].tolist() == [1] * (count + 1) + [0] * (4 - count)
        corners = found.boxes[row, :count] / torch.tensor([64.0, 48.0, 64.0, 48.0])
        torch.testing.assert_close(inputs["places"][row, 1 : count + 1, :4], corners)
        sides = corners[:, 2:] - corners[:, :2]
        torch.testing.assert_close(inputs["places"][row, 1 : count + 1, 4], sides.prod(1))
