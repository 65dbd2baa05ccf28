"""A runtime that prepares batches as for a GPU, and computes on the CPU."""

from __future__ import annotations

import torch

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
