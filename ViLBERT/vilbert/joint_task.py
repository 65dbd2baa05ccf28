"""Several tasks trained together in one model, a batch of one task after a batch of another.

As in the original, an epoch is one of the largest task; a smaller task starts later, so that it
sees as many epochs of its own as it should. Shape legend: N samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from common.tasks.evaluation import Evaluation, Figures, FinetuneTask, heldout_details
from common.training.batch_order import BatchOrder
from common.training.task import DecisionCounts, StepOutput, TaskBatch, Validation


@dataclass(frozen=True)
class Share:
    """How a task takes part.

    Attributes:
        samples: N.
        batch_size: of its steps.
        epochs: of its own samples.
        weight: factor of its loss.
    """

    samples: int
    batch_size: int
    epochs: int
    weight: float = 1.0


@dataclass(frozen=True)
class Plateau:
    """When a task that no longer gets better is trained less (12-in-1's controller).

    Attributes:
        patience: validations without progress before that.
        threshold: least progress, as a share of the best score.
        back: loss of score, as a share of the best one, that wakes the task up.
        every: of its steps one in so many is taken meanwhile.
    """

    patience: int = 1
    threshold: float = 0.001
    back: float = 0.005
    every: int = 4

    def is_stopped(self, scores: Sequence[float]) -> bool:
        """Whether a task with these scores after each epoch so far is trained less."""
        best, bad, stopped = float("-inf"), 0, False
        for score in scores:
            if best == float("-inf") or score > best + self.threshold * abs(best):
                best, bad = score, 0
            else:
                bad += 1
            if stopped:
                stopped = score >= best - self.back * abs(best)
                bad = bad if stopped else 0
            elif bad > self.patience:
                stopped = True
        return stopped


class JointOrder:
    """Batches of several tasks in turn; `Order`.

    A number means a sample of a task in one of the task's epochs: see `read_number`.
    """

    uniform = False

    def __init__(
        self, shares: Mapping[str, Share], epochs: int, seed: int, plateau: Plateau | None = None
    ) -> None:
        """Plan the steps.

        Args:
            shares: the tasks by name.
            epochs: of the largest task.
            seed: of the order of samples.
            plateau: train tasks less that do not get better; None: never.
        """
        self.shares, self.epochs, self.plateau = dict(shares), epochs, plateau
        self._orders = {
            name: BatchOrder(share.samples, share.batch_size, seed + number)
            for number, (name, share) in enumerate(self.shares.items())
        }
        self.turns = max(order.steps for order in self._orders.values())  # of an epoch
        self._first = {
            name: max(0, self.turns * epochs - share.epochs * self._orders[name].steps)
            for name, share in self.shares.items()
        }
        self._scores: dict[str, list[float]] = {name: [] for name in self.shares}

    def _takes_part(self, name: str, turn: int) -> bool:
        """Whether a task has a step in a turn, as far as the epochs before it tell."""
        if turn < self._first[name]:
            return False
        before = self._scores[name][: turn // self.turns]
        if self.plateau is None or not self.plateau.is_stopped(before):
            return True
        return turn % self.plateau.every == 0

    def _plan(self, epoch: int) -> list[tuple[str, int]]:
        """Tasks with the number of their turn, from 0."""
        turns = range(epoch * self.turns, (epoch + 1) * self.turns)
        return [
            (name, turn - self._first[name])
            for turn in turns
            for name in self.shares
            if self._takes_part(name, turn)
        ]

    def steps_of(self, epoch: int) -> int:
        return len(self._plan(epoch))

    def total(self, epochs: int) -> int:
        """Steps if no task is trained less."""
        whole = self.turns * epochs
        return sum(max(0, whole - first) for first in self._first.values())

    def left_out(self, epoch: int) -> int:
        turns = range(epoch * self.turns, (epoch + 1) * self.turns)
        planned = sum(turn >= first for turn in turns for first in self._first.values())
        return planned - self.steps_of(epoch)

    def epoch(self, epoch: int, skip: int = 0) -> list[list[int]]:
        """The batches of an epoch as numbers, see `read_number`."""
        names = list(self.shares)
        drawn: dict[tuple[str, int], list[list[int]]] = {}
        batches = []
        for name, own_turn in self._plan(epoch)[skip:]:
            order, share = self._orders[name], self.shares[name]
            cycle, place = divmod(own_turn, order.steps)
            if (name, cycle) not in drawn:
                drawn[name, cycle] = order.epoch(cycle)
            batches.append(
                [
                    (sample + share.samples * cycle) * len(names) + names.index(name)
                    for sample in drawn[name, cycle][place]
                ]
            )
        return batches

    def read_number(self, number: int) -> tuple[str, int, int]:
        """Task, place of the sample and epoch of the task that a number means."""
        names = list(self.shares)
        behind, task = divmod(number, len(names))
        cycle, place = divmod(behind, self.shares[names[task]].samples)
        return names[task], place, cycle

    def check_divisible(self, processes: int, micro_batches: int) -> None:
        for order in self._orders.values():
            order.check_divisible(processes, micro_batches)

    def follow(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Take the score of every task after every epoch."""
        for name, scores in self._scores.items():
            scores[:] = [float((record.get("heldout") or {})[name]) for record in history]


@dataclass(frozen=True)
class JointData:
    """A part of the data of every task."""

    parts: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts.values())


