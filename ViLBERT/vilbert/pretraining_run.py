"""What the pretraining commands share: samples that are masked anew, the meta, the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from common.data.tokenizer import Tokenizer
from common.tasks.pretraining import PretrainingRun
from common.tasks.starting import RunOptions
from common.training.loop import LoopOptions, Trainer
from common.training.runtime import Runtime
from common.training.task import TaskBatch
from vilbert.loading import DECODER
from vilbert.sizes import ViLBertConfig


class ToldRun(Protocol):
    """What a run needs of a command's options."""

    @property
    def command(self) -> str:
        """As it was typed."""

    @property
    def run(self) -> RunOptions:
        """Where it writes to."""

    @property
    def loop(self) -> LoopOptions:
        """Of the training loop."""

    @property
    def eval_batch_size(self) -> int:
        """Samples per batch of validation."""

    @property
    def export(self) -> Path | None:
        """A folder for the best epoch, or None."""


class Drawable(Protocol):
    """A part of the data whose samples are masked when they are read."""

    def __len__(self) -> int:
        """Number of samples."""

    def draw(self, indices: Sequence[int], seed: int, epoch: int) -> TaskBatch:
        """The samples at some places, masked as (seed, epoch, place) say."""


Samples = TypeVar("Samples", bound=Drawable)


class MaskingTask(Generic[Samples]):
    """Samples to train on and held-out ones, masked anew in every epoch."""

    def __init__(
        self, train: Samples, heldout: Samples, runtime: Runtime, options: ToldRun
    ) -> None:
        self.train, self.heldout, self.runtime = train, heldout, runtime
        self.seed, self.eval_batch_size = options.run.seed, options.eval_batch_size
        self.workers, self.progress = options.loop.workers, options.loop.progress

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training samples at some places."""
        return self.draw(self.train, indices, epoch)

    def draw(self, part: Samples, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The samples at some places of a part of the data, masked for this epoch."""
        return part.draw(indices, self.seed, epoch)


def pretraining_meta(
    dataset: str,
    config: ViLBertConfig,
    features: Mapping[str, Any],
    answers: Sequence[str],
    tokenizer: Tokenizer,
    samples: tuple[int, int],
) -> dict[str, Any]:
    """The meta of pretraining's checkpoints; `samples` are those trained on and those held out."""
    return {
        "backbone": "vilbert",
        "task": "pretraining",
        "dataset": dataset,
        "size": config.size_name(),
        "config": config.to_dict(),
        "features": dict(features),
        "answers": list(answers),
        "vocabulary": tokenizer.digest(),
        "samples": dict(zip(("train", "held out"), samples, strict=True)),
    }


def whole_run(
    options: ToldRun,
    trainer: Trainer,
    heldout: Sized,
    tokenizer: Tokenizer,
    start: float,
    selection: str,
    scored: str,
) -> PretrainingRun:
    """The run up to result.json.

    Args:
        options: of the command.
        trainer: with the model.
        heldout: samples of the validation.
        tokenizer: its vocabulary is kept.
        start: when the run began, seconds of `time.perf_counter`.
        selection: how the best epoch is chosen.
        scored: what the score in the log is of.
    """
    tracker = trainer.tracker
    identity = {
        "backbone": "vilbert",
        "dataset": trainer.meta["dataset"],
        "size": trainer.meta["size"],
        "seed": options.run.seed,
        "name": options.run.folder.name,
    }

    def report_epoch(values: dict[str, Any]) -> None:
        tracker.log(epoch_lines(values, scored))
        found = values["heldout_accuracies"] | values["heldout_losses"]
        tracker.scalars({f"heldout/{name}": value for name, value in found.items()}, trainer.step)

    return PretrainingRun(
        trainer,
        tokenizer,
        identity,
        options.command,
        start,
        options.run.resume,
        options.run.overwrite,
        report_epoch,
        lambda best: best["heldout_accuracies"],
        heldout,
        selection,
        options.export and options.export / "model.safetensors",
        (DECODER,),
    )


def epoch_lines(values: Mapping[str, Any], scored: str) -> str:
    """What is logged after an epoch; `scored` is what the score is of."""

    def listed(found: Mapping[str, float]) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in found.items())

    epoch = f"Epoch {values['epoch']}"
    return (
        f"\n{epoch}: training {listed(values['train_losses'])}; {scored} "
        f"{values['train_accuracy']:.2f}\n{epoch}: held out {listed(values['heldout_losses'])}; "
        f"{scored} {listed(values['heldout_accuracies'])}"
    )
