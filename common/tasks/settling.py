"""What a finetuning run settles before it trains: a head's warm-up, the executor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from common.adapt.adapting import adaptive_part
from common.adapt.executors import AUTO, EXECUTORS, chosen_executor
from common.adapt.families import find_encoder
from common.errors import CheckpointError
from common.training.checkpoint import settings_of
from common.training.loop import LoopOptions
from common.training.runtime import Runtime
from common.training.tracking import Tracker
from common.training.weights import new_parameters


def settled_warmup(model: nn.Module, loop: LoopOptions, tracker: Tracker) -> LoopOptions:
    """Where the policy is taught what the pretrained model knows, a new head learns first."""
    new = new_parameters(model, find_encoder(model))
    policy = loop.policy.resolved(bool(new))
    if policy.warmup and loop.policy.warmup is None:
        tracker.log(
            f"{', '.join(new[:3])} {'is' if len(new) == 1 else 'are'} new: in the first "
            f"{policy.warmup:.0%} of the steps everything else stays frozen (--policy-warmup), so "
            "that the policy is taught what a pretrained model with this head knows"
        )
    return replace(loop, policy=policy)


def settle_executor(
    model: nn.Module, runtime: Runtime, tracker: Tracker, last: Path | None
) -> None:
    """Which executor `auto` means in training; a run that goes on keeps its own.

    Args:
        model: adapted or not.
        runtime: where it runs.
        tracker: is told, on a GPU.
        last: checkpoint to go on from, if there is one.

    Raises:
        CheckpointError: `last` is damaged.
    """
    part = adaptive_part(model)
    if part is None or part.options.executor != AUTO:
        return
    chosen = chosen_executor(AUTO, True, runtime.device, part.strategy.other == "twin")
    if isinstance(adaptive := settings_of(last).get("adaptive"), dict):
        chosen = adaptive.get("executor", chosen)
        if chosen not in EXECUTORS:
            raise CheckpointError(f"{last}: executor {chosen!r} is not known; the file is damaged")
    part.options.executor = chosen
    if runtime.device.type != "cpu":
        tracker.log(f"executor {chosen} (--executor takes another)")
