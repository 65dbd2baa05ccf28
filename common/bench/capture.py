"""A step captured as a CUDA graph: launched as a whole, without Python and without waiting for it.

What a step reads and writes has to stay where it is, and nothing may be asked from the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[[], None]
Capture = Callable[[Step], Step]
WARM_UPS = 3  # libraries set themselves up, and the optimiser makes its state


class CudaGraphs:
    """Makes graphs on the current GPU.

    They use the same memory for what they compute on the way, so that they must not run at the same
    time, and none may read what another one left.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, step: Step) -> Step:
        """Run a step a few times and capture it once more; returns what replays it."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            step()
        return graph.replay