class JointTask:
    """Tasks by name; `FinetuneTask`. Its score is the mean of the tasks' scores."""

    things = "samples"
    kinds: Sequence[str] = ()  # those of questions are not told apart here

    def __init__(self, tasks: Mapping[str, FinetuneTask], order: JointOrder) -> None:
        """Join tasks.

        Args:
            tasks: by name.
            order: says whose samples a batch is.
        """
        self.tasks, self.order = dict(tasks), order
        self.train = JointData({name: task.train for name, task in tasks.items()})
        self.heldout = JointData({name: task.heldout for name, task in tasks.items()})
        self.measured = JointData({name: task.measured for name, task in tasks.items()})
        self.runtime = next(iter(self.tasks.values())).runtime

    def __len__(self) -> int:
        return len(self.train)

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The samples of one task that some numbers mean; see `JointOrder.read_number`."""
        read = [self.order.read_number(number) for number in indices]
        (name,), (cycle,) = {task for task, _, _ in read}, {cycle for _, _, cycle in read}
        batch = self.tasks[name].read([place for _, place, _ in read], cycle)
        batch.task = name
        return batch

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """The loss of the batch's task under its name."""
        found = self.tasks[batch.task].step(model, batch)
        (loss,) = found.losses.values()
        weight = self.order.shares[batch.task].weight
        return replace(found, losses={batch.task: loss * weight})

    def settings(self) -> dict[str, Any]:
        plan = {name: asdict(share) for name, share in self.order.shares.items()}
        plateau = self.order.plateau
        return {
            "tasks": {name: task.settings() | plan[name] for name, task in self.tasks.items()},
            "plateau": None if plateau is None else asdict(plateau),
        }

    def baselines(self, val: JointData, found: Evaluation) -> dict[str, Figures]:
        """Those of the tasks, under the tasks' names; there is none of all together."""
        joined: dict[str, Figures] = {}
        for name, task in self.tasks.items():
            own = task.baselines(val.parts[name], found.predictions[name])
            for baseline, figures in own.items():
                joined.setdefault(baseline, {"overall": None})[name] = figures["overall"]
        return joined

    def validate(self, model: nn.Module) -> Validation:
        """Every task on its held-out samples."""
        found = self.evaluate(model, self.heldout, "held out")
        return Validation(found.overall, heldout_details(found))

    def look(self, model: nn.Module, data: JointData, places: Sequence[int]) -> None:
        """Places count the samples of all tasks, one task after the other."""
        first = 0
        for task, part in data.parts.items():
            own = [place - first for place in places if 0 <= place - first < len(part)]
            if own:
                self.tasks[task].look(model, part, own)
            first += len(part)

    def evaluate(self, model: nn.Module, data: JointData, name: str) -> Evaluation:
        """See `FinetuneTask`; predictions are the tasks' evaluations by name."""
        found = {
            task: self.tasks[task].evaluate(model, part, f"{name} {task}")
            for task, part in data.parts.items()
        }
        counts = DecisionCounts()
        for task, evaluation in found.items():
            counts.join(of_type(evaluation.decisions, task))
        scores: Figures = {task: evaluation.overall for task, evaluation in found.items()}
        overall = sum(evaluation.overall for evaluation in found.values()) / len(found)
        seconds = sum(e.seconds_per_sample * len(data.parts[t]) for t, e in found.items())
        return Evaluation(
            found, {"overall": overall, **scores}, counts, seconds / max(1, len(data))
        )


def of_type(counts: DecisionCounts, name: str) -> dict[str, Any]:
    """Counts (a `state_dict`) with one type in place of those that they have."""
    ones = {} if counts.ones is None else {name: counts.ones}
    number = {} if counts.ones is None else {name: counts.count}
    return counts.state_dict() | {"by_type": ones, "type_counts": number}
