"""What a device is made to do, recorded and repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

WARM = 2  # passes before a recording, in which libraries get ready


class Recorder(Protocol):
    """Records what a device is made to do.

    Attributes:
        said: why something was not recorded, as far as that was said.
    """

    said: set[str]

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work that has been done before; returns what repeats it."""


class CudaRecorder:
    """Records CUDA graphs, which share their memory: one is repeated at a time."""

    def __init__(self, device: torch.device) -> None:
        """`device` is the one of the process."""
        self.device = device
        self.said: set[str] = set()
        self._pool: Any = None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                work()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another thread moves the next batches meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay
