"""What is read of the model for a task: labels, losses, scores, rows."""

from __future__ import annotations

import pytest
import torch

from common.errors import DataError
from vilbert.losses import option_loss, region_choice_loss
from vilbert.pair_inputs import ShownRegions
from vilbert.samples import Pair, Sample, TaskData
from vilbert.task_types import TYPES, overlaps
from vilbert.tasks import LOSSES


def shown(boxes: list[list[list[float]]], present: list[int]) -> ShownRegions:
    found = torch.tensor(boxes)
    mask = torch.arange(found.shape[1]) < torch.tensor(present)[:, None]
    return ShownRegions({}, found, mask)


def test_overlap_counts_the_last_pixels():
    """Against a count of pixels."""
    regions = shown([[[0, 0, 9, 9], [2, 3, 5, 7], [6, 6, 9, 9], [0, 0, 0, 0]]], [3])
    meant = (4.0, 5.0, 8.0, 9.0)

    def pixels(box: list[float]) -> set[tuple[int, int]]:
        x1, y1, x2, y2 = map(int, box)
        return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}

    expected = [
        len(pixels(b) & pixels(list(meant))) / len(pixels(b) | pixels(list(meant)))
        for b in regions.boxes[0, :3].tolist()
    ]
    torch.testing.assert_close(overlaps(regions, [meant])[0], torch.tensor([*expected, 0.0]))


def test_types_are_those_of_the_task_file():
    assert {name: kind.loss for name, kind in TYPES.items()} == LOSSES


class Choices(TaskData):
    options = 3


def option_samples(rights: list[int | None]) -> list[Sample]:
    pairs = tuple(Pair(f"text {n}", "1") for n in range(3))
    return [Sample(n, pairs, right) for n, right in enumerate(rights)]


def test_options():
    kind, samples = TYPES["VL-logit"], option_samples([2, 0])
    data = Choices(samples)
    labels = kind.labels(samples, shown([[[0, 0, 1, 1]]], [1]), data)
    logits = torch.tensor([[1.0], [2.0], [3.0], [1.0], [5.0], [0.0]])
    assert kind.scores(logits, labels).tolist() == [1, 0]
    expected = option_loss(logits, torch.tensor([2, 0]), 3)
    torch.testing.assert_close(kind.losses(logits, labels), expected)
    assert kind.chance(labels).tolist() == pytest.approx([1 / 3, 1 / 3])
    rows = kind.rows(samples, logits, labels, data)
    assert rows[0]["question_id"] == 0 and len(rows[0]["answer"]) == 3
    assert rows[1]["answer"][1] == max(rows[1]["answer"])
    hidden = option_samples([None, 0])
    assert "right" not in kind.labels(hidden, shown([[[0, 0, 1, 1]]], [1]), data)


def test_regions():
    """Overlaps below a half count as wrong in training; the padding is never right."""
    kind = TYPES["V-logit"]
    samples = [Sample(7, (Pair("it", "1"),), box=(0.0, 0.0, 9.0, 9.0))]
    regions = shown([[[0, 0, 9, 9], [0, 0, 9, 7], [0, 0, 3, 3], [0, 0, 9, 9]]], [3])
    labels = kind.labels(samples, regions, TaskData(samples))
    torch.testing.assert_close(labels["overlap"], torch.tensor([[1.0, 0.8, 0.16, 0.0]]))
    logits = torch.tensor([[[0.5], [2.0], [1.0], [-10000.0]]])
    target = torch.tensor([[[1.0], [0.8], [0.0], [0.0]]])
    torch.testing.assert_close(kind.losses(logits, labels), region_choice_loss(logits, target))
    assert kind.scores(logits, labels).tolist() == [1.0]
    assert kind.scores(logits[:, [0, 2, 1, 3]], labels).tolist() == [0.0]
    assert kind.chance(labels).tolist() == pytest.approx([2 / 3])
    rows = kind.rows(samples, logits, labels, TaskData(samples))
    assert rows == [{"id": 7, "target": 1, "IOU": pytest.approx(0.8)}]
    hidden = [Sample(7, (Pair("it", "1"),))]
    labels = kind.labels(hidden, regions, TaskData(hidden))
    assert "overlap" not in labels and kind.chance(labels) is None
    assert kind.rows(hidden, logits, labels, TaskData(hidden)) == [{"id": 7, "target": 1}]


def test_answers():
    kind = TYPES["VL-classifier"]
    samples = [Sample(1, (Pair("what", "1"),), answers={"red": 0.3, "blue": 1.0})]
    data = TaskData(samples)
    data.answers = ("red", "green", "blue")
    labels = kind.labels(samples, shown([[[0, 0, 1, 1]]], [1]), data)
    assert labels["target"].tolist() == [[pytest.approx(0.3), 0, 1]]
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert kind.scores(logits, labels).tolist() == [pytest.approx(0.3)]
    assert kind.rows(samples, logits, labels, data) == [{"question_id": 1, "answer": "red"}]
    data.answers = ("red", "green")
    with pytest.raises(DataError, match="sample 1: answer 'blue' is none of the 2 answers"):
        kind.labels(samples, shown([[[0, 0, 1, 1]]], [1]), data)


@pytest.mark.parametrize("kind", ["VL-logit", "V-logit"])
def test_numbers_that_are_none_are_refused(kind):
    samples = option_samples([0]) if kind == "VL-logit" else [Sample(5, (Pair("it", "1"),))]
    data = Choices(samples)
    labels = TYPES[kind].labels(samples, shown([[[0, 0, 1, 1]] * 3], [3]), data)
    logits = torch.full((3, 1) if kind == "VL-logit" else (1, 3, 1), float("nan"))
    with pytest.raises(DataError, match="sample [05]: the model computes nan"):
        TYPES[kind].rows(samples, logits, labels, data)
