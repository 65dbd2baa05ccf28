"""Tables of questions: what is read, and what is refused with line, value and the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.data.answer_scores import soft_scores
from common.errors import DataError
from common.own_data import read_table
from common.own_data.table import scores_of
from tests.common.own_data.files import write_csv

PLAIN = "image,question,answer\na.jpg,What is it?,A Cat\nb.jpg,How many?,two\n"
EXPECTED = [
    ("a.jpg", "What is it?", {"cat": 1.0}, "other", 1),
    ("b.jpg", "How many?", {"2": 1.0}, "number", 2),
]


def table(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[tuple[Any, ...]]:
    found = read_table(path)
    assert not found.problems.found, found.problems.found
    examples = [row.example for row in found.rows]
    return [(e.image_id, e.question, e.answers, e.answer_type, e.question_id) for e in examples]


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.rstrip("\n"),
        PLAIN + "\n\n",
        PLAIN.replace("image,question,answer", " Image ,QUESTION,answer"),
        PLAIN.replace("What is it?", '"What is it?"'),
        "sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
        "SEP=\t\n" + PLAIN.replace(",", "\t"),
    ],
)
def test_a_table_is_read_however_it_is_written(tmp_path: Path, content: str) -> None:
    assert values(table(tmp_path, content)) == EXPECTED


def test_json_lines_are_the_same_table(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "question": "What is it?", "answer": "A Cat"},
        {"image": "b.jpg", "question": "How many?", "answer": 2},
    ]
    text = "\n\n".join(json.dumps(line) for line in lines)
    assert values(table(tmp_path, text, "t.jsonl")) == EXPECTED


def test_keys_of_json_lines_are_compared_as_the_header_is(tmp_path: Path) -> None:
    lines = [
        {"Image": "a.jpg", "QUESTION": "What is it?", " answer": "A Cat", "Note": 1},
        {"image": "b.jpg", "question": "How many?", "answer": "two", "Answer": "three"},
    ]
    path = table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl")
    found = read_table(path)
    assert found.rows[0].example.answers == {"cat": 1.0} and found.ignored == ["note"]
    assert found.problems.found == [(2, "has 'answer' twice: keep one")]


def test_texts_may_have_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "question": 'Is "this",\nthat, so?', "answer": "yes"},
        {"image": "a.jpg", "question": "", "answer": "no"},
    ]
    found = read_table(write_csv(tmp_path / "t.csv", rows))
    assert found.rows[0].example.question == 'Is "this",\nthat, so?'
    assert found.problems.found == [(4, "'question' is empty")]  # the first row has two lines


@pytest.mark.parametrize(
    ("cell", "scores"),
    [
        ("yes|no", {"yes": 0.5, "no": 0.5}),
        ("Yes.| the yes |no", {"yes": round(2 / 3, 10), "no": round(1 / 3, 10)}),
        ('["red", "red", "blue", "red"]', {"red": 0.75, "blue": 0.25}),
        ('{"red": 1, "crimson": 0.4}', {"red": 1.0, "crimson": 0.4}),
        ("3", {"3": 1.0}),
    ],
)
def test_several_answers_are_scored(tmp_path: Path, cell: str, scores: dict[str, float]) -> None:
    row = {"image": "a", "question": "b?", "answers": cell}
    (found,) = read_table(write_csv(tmp_path / "t.csv", [row])).rows
    assert found.example.answers == scores
    if not cell[0].isalnum():
        line = json.dumps(row | {"answers": json.loads(cell)})
        (again,) = read_table(table(tmp_path, line, "t.jsonl")).rows
        assert again.example.answers == scores


def test_ten_answers_are_scored_as_vqa_does_and_unanimous_ones_always_score_one() -> None:
    ten = ["red"] * 6 + ["blue"] * 2 + ["green", "grey"]
    assert scores_of(ten) == soft_scores(ten)
    for people in range(1, 12):
        assert scores_of(["red"] * people) == {"red": 1.0}


def test_columns_by_choice_are_kept(tmp_path: Path) -> None:
    row = {
        "image": "a.jpg",
        "question": "What?",
        "answer": "7",
        "question_id": "007",
        "split": "Dev",
        "answer_type": "other",
        "question_type": "what",
        "kind": "odd",
        "note": "ignored",
    }
    read = read_table(write_csv(tmp_path / "t.csv", [row, row | {"question_id": "8"}]))
    found = read.rows[0]
    assert (found.split, read.split, read.ignored) == ("valid", True, ["note"])
    example = found.example
    assert (example.question_id, example.answer_type) == ("007", "other")
    assert (example.question_type, example.kind) == ("what", "odd")
    assert read.rows[1].example.question_id == 8


GOOD = {"image": "a.jpg", "question": "What?", "answer": "cat"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"image": ""}, "'image' is empty"),
    ({"image": "a\0b"}, "'image' is 'a\\x00b'"),
    ({"question": "  "}, "'question' is empty"),
    ({"answer": ""}, "'answer' is empty (only test questions may have none)"),
    ({"answer": "the"}, "'answer': 'the': nothing is left of it"),
    ({"answer": '["yes", 1.5]'}, "'answer': 1.5: expected a text"),
    ({"answer": '["yes"'}, "not valid JSON"),
    ({"answer": '{"yes": 2}'}, "'yes' has score 2: expected a number above 0"),
    ({"split": "holdout"}, "'split' is 'holdout': expected train, valid or test"),
    ({"answer_type": "colour"}, "field 'answer_type' is 'colour'"),
    ({"kind": "overall"}, "field 'kind' is 'overall'"),
    ({"question_id": "1"}, "question_id '1' is that of line 2 too"),
]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_row_is_named_with_its_line_and_value(
    tmp_path: Path, form: str, change: dict[str, Any], reason: str
) -> None:
    rows = []
    for number in range(3):
        right = GOOD | {"split": "train", "question_id": str(number + 1)}
        rows.append({key: right.get(key, "") for key in (GOOD | change)})
    rows[1] |= change
    if form == "csv":
        path, line = write_csv(tmp_path / "t.csv", rows), 3
    else:
        path, line = table(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl"), 2
        reason = reason.replace("that of line 2", "that of line 1")
    found = read_table(path)
    assert [number for number, _ in found.problems.found] == [line]
    assert reason in found.problems.found[0][1]
    assert len(found.rows) == 2 and found.total == 3
    with pytest.raises(DataError) as error:
        found.problems.check(skip=False)
    said = str(error.value)
    assert f"{path}: 1 row cannot be used" in said and f"line {line}: " in said
    assert "--skip-bad" in said
    found.problems.check(skip=True)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("image,answer\na,b\n", "t.csv", "column 'question' is missing: line 1 has image, answer"),
        ("image,question\na,b\n", "t.csv", "column 'answer' is missing"),
        ("image,image,question,answer\n", "t.csv", "line 1 has 'image' twice"),
        ("image,question,answer,answers\n", "t.csv", "'answer' and 'answers'"),
        ("", "t.csv", "column 'image' is missing: line 1 has nothing"),
        ("image,question,answer\n", "t.csv", "no rows in it"),
        ("\n", "t.jsonl", "no rows in it"),
        (PLAIN.encode("utf-16"), "t.csv", "line 1: byte 0xff is not UTF-8"),
        (
            PLAIN.replace("A Cat", "Café").encode("latin-1"),
            "t.csv",
            "line 2: byte 0xe9 is not UTF-8",
        ),
        ("sep=;\nimage;question\n", "t.csv", "column 'answer' is missing: line 2 has image"),
        ("sep=|\nimage|question|answer\n", "t.csv", "line 1 says that '|' is between cells"),
        ('[{"image": "a"},\n{"image": "b"}]', "t.jsonl", "expected one JSON object a line"),
        ("\n [\n", "t.jsonl", "begins with [: expected one JSON object a line"),
        (PLAIN, "t.xlsx", "ending '.xlsx': expected .csv"),
        (PLAIN + 'c.jpg,"What?,x\n', "t.csv", "line 4: no CSV from here on"),
        (PLAIN + 'c.jpg,"Wh"at?,x\n', "t.csv", "line 4: no CSV from here on"),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, content: str | bytes, name: str, reason: str
) -> None:
    path = table(tmp_path, content, name)
    with pytest.raises(DataError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)


def test_rows_of_another_length_and_lines_that_are_no_json_are_named(tmp_path: Path) -> None:
    found = read_table(table(tmp_path, PLAIN + "c.jpg,Is it, or not?,yes\n"))
    assert found.problems.found == [
        (4, "4 cells, the header has 3: a text with , in it needs quotes")
    ]
    found = read_table(table(tmp_path, json.dumps(GOOD) + "\n[1]\n{x\n", "t.jsonl"))
    assert [line for line, _ in found.problems.found] == [2, 3]
    assert len(found.rows) == 1


def test_ids_and_splits_are_for_all_rows_or_none(tmp_path: Path) -> None:
    given = (("a", "train"), ("", "train"), ("c", ""), ("d", "valid"), ("", ""))
    rows = [GOOD | {"question_id": number, "split": split} for number, split in given]
    found = read_table(write_csv(tmp_path / "t.csv", rows))
    assert sorted(found.problems.found) == [
        (3, "'question_id' is empty, other rows have one"),
        (4, "'split' is empty, other rows have one"),
        (6, "'question_id' is empty, other rows have one"),
    ]
    assert [row.line for row in found.rows] == [2, 5]


@pytest.mark.parametrize("first", [True, False])
def test_numbers_of_rows_that_have_no_id_are_no_double_ids(tmp_path: Path, first: bool) -> None:
    lines = [GOOD, GOOD, GOOD]
    lines[0 if first else 1] = GOOD | {"question_id": 2 if first else 1}
    found = read_table(table(tmp_path, "\n".join(map(json.dumps, lines)), "t.jsonl"))
    reason = "'question_id' is empty, other rows have one"
    assert sorted(found.problems.found) == [(2 if first else 1, reason), (3, reason)]
    assert [row.example.question_id for row in found.rows] == [2 if first else 1]


def test_test_questions_have_answers_all_of_them_or_none(tmp_path: Path) -> None:
    rows = [GOOD | {"split": split} for split in ("train", "valid", "test", "test")]
    hidden = [row | ({"answer": ""} if row["split"] == "test" else {}) for row in rows]
    found = read_table(write_csv(tmp_path / "t.csv", hidden))
    assert [row.example.answers for row in found.rows] == [{"cat": 1.0}] * 2 + [None] * 2
    found = read_table(write_csv(tmp_path / "t.csv", [*rows, hidden[-1]]))
    assert found.problems.found == [(6, "'answer' is empty, other test questions have one")]


def test_many_problems_are_counted_and_the_first_are_shown(tmp_path: Path) -> None:
    found = read_table(write_csv(tmp_path / "t.csv", [GOOD, *[GOOD | {"answer": ""}] * 30]))
    with pytest.raises(DataError) as error:
        found.problems.check(skip=False)
    said = str(error.value)
    assert "30 rows cannot be used" in said and "… and 25 more" in said
    assert said.count("\n") == 7 and len(said) < 1200
