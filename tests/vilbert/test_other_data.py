"""Readers of the other tasks: VCR, referring expressions, captions; files as the real ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import DataError
from tests.vilbert.task_files import NAMES, references, write_captions, write_references, write_vcr
from vilbert.caption_data import (
    HardNegatives,
    find_hard_negatives,
    read_captions,
    read_hard_negatives,
)
from vilbert.referring_data import read_referring
from vilbert.vcr_data import read_names, read_vcr

BREAK = [
    ({"question": ["What", [3], "?"]}, "object 3 is spoken of, but the image has 3 objects"),
    ({"answer_choices": [["a"]] * 3}, "field 'answer_choices' has 3 choices, expected 4"),
    ({"rationale_choices": [["a"]] * 5}, "field 'rationale_choices' has 5 choices, expected 4"),
    ({"answer_label": 4}, "field 'answer_label' is 4, expected a number from 0 to 3"),
    ({"img_id": "valid-7"}, "field 'img_id' is 'valid-7', expected train-, val- or test-"),
    ({"question": 3}, "question is 3: "),
    ({"metadata_fn": "movie/2.json"}, "movie/2.json: no such file"),
]


def test_objects_are_called_by_name_and_persons_by_one_each(tmp_path):
    (entry,) = read_vcr(write_vcr(tmp_path), tmp_path, NAMES)
    _, _, person, _, _, other, _ = words = entry.question.split()
    assert words == ["What", "does", person, "give", "cup", other, "?"]
    assert {person, other} <= set(NAMES)
    assert entry.options == tuple(f"{person} gives gift{n}" for n in range(4))
    assert (entry.entry_id, entry.image_id, entry.label) == ("val-7-3", "1000007", 2)
    assert read_vcr(tmp_path / "val.jsonl", tmp_path, NAMES) == [entry]


def test_rationales_are_asked_of_the_right_answer_or_of_all_where_none_is_known(tmp_path):
    (entry,) = read_vcr(write_vcr(tmp_path), tmp_path, NAMES, rationales=True)
    assert entry.question.endswith("? [SEP] " + entry.question.split()[2] + " gives gift2")
    assert (entry.options[1], entry.label) == ("because 1", 1)
    hidden = write_vcr(tmp_path, answer_label=None, rationale_label=None, img_id="test-7")
    entries = read_vcr(hidden, tmp_path, NAMES, rationales=True)
    assert [e.entry_id for e in entries] == [f"val-7-3_{n}" for n in range(4)]
    assert [e.question[-5:] for e in entries] == ["gift0", "gift1", "gift2", "gift3"]
    assert {(e.image_id, e.label) for e in entries} == {("2000007", None)}


@pytest.mark.parametrize(("changes", "message"), BREAK)
def test_a_wrong_line_of_vcr_is_one_error(tmp_path, changes, message):
    path = write_vcr(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_vcr(path, tmp_path, NAMES, rationales=True)
    assert message in str(caught.value)
    if "movie/2" not in message:
        assert f"{path}: line 1" in str(caught.value)


def test_a_line_that_is_cut_off_is_named(tmp_path):
    path = write_vcr(tmp_path)
    path.write_text(path.read_text() + path.read_text()[:90])
    with pytest.raises(DataError, match=r"val\.jsonl: line 2: line 1, column \d+: not valid JSON"):
        read_vcr(path, tmp_path, NAMES)
    path.write_text("\n")
    with pytest.raises(DataError, match="no JSON value in it"):
        read_vcr(path, tmp_path, NAMES)


def test_names_are_the_second_column(tmp_path):
    (tmp_path / "names.csv").write_text(",name\n1,Casey\n2,Riley\n")
    assert read_names(tmp_path / "names.csv") == ["Casey", "Riley"]
    (tmp_path / "names.csv").write_text(",name\n1,Casey\n2\n")
    with pytest.raises(DataError, match="line 3: no name"):
        read_names(tmp_path / "names.csv")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_every_text_of_a_split_has_its_box(tmp_path, protocol):
    found = read_referring(write_references(tmp_path, *references(), protocol), "testA")
    assert [(r.sentence_id, r.image_id, r.text) for r in found] == [
        (2, "582", "man 0"),
        (3, "582", "man 1"),
    ]
    assert found[0].box == (1.5, 2, 31.5, 42) and (found[0].width, found[0].height) == (640, 480)


def _move(value: Any, *path: Any) -> Callable[[list[Any], dict[str, Any]], None]:
    def change(refs: list[Any], instances: dict[str, Any]) -> None:
        place: Any = {"refs": refs, **instances}
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_move(9, "refs", 0, "image_id"), "reference 0: image 9 is not in"),
        (_move(99, "refs", 0, "ann_id"), "reference 0: object 99 of image 581 is not in"),
        (_move(11, "refs", 0, "ann_id"), "object 11 of image 581 is of image 582 in"),
        (_move([1, 2, 640, 40], "annotations", 0, "bbox"), "object 10: bbox [1, 2, 640, 40]: not"),
        (_move([1, 2, 3], "annotations", 0, "bbox"), "expected x, y, width and height"),
        (_move("dev", "refs", 0, "split"), "reference 1: split 'dev': expected one of train"),
        (_move("x", "refs", 0, "ref_id"), "[0].ref_id is 'x'"),
    ],
)
def test_a_wrong_reference_is_one_error(tmp_path, change, message):
    refs, instances = references()
    change(refs, instances)
    with pytest.raises(DataError) as caught:
        read_referring(write_references(tmp_path, refs, instances), "train")
    assert message in str(caught.value)


def test_a_pickle_of_references_runs_nothing(tmp_path):
    class Code:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    refs, instances = references()
    write_references(tmp_path, [*refs, Code()], instances, 2)
    with pytest.raises(DataError, match="refused, because it is a pickle that wants to run"):
        read_referring(tmp_path, "train")
    write_references(tmp_path, *references())
    with pytest.raises(DataError, match="no text of split 'val'"):
        read_referring(tmp_path, "val")


def test_captions_are_read_by_file_or_by_id(tmp_path):
    line = {"img_path": "0123.jpg", "id": 7, "sentences": ["a man", "a boat"]}
    path = write_captions(tmp_path / "a.jsonline", line)
    (image,) = read_captions(path)
    assert (image.image_id, image.captions) == ("123", ("a man", "a boat"))
    assert read_captions(path, by_id=True)[0].image_id == "7"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"img_path": "a.jpg", "sentences": ["x"]}], "line 1: field 'img_path' is 'a.jpg'"),
        ([{"img_path": "1.jpg", "sentences": []}], "line 1: image 1: it has no caption"),
        ([{"img_path": "1.jpg", "sentences": [" "]}], "line 1: image 1: it has no caption"),
        ([{"img_path": "1.jpg", "sentences": ["x"]}] * 2, "line 2: image 1 was in an earlier line"),
        ([{"sentences": ["x"]}], "line 1: img_path: "),
    ],
)
def test_a_wrong_caption_is_one_error(tmp_path, lines, message):
    with pytest.raises(DataError) as caught:
        read_captions(write_captions(tmp_path / "a.jsonline", *lines))
    assert message in str(caught.value)


def test_hard_negatives_are_the_nearest_others(tmp_path):
    features = torch.tensor([[0.0], [1.0], [1.5], [9.0], [1.0]])
    found = find_hard_negatives(list("abcde"), features, 3)
    assert found.pool[:, 0].tolist() == [0, 1, 2, 3, 4], "each image itself first, twins too"
    others = found.of()
    assert set(others["a"]) == {"b", "e"} and others["b"] == ("e", "c")
    found.write(tmp_path / "hard_negative.pkl")
    read = read_hard_negatives(tmp_path / "hard_negative.pkl", ["a", "d"])
    assert read.images == found.images and np.array_equal(read.pool, found.pool)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected train_hard_pool and train_image_list"),
        ((np.zeros((0, 100), int), []), "for 0 images: every image needs itself and a neighbour"),
        ((np.zeros((2, 3), int), None), "train_image_list is None: expected a list of image ids"),
        (([[0, 1]], ["a", "b"]), "train_hard_pool is [[0, 1]]: expected an array"),
        ((np.zeros((2, 1), int), ["a", "b"]), "every image needs itself and a neighbour"),
        ((np.zeros((1, 3), int), ["a", "b"]), "a row for each image"),
        ((np.zeros((2, 3)), ["a", "b"]), "of float64 for 2 images: expected whole numbers"),
        ((np.full((2, 3), 2), ["a", "b"]), "names place 2: there are 2 images"),
        ((np.zeros((2, 3), int), ["b", "c"]), "image a is not in it, and 0 others"),
    ],
)
def test_a_wrong_pool_is_one_error(tmp_path, content, message):
    path = tmp_path / "hard_negative.pkl"
    if isinstance(content, tuple):
        content = dict(zip(("train_hard_pool", "train_image_list"), content, strict=True))
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError) as caught:
        read_hard_negatives(path, ["a", "b"])
    assert message in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(DataError, match="1 images: a hard negative is another image"):
        find_hard_negatives(["a"], torch.zeros(1, 2))
    assert isinstance(HardNegatives(("a",), np.zeros((1, 1), np.int64)).of(), dict)
