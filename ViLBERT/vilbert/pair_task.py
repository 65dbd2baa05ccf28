"""A task on pairs of texts and images for the training loop; see `vilbert.task_types`.

Shape legend: B samples, O options of a sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.files import text_digest
from common.tasks.evaluation import (
    EVALUATION,
    Evaluation,
    Figures,
    heldout_details,
    joined_evaluations,
    recorded_answers,
    tell_evaluation,
)
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.shared_images import SharedEvaluation
from common.tasks.vqa import sample_key
from common.training.graphs import RecordedAnswers
from common.training.padding import padded
from common.training.runtime import Runtime
from common.training.task import DecisionCounts, StepOutput, TaskBatch, Validation
from vilbert.inputs import padded_inputs, shown_lengths
from vilbert.pair_inputs import PairInputs
from vilbert.samples import Sample, TaskData
from vilbert.task_types import REGION_LABELS, TaskType

Head = Callable[[nn.Module, Mapping[str, Tensor | None], str], Tensor]


def run_head(model: nn.Module, inputs: Mapping[str, Tensor | None], head: str) -> Tensor:
    """What one head of `VILBertForVLTasks` says."""
    found: Tensor = getattr(model(heads=(head,), **inputs), head)
    return found


@dataclass
class Written:
    """What is known of a sample after evaluation: its row, score, score of a random choice."""

    row: dict[str, Any]
    kind: str | None
    score: float | None
    chance: float | None


class PairTask:
    """Samples of one task; `FinetuneTask`."""

    things = "samples"
    kinds: Sequence[str] = ()

    def __init__(
        self,
        name: str,
        kind: TaskType,
        train: TaskData,
        heldout: TaskData,
        inputs: PairInputs,
        runtime: Runtime,
        eval_batch_size: int | EvaluationBatches,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Put data and model's inputs together.

        Args:
            name: of the task.
            kind: what is read of the model.
            train, heldout: samples to train on, and to choose the best epoch with.
            inputs: turns pairs into the model's inputs.
            eval_batch_size: samples per batch in evaluation, or what finds it.
            seed: of decisions that are drawn in evaluation.
        """
        self.name, self.kind, self.seed = name, kind, seed
        self.train, self.heldout, self.inputs, self.runtime = train, heldout, inputs, runtime
        # Without what only training shows, so that it compares with the validation.
        self.measured = train.part(range(len(train)), training=False)
        self.progress = progress
        self.batches = (
            EvaluationBatches(eval_batch_size)
            if isinstance(eval_batch_size, int)
            else eval_batch_size
        )

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training samples at some places."""
        return self._convert(self.train, self._drawn(self.train, indices, epoch))

    def _drawn(self, data: TaskData, indices: Sequence[int], epoch: int) -> list[Sample]:
        return [data.sample(place, epoch) for place in indices]

    def _convert(self, data: TaskData, samples: Sequence[Sample], fixed: bool = True) -> TaskBatch:
        """Inputs have B * O rows, labels B; `fixed`: of fixed lengths where the device is a GPU."""
        pairs = [pair for sample in samples for pair in sample.pairs]
        on_gpu, counts, limits = self.runtime.on_gpu, self.inputs.counts, self.inputs.limits
        inputs, shown = self.inputs(pairs, data.second_features, half=on_gpu)
        labels = self.kind.labels(samples, shown, data)
        if fixed and on_gpu:
            inputs = padded_inputs(inputs, counts, limits)
            labels = padded(labels, REGION_LABELS, shown_lengths(counts, limits))
        keys = [
            sample_key(f"{self.name} {sample.sample_id} {option}")
            for sample in samples
            for option in range(len(sample.pairs))
        ]
        kinds = [sample.kind for sample in samples for _ in sample.pairs]
        return TaskBatch(keys, inputs, labels, kinds)

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """The task's loss; the score is the number of right choices."""
        logits = run_head(model, batch.inputs, self.kind.head)
        scores = self.kind.scores(logits, batch.labels)
        loss = self.kind.losses(logits, batch.labels)
        return StepOutput({self.name: loss}, scores.sum(), len(scores), scores)

    def settings(self) -> dict[str, Any]:
        """Numbers and checksums of the samples."""
        return {"samples": _digest(self.train), "held_out_samples": _digest(self.heldout)}

    def baselines(self, val: TaskData, found: Evaluation) -> dict[str, Figures]:
        """A random choice."""
        return {} if found.chance is None else {"chance": {"overall": found.chance}}

    def validate(self, model: nn.Module) -> Validation:
        """Share of right choices on the held-out samples, in percent."""
        found = self.evaluate(model, self.heldout, "held out")
        return Validation(found.overall, heldout_details(found))

    @torch.no_grad()
    def look(self, model: nn.Module, data: TaskData, places: Sequence[int]) -> None:
        self._asked(self._answers(model), data, places, fixed=False)

    def _answers(self, model: nn.Module) -> RecordedAnswers:
        """What gives the head's logits of a batch."""
        return recorded_answers(model, self.runtime, partial(run_head, head=self.kind.head))

    def _asked(
        self,
        answers: RecordedAnswers,
        data: TaskData,
        places: Sequence[int],
        fixed: bool = True,
        shared: SharedEvaluation | None = None,
    ) -> tuple[list[Sample], TaskBatch, Tensor]:
        """The samples at some places, the batch on the device, and the head's logits.

        With `shared`, what depends on an image alone is computed once.
        """
        samples = self._drawn(data, places, EVALUATION)
        batch = self.runtime.move(self._convert(data, samples, fixed))
        tell_evaluation(answers.model, self.seed, batch.samples)
        if shared is None:
            return samples, batch, answers(batch)
        images = [pair.image_id for sample in samples for pair in sample.pairs]
        with shared.within(images):
            return samples, batch, answers(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: TaskData, name: str) -> Evaluation:
        """See `FinetuneTask`; predictions are the rows of the task's file."""
        known: dict[Any, Written] = {}
        counts = DecisionCounts()
        start = time.perf_counter()
        answers = self._answers(model)
        shared = SharedEvaluation(self.batches.images, self.runtime, model)

        def ask(places: list[int]) -> tuple[list[Sample], TaskBatch, Tensor]:
            return self._asked(answers, data, places, shared=shared)

        for _, (samples, batch, logits) in self.batches.asked(
            model, self.runtime, len(data), name, self.progress, ask
        ):
            counts.add_last(model, batch.types)
            known |= self._written(samples, logits.float(), batch.labels, data)
        shared.tell(name, "pairs")
        parts = self.runtime.world.gather((known, counts.state_dict()))
        known, counts = joined_evaluations(parts)
        seconds = (time.perf_counter() - start) / max(1, len(data))
        return Evaluation(
            {sample: written.row for sample, written in known.items()},
            scores_of(known),
            counts,
            seconds,
            chance=_percent([written.chance for written in known.values()]),
        )

    def _written(
        self, samples: Sequence[Sample], logits: Tensor, labels: dict[str, Tensor], data: TaskData
    ) -> dict[Any, Written]:
        rows = self.kind.rows(samples, logits, labels, data)
        unknown = [None] * len(samples)
        public = bool(set(labels) & {"right", "overlap", "target"})
        scores = self.kind.scores(logits, labels).tolist() if public else unknown
        chances = self.kind.chance(labels) if public else None
        each = unknown if chances is None else chances.tolist()
        return {
            sample.sample_id: Written(row, sample.kind, score, chance)
            for sample, row, score, chance in zip(samples, rows, scores, each, strict=True)
        }


def scores_of(known: Mapping[Any, Written]) -> dict[str, float | None] | None:
    """Percent, overall and by kind; None where what is right is not public."""
    if any(written.score is None for written in known.values()):
        return None
    kinds = sorted({written.kind for written in known.values() if written.kind is not None})
    by_kind = {
        kind: _percent([w.score for w in known.values() if w.kind == kind]) for kind in kinds
    }
    return {"overall": _percent([written.score for written in known.values()]), **by_kind}


def _percent(values: Sequence[float | None]) -> float | None:
    """100 × mean; None where one is not known, or there is none."""
    found = [value for value in values if value is not None]
    return 100 * sum(found) / len(found) if found and len(found) == len(values) else None


def _digest(data: TaskData) -> dict[str, Any]:
    """Number of samples and a checksum of their ids in order."""
    ids = ",".join(str(data.sample(place, EVALUATION).sample_id) for place in range(len(data)))
    return {"count": len(data), "sha256": text_digest(ids)}
