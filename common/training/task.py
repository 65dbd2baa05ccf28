"""What the training loop needs to know of a task: batches, losses, a score.

Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part


@dataclass
class TaskBatch:
    """One batch, ready for the model.

    Attributes:
        samples: B integer keys of the samples (question ids); they key the policy's noise.
        inputs: keyword arguments of the model, (B, …).
        labels: what the losses need, (B, …).
        types: B question types, or empty.
        weights: {loss: number of things it is a mean over in this batch}, such as its labelled
            words; a loss that is not named is a mean over the B samples. Parts of a batch, on
            other processes or in other micro-batches, are put together with them.
        task: name of the task, where several are trained together.
        kinds: B kinds of samples, as their data set tells them apart, or empty.
    """

    samples: list[int]
    inputs: dict[str, Tensor | None]
    labels: dict[str, Tensor] = field(default_factory=dict)
    types: Sequence[str | None] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    task: str = ""
    kinds: Sequence[str | None] = ()


@dataclass
class StepOutput:
    """Losses of a batch (their sum is minimised) and a score to show, summed over the batch.

    Attributes:
        scores: (n,) in [0, 1] of n samples, of which each has as many rows in the batch; None
            where a task has no score of every sample.
    """

    losses: dict[str, Tensor]
    score_sum: float
    count: int
    scores: Tensor | None = None


@dataclass
class Validation:
    """What one validation gives: the number that selects the best epoch, and details to record."""

    score: float
    details: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A task on a training set and a validation set."""

    def __len__(self) -> int:
        """Number of training samples."""

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The batch of these training samples; `epoch` keys anything that is drawn at random."""

    def step(self, model: nn.Module, batch: TaskBatch) -> StepOutput:
        """Run the model on a batch (in training mode) and compute its losses."""

    def validate(self, model: nn.Module) -> Validation:
        """Evaluate on what was held out to select the best epoch."""


class DecisionCounts:
    """How many samples had decision 1, per decision, overall and by question type and kind."""

    def __init__(self) -> None:
        self.count = 0
        self.ones: Tensor | None = None
        self.by_type: dict[str, Tensor] = {}
        self.type_counts: Counter[str] = Counter()

    def add(self, decisions: Tensor, *types: Sequence[str | None]) -> None:
        """Count a batch of decisions (B, D).

        Args:
            types: what the B samples are counted under as well, such as answer types and kinds;
                each has B names, or none.
        """
        hard = decisions.detach().double().cpu()
        self.count += len(hard)
        self.ones = hard.sum(0) if self.ones is None else self.ones + hard.sum(0)
        for names in types:
            for kind in sorted({name for name in names if name is not None}):
                rows = torch.tensor([name == kind for name in names])
                self.by_type[kind] = self.by_type.get(kind, 0) + hard[rows].sum(0)
                self.type_counts[kind] += int(rows.sum())

    def add_last(self, model: nn.Module, *types: Sequence[str | None]) -> None:
        """Count what a model decided in its last forward pass, if it decides anything."""
        part = adaptive_part(model)
        if part is not None and part.last is not None:
            self.add(part.last.decisions, *types)

    @property
    def share(self) -> list[float] | None:
        """Share of samples with decision 1, D numbers; None where nothing was decided."""
        return None if self.ones is None else (self.ones / self.count).tolist()

    def share_by_type(self) -> dict[str, dict[str, Any]]:
        """{type: {count, share}}."""
        return {
            kind: {
                "count": self.type_counts[kind],
                "share": (ones / self.type_counts[kind]).tolist(),
            }
            for kind, ones in self.by_type.items()
        }

    def join(self, state: Mapping[str, Any]) -> None:
        """Add what another process counted (its `state_dict`)."""
        self.count += state["count"]
        if state["ones"] is not None:
            self.ones = state["ones"] if self.ones is None else self.ones + state["ones"]
        for kind, ones in state["by_type"].items():
            self.by_type[kind] = self.by_type.get(kind, 0) + ones
        self.type_counts.update(state["type_counts"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "ones": self.ones,
            "by_type": dict(self.by_type),
            "type_counts": dict(self.type_counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self.ones = state["count"], state["ones"]
        self.by_type = dict(state["by_type"])
        self.type_counts = Counter(state["type_counts"])
