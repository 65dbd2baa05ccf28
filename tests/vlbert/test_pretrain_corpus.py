"""Text files that are read line by line, and the texts that stand beside captions."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest

from common.data.tokenizer import Tokenizer, small_vocabulary
from common.errors import DataError
from vlbert.pretraining_corpus import Corpus, Texts
from vlbert.pretraining_lines import EVERY, LineFile


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    folder = tmp_path / "bert"
    folder.mkdir()
    words = small_vocabulary([f"w{n}" for n in range(30)] + ["dog"])
    (folder / "vocab.txt").write_text("\n".join([*words, "##gy"]) + "\n")
    return Tokenizer(folder)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_every_line_with_text_is_found_in_any_order(tmp_path, ending, last):
    draw = random.Random(1)
    lines = [
        " " * draw.randrange(3) if draw.random() < 0.3 else f"line {n} é" * draw.randrange(1, 4)
        for n in range(5 * EVERY)
    ]
    text = ending.join(lines) + (ending if last else "")
    (tmp_path / "x.doc").write_bytes(text.encode())
    file = LineFile(tmp_path / "x.doc", progress=False)
    expected = [line.strip() for line in lines if line.strip()]
    assert len(file) == len(expected)
    for number in draw.sample(range(len(expected)), len(expected)):
        assert file[number] == expected[number]
    rows = [row for row, line in enumerate(lines, 1) if line.strip()]
    assert [file.where(n) for n in range(len(file))] == [f"{file.path}, row {row}" for row in rows]
    assert list(file) == [(file.where(n), expected[n]) for n in range(len(file))]
    assert pickle.loads(pickle.dumps(file))[len(file) - 1] == expected[-1]
    with pytest.raises(IndexError):
        file[len(file)]


def test_few_places_are_remembered_of_a_file_with_many_lines(tmp_path):
    path = write(tmp_path / "x.doc", [f"sentence {n}" for n in range(20_000)])
    file = LineFile(path, progress=False)
    assert len(pickle.dumps(file)) < 20_000
    assert file[19_999] == "sentence 19999"


def test_what_is_wrong_with_a_file_names_file_and_row(tmp_path):
    path = tmp_path / "x.doc"
    path.write_bytes(b"good\n\n\xff\xfe bad\n")
    file = LineFile(path, progress=False)
    assert file[0] == "good"
    with pytest.raises(DataError, match=r"x\.doc, row 3: not UTF-8"):
        file[1]
    path.write_bytes(b"goo")
    with pytest.raises(DataError, match="became shorter"):
        file[0]
    for content, message in ((b"\n  \n", "no line with text"), (None, "cannot be read")):
        other = tmp_path / "y.doc"
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(DataError, match=message):
            LineFile(other, progress=False)


def test_following_lines_are_appended_until_a_text_is_long_enough_and_it_is_cut(
    tmp_path, tokenizer
):
    files = [
        write(tmp_path / "a.doc", ["w1 w2", "", "w3 doggy"]),
        write(tmp_path / "b.doc", ["w4 w5 w6"]),
    ]

    def texts(shortest: int, longest: int) -> list[list[str]]:
        corpus = Corpus(files, tokenizer, longest, shortest, progress=False)
        names = tokenizer.text().splitlines()
        return [[names[i] for i in corpus[n].ids] for n in range(len(corpus))]

    assert texts(0, 9) == [["w1", "w2"], ["w3", "dog", "##gy"], ["w4", "w5", "w6"]]
    # doggy is one word of two pieces; behind the last line comes the first one.
    assert texts(4, 9) == [
        ["w1", "w2", "w3", "dog", "##gy"],
        ["w3", "dog", "##gy", "w4", "w5", "w6"],
        ["w4", "w5", "w6", "w1", "w2"],
    ]
    assert texts(4, 4) == [
        ["w1", "w2", "w3", "dog"],
        ["w3", "dog", "##gy", "w4"],
        ["w4", "w5", "w6", "w1"],
    ]
    whole = texts(1000, 1000)  # no text is longer than the corpus
    assert [len(text) for text in whole] == [8, 8, 8]
    corpus = Corpus(files, tokenizer, 9, 4, progress=False)
    assert corpus[0].words == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(("captions", "texts"), [(1, 1), (64, 16), (16, 32), (3, 2)])
def test_all_texts_are_read_before_any_is_read_again(tmp_path, tokenizer, captions, texts):
    path = write(tmp_path / "a.doc", [f"w{n}" for n in range(30)])
    corpus = Corpus([path], tokenizer, 9, 0, progress=False)
    beside = Texts(corpus, captions, texts)
    everything = range(captions * 30)
    numbers, found = beside.beside(everything, seed=3, epoch=0)
    assert numbers == list(range(30 * texts))
    order = [text.ids[0] for text in found]
    for start in range(0, len(order), 30):
        assert len(set(order[start : start + 30])) == 30
    # Any part of the captions has the texts that it has in the whole.
    parts = [beside.beside([i], 3, 0) for i in everything]
    assert [n for part, _ in parts for n in part] == numbers
    assert [text.ids[0] for _, part in parts for text in part] == order
    assert [text.ids[0] for text in beside.beside(everything, 3, 1)[1]] != order
    assert [text.ids[0] for text in beside.beside(everything, 4, 0)[1]] != order
