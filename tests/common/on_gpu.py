"""A runtime that prepares batches as for a GPU, and computes on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from common.training.distributed import World
from common.training.runtime import Runtime


class OnGpu(Runtime):
    """Says that it is one; what CUDA alone can do is not called."""

    @property
    def on_gpu(self) -> bool:
        return True


def pretended_gpu(world: World | None = None) -> Runtime:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return OnGpu(torch.device("cpu"), "fp32", scaler, world=world or World())


@contextmanager
def everything_on_gpu() -> Iterator[None]:
    """Within the context all runtimes say that they are a GPU; dropout, whose masks depend on the
    shape, does nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "on_gpu", property(lambda self: True))
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        yield


@contextmanager
def without_dropout() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", lambda self, x: x)
        yield


def same_learning(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Results of two runs are equal but for rounding."""
    for one, other in zip(found["epochs"], expected["epochs"], strict=True):
        assert one["train_losses"] == pytest.approx(other["train_losses"], rel=2e-4)
    assert found["accuracy"] == expected["accuracy"]
    if expected["decisions"]:
        assert found["decisions"]["share"] == pytest.approx(expected["decisions"]["share"])
