"""ViLBERT with mechanisms of attention, by its commands."""

import pytest

from tests.common.mechanism_runs import OVER, AttentionRuns, accuracy
from tests.vilbert.runs import refused


class TestVilbert(AttentionRuns):
    over, layers, read = "distance", 3 + 2 + 2 * 2, True


def test_a_plain_strategy_with_a_mechanism_is_tested(commands, tmp_path, capsys):
    run = commands.run(tmp_path / "run", "--attention", "entmax15", OVER, "keys")
    capsys.readouterr()
    assert commands.evaluate(commands.of_test(run / "BEST", tmp_path / "out")) == 0
    assert f"standard: {accuracy(run)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--span-init", "0.5"], f"--span-init 0.5 needs {OVER} keys or distance"),
        (["--span-ramp", "0.5"], f"--span-ramp 0.5 needs {OVER} keys or distance"),
        (["--alpha-init", "1.5"], "--alpha-init 1.5 needs --attention entmax"),
        (["--span-loss", "0.5"], f"--span-loss 0.5 needs {OVER} keys or distance"),
        (
            ["--attention", "entmax15", "--attention-lr", "0.1"],
            f"--attention-lr 0.1 needs {OVER} or --attention entmax",
        ),
        ([OVER, "keys", "--span-init", "2"], "initial span 2.0"),
        ([OVER, "keys", "--span-ramp", "0"], "span ramp 0.0"),
        (["--attention", "entmax", "--alpha-init", "1"], "initial alpha 1.0"),
        ([OVER, "keys", "--span-loss", "-1"], "--span-loss -1.0: give a number"),
    ],
)
def test_flags_without_a_meaning_are_refused(files, tmp_path, capsys, flags, message):
    assert message in refused(capsys, files.run(tmp_path, *flags))
