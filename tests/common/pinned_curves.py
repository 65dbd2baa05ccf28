"""Loss curves of a few steps, for every backbone and strategy, written down once.

    python -m tests.common.pinned_curves        # after a change that is meant to change them

Weights, samples, noise and order come from fixed seeds, everything is computed in float64 without
dropout, so that processors of other kinds give the same numbers but for rounding of the weights'
start. A curve says that something changed, not what is right: the tests beside it do that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common.adapt.strategies import STRATEGIES
from tests.common.toy_task import make_trainer

FILE = Path(__file__).with_name("pinned_curves.json")
OPTIMIZERS = {"lxmert": "bert", "vlbert": "vlbert_adamw", "vilbert": "bert"}  # those of the recipes
EPOCHS = 1  # of 5 steps


def curve(backbone: str, strategy: str) -> dict[str, list[float]]:
    """Mean training losses of every epoch of a run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            Path(folder),
            strategy=strategy,
            family=backbone,
            double=True,
            dropout=0.0,
            optimizer=OPTIMIZERS[backbone],
            epochs=EPOCHS,
        )
        trainer.fit()
        names = sorted(trainer.history[0]["train_losses"])
        return {name: [e["train_losses"][name] for e in trainer.history] for name in names}


def curves() -> dict[str, dict[str, list[float]]]:
    """All of them, by `backbone strategy`."""
    return {
        f"{backbone} {strategy}": curve(backbone, strategy)
        for backbone in OPTIMIZERS
        for strategy in STRATEGIES
    }


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tests.common.pinned_curves",
        description=f"Write {FILE.name} anew, after a change that is meant to change the losses.",
    ).parse_args()
    FILE.write_text(json.dumps(curves(), indent=1) + "\n", encoding="utf-8")
