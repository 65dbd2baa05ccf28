"""Sentences about images in flat arrays: what LXMERT is pretrained on.

The original data are 9 million sentences; as Python objects they would need several GB in every
process, here they are their text and about 30 bytes each. Shape legend: N sentences, M images.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sentences:
    """N sentences, each about one image; those that are questions have soft answer scores.

    Attributes:
        image_ids: the M images.
        categories: where sentences come from (`mscoco`, `vqa`, …).
        images: (N,) place among `image_ids`.
        kinds: (N,) place among `categories`.
        questions: (N,) bool, whether the sentence has a label, be it an empty one.
        text, text_starts: all sentences in UTF-8, one behind the other; (N + 1,) first bytes.
        labels, scores, label_starts: places of the answers in the answer list with their scores in
            (0, 1], one sentence behind the other; (N + 1,) first places.
    """

    image_ids: Sequence[str]
    categories: Sequence[str]
    images: np.ndarray
    kinds: np.ndarray
    questions: np.ndarray
    text: np.ndarray
    text_starts: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    label_starts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def sentence(self, row: int) -> str:
        """The text of a sentence."""
        return self.text[self.text_starts[row] : self.text_starts[row + 1]].tobytes().decode()

    def texts(self) -> Iterator[str]:
        """All sentences in their order."""
        return (self.sentence(row) for row in range(len(self)))

    def image_id(self, row: int) -> str:
        """The image that a sentence is about."""
        return self.image_ids[self.images[row]]

    def answers(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels and soft scores of a sentence's answers; both are empty where it has none."""
        span = slice(self.label_starts[row], self.label_starts[row + 1])
        return self.labels[span], self.scores[span]

    def used_images(self) -> list[str]:
        """The images that have a sentence, in the order of `image_ids`."""
        return [self.image_ids[i] for i in np.unique(self.images)]

    def keep(self, rows: np.ndarray) -> Sentences:
        """Only some sentences, (N,) bool, in their order."""

        def spans(starts: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
            lengths = np.diff(starts)
            inside = np.repeat(rows, lengths)
            return (_starts(lengths[rows]), *(value[inside] for value in values))

        text_starts, text = spans(self.text_starts, self.text)
        label_starts, labels, scores = spans(self.label_starts, self.labels, self.scores)
        return replace(
            self,
            images=self.images[rows],
            kinds=self.kinds[rows],
            questions=self.questions[rows],
            text=text,
            text_starts=text_starts,
            labels=labels,
            scores=scores,
            label_starts=label_starts,
        )

    def about(self, image_ids: set[str]) -> np.ndarray:
        """(N,) bool: which sentences are about one of these images."""
        return np.array([i in image_ids for i in self.image_ids], dtype=bool)[self.images]

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows in the order of their images, and per image its first place there and its count."""
        counts = np.bincount(self.images, minlength=len(self.image_ids))
        return np.argsort(self.images, kind="stable"), np.cumsum(counts) - counts, counts

    def of_other_images(self, rows: Sequence[int], uniform: Tensor) -> list[int]:
        """For each of B sentences one about another image, all of those equally likely.

        Args:
            rows: B sentences; there must be sentences about two images at least.
            uniform: (B,) float64 in [0, 1), which choose.
        """
        order, first, count = self._by_image
        images = self.images[np.asarray(rows)]
        others = len(self) - count[images]
        places = np.floor(uniform.numpy() * others).astype(np.int64)
        places += np.where(places >= first[images], count[images], 0)
        return order[places].tolist()


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class SentencesBuilder:
    """Collects sentences one by one."""

    def __init__(self) -> None:
        self._image_ids: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self._images, self._kinds = array("i"), array("b")
        self._questions, self._text = array("b"), bytearray()
        self._text_starts, self._label_starts = array("q", [0]), array("q", [0])
        self._labels, self._scores = array("i"), array("f")

    def add(
        self, image_id: str, category: str, sentence: str, answers: Mapping[int, float] | None
    ) -> None:
        """Append a sentence.

        Args:
            answers: label and soft score of its answers; None for a sentence that is no question.
        """
        self._images.append(self._image_ids.setdefault(image_id, len(self._image_ids)))
        self._kinds.append(self._categories.setdefault(category, len(self._categories)))
        self._questions.append(answers is not None)
        self._text += sentence.encode()
        self._text_starts.append(len(self._text))
        for label, score in (answers or {}).items():
            self._labels.append(label)
            self._scores.append(score)
        self._label_starts.append(len(self._labels))

    def build(self) -> Sentences:
        """What was collected."""

        def numbers(values: array, dtype: str) -> np.ndarray:
            return np.frombuffer(values, dtype=dtype) if len(values) else np.empty(0, dtype)

        return Sentences(
            list(self._image_ids),
            list(self._categories),
            numbers(self._images, "i4"),
            numbers(self._kinds, "i1"),
            numbers(self._questions, "i1").astype(bool),
            np.frombuffer(self._text, dtype=np.uint8),
            numbers(self._text_starts, "i8"),
            numbers(self._labels, "i4"),
            numbers(self._scores, "f4"),
            numbers(self._label_starts, "i8"),
        )
