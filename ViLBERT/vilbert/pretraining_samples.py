"""What the small ViLBERT is pretrained on: captions and questions of the embedded images, masked.

Captions lose words and regions, or get another image; questions are read whole, with the answer to
be found: a question in which words or regions are missing cannot teach to compare the two. Shape
legend: B batch, T tokens, R regions (behind the image as a whole), S classes of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.annotations import AnswerVocabulary, Example
from common.data.easy_vqa.regions import ATTRIBUTE_CLASSES
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.features.sources import FeatureSources
from common.features.store import RegionBatch
from common.modules.losses import IGNORED
from common.tasks.masking import Draws, mask_pieces
from common.training.task import TaskBatch
from vilbert.inputs import Limits, region_inputs

MASK_RATE, HIDDEN_SHARE = 0.15, 0.9
WORDS, REGIONS, ALIGNED = range(3)  # what numbers are for


@dataclass(frozen=True)
class Samples:
    """Captions and questions, and what images look like.

    Attributes:
        examples: those without answers are captions.
        features: of all images.
        vocabulary: of the answers.
        tokenizer: of the texts.
        limits: of texts and regions.
        classes: S.
    """

    examples: Sequence[Example]
    features: FeatureSources
    vocabulary: AnswerVocabulary
    tokenizer: Tokenizer
    limits: Limits
    classes: int

    def __len__(self) -> int:
        return len(self.examples)

    def texts(self) -> list[str]:
        return [example.question for example in self.examples]

    def draw(self, indices: Sequence[int], seed: int, epoch: int) -> TaskBatch:
        """The samples at some places as one batch; labels as in `SmallPretrainingTask`."""
        chosen = [self.examples[i] for i in indices]
        draws = Draws(seed, epoch, indices)
        asked = torch.tensor([e.answers is not None for e in chosen])
        images, apart = self._images(chosen, asked, draws)
        regions = self.features.read(images)
        # Words and regions are masked in captions about their own image.
        stated = (~asked & ~apart)[:, None]
        texts = [example.question for example in chosen]
        ids, mask, words = masked_words(self.tokenizer, texts, stated, draws, self.limits.tokens)
        masked, hidden = masked_regions(regions.mask, stated, draws)
        features = torch.where(hidden[..., None], 0.0, regions.features)
        inputs = region_inputs(features, regions.normalised_boxes(), regions.mask, self.limits)
        target = torch.zeros(len(chosen), len(self.vocabulary))
        for row, example in zip(target, chosen, strict=True):
            for label, score in self.vocabulary.encode(example).items():
                row[label] = score
        return TaskBatch(
            list(indices),
            {"input_ids": ids, "attention_mask": mask, **inputs},
            {
                "words": words,
                "region_label": torch.where(masked, 1, IGNORED),
                "region_target": shape_classes(regions, self.classes),
                "aligned": torch.where(asked, IGNORED, apart.long()),
                "answer": target,
                "asked": asked,
            },
            [example.answer_type for example in chosen],
            {
                "masked_lm_loss": float((words != IGNORED).sum()),
                "masked_img_loss": float(masked.sum()),
                "next_sentence_loss": float((~asked).sum()),
                "answer": float(asked.sum()),
            },
        )

    def _images(
        self, chosen: Sequence[Example], asked: Tensor, draws: Draws
    ) -> tuple[list[str], Tensor]:
        """Every text's image, for half of the captions another one; which they are, (B,) bool."""
        numbers = draws.fine(ALIGNED, 2)
        others = [self.examples[int(n * len(self))].image_id for n in numbers[:, 1].tolist()]
        own = [example.image_id for example in chosen]
        differ = torch.tensor([a != b for a, b in zip(own, others, strict=True)])
        apart = (numbers[:, 0] < 0.5) & differ & ~asked
        found = zip(own, others, apart.tolist(), strict=True)
        return [other if swap else mine for mine, other, swap in found], apart


def shape_classes(regions: RegionBatch, classes: int) -> Tensor:
    """(B, R, S): 1 at the class of colour and form of each region of the embedded images."""
    if regions.object_ids is None or regions.attribute_ids is None:
        raise DataError("the region features have no object and attribute classes")
    found = regions.object_ids * ATTRIBUTE_CLASSES + regions.attribute_ids
    return torch.nn.functional.one_hot(found, classes).float()


def masked_words(
    tokenizer: Tokenizer, texts: Sequence[str], stated: Tensor, draws: Draws, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids with some masked, mask, labels (-1: not masked), (B, T) each.

    Args:
        tokenizer: of the texts.
        texts: B.
        stated: (B, 1) bool, texts whose words are masked.
        draws: random numbers.
        tokens: the most that is read.
    """
    ids, mask = tokenizer.encode(texts, tokens)
    special = (ids == tokenizer.cls_id) | (ids == tokenizer.sep_id)
    numbers = draws.uniform(WORDS, 3 * ids.shape[1]).unflatten(1, (ids.shape[1], 3))
    found, labels = mask_pieces(
        ids,
        mask.bool() & ~special & stated,
        MASK_RATE,
        numbers,
        tokenizer.mask_id,
        len(tokenizer),
        first=1,
    )
    return found, mask, labels


def masked_regions(present: Tensor, stated: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Regions that are asked for, and those of them that are hidden: (B, R) bool.

    Args:
        present: (B, R) bool.
        stated: (B, 1) bool, images whose regions are masked.
        draws: random numbers.
    """
    width = present.shape[1]
    numbers = draws.uniform(REGIONS, 2 * width).unflatten(1, (width, 2))
    masked = present & stated & (numbers[..., 0] < MASK_RATE)
    return masked, masked & (numbers[..., 1] < HIDDEN_SHARE)
