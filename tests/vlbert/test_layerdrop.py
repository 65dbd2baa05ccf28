"""VL-BERT with LayerDrop, by its commands."""

import pytest

from tests.common.mechanism_runs import LayerDropRuns
from tests.vlbert.runs import flags, refused


class TestVlbert(LayerDropRuns):
    stopped_after = 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "LAYERDROP.RATE=1.0"], "section LAYERDROP: LayerDrop rate 1.0"),
        (["--layerdrop-count", "2"], "LayerDrop of 2 layers of each stack"),
    ],
)
def test_wrong_values_are_refused(config, tmp_path, capsys, words, message):
    assert message in refused(capsys, flags(config, tmp_path, *words))
