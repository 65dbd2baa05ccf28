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
        score_sum, count: of the batch and of what it is a sum over; tensors (0-d) on the device
            need no transfer.
        scores: (n,) in [0, 1] of n samples, of which each has as many rows in the batch; None
            where a task has no score of every sample.
    """

    losses: dict[str, Tensor]
    score_sum: Tensor | float
    count: Tensor | int
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
    """How many samples had decision 1, per decision, overall and by question type and kind.

    Sums stay on the device until they are asked for.
    """

    def __init__(self) -> None:
        self.count = 0
        self.type_counts: Counter[str] = Counter()
        self._ones: Tensor | None = None  # (D,)
        self._by_type: dict[str, Tensor] = {}

    @property
    def ones(self) -> Tensor | None:
        """(D,) float64: samples with decision 1; None where nothing was decided."""
        return None if self._ones is None else self._ones.cpu()

    @property
    def by_type(self) -> dict[str, Tensor]:
        """The same (D,) of each type and kind."""
        return {kind: ones.cpu() for kind, ones in self._by_type.items()}

    def add(self, decisions: Tensor, *types: Sequence[str | None]) -> None:
        """Count a batch of decisions (B, D).

        Args:
            types: what the B samples are counted under as well, such as answer types and kinds;
                each has B names, or none.
        """
        hard = decisions.detach().double()
        self.count += len(hard)
        self._ones = added(self._ones, hard.sum(0))
        members = {
            kind: [name == kind for name in names]
            for names in types
            for kind in sorted({name for name in names if name is not None})
        }
        if not members:
            return
        rows = torch.tensor(list(members.values()), dtype=hard.dtype)
        sums = rows.to(hard.device, non_blocking=True) @ hard
        for (kind, found), ones in zip(members.items(), sums.unbind(), strict=True):
            self._by_type[kind] = added(self._by_type.get(kind), ones)
            self.type_counts[kind] += sum(found)

    def add_last(self, model: nn.Module, *types: Sequence[str | None]) -> None:
        """Count what a model decided in its last forward pass, if it decides anything."""
        part = adaptive_part(model)
        if part is not None and part.last is not None:
            self.add(part.last.decisions, *types)

    @property
    def share(self) -> list[float] | None:
        """Share of samples with decision 1, D numbers; None where nothing was decided."""
        ones = self.ones
        return None if ones is None else (ones / self.count).tolist()

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
            self._ones = added(self._ones, state["ones"])
        for kind, ones in state["by_type"].items():
            self._by_type[kind] = added(self._by_type.get(kind), ones)
        self.type_counts.update(state["type_counts"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "ones": self.ones,
            "by_type": self.by_type,
            "type_counts": dict(self.type_counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count, self._ones = state["count"], state["ones"]
        self._by_type = dict(state["by_type"])
        self.type_counts = Counter(state["type_counts"])


def added(total: Tensor | None, more: Tensor) -> Tensor:
    """A sum that begins with its first part and is where the newest one is."""
    return more if total is None else total.to(more.device) + more


def as_number(x: Tensor | float) -> Tensor | float:
    """A float where that costs no transfer, else a 0-d float64 tensor on its device."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach()
    return float(x) if x.device.type == "cpu" else x.double()


def as_floats(numbers: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Plain floats, with one transfer for all that are tensors."""
    tensors = {name: x for name, x in numbers.items() if isinstance(x, Tensor)}
    read: list[float] = torch.stack(list(tensors.values())).tolist() if tensors else []
    found = dict(zip(tensors, read, strict=True))
    return {name: found[name] if name in found else float(numbers[name]) for name in numbers}
