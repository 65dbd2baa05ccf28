"""Evaluation batches that find their size: no sample is lost, and what is found stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.modules import packing
from common.modules.packing import CHANNELS
from common.tasks.evaluation_batches import MOST, EvaluationBatches
from common.tasks.vqa import VQATask
from common.training.distributed import World
from common.training.options import add_run_options
from common.training.runtime import Runtime, make_runtime
from lxrt.inputs import LxmertInputs
from tests.common.on_gpu import pretended_gpu
from tests.common.tasks.test_gpu_batches import WIDTH, questions, tokenizer  # noqa: F401

MODEL = nn.Linear(1, 1)


class Room:
    """Answers up to so many samples at once."""

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def __call__(self, places: list[int]) -> list[int]:
        self.sizes.append(len(places))
        if len(places) > self.most:
            raise torch.OutOfMemoryError("no room")
        return [place * place for place in places]


def answers(batches: EvaluationBatches, runtime: Runtime, samples: int, room: Room) -> list[int]:
    """What was found, in its order; places and answers belong together."""
    found: list[int] = []
    for places, squares in batches.asked(MODEL, runtime, samples, "test", False, room):
        assert squares == [place * place for place in places]
        found += places
    return found


@pytest.mark.parametrize("room", [1, 3, 8, 9, 50, 1000])
def test_every_sample_is_asked_once_whatever_there_is_room_for(room):
    said: list[str] = []
    batches, asked = EvaluationBatches(5, 4, said.append), Room(room)
    assert answers(batches, pretended_gpu(), 203, asked) == list(range(203))
    largest = max(size for size in asked.sizes if size <= room)
    assert batches.size == {1: 1, 3: 2, 8: 8, 9: 8, 50: 32, 1000: 4 * MOST}[room] == largest
    assert answers(batches, pretended_gpu(), 203, Room(room)) == list(range(203))
    assert said == [f"evaluation in batches of {batches.size} samples"]


def test_a_short_evaluation_settles_the_size_too():
    said: list[str] = []
    batches = EvaluationBatches(5, 4, said.append)
    answers(batches, pretended_gpu(), 13, Room(99))
    assert batches.size == 16 and len(said) == 1


def test_processes_have_their_own_parts_whatever_they_have_room_for():
    found = [
        answers(EvaluationBatches(5, 4), pretended_gpu(World(rank, 2)), 101, Room(room))
        for rank, room in enumerate((6, 40))
    ]
    assert sorted(found[0] + found[1]) == list(range(101)) and abs(len(found[0]) - 50) <= 1


def test_on_the_cpu_and_with_a_number_batches_are_as_they_were():
    for runtime, training in ((make_runtime("cpu"), 4), (pretended_gpu(), None)):
        asked = Room(99)
        assert answers(EvaluationBatches(5, training, pytest.fail), runtime, 13, asked)
        assert asked.sizes == [5, 5, 3]
    world = World(1, 2)
    asked = Room(99)
    assert answers(EvaluationBatches(5), make_runtime("cpu", world=world), 18, asked) == [
        *range(10, 18)
    ]
    with pytest.raises(torch.OutOfMemoryError):
        answers(EvaluationBatches(5), pretended_gpu(), 13, Room(4))


def test_where_a_single_sample_has_no_room_that_is_said():
    with pytest.raises(torch.OutOfMemoryError):
        answers(EvaluationBatches(5, 4), pretended_gpu(), 13, Room(0))


class Small(nn.Module):
    """Answers by the features of the first region; has room for so many questions."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.head = nn.Linear(WIDTH, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(2.0 * WIDTH).view(2, WIDTH).cos())

    def forward(self, features: Tensor, **inputs: Tensor | None) -> Tensor:
        if len(features) > self.room:
            raise torch.OutOfMemoryError("no room")
        return self.head(features[:, 0])


def test_a_task_predicts_the_same_after_running_out_of_memory(tmp_path: Path, tokenizer):  # noqa: F811
    data = questions(tmp_path, ("float16",))
    make = LxmertInputs(tokenizer)
    expected = VQATask(data, data, make, make_runtime("cpu"), 4, progress=False).evaluate(
        Small(99), data, "test"
    )
    batches = EvaluationBatches(4, 1)
    task = VQATask(data, data, make, pretended_gpu(), batches, progress=False)
    for room in (1, 3):
        found = task.evaluate(Small(room), data, "test")
        assert found.predictions == expected.predictions and found.scores == expected.scores
    assert batches.size == 1


@pytest.mark.parametrize(
    ("words", "number", "auto"), [([], None, None), (["auto"], None, True), (["64"], 64, False)]
)
def test_the_flag_takes_a_number_or_auto(words, number, auto):
    import argparse

    parser = argparse.ArgumentParser()
    add_run_options(parser)
    args = parser.parse_args(["--eval-batch-size", *words] if words else [])
    assert (args.eval_batch_size, args.eval_auto) == (number, auto)
    with pytest.raises(SystemExit):
        parser.parse_args(["--eval-batch-size", "many"])


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize(("samples", "packs"), [(6, 1), (4, 0)])
@torch.no_grad()
def test_weights_are_laid_out_once_where_there_are_several_batches(samples, packs, monkeypatch):
    model, x = nn.Linear(CHANNELS, CHANNELS), torch.randn(9, CHANNELS)
    calls: list[int] = []
    pack = packing.pack
    monkeypatch.setattr(packing, "pack", lambda weight: (calls.append(1), pack(weight))[1])
    asked = EvaluationBatches(4).asked(
        model, make_runtime("cpu"), samples, "test", False, lambda _: model(x)
    )
    for _ in asked:
        assert packing.active_packing(x, model.weight) is None, "whoever reads is within it"
    assert len(calls) == packs
