"""The table of mistakes fits the code; `make mutants` tries them."""

from __future__ import annotations

from common.files import repository_root
from tests.mutants.table import MUTANTS

ROOT = repository_root()


def test_every_mistake_is_about_the_code_of_today() -> None:
    assert len(MUTANTS) >= 60
    for mutant in MUTANTS:
        text = (ROOT / mutant.path).read_text(encoding="utf-8")
        assert mutant.before in text, mutant.name
        assert mutant.before != mutant.after
        for path in mutant.tests.split():
            assert (ROOT / path).is_file(), path
