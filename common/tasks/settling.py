"""What a finetuning run settles before it trains: a head's warm-up, the executor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from common.adapt.adapting import adaptive_part
from common.adapt.attention import LearnedSpans
from common.adapt.executors import AUTO, EXECUTORS, chosen_executor
from common.adapt.families import find_encoder
from common.errors import CheckpointError
from common.training.batch_order import MicroBatches, Order
from common.training.checkpoint import settings_of
from common.training.graphs import RecordedPasses, random_numbers_kept, recorded_passes
from common.training.loop import LoopOptions
from common.training.passes import Computed, Passes, Stage
from common.training.runtime import Runtime
from common.training.task import Task, TaskBatch
from common.training.timing import Clock, find_clock
from common.training.tracking import Tracker
from common.training.weights import new_parameters

CANDIDATES = ("grouped", "dense", "exact")
TIMED = 3  # passes, after two


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
    model: nn.Module,
    task: Task,
    order: Order,
    loop: LoopOptions,
    runtime: Runtime,
    tracker: Tracker,
    last: Path | None,
) -> None:
    """Which executor `auto` means in training; a run that goes on keeps its own.

    On the CPU that is a rule. On a GPU it depends on the card, the precision and the batch, so the
    candidates are timed on the first batch, which is trained on later as if nothing had been.

    Args:
        model: adapted or not.
        task, order, loop, runtime: of the training.
        tracker: is told, on a GPU.
        last: checkpoint to go on from, if there is one.

    Raises:
        CheckpointError: `last` is damaged.
    """
    part = adaptive_part(model)
    if part is None or part.options.executor != AUTO:
        return
    twins = part.strategy.other == "twin"
    chosen = chosen_executor(AUTO, True, runtime.device, twins)
    if isinstance(adaptive := settings_of(last).get("adaptive"), dict):
        chosen = adaptive.get("executor", chosen)
        if chosen not in EXECUTORS:
            raise CheckpointError(f"{last}: executor {chosen!r} is not known; the file is damaged")
        part.options.executor = chosen
    elif runtime.device.type == "cpu":
        part.options.executor = chosen
    else:
        reader = MicroBatches(task, 0, runtime.world, loop.accumulate)
        batch = runtime.move(reader[order.epoch(0)[0]][0])
        clock = find_clock(runtime.device)
        seconds = time_executors(model, task, batch, loop, runtime, clock)
        part.options.executor = min(seconds, key=seconds.__getitem__)
        shown = ", ".join(f"{name} {1000 * time:.1f} ms" for name, time in seconds.items())
        tracker.log(f"executors on the first batch: {shown}")
    if runtime.device.type != "cpu":
        tracker.log(f"executor {part.options.executor} (--executor takes another)")


def time_executors(
    model: nn.Module,
    task: Task,
    batch: TaskBatch,
    loop: LoopOptions,
    runtime: Runtime,
    clock: Clock,
) -> dict[str, float]:
    """Seconds of a pass of training, forward and backward, by executor; the least of a few.

    Nothing of it stays: neither gradients nor random numbers that were drawn. Every process times
    its own passes, and all get what the first one found. An executor that runs out of memory is
    left out.

    Args:
        model, task, loop, runtime: of the training, before it begins.
        batch: a (micro-)batch of it, on the device.
        clock: of the device.
    """
    part = adaptive_part(model)
    assert part is not None
    held = (loop.policy.hold or 0.0) > 0.5  # of all steps, so the usual pass is one of these
    model.train()
    before = part.options.executor
    parameters = [p for p in model.parameters() if p.requires_grad]
    seconds: dict[str, float] = {}
    said = set(runtime.recorder.said) if runtime.recorder else set()
    with random_numbers_kept():
        for name in CANDIDATES:
            part.options.executor = name
            passes = Passes(
                model, task, part, LearnedSpans(model), runtime, loop.budget, loop.span_loss
            )
            recorded = recorded_passes(passes, parameters, runtime, "", lambda why: None)

            def one_pass(
                passes: Passes = passes, recorded: RecordedPasses | None = recorded
            ) -> None:
                for parameter in parameters:
                    parameter.grad = None
                part.tell(loop.seed, 0, batch.samples, batch.kinds)
                stage = Stage(held=held)
                if recorded is None or recorded.run(batch, stage, ones) is None:
                    computed = passes.forward(batch, stage)
                    passes.backward(computed, ones(computed))

            try:
                one_pass()
                one_pass()
                seconds[name] = min(clock.measure(one_pass)["seconds"] for _ in range(TIMED))
            except torch.OutOfMemoryError:
                continue
            finally:
                part.forget()
                for parameter in parameters:
                    parameter.grad = None
    part.options.executor = before
    if (
        runtime.recorder is not None
    ):  # what holds for the executor that is taken is still to be said
        runtime.recorder.said = said
    return runtime.world.gather(seconds)[0]


def ones(computed: Computed) -> dict[str, float]:
    """A factor of 1 for every loss."""
    return dict.fromkeys(computed.losses, 1.0)
