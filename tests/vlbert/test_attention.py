"""VL-BERT with mechanisms of attention, by its commands; a config says the same."""

import pytest
import yaml

from common.training.checkpoint import load_meta
from tests.common.mechanism_runs import OVER, AttentionRuns
from tests.vlbert.runs import FOLDER, flags, refused
from vlbert.finetuning import main


class TestVlbert(AttentionRuns):
    over, layers, read = "keys", 2, True


def test_a_config_says_the_same_as_the_flags(config, tmp_path):
    tree = yaml.safe_load(config.read_text())
    tree["ATTENTION"] = {"NORMALISER": "entmax15", "SPAN": "keys", "SPAN_INIT": 0.5}
    own = config.parent / "attention.yaml"
    own.write_text(yaml.safe_dump(tree))
    assert main(flags(own, tmp_path, "--span-ramp", "0.5")) == 0
    found = tmp_path / FOLDER.replace("tiny", "attention") / "BEST.safetensors"
    saved = load_meta(found)["strategy_flags"]["attention"]
    assert (saved["normaliser"], saved["initial_span"], saved["ramp"]) == ("entmax15", 0.5, 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--span-init", "0.5"], f"--span-init 0.5 needs {OVER} keys or distance"),
        (["--alpha-init", "1.5"], "--alpha-init 1.5 needs --attention entmax"),
        (["--set", "ATTENTION.SPAN_RAMP=0"], "section ATTENTION: span ramp"),
        (["--set", "ATTENTION.SPAN=window"], "ATTENTION.SPAN"),
    ],
)
def test_values_without_a_meaning_are_refused(config, tmp_path, capsys, words, message):
    assert message in refused(capsys, flags(config, tmp_path, *words))
