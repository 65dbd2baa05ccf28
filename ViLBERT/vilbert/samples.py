"""Samples of a task: pairs of a text and an image, and what is right about them.

A task of one's own is a section of the task file and a class like these:

class Balls(TaskData):
    options = 2

    def __init__(self, task: TaskEntry, split: str) -> None:
        pairs = Pair("a red ball", "42"), Pair("a blue ball", "42")
        super().__init__([Sample(1, pairs, right=0)])
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

Box = tuple[float, float, float, float]


class Pair(NamedTuple):
    """A text and an image.

    Attributes:
        text: the text.
        image_id: key of its region features.
        second: a second text behind [SEP], in segment 1; None: there is none.
    """

    text: str
    image_id: str
    second: str | None = None


@dataclass(frozen=True)
class Sample:
    """One sample; which fields are used depends on the task's type.

    Attributes:
        sample_id: unique in its split.
        pairs: one, or the options to choose among.
        right: place of the right option, from 0 (VL-logit).
        box: the region that is meant: x1, y1, x2, y2 in pixels (V-logit).
        answers: their scores, 0..1 (VL-classifier).
        kind: shown apart in tables and plots of decisions.
    """

    sample_id: int | str
    pairs: tuple[Pair, ...]
    right: int | None = None
    box: Box | None = None
    answers: Mapping[str, float] | None = None
    kind: str | None = None


class TaskData:
    """The samples of a split.

    Attributes:
        options: pairs of every sample.
        answers: that a VL-classifier chooses among.
        second_features: whether the regions of `features_h5path2` are shown as well.
        seed: of what is drawn anew in every epoch.
    """

    options = 1
    answers: tuple[str, ...] = ()
    second_features = False
    seed = 0

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, place: int, epoch: int) -> Sample:
        """A sample; `epoch` keys what is drawn anew (-1: in evaluation)."""
        return self.samples[place]

    def image(self, place: int) -> str:
        """The image that a sample is about: parts of the data share none."""
        sample = self.samples[place]
        return sample.pairs[sample.right or 0].image_id

    def images(self) -> dict[str, int | str]:
        """Every image that may be shown, with a sample that shows it."""
        return {pair.image_id: sample.sample_id for sample in self.samples for pair in sample.pairs}

    def without(self, images: Container[str]) -> Self:
        """The samples that show none of these images."""
        rest = copy.copy(self)
        rest.samples = [
            sample
            for sample in self.samples
            if not any(pair.image_id in images for pair in sample.pairs)
        ]
        return rest

    def part(self, places: Sequence[int], training: bool) -> Self:
        """The samples at some places alone, to train on or to evaluate."""
        part = copy.copy(self)
        part.samples = [self.samples[place] for place in places]
        return part
