"""What pretraining has in common for all backbones: validation, the end of a run, its small file.

Every process validates a part of the batches; a mean is over all held-out words, regions or
samples that it is about, however they fall into batches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.adapt.adapting import parameter_counts
from common.data.tokenizer import Tokenizer
from common.files import write_bytes, write_json
from common.tasks.starting import RunOptions
from common.training.batch_loader import BatchLoader
from common.training.batch_order import Order, iterate
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.loop import LoopOptions, Trainer
from common.training.means import Means
from common.training.optim import OptimizerWithSchedule
from common.training.runtime import Runtime, peak_memory, versions
from common.training.task import Task, TaskBatch
from common.training.tracking import Tracker

VALIDATION = -1  # the epoch that keys what is drawn for validation, the same every time
Part = TypeVar("Part")
_Part = TypeVar("_Part", contravariant=True)


class DrawingTask(Protocol[_Part]):
    """A pretraining task that masks samples anew in every epoch.

    Attributes:
        runtime: device, precision and processes.
        eval_batch_size: samples per batch of validation.
        workers: processes that read batches for validation.
        progress: whether to show a progress bar.
    """

    runtime: Runtime
    eval_batch_size: int
    workers: int
    progress: bool

    def draw(self, part: _Part, indices: Sequence[int], epoch: int) -> TaskBatch:
        """Mask the samples at some places of a part of the data."""


class PretrainingTask(Task, Protocol):
    """A task that knows where it is computed."""

    runtime: Runtime


class _Drawn(Generic[Part]):
    """A data set whose items are whole batches for validation."""

    def __init__(self, task: DrawingTask[Part], part: Part) -> None:
        self.task, self.part = task, part

    def __getitem__(self, indices: list[int]) -> TaskBatch:
        return self.task.draw(self.part, indices, VALIDATION)


def heldout_means(
    task: DrawingTask[Part],
    part: Part,
    samples: Sized,
    names: Sequence[str],
    measure: Callable[[TaskBatch, Means], Mapping[str, Tensor]],
) -> Means:
    """Means over a held-out part of the data, of all processes.

    Args:
        task: draws the batches.
        part: of the data.
        samples: of the part.
        names: of the means.
        measure: runs the model on a batch, adds what else is counted to the means, and returns
            the losses of the batch, each a mean over `batch.weights` things (else over samples).
    """
    world, means = task.runtime.world, Means(names)
    batches = list(world.share(list(iterate(len(samples), task.eval_batch_size))))
    loader = BatchLoader(_Drawn(task, part), batches, task.workers)
    for drawn in tqdm(
        loader,
        total=len(batches),
        desc="held out",
        leave=False,
        dynamic_ncols=True,
        disable=not (task.progress and world.main),
    ):
        batch = task.runtime.move(drawn)
        with task.runtime.autocast():
            losses = measure(batch, means)
        for name, loss in losses.items():
            count = batch.weights.get(name, float(len(batch.samples)))
            means.add(name, float(loss) * count, count)
    return means.join(world)


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters of what is not frozen."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def shared_loop(
    model: nn.Module,
    task: PretrainingTask,
    optimizer: OptimizerWithSchedule,
    loop: LoopOptions,
    run: RunOptions,
    tracker: Tracker,
    meta: Mapping[str, Any],
    recipe: Mapping[str, Any],
    order: Order | None = None,
) -> Trainer:
    """The training loop in the folder of a run.

    Args:
        meta: what a checkpoint must agree on to be resumed, but for how it is trained.
        recipe: how, but for what every loop has: epochs, accumulation and seed.
        order: see `Trainer`.
    """
    told = {"epochs": loop.epochs, "accumulate": loop.accumulate, "seed": run.seed}
    return Trainer(
        model,
        task,
        optimizer,
        None,
        task.runtime,
        loop,
        run.folder,
        tracker,
        {**meta, "training": {**recipe, **told}},
        run.names,
        order=order,
    )


@dataclass(frozen=True)
class PretrainingRun:
    """A pretraining run from its trainer to result.json.

    Attributes:
        trainer: with the task, the model and the folder of the run.
        tokenizer: its vocabulary is kept in the folder.
        identity: backbone, dataset, size, seed and name: the head of result.json.
        command: as it was typed.
        start: when the run began, seconds of `time.perf_counter`.
        resume, overwrite: go on with the run in the folder, or start again in its place.
        report_epoch: logs an epoch, from its record.
        accuracies: on what was held out, in percent, from the record of an epoch.
        heldout: the samples that they are about.
        selection: how the best epoch was chosen.
        export: a file for the best epoch's weights in half precision; None: none.
        leave_out: names of tensors that the file does not get.
        keep: keeps more in the folder than the vocabulary.
    """

    trainer: Trainer
    tokenizer: Tokenizer
    identity: Mapping[str, Any]
    command: str
    start: float
    resume: bool
    overwrite: bool
    report_epoch: Callable[[dict[str, Any]], None]
    accuracies: Callable[[Mapping[str, Any]], Mapping[str, float]]
    heldout: Sized
    selection: str
    export: Path | None = None
    leave_out: Collection[str] = ()
    keep: Callable[[], None] = field(default=lambda: None)


def pretrain(run: PretrainingRun) -> None:
    """Train to the end; then write result.json and the export."""
    trainer, tracker = run.trainer, run.trainer.tracker
    folder, main = trainer.out_dir, trainer.world.main

    def keep() -> None:
        write_bytes(folder / "vocab.txt", run.tokenizer.text().encode())
        run.keep()

    trainer.keep = keep
    trainer.begin(run.resume, run.overwrite)
    trainer.fit(run.report_epoch)
    if trainer.epoch < trainer.options.epochs:
        what = "nothing is exported, " if run.export else ""
        tracker.log(
            f"stopped after {trainer.step} of {trainer.total_steps} steps; {what}go on "
            "with --resume and without --max-steps"
        )
    elif main:
        write_json(folder / "result.json", pretraining_result(run), indent=1)
        if run.export:
            best = folder / f"{trainer.names.best}.safetensors"
            export_half(best, run.export, run.tokenizer, tracker, run.leave_out)


def export_half(
    snapshot: Path,
    path: Path,
    tokenizer: Tokenizer,
    tracker: Tracker,
    leave_out: Collection[str] = (),
) -> None:
    """Write a snapshot's weights in float16, with its metadata, and the vocabulary beside it.

    The metadata also gets `held_out`: what was measured on held-out samples in that epoch.

    Args:
        snapshot: the checkpoint.
        path: of the new file; its folder is made.
        leave_out: names of tensors that are left out.
    """
    state, meta = load_checkpoint(snapshot)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        name: x.to(torch.float16) if x.is_floating_point() else x
        for name, x in state["model"].items()
        if name not in leave_out
    }
    progress = state["progress"]
    best = progress["history"][progress["best_epoch"]]
    held_out = {name: value for name, value in best.items() if name.startswith("heldout_")}
    save_checkpoint(path, {"model": weights}, meta | {"held_out": held_out})
    (path.parent / "vocab.txt").write_text(tokenizer.text(), encoding="utf-8")
    tracker.log(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def pretraining_result(run: PretrainingRun) -> dict[str, Any]:
    """Everything that result.json holds."""
    trainer = run.trainer
    runtime, history = trainer.runtime, trainer.history
    assert trainer.best_epoch is not None  # at the end of a run
    best = history[trainer.best_epoch]
    accuracies = dict(run.accuracies(best)) | {"count": len(run.heldout)}
    return {
        **run.identity,
        "task": "pretraining",
        "strategy": "standard",
        "policy": None,
        "command": run.command,
        "versions": versions(),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "processes": runtime.world.size,
        "accuracy": {"train": {}, "val": accuracies},
        "losses": {"train": best["train_losses"], "val": dict(best["heldout_losses"])},
        "parameters": parameter_counts(trainer.model),
        "decisions": None,
        "time": {
            "train_step_s": statistics.median(e["step_seconds"] for e in history),
            "total_s": trainer.earlier_seconds + time.perf_counter() - run.start,
        },
        "memory": trainer.peak_memory or peak_memory(),
        "recipe": trainer.meta["training"],
        "selection": run.selection,
        "best_epoch": trainer.best_epoch,
        "epochs": history,
    }
