"""Visual question answering as a task: loss, evaluation, decision statistics.

Shape legend: B batch, A answers, D decisions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.vqa_dataset import VQABatch, VQADataset, question_digest
from common.data.vqa_metric import majority_answer_baseline, question_only_baseline, score
from common.errors import DataError
from common.modules.losses import precise
from common.tasks.evaluation import (
    Evaluation,
    Figures,
    heldout_details,
    joined_evaluations,
    recorded_answers,
    tell_evaluation,
)
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.shared_images import SharedEvaluation
from common.training.graphs import RecordedAnswers
from common.training.padding import Range
from common.training.runtime import Runtime
from common.training.task import DecisionCounts, StepOutput, TaskBatch, Validation

LARGEST = 1 << 63
Inputs = dict[str, Tensor | None]
MakeInputs = Callable[[VQABatch], Inputs]
Answer = Callable[[nn.Module, dict[str, Tensor | None]], Tensor]


@runtime_checkable
class MakesGpuInputs(Protocol):
    """Makes inputs that go well on a GPU: of features in half precision, and of few shapes."""

    def __call__(self, batch: VQABatch) -> Inputs:
        """The inputs of a batch, whose features may be in float16; they stay so."""

    def padded(self, inputs: Inputs, regions: Range | None) -> Inputs:
        """The same padded to fixed lengths, see `common.training.padding`.

        Args:
            inputs: of `__call__`.
            regions: the fewest and the most regions of an image; None: not known.
        """


def answer(model: nn.Module, inputs: dict[str, Tensor | None]) -> Tensor:
    """What a model that only answers says: logits (B, A)."""
    logits: Tensor = model(**inputs)
    return logits


def vqa_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy summed over answers, mean over the batch; logits, target (B, A)."""
    found = F.binary_cross_entropy_with_logits(precise(logits), precise(target))
    return found * logits.shape[1]


def answer_output(logits: Tensor, target: Tensor) -> StepOutput:
    """Answer loss, and the soft score of the likeliest answer; logits, target (B, A)."""
    scores = target.gather(1, logits.detach().argmax(1, keepdim=True))[:, 0]
    return StepOutput({"answer": vqa_loss(logits, target)}, scores.sum(), len(scores), scores)


def check_logits(logits: Tensor, names: Sequence[str]) -> None:
    """Refuse numbers that are no answer.

    Args:
        logits: (B, A).
        names: of the B samples.

    Raises:
        DataError: names the first sample whose logits are not all finite.
    """
    bad = (~torch.isfinite(logits)).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        value = logits[row][~torch.isfinite(logits[row])][0].item()
        raise DataError(
            f"{names[row]}: the model computes {value:g} for an answer, which is no number to "
            f"choose by ({int(bad.sum())} of {len(logits)} samples of this batch): weights or "
            "features are damaged, or too large for the precision (--precision fp32)"
        )


