"""Names of files made of texts."""

from __future__ import annotations

from common.files import STEM, file_stem


def test_words_of_any_script_name_a_file():
    assert file_stem("shape.png What colour?") == "shape-png-What-colour"
    names = {file_stem(text) for text in ("p1 Какого цвета?", "p1 Сколько?", "p1 这是什么?")}
    assert names == {"p1-Какого-цвета", "p1-Сколько", "p1-这是什么"}


def test_long_texts_that_begin_alike_have_names_of_their_own_that_fit():
    texts = ["и" * 300 + end for end in ("а", "б", "а")]
    names = [file_stem(text) for text in texts]
    assert names[0] == names[2] != names[1]
    assert all(len(name.encode()) <= STEM and "/" not in name for name in names)
