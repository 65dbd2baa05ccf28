"""Both annotation formats and the answer vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data.annotations import AnswerVocabulary, Example, read_lxmert_json, read_official
from common.errors import DataError

TEN = 5 * ["yes"] + 3 * ["no"] + ["A maybe.", "red"]
LXMERT_ROW = {
    "answer_type": "other",
    "img_id": "COCO_train2014_000000458752",
    "label": {"net": 1},
    "question_id": 458752000,
    "question_type": "what is this",
    "sent": "What is this?",
}


def question(number: int, **changes: Any) -> dict[str, Any]:
    return {"image_id": 42, "question_id": number, "question": "Is it red?"} | changes


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    answers = [{"answer": a, "answer_id": i} for i, a in enumerate(TEN, 1)]
    return {
        "image_id": 42,
        "question_id": number,
        "question_type": "is it",
        "answer_type": "yes/no",
        "multiple_choice_answer": "yes",
        "answers": answers,
    } | changes


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def official(folder: Path, questions: list[Any], annotations: list[Any]) -> tuple[Path, Path]:
    head = {"info": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    return (
        write(folder / "q.json", {**head, "questions": questions}),
        write(folder / "a.json", {**head, "annotations": annotations}),
    )


def test_official_files_pair_by_question_id_in_any_order(tmp_path: Path) -> None:
    paths = official(tmp_path, [question(1), question(2)], [annotation(2), annotation(1)])
    first, second = read_official(*paths)
    assert (first.question_id, second.question_id) == (1, 2)
    assert first.image_id == "COCO_train2014_000000000042"
    assert first.answers == {"yes": 1.0, "no": 0.9, "maybe": 0.3, "red": 0.3}
    assert (first.question, first.answer_type, first.question_type) == (
        "Is it red?",
        "yes/no",
        "is it",
    )


def test_vqa_cp_lists_take_the_part_of_each_question(tmp_path: Path) -> None:
    questions = [question(1, coco_split="train2014"), question(2, coco_split="val2014")]
    paths = (
        write(tmp_path / "q.json", questions),
        write(tmp_path / "a.json", [annotation(1), annotation(2)]),
    )
    keys = [e.image_id for e in read_official(*paths, image_prefix="X")]
    assert keys == ["X_train2014_000000000042", "X_val2014_000000000042"]


def test_questions_alone_are_a_test_part(tmp_path: Path) -> None:
    path = official(tmp_path, [question(1)], [])[0]
    assert read_official(path)[0].answers is None


def test_the_files_of_the_original_system_read(goldens: Path) -> None:
    folder = goldens / "vlbert" / "vqa_data" / "raw" / "coco" / "vqa"
    examples = read_official(
        folder / "v2_OpenEnded_mscoco_train2014_questions.json",
        folder / "v2_mscoco_train2014_annotations.json",
    )
    assert [e.question_id for e in examples] == [9000, 9001, 25000]
    assert examples[0].answers == {"yes": 1.0, "no": 0.9, "red": 0.6, "zebra": 0.3}


def test_lxmert_json_reads_into_the_same_example(tmp_path: Path) -> None:
    no_label = {k: v for k, v in LXMERT_ROW.items() if k not in ("label", "answer_type")}
    path = write(tmp_path / "train.json", [LXMERT_ROW, no_label | {"question_id": 7}])
    labelled, test = read_lxmert_json(path)
    assert labelled == Example(
        458752000,
        "COCO_train2014_000000458752",
        "What is this?",
        {"net": 1},
        "other",
        "what is this",
    )
    assert test.answers is None and test.answer_type is None


def test_both_forms_of_one_data_set_give_the_same_examples(easy_vqa_root: Path) -> None:
    folder = easy_vqa_root / "data" / "easy_vqa"
    for split in ("pretrain", "train", "nominival", "minival"):
        assert read_lxmert_json(folder / f"{split}.json") == read_official(
            folder / f"v2_OpenEnded_easy_vqa_{split}_questions.json",
            folder / f"v2_easy_vqa_{split}_annotations.json",
            image_prefix="EASY",
        )


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != key}


BAD_OFFICIAL = {
    "alone": (
        [question(1), question(5)],
        [annotation(1)],
        r"q\.json: entry 2, question 5 has no annotation in .*a\.json \(1 such",
    ),
    "stray": (
        [question(1)],
        [annotation(1), annotation(9)],
        r"a\.json: entry 2, question 9 has no question in .*q\.json \(1 such",
    ),
    "twice": (
        [question(1), question(1)],
        [annotation(1)],
        r"q\.json: entry 2, question 1: question id occurs twice \(first in .*entry 1",
    ),
    "empty": (
        [question(1, question="  ")],
        [annotation(1)],
        r"q\.json: entry 1, question 1: field 'question': empty question '  '",
    ),
    "no image": (
        [without(question(1), "image_id")],
        [annotation(1)],
        r"q\.json: entry 1, question 1: field 'image_id' is missing \(it has question_id",
    ),
    "no answers": (
        [question(1)],
        [without(annotation(1), "answers")],
        r"a\.json: entry 1, question 1: field 'answers' is missing",
    ),
    "answer": (
        [question(1)],
        [annotation(1, answers=[{"answer": 3}])],
        r"a\.json: entry 1, question 1: field 'answers': \{'answer': 3\} has no text",
    ),
    "type": (
        [question(1)],
        [annotation(1, answer_type="colour")],
        r"field 'answer_type' is 'colour', expected one of",
    ),
    "image": (
        [question(1)],
        [annotation(1, image_id=43)],
        r"field 'image_id' is 43, the question is about image 42",
    ),
    "number": ([question(1, question=3)], [annotation(1)], r"field 'question' is 3, expected str"),
    "object": (["?"], [annotation(1)], r"q\.json: entry 1: '\?' is not an object"),
}


@pytest.mark.parametrize("name", BAD_OFFICIAL)
def test_bad_official_file_is_named_with_entry_and_value(tmp_path: Path, name: str) -> None:
    questions, annotations, message = BAD_OFFICIAL[name]
    with pytest.raises(DataError, match=message):
        read_official(*official(tmp_path, questions, annotations))


def test_official_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    questions, annotations = official(tmp_path, [question(1)], [annotation(1)])
    with pytest.raises(DataError, match=r"a\.json: key 'questions' is missing"):
        read_official(annotations, questions)
    path = write(tmp_path / "cp.json", [question(1)])
    with pytest.raises(DataError, match="'coco_split' is missing.*part of image 42 is unknown"):
        read_official(path)


BAD_LXMERT = {
    "empty": ({"sent": ""}, r"t\.json: entry 1, question 458752000: field 'sent': empty question"),
    "score": ({"label": {"net": 1.5}}, r"field 'label': answer 'net' has score 1\.5"),
    "zero": ({"label": {"net": 0}}, r"answer 'net' has score 0, expected a number in \(0, 1\]"),
    "label": ({"label": ["net"]}, r"field 'label' is \['net'\], expected dict"),
    "image": ({"img_id": 3}, r"field 'img_id' is 3, expected str"),
    "kind": ({"kind": "all other"}, r"field 'kind' is 'all other', expected a word of letters"),
    "kind of an answer": ({"kind": "other"}, r"field 'kind' is 'other', .*none of \('yes/no', "),
}


@pytest.mark.parametrize("name", BAD_LXMERT)
def test_bad_lxmert_row_is_named_with_entry_and_value(tmp_path: Path, name: str) -> None:
    changes, message = BAD_LXMERT[name]
    with pytest.raises(DataError, match=message):
        read_lxmert_json(write(tmp_path / "t.json", [LXMERT_ROW | changes]))


def test_truncated_json_is_named_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([LXMERT_ROW], indent=1)[:-30])
    with pytest.raises(DataError, match=r"t\.json: line 10, column \d+: not valid JSON .* trunc"):
        read_lxmert_json(path)
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        read_lxmert_json(tmp_path / "nowhere.json")


def test_vocabulary_is_written_and_read_as_exact_inverses(tmp_path: Path) -> None:
    vocabulary = AnswerVocabulary(["", "yes", "no", "café"])
    vocabulary.write(tmp_path)
    again = AnswerVocabulary.read(tmp_path)
    assert again.answers == ["", "yes", "no", "café"] and again.labels == vocabulary.labels
    assert len(again) == 4 and "no" in again and "maybe" not in again
    assert again.decode(torch.tensor([[0.0, 1, 2, 0], [9, 0, 0, 0]])) == ["no", ""]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"yes": 1, "no": 0}, r"ans2label\.json: answer 'yes' has label 1, .* has it at 0"),
        ({"yes": 0}, r"answer 'no' has label None, .* has it at 1"),
        ({"yes": 0, "no": 1, "red": 2}, r"answer 'red' has label 2, .* has it at None"),
    ],
)
def test_vocabulary_files_that_disagree_are_refused(
    tmp_path: Path, labels: dict[str, int], message: str
) -> None:
    write(tmp_path / "trainval_label2ans.json", ["yes", "no"])
    write(tmp_path / "trainval_ans2label.json", labels)
    with pytest.raises(DataError, match=message):
        AnswerVocabulary.read(tmp_path)


def test_vocabulary_counts_best_answers_and_keeps_the_frequent() -> None:
    answers = [{"red": 1.0, "pink": 0.3}, {"red": 0.9}, {"blue": 1.0}, {"pink": 0.6, "blue": 0.6}]
    examples = [Example(i, "x", "q", a) for i, a in enumerate(answers)] + [Example(9, "x", "q")]
    assert AnswerVocabulary.build(examples, minimum=2).answers == ["blue", "red"]
    assert AnswerVocabulary.build(examples, minimum=1).answers == ["blue", "red", "pink"]
    with pytest.raises(DataError, match="0 answers in the vocabulary"):
        AnswerVocabulary.build(examples, minimum=9)
    with pytest.raises(DataError, match=r"repeated: \['a'\]"):
        AnswerVocabulary(["a", "b", "a"])


def test_unknown_answer_is_skipped_or_named() -> None:
    example = Example(5, "x", "What colour?", {"red": 1.0, "mauve": 0.3})
    vocabulary = AnswerVocabulary(["blue", "red"])
    assert vocabulary.encode(example) == {1: 1.0}
    with pytest.raises(DataError, match=r"question 5 \('What colour\?'\): answer 'mauve' is not"):
        vocabulary.encode(example, unknown="error")


@pytest.mark.parametrize("part", ["minival2014", "valminusminival2014"])
def test_parts_of_val_are_about_val_s_images(tmp_path: Path, part: str) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": part, "questions": [question(1)]}))
    (example,) = read_official(tmp_path / "q.json")
    assert example.image_id == "COCO_val2014_000000000042"


def test_the_part_of_a_question_comes_before_that_of_its_file(tmp_path: Path) -> None:
    rows = [question(1, coco_split="train2014"), question(2)]
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": rows}))
    first, second = read_official(tmp_path / "q.json")
    assert first.image_id == "COCO_train2014_000000000042"
    assert second.image_id == "COCO_val2014_000000000042"
