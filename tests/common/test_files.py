"""Texts and JSON from elsewhere: a byte order mark is no content, damage is one `DataError`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.data.annotations import read_official
from common.errors import DataError
from common.features.lxmert_tsv import import_tsv
from common.reading import parse_json, read_json, read_text
from tests.common.data_files import annotation, plain_row, question, write_tsv
from vlbert.data_answers import AnswerFile

BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_skipped_everywhere(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(BOM + b'{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
    (tmp_path / "answers.txt").write_bytes(BOM + b"red\nblue\n<unk>\n")
    assert AnswerFile(tmp_path / "answers.txt").answers[0] == "red"
    tsv = write_tsv(tmp_path / "a.tsv", [plain_row("one", 8), plain_row("two", 8)])
    tsv.write_bytes(BOM + tsv.read_bytes() + b"\n")  # and an empty last line
    assert import_tsv(tsv, tmp_path / "store", width=8, progress=False).ids() == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        ('{"a": 1', "line 1, column 8: not valid JSON"),
        ("", "line 1, column 1: not valid JSON"),
    ],
)
def test_damaged_json_is_one_error_that_names_the_file(tmp_path: Path, text, reason) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    for read in (lambda: read_json(path), lambda: parse_json(text.encode(), str(path))):
        with pytest.raises(DataError, match=reason) as error:
            read()
        assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 500


def test_what_is_no_text_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for name, reason in (
        ("latin", "byte 3 is not UTF-8"),
        ("", "cannot be read"),
        ("x", "no such"),
    ):
        with pytest.raises(DataError, match=reason):
            read_text(tmp_path / name)


def test_answers_that_repeat_the_question_are_read(tmp_path: Path) -> None:
    asked, answered = question(1, 7), annotation(1, 7, "red")
    for answer in answered["answers"]:
        answer["question_id"] = 1
    (tmp_path / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": [asked]}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [answered]}))
    (example,) = read_official(tmp_path / "q.json", tmp_path / "a.json")
    assert example.answers is not None and "red" in example.answers
