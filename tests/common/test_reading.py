"""Texts and JSON from elsewhere: a byte order mark is no content, damage is one `DataError`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NotRequired

import numpy as np
import pytest
from typing_extensions import TypedDict

from common.data.annotations import read_official
from common.errors import DataError
from common.features.lxmert_tsv import import_tsv
from common.reading import checked, parse_json, parse_yaml, read_json, read_npz, read_text, short
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


def bomb(levels: int) -> str:
    """A YAML alias bomb: 9 to the power of `levels` values when it is written out."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 2024-13-45", "not valid YAML: .*month"),
        ("a: !!float abc", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: not valid YAML"),
        ("[" * 3000, "nested too deeply"),
        (bomb(9), "more than 100,000 values with every alias written out"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: not valid YAML: key 'a' occurs twice"),
        ("a: b: c", "line 1, column 5: not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
    ],
)
def test_damaged_yaml_is_one_short_error(text, reason) -> None:
    with pytest.raises(DataError, match=reason) as error:
        parse_yaml(text, "my.yaml")
    assert str(error.value).startswith("my.yaml: ") and len(str(error.value)) < 300


def test_yaml_values_are_read_with_their_types() -> None:
    text = "\ufeffa: &a {x: 1, y: [1.5, yes, ~]}\nb: *a\nc: text"[1:]
    both = {"x": 1, "y": [1.5, True, None]}
    assert parse_yaml(text, "my.yaml") == {"a": both, "b": both, "c": "text"}
    assert parse_yaml("", "my.yaml") is None


class Part(TypedDict):
    number: int
    share: float
    names: list[str]
    more: NotRequired[dict[str, int | None] | None]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"number": 1.5}, "number is 1.5: "),
        ({"number": "1"}, "number is '1': "),
        ({"number": True}, "number is True: "),
        ({"names": ["a", 3]}, r"names\[1\] is 3: "),
        ({"names": "abc"}, "names is 'abc': "),
        ({"more": {"x": []}}, "more.x.* is .*: "),
    ],
)
def test_another_type_than_the_schema_s_is_named_with_its_place(changes, reason) -> None:
    good = {"number": 1, "share": 2, "names": ["a"], "other": object()}
    assert checked(good, Part, "f.json") is good
    with pytest.raises(DataError, match=rf"^f\.json: {reason}.*; do it again$"):
        checked(good | changes, Part, "f.json", "do it again")
    with pytest.raises(DataError, match="f.json: names: field required"):
        checked({"number": 1, "share": 2}, Part, "f.json")


def test_values_in_messages_are_short_however_large_they_are() -> None:
    nest: list[object] = []
    for _ in range(2000):
        nest = [nest]
    for value in ("x" * 10**6, 10**4000, list(range(10**5)), nest, {"a": "b" * 999}, "\ud83d"):
        assert len(short(value)) <= 60
        short(value).encode()
    assert short("it's") == '"it\'s"' and short([1, 2]) == "[1, 2]"


def test_arrays_are_bounded_before_memory_is_taken(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(5000))
    assert read_npz(tmp_path / "a.npz", "a.npz", ["x"])["x"].shape == (5000,)
    with pytest.raises(DataError, match=r"a\.npz: array 'x\.npy' has 40,128 bytes: more than"):
        read_npz(tmp_path / "a.npz", "a.npz", ["x"], limit=1000)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9000000,)}"
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("x.npy", header.ljust(127) + b"\n" + bytes(8))
    with pytest.raises(DataError, match="which are 72,000,000: it is damaged"):
        read_npz(tmp_path / "b.npz", "b.npz", ["x"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (r'["a", "\ud83d"]', r"\[1\]: "),
        (r'{"q": [{"question_id": 7, "sent": "What \udc80?"}]}', r"q\[0\] \(question 7\).sent: "),
        (r'{"\ud83d": 1}', "a key of the object: "),
    ],
)
def test_half_of_a_character_is_named_with_its_place(text: str, place: str) -> None:
    with pytest.raises(DataError, match=f"^f.json: {place}"):
        parse_json(text, "f.json")
    assert parse_json(r'["\ud83d\ude00", "\\ud83d"]', "f.json") == ["\U0001f600", "\\ud83d"]
