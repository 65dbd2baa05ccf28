"""CONTRIBUTING.md names files and names that are there, and the checks that are run."""

from __future__ import annotations

import re
from pathlib import Path

from common.files import repository_root

ROOT = repository_root()
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)+|[\w-]+\.(py|toml|md)")
NEW = (
    *("strategy", "policy network", "backbone", "data set", "importer of region features"),
    *("figure of results", "bench case", "test"),
)


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def missing(text: str) -> list[str]:
    """Paths in backticks that are not in the repository."""
    paths = [word for word in quoted(text) if PATH.fullmatch(word)]
    return [path for path in paths if not (ROOT / path).exists()]


def unknown(row: str) -> list[str]:
    """Names in backticks in a row of a table that are in none of the files that the row names."""
    words = quoted(row)
    files = [ROOT / word for word in words if PATH.fullmatch(word) and (ROOT / word).is_file()]
    said = "\n".join(path.read_text(encoding="utf-8") for path in files)
    names = [word for word in words if re.fullmatch(r"\w+(\.\w+)?", word) and word != "tests"]
    return [n for n in names if not re.search(rf"\b{re.escape(n)}\b", said) and not Path(n).suffix]


def rows() -> list[str]:
    return re.findall(r"^\| (?!-|new |you ).*$", TEXT, re.MULTILINE)


def test_every_file_that_is_named_exists():
    assert len([word for word in quoted(TEXT) if PATH.fullmatch(word)]) > 40
    assert missing(TEXT) == []
    assert missing("`common/adapt/strategy.py` and `common/adapt`") == ["common/adapt/strategy.py"]


def test_the_table_says_where_every_kind_of_thing_goes_and_names_what_is_there():
    assert {row.split("|")[1].strip() for row in rows()} >= set(NEW)
    assert [name for row in rows() for name in unknown(row)] == []
    assert unknown("| x | `STRATEGY` in `common/adapt/strategies.py` |") == ["STRATEGY"]


def test_the_checks_are_those_of_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = re.sub(r"\$\(BIN\)/(python -m )?", "", recipe[1]).splitlines()
    said = next(line for line in TEXT.splitlines() if line.startswith("`make lint` is "))
    assert quoted(said)[1:] == [re.sub(r"( \.| --no-logo)$", "", c.strip()) for c in commands]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 120
