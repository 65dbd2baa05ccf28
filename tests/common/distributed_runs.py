"""What the processes of test_distributed.py run.

    python -m tests.common.distributed_runs KIND OUT

Every kind trains the toy task; `RANK` and the like come from the launcher.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch

from common.adapt.budget import BudgetOptions
from common.adapt.layerdrop import LayerDrop
from common.files import write_json
from common.modules.attention import AttentionOptions
from common.training import distributed
from common.training.distributed import one_voice, start_world
from common.training.loop import Trainer
from common.training.runtime import make_runtime
from tests.common.recording import Repeating
from tests.common.tiny_models import ADAPTIVE
from tests.common.toy_task import ToyTask, make_trainer

BUDGET = BudgetOptions(
    constrain_k=2.0, constrain_k_scale=0.1, deterministic_scale=0.05, target_rate=0.4
)
# Five samples a step: one process has three of them, the other one two.
EQUAL = {"double": True, "dropout": 0.0, "batch_size": 5, "budget": BUDGET, "epochs": 1}
# LayerDrop, and spans that are read from the pair and shortened.
ATTENDED = EQUAL | {
    "family": "lxmert",
    "layerdrop": LayerDrop(0.3),
    "attention": AttentionOptions("entmax", "keys", span_policy=True, initial_span=0.6),
    "span_loss": 0.5,
}
DROPPED = ("standard", "SpotTune_Block")
RECORDED = [("lxmert", "standard"), ("lxmert", "SpotTune_Block"), ("vlbert", "SpotTune")]
CASES = [
    (family, strategy)
    for family in ("single", "lxmert", "vilbert")
    for strategy in ("standard", "FrozenLayers", *ADAPTIVE)
]


class SlowTask(ToyTask):
    """Takes its time, and ends the second process at a step if it is told to."""

    def __init__(self, kill_at: int = -1) -> None:
        super().__init__()
        self.kill_at = kill_at

    def step(self, model, batch):
        time.sleep(0.05)
        if self.steps == self.kill_at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(model, batch)


def one_sided(trainer: Trainer) -> list[int]:
    """Counts the steps in which some site had the same decision for all of a process' samples."""
    seen = [0]

    def count(step):
        def counted(*arguments):
            result = step(*arguments)
            if trainer.part is not None:
                decisions = trainer.part.last.decisions
                seen[0] += bool((decisions == decisions[:1]).all(0)[trainer.part.live].any())
            return result

        return counted

    trainer._train_step = count(trainer._train_step)
    return seen


def equal(out: Path) -> None:
    """Every strategy on two processes; the state afterwards is compared with one process'.

    And a run that nothing interrupted, for those that are: processes take seconds to start.
    """
    runtime = make_runtime("cpu", world=start_world())
    for family, strategy in CASES:
        trainer = make_trainer(
            out / f"{family}_{strategy}", strategy=strategy, family=family, runtime=runtime, **EQUAL
        )
        seen = one_sided(trainer)
        trainer.fit()
        counts = runtime.world.gather(seen[0])
        if runtime.world.main:
            write_json(out / f"{family}_{strategy}" / "one_sided.json", counts)
    for strategy in DROPPED:
        make_trainer(
            out / f"dropped_{strategy}", strategy=strategy, runtime=runtime, **ATTENDED
        ).fit()
    accumulated = make_trainer(
        out / "accumulated", runtime=runtime, accumulate=2, **EQUAL | {"budget": BudgetOptions()}
    )
    accumulated.fit()
    repeated = replace(runtime, recorder=Repeating())
    for family, strategy in RECORDED:
        trainer = make_trainer(
            out / f"recorded_{family}_{strategy}",
            strategy=strategy,
            family=family,
            runtime=repeated,
            **EQUAL | {"budget": BudgetOptions()},
        )
        if trainer.part is not None:
            trainer.part.options.executor = "grouped"
        trainer.fit()
        assert repeated.recorder.repeats, "nothing was recorded"
        repeated.recorder.repeats = 0
    train(out / "whole")


def train(out: Path, task: ToyTask | None = None) -> None:
    """A slow run that saves after every step; with --resume it goes on."""
    runtime = make_runtime("cpu", world=start_world())
    trainer = make_trainer(out, task=task or SlowTask(), runtime=runtime, save_every=1)
    trainer.begin("--resume" in sys.argv, overwrite=False)
    trainer.fit()


def main() -> int:
    kind, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)

    def run() -> int:
        if kind == "equal":
            equal(out)
        elif kind == "killed":
            train(out, SlowTask(kill_at=7))
        elif kind == "poisoned":
            # The first process will say nothing that is worth waiting for longer.
            distributed.WAIT_FOR_PEERS = timedelta(seconds=2)
            poison = 4 if os.environ.get("RANK") == "1" else None
            train(out, ToyTask(poison=poison))
        else:
            train(out)
        return 0

    return one_voice(run)


if __name__ == "__main__":
    sys.exit(main())
