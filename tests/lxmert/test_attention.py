"""LXMERT with mechanisms of attention, by its real command."""

from common.export import main as export
from tests.common.mechanism_runs import OVER, AttentionRuns
from tests.lxmert.runs import refused


class TestLxmert(AttentionRuns):
    over, layers = "distance", 2 + 2 + 2 * 3
    dead = 1  # the vision half of the last cross layer

    def test_an_export_is_no_folder_of_transformers(self, whole, tmp_path, capsys):
        words = ["--run", str(whole), "--out", str(tmp_path / "out"), "--gpus", "cpu", "--quiet"]
        assert export(words) == 0
        assert not (tmp_path / "out" / "transformers").exists()
        capsys.readouterr()
        assert export([*words, "--overwrite", "--format", "transformers"]) == 2
        assert "transformers knows softmax over all keys alone" in capsys.readouterr().err


def test_flags_without_a_meaning_are_refused(flags, tmp_path, capsys):
    base = [*flags, "--output", str(tmp_path)]
    assert f"--span-init 0.5 needs {OVER}" in refused(capsys, *base, "--span-init", "0.5")
