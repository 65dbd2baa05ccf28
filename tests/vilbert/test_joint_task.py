"""Several tasks in one run: which batches an epoch has, and tasks that are trained less."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from common.training.batch_order import WindowOrder
from common.training.task import DecisionCounts
from vilbert.joint_task import JointOrder, Plateau, Share, of_type


def read(order: JointOrder, epoch: int, skip: int = 0) -> list[tuple[str, list[int], int]]:
    """Task, places and the task's own epoch of every batch."""
    found = []
    for numbers in order.epoch(epoch, skip):
        read = [order.read_number(n) for n in numbers]
        (name,), (cycle,) = {r[0] for r in read}, {r[2] for r in read}
        found.append((name, [r[1] for r in read], cycle))
    return found


def test_a_smaller_task_starts_later_and_sees_all_its_epochs():
    """Large: 10 steps an epoch; small: 3, so that 2 epochs of its own are 6 of 20 turns."""
    order = JointOrder({"large": Share(100, 10, 2), "small": Share(15, 5, 2)}, 2, seed=3)
    assert (order.steps_of(0), order.steps_of(1), order.total(2)) == (10, 16, 26)
    batches = read(order, 0) + read(order, 1)
    assert [name for name, _, _ in batches[:14]] == ["large"] * 14
    assert [name for name, _, _ in batches[14:]] == ["large", "small"] * 6
    for name, count in (("large", 100), ("small", 15)):
        for cycle in range(2):
            places = [p for n, found, c in batches if (n, c) == (name, cycle) for p in found]
            assert sorted(places) == list(range(count)), (name, cycle)
    first = [found for n, found, c in batches if (n, c) == ("small", 0)]
    assert first != [found for n, found, c in batches if (n, c) == ("small", 1)], "another order"


def test_an_epoch_can_be_entered_in_its_middle():
    order = JointOrder({"a": Share(40, 8, 3), "b": Share(30, 6, 1)}, 3, seed=1)
    for epoch in range(3):
        whole = order.epoch(epoch)
        assert len(whole) == order.steps_of(epoch)
        for skip in range(len(whole) + 1):
            assert order.epoch(epoch, skip) == whole[skip:]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4)), min_size=1),
    st.integers(1, 4),
)
def test_every_number_is_a_sample_and_steps_are_counted_rightly(tasks, epochs):
    shares = {f"t{n}": Share(*values) for n, values in enumerate(tasks[:4])}
    order = JointOrder(shares, epochs, seed=9)
    batches = [batch for epoch in range(epochs) for batch in read(order, epoch)]
    assert len(batches) == order.total(epochs)
    seen = Counter(name for name, _, _ in batches)
    for name, share in shares.items():
        own = share.samples // min(share.batch_size, share.samples)
        assert seen[name] == min(share.epochs * own, order.turns * epochs)
    for name, places, _ in batches:
        assert len(places) == min(shares[name].batch_size, shares[name].samples)
        assert all(0 <= place < shares[name].samples for place in places)


def test_a_batch_that_cannot_be_divided_is_refused():
    order = JointOrder({"a": Share(40, 8, 1), "b": Share(30, 2, 1)}, 1, seed=1)
    order.check_divisible(2, 1)
    with pytest.raises(ConfigError, match="a batch of 2 samples cannot be divided"):
        order.check_divisible(2, 2)


def history(**scores: list[float]) -> list[dict[str, object]]:
    count = len(next(iter(scores.values())))
    return [{"heldout": {name: scores[name][n] for name in scores}} for n in range(count)]


def test_a_task_without_progress_is_trained_less_until_it_gets_worse():
    plateau = Plateau()
    assert not plateau.is_stopped([50.0, 50.0]), "one is borne"
    assert plateau.is_stopped([50.0, 50.0, 50.02])
    assert not plateau.is_stopped([50.0, 50.0, 50.1]), "that is progress"
    assert plateau.is_stopped([50.0, 50.0, 50.0, 49.9])
    assert not plateau.is_stopped([50.0, 50.0, 50.0, 49.7]), "half a percent is lost: it wakes up"
    assert plateau.is_stopped([50.0, 50.0, 50.0, 49.7, 49.7, 49.7])
    order = JointOrder({"a": Share(80, 10, 4), "b": Share(80, 10, 4)}, 4, seed=1, plateau=plateau)
    assert (order.steps_of(3), order.total(4)) == (16, 64)
    order.follow(history(a=[50.0, 50.0, 50.0], b=[50.0, 60.0, 70.0]))
    assert Counter(name for name, _, _ in read(order, 3)) == {"a": 2, "b": 8}
    assert order.steps_of(2) == 16, "what is past stays as it was"
    assert (order.left_out(2), order.left_out(3)) == (0, 6), "the schedule passes over them"


def test_windows_are_read_one_after_the_other():
    order = WindowOrder(23, 4, seed=5, window=10)
    found = [place for batch in order.epoch(0) for place in batch]
    assert len(set(found)) == 20 == len(found), "an incomplete last batch is dropped"
    windows = [place // 10 for place in found]
    changes = sum(a != b for a, b in pairwise(windows))
    assert changes == 2, "each window once"
    assert found != [p for batch in order.epoch(1) for p in batch]
    assert order.epoch(0, 3) == order.epoch(0)[3:]
    with pytest.raises(ConfigError, match="a window of 0 samples"):
        WindowOrder(23, 4, seed=5, window=0)


def test_decisions_are_counted_under_the_task():
    counts = DecisionCounts()
    counts.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), ["kind", None])
    joined = DecisionCounts()
    joined.join(of_type(counts, "task"))
    assert joined.share_by_type() == {"task": {"count": 2, "share": [1.0, 0.5]}}
    joined.join(of_type(DecisionCounts(), "other"))
    assert joined.share == [1.0, 0.5]
