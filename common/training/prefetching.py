"""Batches read and moved to a GPU while the step before is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from common.training.runtime import Runtime, map_tensors

Batch = TypeVar("Batch")
AHEAD = 2  # batches that wait


class _End:
    """The last thing in the queue: how the reading ended."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(
    batches: Iterable[Batch], runtime: Runtime
) -> Generator[tuple[Batch, Batch], None, None]:
    """Every batch as it was read, and on the device, in order.

    On a GPU a thread reads ahead, and the copies from pinned memory overlap with the computation.
    On the CPU, whose cores are busy, each batch is read when it is asked for.

    Raises:
        BaseException: what reading raised, where its batch would have come.
    """
    if not runtime.on_gpu:
        for batch in batches:
            yield batch, batch
        return
    yield from read_ahead(batches, runtime)


def read_ahead(
    batches: Iterable[Batch], runtime: Runtime
) -> Generator[tuple[Batch, Batch], None, None]:
    """As `prefetched`, by a thread."""
    waiting: queue.Queue[tuple[Batch, Batch, torch.cuda.Event | None] | _End] = queue.Queue(AHEAD)
    stopped = threading.Event()
    on_gpu = runtime.device.type == "cuda"

    def put(item: tuple[Batch, Batch, torch.cuda.Event | None] | _End) -> bool:
        """Wait for a place; False where nobody waits for the batch any more."""
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        error: BaseException | None = None
        stream = torch.cuda.Stream(runtime.device) if on_gpu else None
        try:
            for batch in batches:
                event = None
                if stream is None:
                    moved = runtime.move(batch)
                else:
                    with torch.cuda.stream(stream):
                        moved = runtime.move(map_tensors(batch, Tensor.pin_memory))
                        event = stream.record_event()
                if not put((batch, moved, event)):
                    return
        except BaseException as raised:  # handed on to the thread that trains
            error = raised
        put(_End(error))

    thread = threading.Thread(target=read, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            batch, moved, event = item
            if event is not None:
                torch.cuda.current_stream(runtime.device).wait_event(event)
                map_tensors(moved, _used_here)
            yield batch, moved
    finally:
        stopped.set()
        thread.join()


def _used_here(x: Tensor) -> Tensor:
    """Memory that one stream allocated is not given away while this one uses it."""
    if x.is_cuda:
        x.record_stream(torch.cuda.current_stream(x.device))
    return x
