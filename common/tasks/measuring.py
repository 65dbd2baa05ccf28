"""What a model computes for a sample in evaluation: operations, and attention that is exactly 0."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.adapt.attention_capture import count_zeros
from common.modules.attention import has_mechanism
from common.tasks.evaluation import FinetuneTask
from common.training.batch_order import iterate
from common.training.flops import FlopCounter

SAMPLES, BATCH = 256, 32


@dataclass(frozen=True)
class Work:
    """Means over the measured samples.

    Attributes:
        flops: floating-point operations of a sample, the policy network's and those of padding
            among them.
        samples: that were measured.
        zero_share: of attention weights that are exactly 0, of queries and keys that are no
            padding; None where nothing attends.
    """

    flops: float
    samples: int
    zero_share: float | None

    def __str__(self) -> str:
        zeros = f"{self.zero_share:.1%} of attention weights exactly 0" if self.zero_share else ""
        flops = f"{self.flops / 1e9:.3g} GFLOP per sample (mean of {self.samples:,})"
        return ", ".join(filter(None, (flops, zeros)))

    def to_result(self) -> dict[str, Any]:
        """The entries of result.json."""
        return {
            "flops": {"per_sample": self.flops, "samples": self.samples},
            "attention_zero_share": self.zero_share,
        }


def measured_places(data: Sized, samples: int = SAMPLES) -> list[int]:
    """Places of the same samples in every run on some data: so many, evenly spread, or all."""
    count = min(samples, len(data))
    return [place * len(data) // count for place in range(count)]


def measure_work(model: nn.Module, task: FinetuneTask, data: Any) -> Work:
    """What a model computes for the `measured_places` of a part of the data.

    Decisions are those that it makes for these samples, so that what it skips is not counted. All
    processes may do this, each for itself.

    Args:
        model: on the task's device; left in evaluation mode.
        task: runs it.
        data: samples of the task.
    """
    model.eval()
    places = measured_places(data)
    batches = [[places[i] for i in batch] for batch in iterate(len(places), BATCH)]
    with FlopCounter() as counter:
        for batch in batches:
            task.look(model, data, batch)
    return Work(counter.total / len(places), len(places), _zero_share(model, task, data, batches))


def _zero_share(
    model: nn.Module, task: FinetuneTask, data: Any, batches: list[list[int]]
) -> float | None:
    """In a pass of its own, since watching costs operations."""
    if not has_mechanism(model):
        return 0.0  # softmax gives every key a weight
    with count_zeros(model) as zeros:
        for batch in batches:
            task.look(model, data, batch)
    return zeros.share
