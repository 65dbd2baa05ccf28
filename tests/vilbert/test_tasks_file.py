"""The task file: what its keys mean, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import ConfigError, DataError
from tests.vilbert.runs import refused, write_task
from vilbert.finetuning import evaluate, train
from vilbert.tasks import TASKS_FILE, TaskEntry, chosen_tasks, read_tasks
from vilbert.vqa_data import WITHOUT_EFFECT, task_dataset


def changed(folder: Path, **changes: Any) -> Path:
    """The shipped file with other values in section 1; None takes a key out."""
    tasks = yaml.safe_load(TASKS_FILE.read_text())
    section = tasks["TASK1"] | changes
    tasks["TASK1"] = {key: value for key, value in section.items() if value is not None}
    path = folder / "tasks.yml"
    path.write_text(yaml.safe_dump(tasks))
    return path


def test_a_rate_is_read_as_people_write_it(tmp_path):
    """YAML takes a number without a point for a text."""
    text = TASKS_FILE.read_text().replace("lr: 0.00004", "lr: 4e-5")
    (tmp_path / "tasks.yml").write_text(text)
    assert read_tasks(tmp_path / "tasks.yml") == read_tasks()


def test_the_shipped_file_has_the_tasks_as_the_original_s_first_readme_numbers_them():
    tasks = read_tasks()
    assert {number: task.name for number, task in tasks.items()} == {
        "1": "VQA",
        "6": "VCR_Q-A",
        "7": "VCR_QA-R",
        "9": "RetrievalFlickr30k",
        "11": "refcoco+",
        "18": "VQA-CP",
    }
    limits = {n: (t.max_seq_length, t.batch_size, t.lr, t.num_epoch) for n, t in tasks.items()}
    assert limits["6"] == (60, 64, 2e-5, 20) and limits["7"] == (80, 64, 2e-5, 20)
    assert limits["9"] == (30, 64, 2e-5, 20) and limits["11"] == (20, 256, 4e-5, 20)
    assert {t.max_region_num for t in tasks.values()} == {100}
    vqa = tasks["1"]
    assert (vqa.batch_size, vqa.eval_batch_size, vqa.lr, vqa.num_epoch) == (256, 1024, 4e-5, 20)
    assert (vqa.max_seq_length, vqa.max_region_num) == (16, 100)
    assert (vqa.train_split, vqa.val_split) == ("trainval", "minival")
    assert vqa.features_h5path1.endswith("coco_trainval_resnet101_faster_rcnn_genome.lmdb")


@pytest.mark.parametrize("field", [f.name for f in fields(TaskEntry)])
def test_every_key_is_read(tmp_path, field):
    other = {"str": "other", "int": 7, "float": 0.5}
    values: dict[str, Any] = {"type": None, "loss": None}
    kind = next(f.type for f in fields(TaskEntry) if f.name == field)
    if field in values:
        with pytest.raises(ConfigError, match="keys type, loss: 'other'|with 'other'"):
            read_tasks(changed(tmp_path, **{field: "other"}))
        return
    found = read_tasks(changed(tmp_path, **{field: other[kind]}))["1"]
    assert getattr(found, field) == other[kind] != getattr(read_tasks()["1"], field)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        *((word, "VQA") for word in ("1", "TASK1", "VQA", "vqa")),
        *((word, "VQA-CP") for word in ("18", "VQA-CP", "vqa-cp")),
    ],
)
def test_a_task_is_chosen_by_number_or_name(words, name):
    assert [task.name for task in chosen_tasks(words)] == [name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("5", r"--tasks 5: .* has no task '5'; there are 1 \(VQA\), 6 \(VCR_Q-A\)"),
        ("VCR", r"has no task 'VCR'; there are 1 \(VQA\), 6 \(VCR_Q-A\)"),
        ("", r"has no task ''"),
        ("1-18-1", r"--tasks 1-18-1: VQA is there twice"),
    ],
)
def test_another_task_is_refused_with_those_that_there_are(words, said):
    with pytest.raises(ConfigError, match=said):
        chosen_tasks(words)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_regions_num": 3}, "TASK1: key 'max_regions_num' is unknown: did you mean 'max_reg"),
        ({"zzz": 3}, "TASK1: key 'zzz' is unknown; known are batch_size, data, dataroot, "),
        ({"dataroot": None}, "TASK1: key dataroot is missing"),
        ({"num_epoch": None}, "TASK1: key num_epoch is missing"),
        ({"batch_size": "256"}, "TASK1: key batch_size: '256': give a positive number"),
        ({"batch_size": 2.5}, "TASK1: key batch_size: 2.5: give a positive number"),
        ({"batch_size": 0}, "TASK1: key batch_size: 0: give a positive number"),
        ({"num_epoch": True}, "TASK1: key num_epoch: True: give a positive number"),
        ({"lr": "fast"}, "TASK1: key lr: 'fast': give a positive number"),
        ({"lr": float("nan")}, "TASK1: key lr: nan: give a positive number"),
        ({"name": 3}, "TASK1: key name: 3: give a text"),
        ({"name": "a/b"}, "TASK1: key name: 'a/b': give a name without a slash"),
        ({"name": "a,b"}, "TASK1: key name: 'a,b': give a name without a slash or comma"),
        ({"name": " "}, "TASK1: key name: ' ': give a name"),
        ({"type": "VL-logit"}, "keys type, loss: 'VL-logit' with 'BCEWithLogitLoss': valid: VL-cl"),
        ({"loss": "CrossEntropyLoss"}, "with 'CrossEntropyLoss': valid: VL-classifier with BCEWi"),
        ({"max_seq_length": 2}, "keys max_seq_length, max_region_num: 2, 100: a text has [CLS]"),
        ({"max_region_num": 1}, "keys max_seq_length, max_region_num: 16, 1: a text has [CLS]"),
    ],
)
def test_a_wrong_section_is_one_error_with_file_section_and_key(
    tmp_path, files, capsys, changes, said
):
    path = changed(tmp_path, **changes)
    for command in (train, evaluate):
        shown = refused(capsys, ["--tasks_file", str(path), "--gpus", "cpu"], command)
        assert said in shown and str(path) in shown


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        ("", DataError, "expected sections TASK1"),
        ("- 1\n", DataError, "expected sections TASK1"),
        ("TASK1: 3\n", ConfigError, "TASK1: 3: expected keys with values"),
        ("TASKS:\n  name: VQA\n", ConfigError, "TASKS: a section is called TASK with a number"),
        ("1:\n  name: VQA\n", ConfigError, "1: a section is called TASK with a number"),
        ("TASK1: [\n", DataError, "tasks.yml"),
        ("TASK1: !!python/object/apply:os.system [ls]\n", DataError, "tasks.yml"),
    ],
)
def test_what_is_no_task_file_is_refused(tmp_path, content, kind, said):
    path = tmp_path / "tasks.yml"
    path.write_text(content)
    with pytest.raises(kind, match="tasks.yml") as caught:
        read_tasks(path)
    assert said in str(caught.value)


def test_a_task_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.yml: no such file"):
        read_tasks(tmp_path / "nowhere.yml")


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_key_that_questions_have_no_use_for_is_refused(own_files, key):
    write_task(own_files.tasks, own_files, **{key: "data/x"})
    (task,) = chosen_tasks("1", own_files.tasks)
    with pytest.raises(ConfigError, match=f"task VQA: key {key}: 'data/x': is not read"):
        task_dataset(task, None, None)


def test_a_task_of_another_name_has_no_data(own_files):
    write_task(own_files.tasks, own_files, name="GQA")
    (task,) = chosen_tasks("1", own_files.tasks)
    with pytest.raises(ConfigError, match="task GQA: questions are answered by tasks called VQA"):
        task_dataset(task, None, None)