class VQATask:
    """Questions, regions and soft answer scores; `FinetuneTask`."""

    things = "questions"

    def __init__(
        self,
        train: VQADataset,
        heldout: VQADataset,
        make_inputs: MakeInputs,
        runtime: Runtime,
        eval_batch_size: int | EvaluationBatches,
        seed: int = 0,
        progress: bool = True,
        answer: Answer = answer,
    ) -> None:
        """Put data and model's inputs together.

        Args:
            train, heldout: questions to train on, and to choose the best epoch with.
            make_inputs: turns a batch of the data set into the backbone's inputs.
            eval_batch_size: questions per batch in evaluation, or what finds it.
            seed: of decisions that are drawn in evaluation.
            answer: runs a model on inputs and gives its answer logits (B, A).
        """
        self.seed, self.answer = seed, answer
        self.train, self.heldout, self.measured = train, heldout, train
        self.make_inputs, self.runtime = make_inputs, runtime
        self.half = runtime.on_gpu and isinstance(make_inputs, MakesGpuInputs)
        self.progress = progress
        self.batches = (
            EvaluationBatches(eval_batch_size)
            if isinstance(eval_batch_size, int)
            else eval_batch_size
        )

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training questions at some places."""
        batch = self.train.read(indices, half=self.half)
        return self._convert(batch, self.train)

    def _convert(self, batch: VQABatch, data: VQADataset, fixed: bool = True) -> TaskBatch:
        """What the model reads of some questions of a data set.

        Args:
            fixed: pad to fixed lengths where the device is a GPU.
        """
        labels = {} if batch.target is None else {"target": batch.target}
        inputs, make = self.make_inputs(batch), self.make_inputs
        if fixed and self.runtime.on_gpu and isinstance(make, MakesGpuInputs):
            inputs = make.padded(inputs, data.counts)
        return TaskBatch(
            [sample_key(q) for q in batch.question_ids],
            inputs,
            labels,
            batch.answer_types,
            kinds=batch.kinds,
        )

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """Answer loss; the score is the soft score of the likeliest answer."""
        return answer_output(self.answer(model, batch.inputs), batch.labels["target"])

    @property
    def kinds(self) -> list[str]:
        """Of the training questions."""
        return self.train.kinds()

    def settings(self) -> dict[str, Any]:
        """Numbers and checksums of the questions."""
        return {
            "questions": question_digest(self.train),
            "held_out_questions": question_digest(self.heldout),
        }

    def baselines(self, val: VQADataset, found: Evaluation) -> dict[str, Figures]:
        """The most frequent answer, and the most frequent one to each question."""
        examples = self.train.examples, val.examples
        return {
            "majority": majority_answer_baseline(*examples),
            "question_only": question_only_baseline(*examples),
        }

    def validate(self, model: nn.Module) -> Validation:
        """Accuracy in percent on the held-out questions."""
        found = self.evaluate(model, self.heldout, "held out")
        return Validation(found.overall, heldout_details(found))

    @torch.no_grad()
    def look(self, model: nn.Module, data: VQADataset, places: Sequence[int]) -> None:
        self._asked(self._answers(model), data, places, fixed=False)

    def _answers(self, model: nn.Module) -> RecordedAnswers:
        """What gives the logits (B, A) of a batch."""
        return recorded_answers(model, self.runtime, self.answer)

    def _asked(
        self,
        answers: RecordedAnswers,
        data: VQADataset,
        places: Sequence[int],
        fixed: bool = True,
        shared: SharedEvaluation | None = None,
    ) -> tuple[VQABatch, TaskBatch, Tensor]:
        """The questions at some places, the batch on the device, and the logits (B, A).

        With `shared`, what depends on an image alone is computed once.
        """
        read = data.read(places, half=self.half)
        batch = self.runtime.move(self._convert(read, data, fixed))
        tell_evaluation(answers.model, self.seed, batch.samples, batch.kinds)
        if shared is None:
            return read, batch, answers(batch)
        with shared.within(read.image_ids):
            return read, batch, answers(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: VQADataset, name: str, best: int = 0) -> Evaluation:
        """Answer every question of a data set, in evaluation mode, each counted once.

        Every process answers a part of the batches and gets the result of all, in the order of the
        data. So many of the `best` answers to each question are kept.
        """
        likeliest: dict[Any, list[str]] = {}
        world = self.runtime.world
        predictions: dict[Any, str] = {}
        counts = DecisionCounts()
        start = time.perf_counter()
        answers = self._answers(model)
        shared = SharedEvaluation(self.batches.images, self.runtime, model)

        def ask(places: list[int]) -> tuple[VQABatch, TaskBatch, Tensor]:
            return self._asked(answers, data, places, shared=shared)

        order = shared.order([example.image_id for example in data.examples])
        for _, (read, batch, logits) in self.batches.asked(
            model, self.runtime, len(data), name, self.progress, ask, order
        ):
            counts.add_last(model, batch.types, batch.kinds)
            logits = logits.float().cpu()
            check_logits(logits, [f"question {asked}" for asked in read.question_ids])
            predictions |= zip(read.question_ids, data.vocabulary.decode(logits), strict=True)
            if best:
                top = logits.topk(min(best, logits.shape[1])).indices.tolist()
                known = data.vocabulary.answers
                found = [[known[label] for label in row] for row in top]
                likeliest |= zip(read.question_ids, found, strict=True)
        predictions, counts = joined_evaluations(world.gather((predictions, counts.state_dict())))
        if best:
            likeliest = {k: v for part in world.gather(likeliest) for k, v in part.items()}
        asked = [example.question_id for example in data.examples]
        predictions = {question: predictions[question] for question in asked}
        if best:
            likeliest = {question: likeliest[question] for question in asked}
        shared.tell(name, self.things)
        seconds = (time.perf_counter() - start) / max(1, len(data))
        answered = all(example.answers is not None for example in data.examples)
        scores = score(predictions, data.examples) if answered else None
        return Evaluation(predictions, scores, counts, seconds, likeliest)


def sample_key(question_id: int | str) -> int:
    """A signed 64-bit integer for a question id, to key noise with.

    Texts, and numbers that need more bits, are told apart by all of their characters.
    """
    if isinstance(question_id, int) and -LARGEST <= question_id < LARGEST:
        return question_id
    digest = hashlib.blake2b(str(question_id).encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)
