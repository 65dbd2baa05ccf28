"""Which executor `auto` is, by the times of the first batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.tasks.settling import CANDIDATES, time_executors
from common.training.runtime import make_runtime
from tests.common.recording import Repeating
from tests.common.tiny_models import ADAPTIVE
from tests.common.toy_task import make_trainer


class SlowExact:
    """Tells executors apart, and makes the calls."""

    unit = "of a test"

    def __init__(self, part) -> None:
        self.part, self.calls = part, 0

    def measure(self, call) -> dict[str, float]:
        call()
        self.calls += 1
        seconds = {"exact": 3.0, "dense": 2.0, "grouped": 1.0}[self.part.options.executor]
        return {"seconds": seconds + self.calls / 100}


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("recorder", [None, Repeating()])
def test_timing_leaves_nothing_behind(tmp_path, strategy, recorder):
    runtime = replace(make_runtime("cpu"), recorder=recorder)
    trainer = make_trainer(tmp_path, strategy=strategy, runtime=runtime)
    model, part = trainer.model, adaptive_part(trainer.model)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    numbers, executor = torch.get_rng_state(), part.options.executor
    clock, batch = SlowExact(part), trainer.task.read([0, 1, 2, 3], 0)
    found = time_executors(model, trainer.task, batch, trainer.options, runtime, clock)
    assert list(found) == list(CANDIDATES) and clock.calls == 9
    assert min(found, key=found.get) == "grouped" and found["dense"] == pytest.approx(2.04)
    assert torch.equal(torch.get_rng_state(), numbers) and part.options.executor == executor
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.begin(resume=False, overwrite=False)
    trainer.fit()  # what it told of the batch is forgotten


def test_an_executor_without_room_is_left_out(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, strategy="SpotTune_Block")
    part = adaptive_part(trainer.model)

    class NoRoom(SlowExact):
        def measure(self, call):
            if part.options.executor == "grouped":
                raise torch.OutOfMemoryError("no room")
            return super().measure(call)

    batch = trainer.task.read([0, 1, 2, 3], 0)
    found = time_executors(
        trainer.model, trainer.task, batch, trainer.options, make_runtime("cpu"), NoRoom(part)
    )
    assert list(found) == ["dense", "exact"]
