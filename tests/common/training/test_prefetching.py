"""Batches read by a thread: their order, what reading raises, an end before the last one."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch

from common.errors import DataError
from common.training.prefetching import AHEAD, prefetched, read_ahead
from common.training.runtime import make_runtime

RUNTIME = make_runtime("cpu")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def numbered(count: int, asked: list[int], fails: int | None = None):
    for number in range(count):
        asked.append(number)
        if number == fails:
            raise DataError(f"batch {number} cannot be read")
        yield [{"x": torch.full((2,), float(number))}]


def test_batches_come_in_their_order_and_the_thread_ends():
    found = list(read_ahead(numbered(7, []), RUNTIME))
    assert [float(batch[0]["x"][0]) for batch, _ in found] == list(range(7))
    assert all(torch.equal(batch[0]["x"], moved[0]["x"]) for batch, moved in found)
    assert not threads()


def test_what_reading_raises_comes_in_its_place():
    seen = []
    with pytest.raises(DataError, match="batch 3 cannot be read"):
        for batch, _ in read_ahead(numbered(7, [], fails=3), RUNTIME):
            seen.append(int(batch[0]["x"][0]))
    assert seen == [0, 1, 2] and not threads()


def test_no_more_is_read_than_waits_and_an_early_end_stops_the_reading():
    asked: list[int] = []
    with closing(read_ahead(numbered(100, asked), RUNTIME)) as ready:
        next(ready)
        assert len(asked) <= AHEAD + 3
    assert not threads() and len(asked) <= AHEAD + 3


def test_on_the_cpu_a_batch_is_read_when_it_is_asked_for():
    asked: list[int] = []
    ready = prefetched(numbered(5, asked), RUNTIME)
    batch, moved = next(ready)
    assert asked == [0] and moved is batch and not threads()
