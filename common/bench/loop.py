"""How many samples the training loop itself takes in a second, on samples in memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, parameter_groups
from common.adapt.encoder import AdaptiveOptions
from common.bench.parts import LoopCase
from common.errors import AdaptiveError
from common.runs.backbones import BenchModel, BenchSettings
from common.tasks.vqa import answer_output
from common.training.loop import LoopOptions, Trainer
from common.training.optim import make_optimizer
from common.training.runtime import Runtime, make_runtime, peak_memory, seed_everything
from common.training.task import StepOutput, TaskBatch, Validation
from common.training.tracking import Tracker

STEPS, WARM_UPS = 120, 20
SAMPLES = 512  # that are different
RATE, POLICY_RATE = 5e-5, 1e-4


class SamplesInMemory:
    """A task on so many samples in memory, again and again, with soft answer scores."""

    def __init__(self, inputs: Mapping[str, Tensor | None], target: Tensor, count: int) -> None:
        """Note the samples.

        Args:
            inputs: of the model, (N, …).
            target: (N, A) scores in [0, 1].
            count: of training samples.
        """
        self.inputs, self.target, self.count = inputs, target, count

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """Rows of the samples, copied as from a store."""
        rows = torch.tensor(indices) % len(self.target)
        chosen = {k: None if x is None else x.index_select(0, rows) for k, x in self.inputs.items()}
        return TaskBatch(list(indices), chosen, {"target": self.target.index_select(0, rows)})

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """Answer loss and soft score, as finetuning has them."""
        return answer_output(model(**batch.inputs), batch.labels["target"])

    def validate(self, model: nn.Module) -> Validation:
        """Nothing is held out."""
        return Validation(0.0)


class Marks:
    """Points in time: on a GPU when it has come so far, else on the wall."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._points: list[Any] = []

    def add(self, *_: object) -> None:
        """Note this one."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._points.append(event)
        else:
            self._points.append(time.perf_counter())

    def __len__(self) -> int:
        return len(self._points)

    def seconds(self, first: int) -> float:
        """From one point to the last one."""
        begin, end = self._points[first], self._points[-1]
        if not self._cuda:
            return float(end - begin)
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def measure_loop(
    supplied: BenchModel, settings: BenchSettings, case: LoopCase, steps: int = STEPS
) -> dict[str, Any]:
    """Train with the recipe's optimiser and count the samples from one update to the next.

    Args:
        supplied: makes the model; its inputs are the samples.
        settings: device, threads and seed.
        case: strategy, batch and precision.
        steps: in all; a sixth of them comes before the counting, and no save falls into it.

    Returns:
        `samples_per_second`, `seconds` of a step, `steps` that were counted, `graph`: whether the
        passes were recorded, or why not, and what `peak_memory` gives.
    """
    seed_everything(settings.seed)
    runtime = make_runtime("cpu" if settings.device == "cpu" else None, case.precision)
    with runtime.device:
        model = supplied.build()
    adapt(model, case.strategy, "small", options=AdaptiveOptions(full_precision=False))
    model.to(runtime.device)
    target = torch.rand(*_answers(model, supplied, runtime))
    # More samples than steps need: the end of an epoch would evaluate and save.
    task = SamplesInMemory(supplied.inputs, target, (steps + 1) * case.batch)
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks, warm_ups = Marks(runtime.device), steps * WARM_UPS // STEPS
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, task, runtime, settings, case, steps, Path(folder))
        trainer.optimizers["main"].optimizer.register_step_post_hook(marks.add)
        trainer.begin(resume=False, overwrite=False)
        trainer.fit()
    if len(marks) != steps:
        raise AdaptiveError(f"{case.key}: {len(marks)} updates were seen in {steps} steps")
    counted = steps - 1 - warm_ups
    seconds = marks.seconds(warm_ups) / counted
    rates = {"samples_per_second": case.batch / seconds, "seconds": seconds, "steps": counted}
    return rates | {"graph": _recorded(runtime)} | peak_memory()


def _recorded(runtime: Runtime) -> str:
    """`on`, `off`, or why passes were not recorded."""
    if runtime.recorder is None:
        return "off"
    return "; ".join(sorted(runtime.recorder.said)) or "on"


def _answers(model: nn.Module, supplied: BenchModel, runtime: Runtime) -> tuple[int, int]:
    """Numbers of samples and of answers."""
    inputs = {k: x for k, x in supplied.inputs.items() if x is not None}
    first = {k: x[:1].to(runtime.device) for k, x in inputs.items()}
    with torch.no_grad():
        width = model.eval()(**first).shape[1]
    return len(next(iter(inputs.values()))), width


def _trainer(
    model: nn.Module,
    task: SamplesInMemory,
    runtime: Runtime,
    settings: BenchSettings,
    case: LoopCase,
    steps: int,
    folder: Path,
) -> Trainer:
    groups = parameter_groups(model)
    main = make_optimizer("bert", groups["trainable"], RATE, steps)
    policy = None
    if groups["policy"]:
        policy = make_optimizer("adamw", groups["policy"], POLICY_RATE, steps)
    options = LoopOptions(
        epochs=1, batch_size=case.batch, seed=settings.seed, max_steps=steps, progress=False
    )
    tracker = Tracker(folder, tensorboard=False, enabled=False)
    return Trainer(model, task, main, policy, runtime, options, folder, tracker, {})


def loop_settings(settings: BenchSettings) -> BenchSettings:
    """Settings whose batch is all samples of the loop."""
    return replace(settings, batch=SAMPLES)
