"""What an evaluation gives, and what a task offers to a finetuning run; for all tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.training.graphs import RecordedAnswers
from common.training.runtime import Runtime
from common.training.task import DecisionCounts, Task, TaskBatch

EVALUATION = -1  # the step that keys the noise of evaluation
Figures = dict[str, float | None]


@dataclass
class Evaluation:
    """Predictions for every question of a data set, their scores, and what was decided.

    Attributes:
        predictions: {question id: answer}, or {sample id: what the task writes of it}.
        scores: percent, overall, per answer type (None where a type does not occur) and per kind;
            None where the questions have no answers.
        decisions: counts over the samples.
        seconds_per_sample: of the model and the reading of features.
        best: {question id: its likeliest answers}, where they were asked for.
        chance: score of a random choice, in percent, where it is one among a few.
    """

    predictions: dict[Any, Any]
    scores: dict[str, float | None] | None
    decisions: DecisionCounts
    seconds_per_sample: float
    best: dict[Any, list[str]] = field(default_factory=dict)
    chance: float | None = None

    @property
    def known_scores(self) -> dict[str, float | None]:
        """The scores of questions with answers."""
        if self.scores is None:
            raise ValueError("these questions have no answers to compare with")
        return self.scores

    @property
    def overall(self) -> float:
        """The accuracy over all questions, in percent."""
        found = self.known_scores["overall"]
        if found is None:
            raise ValueError("there are no questions to score")
        return found


class FinetuneTask(Task, Protocol):
    """A task that a model is finetuned on, from training to the figures of result.json.

    Attributes:
        train, heldout: samples to train on, and to choose the best epoch with.
        measured: the training samples as they are evaluated.
        runtime: device, precision and processes.
        things: what its samples are called.
        kinds: that its training samples are of, where their data tell kinds apart.
    """

    train: Any
    heldout: Any
    measured: Any
    runtime: Runtime
    things: str

    @property
    def kinds(self) -> Sequence[str]: ...

    def evaluate(self, model: nn.Module, data: Any, name: str) -> Evaluation:
        """Every sample of a part of the data, in evaluation mode; every process gets all."""

    def look(self, model: nn.Module, data: Any, places: Sequence[int]) -> None:
        """Run the model, in evaluation mode, on the samples at some places as one batch."""

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one, for JSON."""

    def baselines(self, val: Any, found: Evaluation) -> dict[str, Figures]:
        """What can be had without looking, in percent: keys of `common.results.files.BASELINES`.

        Args:
            val: the samples that are reported.
            found: their evaluation.
        """


def tell_evaluation(
    model: nn.Module, seed: int, samples: Sequence[int], kinds: Sequence[str | None] = ()
) -> None:
    """Tell a model which samples it evaluates next, and their kinds where they are known.

    Decisions that are drawn in evaluation depend on seed and sample alone.
    """
    part = adaptive_part(model)
    if part is not None:
        part.tell(seed, EVALUATION, samples, kinds)


def recorded_answers(
    model: nn.Module,
    runtime: Runtime,
    answer: Callable[[nn.Module, dict[str, Tensor | None]], Tensor],
) -> RecordedAnswers:
    """What gives the logits of a batch in the precision of a run, recorded where that is done.

    Args:
        model: in evaluation mode.
        runtime: of the run.
        answer: gives a model's logits for inputs.
    """

    def run(batch: TaskBatch) -> Tensor:
        with runtime.autocast():
            return answer(model, batch.inputs)

    say = print if runtime.world.main else _silent
    return RecordedAnswers(model, run, runtime.recorder, say)


def _silent(line: str) -> None:
    """Says nothing."""


def joined_evaluations(
    parts: Sequence[tuple[Mapping[Any, Any], Mapping[str, Any]]],
) -> tuple[dict[Any, Any], DecisionCounts]:
    """Predictions and counts (their `state_dict`s) of all processes together."""
    predictions: dict[Any, Any] = {}
    counts = DecisionCounts()
    for found, state in parts:
        predictions |= found
        counts.join(state)
    return predictions, counts


def heldout_details(found: Evaluation) -> dict[str, Any]:
    """What an epoch's record keeps of the held-out samples."""
    details: dict[str, Any] = {"heldout": found.scores}
    if found.decisions.share is not None:
        details["decisions"] = {"share": found.decisions.share, "count": found.decisions.count}
    return details


def counted(found: Evaluation, samples: Sized) -> dict[str, float | None]:
    """Scores with the number of samples, for result.json."""
    return found.known_scores | {"count": len(samples)}
