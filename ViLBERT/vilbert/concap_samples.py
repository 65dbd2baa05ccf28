"""Captions with their images for pretraining, masked, or with the caption of another image.

Shape legend: B batch, T tokens, R regions (behind the image as a whole), S classes of a region, F
feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.data.annotations import Example
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.features.sources import FeatureSources
from common.features.store import RegionBatch
from common.modules.losses import IGNORED
from common.tasks.masking import Draws
from common.training.task import TaskBatch
from vilbert.concap_data import ConceptualCaptions
from vilbert.inputs import Limits, region_inputs
from vilbert.pretraining_samples import ALIGNED, masked_regions, masked_words, shape_classes

FOREIGN = 0.5  # share of captions that are another image's


class CaptionSource(Protocol):
    """Images with a caption each."""

    @property
    def captions(self) -> Sequence[str]:
        """Other captions are drawn from these."""

    @property
    def width(self) -> int:
        """F."""

    @property
    def classes(self) -> int:
        """S."""

    def __len__(self) -> int:
        """Number of pairs."""

    def batch(self, places: Sequence[int]) -> tuple[RegionBatch, list[str], Tensor]:
        """Regions, captions, and class probabilities (B, R, S) of some pairs."""


@dataclass(frozen=True)
class EmbeddedCaptions:
    """Captions of the embedded images.

    Attributes:
        examples: the captions.
        features: of their images.
        classes: S.
        captions: other captions are drawn from these; one in fifteen is true of the image as well.
    """

    examples: Sequence[Example]
    features: FeatureSources
    classes: int
    captions: Sequence[str]

    @property
    def width(self) -> int:
        return self.features.width

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, places: Sequence[int]) -> tuple[RegionBatch, list[str], Tensor]:
        chosen = [self.examples[place] for place in places]
        regions = self.features.read([example.image_id for example in chosen])
        captions = [example.question for example in chosen]
        return regions, captions, shape_classes(regions, self.classes)


@dataclass(frozen=True)
class RecordedCaptions:
    """Captions of Conceptual Captions, read record by record.

    Attributes:
        records: images and captions.
        captions: of all images.
    """

    records: ConceptualCaptions
    captions: Sequence[str]

    @property
    def width(self) -> int:
        return self.records.width

    @property
    def classes(self) -> int:
        return self.records.classes

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, places: Sequence[int]) -> tuple[RegionBatch, list[str], Tensor]:
        regions, captions = self.records.batch(places)
        assert regions.class_probabilities is not None
        return regions, captions, regions.class_probabilities


@dataclass(frozen=True)
class CaptionSamples:
    """Pairs of a source as batches of pretraining.

    Attributes:
        source: of the pairs.
        tokenizer: of the captions.
        limits: of captions and regions.
        features: masked regions are told by their features, not by their classes.
    """

    source: CaptionSource
    tokenizer: Tokenizer
    limits: Limits
    features: bool

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, indices: Sequence[int], seed: int, epoch: int) -> TaskBatch:
        """The pairs at some places; labels as `pretraining_losses` has them.

        Words and regions are masked in every pair; the image as a whole is the mean of what is left
        of its regions.
        """
        draws = Draws(seed, epoch, indices)
        regions, own, classes = self.source.batch(indices)
        texts, foreign = self._texts(own, draws)
        stated = torch.ones(len(texts), 1, dtype=torch.bool)
        ids, mask, words = masked_words(self.tokenizer, texts, stated, draws, self.limits.tokens)
        masked, hidden = masked_regions(regions.mask, stated, draws)
        features = torch.where(hidden[..., None], 0.0, regions.features)
        inputs = region_inputs(features, regions.normalised_boxes(), regions.mask, self.limits)
        shown = self.limits.regions - 1
        masked = masked[:, :shown]
        target = (regions.features if self.features else classes)[:, :shown]
        return TaskBatch(
            list(indices),
            {"input_ids": ids, "attention_mask": mask, "word_places": words != IGNORED, **inputs},
            {
                "words": words[words != IGNORED],
                "region_label": torch.where(masked, 1, IGNORED),
                "region_target": target,
                "aligned": foreign.long(),
            },
            weights={
                "masked_lm_loss": float((words != IGNORED).sum()),
                "masked_img_loss": float(masked.sum()),
                "next_sentence_loss": float(len(texts)),
            },
        )

    def _texts(self, own: Sequence[str], draws: Draws) -> tuple[list[str], Tensor]:
        """Captions, for half of the images another one's; which they are, (B,) bool."""
        numbers = draws.fine(ALIGNED, 2)
        captions = self.source.captions
        texts = []
        for caption, (whether, which) in zip(own, numbers.tolist(), strict=True):
            other = captions[int(which * len(captions))]
            if whether < FOREIGN and other == caption:
                other = captions[(int(which * len(captions)) + 1) % len(captions)]
            texts.append(other if whether < FOREIGN else caption)
        if len(captions) < 2:
            raise DataError("one caption alone: a wrong caption is one of another image")
        foreign = torch.tensor([text != mine for text, mine in zip(texts, own, strict=True)])
        return texts, foreign
