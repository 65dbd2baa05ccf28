"""Visual question answering in batches, for every backbone.

dataset = resolve_dataset("easy_vqa")
examples = load_split(dataset, "train,nominival")
features = open_features(dataset, "train,nominival")
data = VQADataset(examples, features, dataset.vocabulary())
batch = data.read([0, 1, 2])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.annotations import AnswerVocabulary, Example, QuestionId
from common.errors import DataError
from common.features.sources import FeatureSources, explain_missing
from common.features.store import RegionFeatures
from common.files import text_digest


@dataclass
class VQABatch:
    """B questions with their regions. R is the largest number of regions in the batch."""

    question_ids: list[QuestionId]
    image_ids: list[str]
    questions: list[str]
    answer_types: list[str | None]
    kinds: list[str | None]
    features: Tensor
    """(B, R, C) float32; float16 where that is asked for and how they are kept."""
    boxes: Tensor
    """(B, R, 4) float32: x1, y1, x2, y2 as shares of the image."""
    boxes_px: Tensor
    """(B, R, 4) float32, in pixels."""
    sizes: Tensor
    """(B, 2) float32: width and height of the image in pixels."""
    region_mask: Tensor
    """(B, R) bool; False is padding."""
    target: Tensor | None = None
    """(B, A) float32 soft scores; None where the answers are not public."""
    object_ids: Tensor | None = None
    """(B, R) int64; None where the store has none. Likewise below."""
    object_conf: Tensor | None = None
    attribute_ids: Tensor | None = None
    attribute_conf: Tensor | None = None
    image_features: Tensor | None = None
    """(B, C) float32, of the images as a whole; None where the store has none."""
    pictures: Sequence[Image.Image] | None = None
    """B images in RGB, for models that read pixels; None where they are not at hand."""

    def __len__(self) -> int:
        return len(self.question_ids)


LOW_SCORE = 50.0  # percent
PARTS = ("training questions", "held-out questions", "validation questions")


class VQADataset:
    """Questions with region features and soft targets; read in batches."""

    def __init__(
        self,
        examples: Sequence[Example],
        features: FeatureSources | RegionFeatures,
        vocabulary: AnswerVocabulary,
        max_regions: int | None = None,
        unknown: str = "skip",
    ) -> None:
        """Put examples and features together.

        Args:
            examples: One at least.
            features: Has a record of every image, but for those that an import skipped where
                `FeatureSources.skip_bad` allows it: questions about them are left out.
            vocabulary: The A answers that targets are over.
            max_regions: Use only the first so many regions of each image.
            unknown: Answers outside the vocabulary: `skip` (said once) or `error`.

        Raises:
            DataError: No examples, images without features, or an unknown answer with `error`.
        """
        self.features = (
            features if isinstance(features, FeatureSources) else FeatureSources([features])
        )
        self.examples = self._with_features(examples)
        self.vocabulary, self.max_regions = vocabulary, max_regions
        if not self.examples:
            raise DataError("no questions: the split, or the subset of its images, is empty")
        self._start, self._labels, self._scores = self._encode(unknown)

    def _with_features(self, examples: Sequence[Example]) -> list[Example]:
        """The examples; without those whose images were skipped on import, if they may be."""
        counts = Counter(example.image_id for example in examples)
        missing = self.features.missing(counts)
        if not missing:
            return list(examples)
        # An id that could not be read is not in the report: so many images may lack features.
        skipped = sum(store.meta.get("skipped_rows", 0) for store in self.features.stores)
        if not self.features.skip_bad or len(missing) > skipped:
            reported = self.features.skipped()
            image = next((i for i in missing if i not in reported), missing[0])
            example = next(e for e in examples if e.image_id == image)
            raise DataError(
                f"no region features of image {image!r}, which question {example.question_id} "
                f"({example.question!r}) is about; {len(missing)} of {len(counts)} images have "
                f"none: {explain_missing(self.features, image)}"
            )
        without = set(missing)
        kept = [example for example in examples if example.image_id not in without]
        print(
            f"{len(examples) - len(kept)} of {len(examples)} questions are left out: the features "
            f"of their {len(missing)} images were skipped on import (--skip-bad); results are "
            "about the other questions"
        )
        return kept

    def _encode(self, unknown: str) -> tuple[np.ndarray, Tensor, Tensor]:
        """Targets of all examples, one behind the other: first places, labels and scores."""
        labels: list[int] = []
        scores: list[float] = []
        counts, skipped, questions = [0], 0, 0
        for example in self.examples:
            encoded = self.vocabulary.encode(example, unknown)
            lost = len(example.answers or {}) - len(encoded)
            skipped, questions = skipped + lost, questions + (lost > 0)
            counts.append(len(encoded))
            labels += encoded.keys()
            scores += encoded.values()
        if skipped:
            print(
                f"{skipped} answers of {questions} questions (of {len(self)}) are not among the "
                f"{len(self.vocabulary)} known answers: left out of the targets"
            )
        return (
            np.cumsum(counts),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor(scores, dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def counts(self) -> tuple[int, int] | None:
        """The fewest and the most regions of an image of its stores; None: not known."""
        found = self.features.counts
        if found is None or self.max_regions is None:
            return found
        fewest, most = (min(number, self.max_regions) for number in found)
        return fewest, most

    def read(self, indices: Sequence[int], half: bool = False) -> VQABatch:
        """The examples at some places as one batch.

        Args:
            indices: B places.
            half: Leave features that are kept in float16 so, on the way to a GPU.

        Raises:
            DataError: A damaged record, or boxes outside their image.
        """
        chosen = [self.examples[i] for i in indices]
        regions = self.features.read([e.image_id for e in chosen], self.max_regions, half=half)
        return VQABatch(
            question_ids=[e.question_id for e in chosen],
            image_ids=regions.image_ids,
            questions=[e.question for e in chosen],
            answer_types=[e.answer_type for e in chosen],
            kinds=[e.kind for e in chosen],
            features=regions.features,
            boxes=regions.normalised_boxes(),
            boxes_px=regions.boxes,
            sizes=regions.sizes,
            region_mask=regions.mask,
            target=self._targets(indices),
            object_ids=regions.object_ids,
            object_conf=regions.object_conf,
            attribute_ids=regions.attribute_ids,
            attribute_conf=regions.attribute_conf,
            image_features=regions.image_features,
        )

    def kinds(self) -> list[str]:
        """The kinds of its questions, in order of the alphabet; empty where they have none."""
        return sorted({example.kind for example in self.examples if example.kind is not None})

    def best_scores(self) -> Tensor | None:
        """(N,) score of the best known answer of every question, 0..1; None without answers."""
        if all(example.answers is None for example in self.examples):
            return None
        best = torch.zeros(len(self))
        owner = torch.repeat_interleave(
            torch.arange(len(self)), torch.from_numpy(np.diff(self._start))
        )
        return best.scatter_reduce(0, owner, self._scores, "amax")

    def _targets(self, indices: Sequence[int]) -> Tensor | None:
        """(B, A) soft scores; None if no example of the batch has answers."""
        if all(self.examples[i].answers is None for i in indices):
            return None
        target = torch.zeros(len(indices), len(self.vocabulary))
        for row, i in zip(target, indices, strict=False):
            start, stop = self._start[i], self._start[i + 1]
            row[self._labels[start:stop]] = self._scores[start:stop]
        return target


def check_answers(parts: Mapping[str, VQADataset]) -> list[str]:
    """Make sure, before any training, that something can be learned and measured.

    Args:
        parts: what a part is called, and its questions.

    Returns:
        What the user should know: the highest accuracy that a part allows, where it is low.

    Raises:
        DataError: no question of a part has an answer with a score, or no answer that is trained
            on is in the vocabulary.
    """
    said = []
    for name, data in parts.items():
        best = data.best_scores()
        if best is None:
            continue
        possible = 100 * float(best.mean())
        if not any(example.answers for example in data.examples):
            raise DataError(
                f"{name}: none of the {len(data)} questions has an answer with a score: the "
                "official metric gives an answer that a single person gave 0 points; give every "
                "question its ten answers (one answer ten times), or use files with scores "
                "('label')"
            )
        if possible == 0 and name == PARTS[0]:
            raise DataError(
                f"{name}: no answer of the {len(data)} questions is among the "
                f"{len(data.vocabulary)} answers that a model can give: take the answer list of "
                "this data"
            )
        if possible < LOW_SCORE:
            said.append(
                f"{name}: an accuracy of at most {possible:.1f} % is possible: so much do the best "
                "known answers score on average; the official metric expects ten answers per "
                "question"
            )
    return said


def question_digest(data: VQADataset) -> dict[str, Any]:
    """Number of questions and a checksum of their ids in order."""
    ids = ",".join(str(example.question_id) for example in data.examples)
    return {"count": len(data), "sha256": text_digest(ids)}
