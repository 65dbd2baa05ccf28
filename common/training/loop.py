"""The training loop of all backbones and tasks, read from top to bottom.

An epoch visits the training samples in an order keyed by (seed, epoch); everything drawn at random
is keyed or part of the checkpoint, so that a run that was killed continues bit for bit on CPU.
A batch may be divided over processes and, within them, into micro-batches: every loss is weighted
so that the gradient is that of the whole batch. Shape legend: B batch, D decisions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from common.adapt.adapting import adaptive_part
from common.adapt.attention import LearnedSpans, attention_record
from common.adapt.budget import BudgetOptions
from common.adapt.layerdrop import LayerDrop, LayerDropping
from common.errors import AdaptiveError, CheckpointError, ConfigError, StoppedError
from common.reading import short
from common.training.batch_loader import BatchLoader
from common.training.batch_order import BatchOrder, MicroBatches, Order
from common.training.checkpoint import (
    check_compatible,
    load_checkpoint,
    prune_checkpoints,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from common.training.checkpoint_codec import MALFORMED
from common.training.distributed import peers
from common.training.finiteness import FinitenessCheck
from common.training.folder_lock import renew
from common.training.graphs import recorded_passes
from common.training.optim import OptimizerWithSchedule
from common.training.passes import Computed, Passes, Stage
from common.training.policy_lessons import PolicyLessons, PolicyTraining, check_teachable
from common.training.policy_report import policy_record, policy_scalars
from common.training.policy_statistics import groups_of
from common.training.prefetching import prefetched
from common.training.run_folder import SnapshotNames, check_unused, remove_run
from common.training.running_totals import RunningTotals
from common.training.runtime import (
    Runtime,
    arrived,
    forget_gpu_peak,
    larger_memory,
    peak_memory,
    versions,
)
from common.training.stop_signal import StopSignal
from common.training.task import Task, TaskBatch, as_floats, as_number
from common.training.tracking import Tracker
from common.training.weights import load_into

CHECKPOINT_VERSION = 2
SAMPLES = "samples"


@dataclass(frozen=True)
class LoopOptions:
    """How long and how to train.

    Attributes:
        epochs: passes over the training samples.
        batch_size: samples per step, of all processes and micro-batches together; an incomplete
            last batch is dropped, as upstream.
        accumulate: micro-batches that a process divides its part of a batch into, to need less
            memory. The result is that of the whole batch but for budget losses, which are of
            each micro-batch (of all processes), and for dropout, whose masks are drawn anew.
        seed: of the order of samples and of the policy's noise.
        clip: largest norm of the model's gradient (without the policy's); 0 = no clipping.
        policy_clip: the same for the policy network.
        temperature, temperature_end: of the Gumbel-softmax at the first and the last step; it falls
            geometrically in between.
        policy: how the policy network is trained beside its gradient.
        budget: the budget losses.
        span_loss: weight of the mean attention span in the loss; None: there is no such loss.
        layerdrop: which layers training leaves out; None: none.
        attention_lr: of spans and α, for `make_optimizers`; None: `ATTENTION_LR`.
        workers: data-loader processes; 0 reads in this process.
        log_every: steps between two points of the curves and two lines of the log.
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
    policy: PolicyTraining = field(default_factory=PolicyTraining)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    accumulate: int = 1
    span_loss: float | None = None
    attention_lr: float | None = None
    layerdrop: LayerDrop | None = None
    workers: int = 0
    log_every: int = 50
    save_every: int = 0
    max_steps: int = 0
    progress: bool = True


# What a checkpoint says of where its run was.
PROGRESS: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "step_in_epoch": int,
    "step": int,
    "best_score": (int, float),
    "best_epoch": (int, type(None)),
    "history": list,
    "seconds": (int, float),
}


