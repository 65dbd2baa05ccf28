"""The training loop of all backbones and tasks, read from top to bottom.

An epoch visits the training samples in an order keyed by (seed, epoch); everything drawn at random
is keyed or part of the checkpoint, so that a run that was killed continues bit for bit on CPU.
Shape legend: B batch, D decisions.
"""

from __future__ import annotations

import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.adapt import adaptive_part
from common.budget import BudgetOptions, budget_losses
from common.checkpoint import (
    check_compatible,
    load_checkpoint,
    prune_checkpoints,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from common.errors import AdaptiveError, ConfigError
from common.optim import OptimizerWithSchedule
from common.run_folder import SnapshotNames, check_unused, remove_run
from common.runtime import Runtime, peak_memory, versions
from common.task import DecisionCounts, StepOutput, Task, TaskBatch
from common.tracking import Tracker
from common.weights import load_into

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class LoopOptions:
    """How long and how to train.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples per step; an incomplete last batch is dropped, as upstream.
        seed: of the order of samples and of the policy's noise.
        clip: largest norm of the model's gradient (without the policy's); 0 = no clipping.
        policy_clip: the same for the policy network.
        temperature, temperature_end: of the Gumbel-softmax at the first and the last step; it falls
            geometrically in between.
        budget: the budget losses.
        workers: data-loader processes; 0 reads in this process.
        save_every: steps between saves of the last checkpoint; 0 = after every epoch only.
        max_steps: stop after this many steps in all; 0 = no limit.
        progress: whether to show a progress bar.
    """

    epochs: int
    batch_size: int
    seed: int = 9595
    clip: float = 5.0
    policy_clip: float = 1.0
    temperature: float = 5.0
    temperature_end: float = 5.0
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    workers: int = 0
    save_every: int = 0
    max_steps: int = 0
    progress: bool = True


@dataclass
class EpochRecord:
    """What is reported of one epoch: JSON-able, one entry of `epochs` in result.json."""

    values: dict[str, Any]


class BatchOrder:
    """Which samples make up which batch of an epoch."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if samples < 1:
            raise ConfigError("the training set is empty")
        self.batch_size = min(batch_size, samples)
        self.samples, self.seed = samples, seed
        self.steps = samples // self.batch_size

    def epoch(self, epoch: int, skip: int = 0) -> list[list[int]]:
        """The batches of an epoch, without the first `skip`."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.samples, generator=generator).tolist()
        size = self.batch_size
        return [order[i * size:(i + 1) * size] for i in range(skip, self.steps)]


class _Reader(Dataset):
    """A data set whose items are whole batches."""

    def __init__(self, task: Task, epoch: int) -> None:
        self.task, self.epoch = task, epoch

    def __getitem__(self, indices: list[int]) -> TaskBatch:
        return self.task.read(indices, self.epoch)


class Trainer:
    """Trains a model on a task; see `fit`."""

    def __init__(self, model: nn.Module, task: Task, optimizer: OptimizerWithSchedule,
                 policy_optimizer: OptimizerWithSchedule | None, runtime: Runtime,
                 options: LoopOptions, out_dir: Path, tracker: Tracker, meta: dict[str, Any],
                 names: SnapshotNames | None = None) -> None:
        """Put everything together.

        Args:
            model: on the runtime's device, adapted.
            optimizer, policy_optimizer: of the model's and of the policy's parameters.
            meta: what a checkpoint must agree on to be resumed (backbone, strategy, sizes …).
        """
        self.model, self.task, self.runtime = model, task, runtime
        self.optimizers = {"main": optimizer}
        if policy_optimizer is not None:
            self.optimizers["policy"] = policy_optimizer
        self.options, self.out_dir, self.tracker = options, Path(out_dir), tracker
        self.meta, self.names = meta, names or SnapshotNames()
        self.part = adaptive_part(model)
        self.order = BatchOrder(len(task), options.batch_size, options.seed)
        self.total_steps = self.order.steps * options.epochs
        self.epoch = self.step_in_epoch = self.step = 0
        self.best_score = -math.inf
        self.best_epoch: int | None = None
        self.history: list[dict[str, Any]] = []
        self.running = RunningTotals()
        self.peak_memory: dict[str, int | None] = {}
        self._stop = False

    def fit(self, after_epoch: Callable[[EpochRecord], None] | None = None) -> None:
        """Train until the last epoch (or `max_steps`), saving the best and the last state.

        Args:
            after_epoch: called with the record of every finished epoch (plots, logs).
        """
        with _SignalGuard(self):
            while self.epoch < self.options.epochs and not self._done():
                self._train_epoch()
                if self._stop or self.step_in_epoch < self.order.steps:
                    break
                record = self._finish_epoch()
                if after_epoch is not None:
                    after_epoch(EpochRecord(record))
                self.save_last()
        if self._stop:
            self.save_last()
            raise AdaptiveError(f"stopped by a signal at step {self.step}; continue with the same "
                                f"command and --resume ({self.out_dir / self.names.last})")

    def _done(self) -> bool:
        return bool(self.options.max_steps) and self.step >= self.options.max_steps

    def _train_epoch(self) -> None:
        batches = self.order.epoch(self.epoch, self.step_in_epoch)
        loader = DataLoader(_Reader(self.task, self.epoch), sampler=batches, batch_size=None,
                            num_workers=self.options.workers, generator=torch.Generator())
        with tqdm(loader, total=self.order.steps, initial=self.step_in_epoch, unit="step",
                  desc=f"epoch {self.epoch}", disable=not self.options.progress,
                  dynamic_ncols=True) as bar:
            for batch in bar:
                start = time.perf_counter()
                self._train_step(batch.to(self.runtime.device))
                self.running.step_seconds.append(time.perf_counter() - start)
                bar.set_postfix(self.running.summary(), refresh=False)
                if self.options.save_every and self.step % self.options.save_every == 0:
                    self.save_last()
                if self._stop or self._done():
                    break
        self.peak_memory = peak_memory()
        if self._done():
            self.save_last()

    def _train_step(self, batch: TaskBatch) -> None:
        self.model.train()
        if self.part is not None:
            self.part.options.temperature = self.temperature()
            self.part.key_noise(self.options.seed, self.step, batch.samples)
        with self.runtime.autocast():
            output = self.task.step(self.model, batch)
        losses = dict(output.losses)
        if self.part is not None:
            decisions = self.part.last.decisions
            losses |= budget_losses(decisions, self.part.live, self.options.budget)
            self.running.decisions.add(decisions, batch.types)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self._check_finite(losses, batch)
        self._update(total)
        self.running.add(output, losses)
        self.step += 1
        self.step_in_epoch += 1
        if self.step % 50 == 0:
            self.tracker.scalars({f"train/{k}": float(v.detach()) for k, v in losses.items()}
                                 | {f"lr/{k}": o.lr for k, o in self.optimizers.items()},
                                 self.step)

    def _update(self, total: Tensor) -> None:
        scaler = self.runtime.scaler
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        scaler.scale(total).backward()
        limits = {"main": self.options.clip, "policy": self.options.policy_clip}
        for name, optimizer in self.optimizers.items():
            if limits[name]:
                optimizer.clip(limits[name], scaler)
        for optimizer in self.optimizers.values():
            optimizer.step(scaler)
        scaler.update()

    def _check_finite(self, losses: dict[str, Tensor], batch: TaskBatch) -> None:
        bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
        if not bad:
            return
        path = self.out_dir / "non_finite_batch.safetensors"
        save_checkpoint(path, {"samples": batch.samples, "inputs": batch.inputs,
                               "labels": batch.labels}, {"step": self.step})
        raise AdaptiveError(f"loss {', '.join(bad)} is not finite at step {self.step}; the batch "
                            f"(samples {batch.samples[:4]} …) is in {path}. Lower the learning "
                            "rate or use --precision fp32, and start again with --overwrite")

    def temperature(self) -> float:
        """Of the Gumbel-softmax at this step."""
        done = min(1.0, self.step / max(1, self.total_steps - 1))
        start, end = self.options.temperature, self.options.temperature_end
        return start * (end / start) ** done

    def _finish_epoch(self) -> dict[str, Any]:
        validation = self.task.validate(self.model)
        record = self.running.record() | {"epoch": self.epoch, "lr": self.optimizers["main"].lr,
                                          "heldout_score": validation.score} | validation.details
        if self.part is not None:
            record["policy_temperature"] = self.temperature()
        self.history.append(record)
        self.tracker.scalars({"train/score": record["train_accuracy"],
                              "heldout/score": validation.score}, self.step)
        better = validation.score > self.best_score
        if better:
            self.best_score, self.best_epoch = validation.score, self.epoch
        record["best_score"] = self.best_score
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.running = RunningTotals()
        if better:
            self._save(self.names.best, training=False)
        if self.names.epoch is not None:
            self._save(self.names.epoch.format(self.epoch), training=False)
            prune_checkpoints(self.out_dir, self.names.epoch.replace("{:02d}", "*")
                              + ".safetensors", self.names.keep)
        return record

    def save_last(self) -> None:
        """Save everything that is needed to go on from here."""
        self._save(self.names.last, training=True)

    def _save(self, name: str, training: bool) -> None:
        state: dict[str, Any] = {"model": dict(self.model.state_dict())}
        if training:
            state |= {"optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
                      "scaler": self.runtime.scaler.state_dict(), "rng": rng_state(),
                      "running": self.running.state_dict()}
        progress = {"epoch": self.epoch, "step_in_epoch": self.step_in_epoch, "step": self.step,
                    "best_score": self.best_score, "best_epoch": self.best_epoch,
                    "history": self.history}
        state["progress"] = progress
        meta = {"checkpoint_version": CHECKPOINT_VERSION, "step": self.step,
                "versions": versions()}
        save_checkpoint(self.out_dir / f"{name}.safetensors", state, self.meta | meta)

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Start anew or go on; a folder that holds a run is not overwritten by accident.

        Raises:
            ConfigError: there is a run and neither was asked for, or there is none to resume.
        """
        if resume:
            self.resume()
            self.tracker.log(f"resumed at step {self.step} of {self.total_steps}")
        else:
            check_unused(self.out_dir, overwrite, self.names)
            remove_run(self.out_dir, self.names)
            self.tracker.forget_earlier()

    def resume(self) -> None:
        """Go on from the last checkpoint in the output folder."""
        path = self.out_dir / f"{self.names.last}.safetensors"
        if not path.exists():
            raise ConfigError(f"nothing to resume: {path} does not exist; start without --resume")
        state, meta = load_checkpoint(path)
        check_compatible(meta, self.meta, path)
        load_into(self.model, state["model"], what=str(path))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.runtime.scaler.load_state_dict(state["scaler"])
        self.running.load_state_dict(state["running"])
        progress = state["progress"]
        self.epoch, self.step_in_epoch = progress["epoch"], progress["step_in_epoch"]
        self.step, self.history = progress["step"], progress["history"]
        self.best_score, self.best_epoch = progress["best_score"], progress["best_epoch"]
        set_rng_state(state["rng"])


class RunningTotals:
    """Sums over the steps of an epoch."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.score = 0.0
        self.count = self.steps = 0
        self.step_seconds: list[float] = []
        self.decisions = DecisionCounts()

    def add(self, output: StepOutput, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + float(loss.detach())
        self.score += output.score_sum
        self.count += output.count
        self.steps += 1

    def summary(self) -> dict[str, str]:
        """For the progress bar."""
        steps = max(1, self.steps)
        return {"loss": f"{sum(self.losses.values()) / steps:.3f}",
                "score": f"{100 * self.score / max(1, self.count):.1f}"}

    def record(self) -> dict[str, Any]:
        """For result.json: mean losses, running accuracy in percent, shares, seconds."""
        steps = max(1, self.steps)
        share = self.decisions.share
        return {"train_loss": sum(self.losses.values()) / steps,
                "train_losses": {k: v / steps for k, v in self.losses.items()},
                "train_accuracy": 100 * self.score / max(1, self.count),
                "train_decisions": None if share is None else
                {"share": share, "count": self.decisions.count},
                "seconds": sum(self.step_seconds),
                "step_seconds": statistics.median(self.step_seconds or [0.0])}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": dict(self.losses), "score": self.score, "count": self.count,
                "steps": self.steps, "step_seconds": list(self.step_seconds),
                "decisions": self.decisions.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = dict(state["losses"])
        self.score, self.count = state["score"], state["count"]
        self.steps, self.step_seconds = state["steps"], list(state["step_seconds"])
        self.decisions.load_state_dict(state["decisions"])


class _SignalGuard:
    """Within it SIGTERM and Ctrl-C let the running step finish and then save.

    A second signal of the same kind acts as usual.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        def stop(number: int, frame: Any) -> None:
            self.trainer._stop = True
            signal.signal(number, self.previous[number])

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, stop)

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def iterate(samples: int, batch_size: int) -> Iterator[list[int]]:
    """Indices 0 … samples - 1 in order, in batches; the last may be smaller."""
    for start in range(0, samples, batch_size):
        yield list(range(start, min(samples, start + batch_size)))
