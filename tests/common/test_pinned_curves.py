"""Training as it was: see `pinned_curves`."""

from __future__ import annotations

import json

import pytest

from common.adapt.strategies import STRATEGIES
from tests.common.pinned_curves import FILE, OPTIMIZERS, curve

PINNED = json.loads(FILE.read_text())
TOLERANCE = 1e-5  # relative; another order of the samples changes them by 1e-2


def test_every_backbone_and_strategy_is_pinned():
    assert set(PINNED) == {f"{b} {s}" for b in OPTIMIZERS for s in STRATEGIES}
    assert len({json.dumps(values) for values in PINNED.values()}) == len(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_the_losses_of_the_first_steps_are_those_written_down(name):
    found = curve(*name.split())
    assert found.keys() == PINNED[name].keys()
    for loss, values in PINNED[name].items():
        assert found[loss] == pytest.approx(values, rel=TOLERANCE, abs=1e-9), loss