class Trainer:
    """Trains a model on a task; see `fit`."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerWithSchedule,
        policy_optimizer: OptimizerWithSchedule | None,
        runtime: Runtime,
        options: LoopOptions,
        out_dir: Path,
        tracker: Tracker,
        meta: dict[str, Any],
        names: SnapshotNames | None = None,
        keep: Callable[[], None] = lambda: None,
        order: Order | None = None,
    ) -> None:
        """Put everything together.

        Args:
            model: on the runtime's device, adapted.
            optimizer, policy_optimizer: of the model's and of the policy's parameters.
            meta: what a checkpoint must agree on to be resumed (backbone, strategy, sizes …).
            keep: writes what checkpoints need beside them; called in the first process after the
                check for an earlier run, and where the folder was deleted meanwhile.
            order: which samples make up which batch; default: `BatchOrder`.
        """
        self.model, self.task, self.runtime = model, task, runtime
        self.world = runtime.world
        self.optimizers = {"main": optimizer}
        if policy_optimizer is not None:
            self.optimizers["policy"] = policy_optimizer
        self.options, self.out_dir, self.tracker = options, Path(out_dir), tracker
        self.meta = meta | {"checkpoint_version": CHECKPOINT_VERSION}
        self.names, self.keep = names or SnapshotNames(), keep
        self.part = adaptive_part(model)
        self.dropping = LayerDropping(model, options.layerdrop) if options.layerdrop else None
        self.spans = LearnedSpans(model)
        self.order = order or BatchOrder(len(task), options.batch_size, options.seed)
        self.order.check_divisible(self.world.size, options.accumulate)
        self.lessons = self._lessons()
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.parallel = self._parallel()
        self.passes = Passes(
            self.parallel, task, self.part, self.spans, runtime, options.budget, options.span_loss
        )
        self.recorded = recorded_passes(
            self.passes, self.trained, runtime, self._why_not_recorded(), tracker.log
        )
        self.total_steps = self.order.total(options.epochs)
        self.epoch = self.step_in_epoch = self.step = 0
        self.best_score = -math.inf
        self.best_epoch: int | None = None
        self.history: list[dict[str, Any]] = []
        self.running = RunningTotals()
        self.peak_memory: dict[str, int | None] = {}
        self._recent: deque[tuple[float, float]] = deque(maxlen=options.log_every)
        self.start, self.earlier_seconds = time.perf_counter(), 0.0
        self._signal, self._stop = StopSignal(), False
        # On a GPU what it has not computed yet is not waited for in every step.
        self._reads_at_once = runtime.device.type == "cpu"
        process = f"_process_{self.world.rank}" if self.world.size > 1 else ""
        self.finite = FinitenessCheck(self.out_dir, process, self._read_again, self._reads_at_once)

    def _parallel(self) -> nn.Module:
        """The model whose backward pass averages gradients over the processes.

        Where passes are recorded, that is done after them.
        """
        recorded = self.runtime.recorder is not None and not self._why_not_recorded()
        if self.world.size == 1 or recorded:
            return self.model
        device = self.runtime.device
        with peers():
            return DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                find_unused_parameters=not self.order.uniform,
            )

    def _why_not_recorded(self) -> str:
        """What speaks against recording the passes of this training; empty: nothing."""
        if self.options.layerdrop is not None:
            return "--layerdrop leaves out other layers in every step"
        if self.world.size > 1 and self.options.budget.active:
            return "the losses of the budget are of all processes together"
        if self.world.size > 1 and not self.order.uniform:
            return "the processes may have batches of different tasks"
        return ""

    def _lessons(self) -> PolicyLessons | None:
        """What teaches the policy, where the options want it taught."""
        if not self.options.policy.teaches:
            return None
        check_teachable(self.part)
        assert self.part is not None
        return PolicyLessons(
            self.model,
            self.part,
            self.task,
            self.order,
            self.runtime,
            self.optimizers["policy"].base_lr,
            self.options.seed,
            self.options.progress,
        )

    def _apart(self) -> AbstractContextManager[None]:
        """Within it a backward pass leaves the gradients of the processes apart."""
        together = self.parallel
        return (
            together.no_sync() if isinstance(together, DistributedDataParallel) else nullcontext()
        )

    def fit(self, after_epoch: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Train until the last epoch (or `max_steps`), saving the best and the last state.

        Args:
            after_epoch: called with the record of every finished epoch, which becomes an entry of
                `epochs` in result.json (plots, logs), on every process.
        """
        with self._signal:
            while self.epoch < self.options.epochs and not (self._stop or self._done()):
                self._train_epoch()
                if self._stop or self.step_in_epoch < self.order.steps_of(self.epoch):
                    break
                record = self._finish_epoch()
                if after_epoch is not None:
                    after_epoch(record)
                self.save_last()
                self._stop = self.world.any(self._signal.received)
            if self._stop and (self.step_in_epoch or not self.step):  # else it has just been saved
                self.save_last()
        if self._stop:
            raise StoppedError(
                f"stopped by a signal at step {self.step}; continue with the same "
                f"command and --resume ({self.out_dir / self.names.last})"
            )

    def _done(self) -> bool:
        return bool(self.options.max_steps) and self.step >= self.options.max_steps

    def _train_epoch(self) -> None:
        batches = self.order.epoch(self.epoch, self.step_in_epoch)
        reader = MicroBatches(self.task, self.epoch, self.world, self.options.accumulate)
        loader = BatchLoader(reader, batches, self.options.workers)
        forget_gpu_peak()  # evaluations may use what memory there is
        with (
            closing(prefetched(loader, self.runtime)) as ready,
            tqdm(
                ready,
                total=self.order.steps_of(self.epoch),
                initial=self.step_in_epoch,
                unit="step",
                desc=f"epoch {self.epoch}",
                dynamic_ncols=True,
                disable=not (self.options.progress and self.world.main),
            ) as bar,
        ):
            for parts, moved in bar:
                counts = self._agree(parts)
                self._stop = self._stop or not self._policy_started()
                if self._stop:
                    break
                start = time.perf_counter()
                self._train_step(moved, counts)
                seconds = time.perf_counter() - start
                self.running.step_seconds.append(seconds)
                self._recent.append((counts[SAMPLES], seconds))
                if self._reads_at_once or self.step % self.options.log_every == 0:
                    bar.set_postfix(self.running.summary(self.world.size), refresh=False)
                if self.options.save_every and self.step % self.options.save_every == 0:
                    self.save_last()
                if self._done():
                    break
        self._stop = self._stop or self.world.any(self._signal.received)
        self.peak_memory = larger_memory(self.peak_memory, peak_memory())
        if self._done():
            self.save_last()

    def _agree(self, parts: Sequence[TaskBatch]) -> dict[str, float]:
        """Numbers of things that the losses of the whole batch are means over; a wish to stop."""
        counts: dict[str, float] = {"stop": float(self._signal.received)}
        for part in parts:
            for name, number in part_counts(part).items():
                counts[name] = counts.get(name, 0.0) + number
        counts = self.world.sum(counts)
        self._stop = counts.pop("stop") > 0
        return counts

    def _train_step(self, parts: Sequence[TaskBatch], counts: Mapping[str, float]) -> None:
        self.model.train()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        shown: dict[str, Tensor | float] = {}
        for part in parts:
            with nullcontext() if part is parts[-1] else self._apart():
                losses = self._micro_batch(part, counts, len(parts))
            shown = {name: shown.get(name, 0.0) + value for name, value in losses.items()}
        if self.parallel is self.model:
            self.world.average_gradients(self.trained)
        self._update()
        self.running.add(shown)
        self.step += 1
        self.step_in_epoch += 1
        if self.step % self.options.log_every == 0:
            self.finite.check()
            read = as_floats(shown)
            self._log_step({name: value * self.world.size for name, value in read.items()})

    def _log_step(self, losses: Mapping[str, float]) -> None:
        """A point of the curves and a line of the log, as this process sees the step."""
        self.tracker.scalars(
            {f"train/{name}": loss for name, loss in losses.items()}
            | {f"lr/{k}": o.lr for k, o in self.optimizers.items()},
            self.step,
        )
        samples, seconds = (sum(numbers) for numbers in zip((0.0, 0.0), *self._recent, strict=True))
        speed = samples / seconds if seconds else math.nan
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        rates = ", ".join(f"{name} {o.lr:.3g}" for name, o in self.optimizers.items())
        self.tracker.note(
            f"epoch {self.epoch}, step {self.step_in_epoch} of {self.order.steps_of(self.epoch)}: "
            f"{shown}; score so far {self.running.summary(1)['score']}; learning "
            f"rate {rates}; {speed:.0f} samples a second"
        )

    def _micro_batch(
        self, batch: TaskBatch, counts: Mapping[str, float], micro_batches: int
    ) -> dict[str, Tensor | float]:
        """Forward and backward; returns what the batch adds to each loss of the whole batch."""
        stage = Stage(
            self._within(self.options.policy.hold), self._within(self.options.policy.warmup)
        )
        if self.part is not None:
            self.part.options.temperature = self.temperature()
            self.part.tell(self.options.seed, self.step, batch.samples, batch.kinds)
        if self.dropping is not None:
            self.dropping.draw(self.options.seed, self.step)
        own = part_counts(batch)
        size = self.world.size

        def factors(computed: Computed) -> dict[str, float]:
            # The processes' gradients are averaged, so what belongs to one counts size times.
            return {
                name: _share(own, counts, name) * size
                if name in computed.of_samples
                else 1 / micro_batches
                for name in computed.losses
            }

        computed = None
        if self.recorded is not None:
            computed = self.recorded.run(batch, stage, factors)
        if computed is not None:
            self.finite.look(computed.losses, batch, self.step)
        else:
            computed = self.passes.forward(batch, stage)
            self.finite.look(computed.losses, batch, self.step)
            self.passes.backward(computed, factors(computed))
        if computed.decided is not None:
            self.running.decisions.add(computed.decided.decisions, batch.types, batch.kinds)
            self._watch_policy(computed, batch)
        self.running.count_scores(computed.output)
        weights = factors(computed)
        return {k: as_number(loss) * weights[k] / size for k, loss in computed.losses.items()}

    def _watch_policy(self, computed: Computed, batch: TaskBatch) -> None:
        logits = computed.decided.logits if computed.decided is not None else None
        if logits is None:
            return
        groups = groups_of(batch, self.lessons.frozen if self.lessons else {})
        done = self.step_in_epoch / self.order.steps_of(self.epoch)
        self.running.policy.add(logits, done, groups)
        if (gradient := computed.policy_gradient) is not None:
            one = torch.full((), float(self.world.size), device=logits.device)
            self.running.policy.add_gradient(gradient, self.runtime.scaler.scale(one))

    def _update(self) -> None:
        scaler = self.runtime.scaler
        limits = {"main": self.options.clip, "policy": self.options.policy_clip}
        policy = self.options.policy
        held = self._within(policy.hold) or self._within(policy.warmup)
        updated = {k: o for k, o in self.optimizers.items() if k != "policy" or not held}
        for name, optimizer in updated.items():
            if limits[name] or name == "policy":
                norm = optimizer.clip(limits[name], scaler)
                if name == "policy":
                    self.running.policy.add_norm(norm)
        for name, optimizer in self.optimizers.items():
            if name in updated:
                optimizer.step(scaler)
            else:
                optimizer.pass_over(1)
        scaler.update()
        self.spans.clamp()

    def _read_again(self, step: int) -> TaskBatch | None:
        """This process' (first) part of the batch of a step of this epoch."""
        place = step - (self.step - self.step_in_epoch)
        if not 0 <= place < self.order.steps_of(self.epoch):
            return None
        reader = MicroBatches(self.task, self.epoch, self.world, self.options.accumulate)
        return arrived(reader[self.order.epoch(self.epoch, place)[0]][0])

    def _within(self, share: float | None, back: int = 0) -> bool:
        """Whether this step, or one so many before it, is in such a first share of all steps."""
        return self.step - back < (share or 0.0) * self.total_steps

    def _policy_started(self) -> bool:
        """Teach the policy once, before the first step after the warm-up.

        Returns:
            Whether it is taught as far as it has to be by now: not where a signal came meanwhile.
        """
        options, lessons = self.options.policy, self.lessons
        passes = options.passes(self.order.total(1))
        if lessons is None or self._within(options.warmup) or lessons.passes >= passes:
            return True
        begin = time.perf_counter()
        loss = lessons.start(passes, self.save_last, lambda: self._signal.received)
        if lessons.passes < passes:
            return False
        known = statistics.fmean(lessons.frozen.values())
        self.tracker.log(
            f"policy taught in {passes} passes ({time.perf_counter() - begin:.0f} s): the "
            f"pretrained model scores {100 * known:.1f} on {len(lessons.frozen)} training samples; "
            f"loss {loss:.3f}"
        )
        return True

    def _review_policy(self) -> None:
        """Teach the held policy which branch answers better by now."""
        options = self.options.policy
        if self.lessons is None or not options.review or not self._within(options.hold, back=1):
            return
        loss = self.lessons.review(options.review, self.epoch)
        self.tracker.log(f"policy reviewed in {options.review} passes: loss {loss:.3f}")

    def temperature(self) -> float:
        """Of the Gumbel-softmax at this step."""
        done = min(1.0, self.step / max(1, self.total_steps - 1))
        start, end = self.options.temperature, self.options.temperature_end
        ratio: float = (end / start) ** done
        return start * ratio

    def _finish_epoch(self) -> dict[str, Any]:
        self.finite.check()
        self._review_policy()
        validation = self.task.validate(self.model)
        if not math.isfinite(validation.score):
            raise AdaptiveError(
                f"the validation score of epoch {self.epoch} is {validation.score}: it cannot say "
                "which epoch is the best. Lower the learning rate or use --precision fp32, and "
                "start again with --overwrite"
            )
        totals = RunningTotals.joined(self.world.gather(self.running.state_dict()))
        record = (
            totals.record()
            | {
                "epoch": self.epoch,
                "lr": self.optimizers["main"].lr,
                "heldout_score": validation.score,
            }
            | validation.details
        )
        if self.part is not None:
            record["policy_temperature"] = self.temperature()
            record["policy"] = policy_record(totals.policy, self.model, self.part)
        if attention := attention_record(self.model):
            record["attention"] = attention
        self.history.append(record)
        for optimizer in self.optimizers.values():  # schedules are those of the whole plan
            optimizer.pass_over(self.order.left_out(self.epoch))
        self.order.follow(self.history)
        self.tracker.scalars(
            {"train/score": record["train_accuracy"], "heldout/score": validation.score}
            | policy_scalars(record.get("policy")),
            self.step,
        )
        better = validation.score > self.best_score
        if better:
            self.best_score, self.best_epoch = validation.score, self.epoch
        record["best_score"] = self.best_score
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.running = RunningTotals()
        if better:
            self._save(self.names.best, training=False)
        if (name := self.names.of_epoch(self.epoch)) is not None:
            self._save(name, training=False)
            pattern = self.names.epoch_files
            assert pattern is not None
            prune_checkpoints(self.out_dir, pattern, self.names.keep)
        return record

    def save_last(self) -> None:
        """Save everything that is needed to go on from here."""
        self._save(self.names.last, training=True)

    def _save(self, name: str, training: bool) -> None:
        if training:
            self.finite.check()
        own = {"rng": rng_state(), "running": self.running.state_dict()} if training else None
        processes = self.world.gather(own) if training else []
        if not self.world.main:
            return
        state: dict[str, Any] = {"model": dict(self.model.state_dict())}
        if training:
            state |= {
                "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
                "scaler": self.runtime.scaler.state_dict(),
                "processes": processes,
            }
            if self.lessons is not None:
                state["lessons"] = self.lessons.state_dict()
        state["progress"] = {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "seconds": self.earlier_seconds + time.perf_counter() - self.start,
        }
        meta = {"step": self.step, "versions": versions()}
        if renew(self.out_dir):
            self.tracker.open_log()
            self.tracker.log(
                f"warning: {self.out_dir} was deleted during the run; it is made again, without "
                "what log and curves had"
            )
            self.keep()
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
            self.world.barrier()  # no process removes what another one has not looked at yet
            if self.world.main:
                remove_run(self.out_dir, self.names)
                self.tracker.forget_earlier()
        if self.world.main:
            self.keep()

    def resume(self) -> None:
        """Go on from the last checkpoint in the output folder."""
        path = self.out_dir / f"{self.names.last}.safetensors"
        if not path.exists():
            raise ConfigError(f"nothing to resume: {path} does not exist; start without --resume")
        state, meta = load_checkpoint(path)
        if (version := meta.get("checkpoint_version")) != CHECKPOINT_VERSION:
            raise CheckpointError(
                f"{path}: saved by another version of this code (format "
                f"{version}, this one's is {CHECKPOINT_VERSION}), which has to "
                "finish that run; its BEST can be tested and asked here. Or "
                "start again with --overwrite"
            )
        check_compatible(meta, self.meta, path)
        try:
            self._restore(state, path)
        except AdaptiveError:
            raise
        except MALFORMED as error:
            raise CheckpointError(
                f"{path}: its training state is not what this code writes "
                f"({type(error).__name__}: {short(str(error))}): the file is damaged; use another "
                "checkpoint, or start again with --overwrite"
            ) from error

    def _restore(self, state: dict[str, Any], path: Path) -> None:
        """Put back what `_save` saved."""
        for key, kinds in PROGRESS.items():
            value = state["progress"][key]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise TypeError(f"progress.{key} is {short(value)}")
        load_into(self.model, state["model"], what=str(path))
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.runtime.scaler.load_state_dict(state["scaler"])
        if self.lessons is not None:
            self.lessons.load_state_dict(state["lessons"])
        progress = state["progress"]
        self.epoch, self.step_in_epoch = progress["epoch"], progress["step_in_epoch"]
        self.step, self.history = progress["step"], progress["history"]
        self.best_score, self.best_epoch = progress["best_score"], progress["best_epoch"]
        self.earlier_seconds = progress["seconds"]
        self.order.follow(self.history)
        self._resume_process(state["processes"])

    def _resume_process(self, processes: Sequence[Mapping[str, Any]]) -> None:
        """Random numbers and running totals of this process."""
        if len(processes) == self.world.size:
            self.running.load_state_dict(processes[self.world.rank]["running"])
            set_rng_state(processes[self.world.rank]["rng"])
            return
        self.tracker.log(
            f"{self.out_dir / self.names.last} was saved by {len(processes)} "
            f"processes, these are {self.world.size}: dropout draws other masks now"
        )
        if self.world.main:
            states = [process["running"] for process in processes]
            self.running.load_state_dict(RunningTotals.joined(states).state_dict())


def part_counts(batch: TaskBatch) -> dict[str, float]:
    """What the losses of a (micro-)batch are means over: samples, unless the batch says else."""
    return {SAMPLES: float(len(batch.samples)), **batch.weights}


def _share(own: Mapping[str, float], counts: Mapping[str, float], loss: str) -> float:
    """Share of a micro-batch in a loss of the whole batch, 0..1."""
    name = loss if loss in own else SAMPLES
    return own[name] / counts[name] if counts[name] else 0.0
