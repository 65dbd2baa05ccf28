"""LXMERT with LayerDrop, by its command."""

import pytest

from common.training.checkpoint import load_meta
from tests.common.mechanism_runs import DROPPED, LayerDropRuns
from tests.lxmert.runs import refused


class TestLxmert(LayerDropRuns):
    pass


def test_pruned_layers_are_named_and_the_sizes_say_how_many_are_left(commands, tmp_path, capsys):
    run = commands.run(tmp_path / "run", "--prune", "every_other")
    assert "--prune every_other: without the layers lang.2" in capsys.readouterr().out
    assert load_meta(run / "BEST.safetensors")["config"]["l_layers"] == 1


def test_layers_of_an_adaptive_strategy_are_not_pruned(commands, tmp_path, capsys):
    """Trained with LayerDrop and BlockDrop together, it is exported first."""
    run = commands.run(tmp_path / "run", *DROPPED, "--strategy", "BlockDrop")
    words = commands.of_test(run / "BEST", tmp_path / "test")
    assert "python -m common.export" in refused(capsys, *words, "--prune", "1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layerdrop", "1"], "LayerDrop rate 1.0"),
        (["--layerdrop", "0.1", "--layerdrop-count", "1"], "a rate, or a number of layers"),
        (["--layerdrop-count", "7"], "LayerDrop of 7 layers of each stack"),
    ],
)
def test_wrong_flags_are_refused(flags, tmp_path, capsys, more, message):
    assert message in refused(capsys, *flags, "--output", str(tmp_path), *more)
