"""From samples to the inputs of ViLBERT: tokens, and regions of one or two sets of features.

Shape legend: B pairs, T tokens, R regions (the first is the image as a whole), F feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.features.carried import take_rows
from common.features.sources import FeatureSources
from common.features.store import RegionBatch
from vilbert.inputs import Limits, region_inputs
from vilbert.samples import Pair


@dataclass(frozen=True)
class ShownRegions:
    """What the model sees of B images.

    Attributes:
        inputs: of `region_inputs`, (B, R, …).
        boxes: (B, R, 4) x1, y1, x2, y2 in pixels; the first is the whole image.
        mask: (B, R) bool; False is padding.
    """

    inputs: dict[str, Tensor]
    boxes: Tensor
    mask: Tensor


@dataclass(frozen=True)
class PairInputs:
    """Turns pairs into inputs of `BertModel.forward`.

    Attributes:
        tokenizer: of the texts.
        limits: the most that is read of texts and images.
        features: regions of a detector.
        second: more regions of the same images, such as annotated ones; None: there are none.
    """

    tokenizer: Tokenizer
    limits: Limits
    features: FeatureSources
    second: FeatureSources | None = None

    def texts(self, pairs: Sequence[Pair]) -> dict[str, Tensor | None]:
        """input_ids, attention_mask and, where there are second texts, token_type_ids (B, T)."""
        most = self.limits.tokens
        if all(pair.second is None for pair in pairs):
            ids, mask = self.tokenizer.encode([pair.text for pair in pairs], most)
            return {"input_ids": ids, "attention_mask": mask}
        ids, mask, segments = self.tokenizer.encode_pairs(
            [pair.text for pair in pairs], [pair.second or "" for pair in pairs], most
        )
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}

    @property
    def counts(self) -> tuple[int, int] | None:
        """The fewest and the most regions of an image; None: not known."""
        return None if self.second is not None else self.features.counts

    def regions(
        self, image_ids: Sequence[str], second: bool = False, half: bool = False
    ) -> ShownRegions:
        """The regions of images, which may be there several times.

        Args:
            image_ids: B ids.
            second: show the second features as well, behind the first ones.
            half: leave features that are kept in float16 so, on the way to a GPU.
        """
        distinct = list(dict.fromkeys(image_ids))
        if second and self.second is not None:
            found = with_second(
                self.features.read(distinct), self.second.read(distinct), self.limits.regions
            )
        else:
            found = self.features.read(distinct, half=half)
        place = {image_id: n for n, image_id in enumerate(distinct)}
        rows = torch.tensor([place[image_id] for image_id in image_ids])
        inputs = region_inputs(
            found.features, found.normalised_boxes(), found.mask, self.limits, found.image_features
        )
        whole = torch.cat([torch.zeros_like(found.sizes), found.sizes], 1)
        boxes = torch.cat([whole[:, None], found.boxes], 1)[:, : self.limits.regions]
        mask = inputs["image_attention_mask"].bool()
        taken = {name: take_rows(x, rows) for name, x in inputs.items()}
        return ShownRegions(taken, boxes[rows], mask[rows])

    def __call__(
        self, pairs: Sequence[Pair], second: bool = False, half: bool = False
    ) -> tuple[dict[str, Tensor | None], ShownRegions]:
        """Inputs of B pairs, and their regions; `half` as of `regions`."""
        shown = self.regions([pair.image_id for pair in pairs], second, half)
        return {**self.texts(pairs), **shown.inputs}, shown


def with_second(first: RegionBatch, second: RegionBatch, most: int) -> RegionBatch:
    """Regions of a detector and, behind them, annotated ones, of which none gives way.

    The features of the images as a whole are those of both, each counted with its number of regions
    and itself, as in the original.

    Args:
        first, second: of the same images.
        most: regions of an image, with the image as a whole.
    """
    counts = [batch.mask.sum(1) for batch in (first, second)]
    annotated = counts[1].clamp(max=most - 1)
    detected = torch.minimum(counts[0], most - 1 - annotated)
    width = int((annotated + detected).max())
    weights = [(count + 1)[:, None].to(first.features.dtype) for count in counts]
    whole = first.whole_image() * weights[0] + second.whole_image() * weights[1]
    features = first.features.new_zeros(len(first.image_ids), width, first.features.shape[2])
    boxes = first.boxes.new_zeros(len(first.image_ids), width, 4)
    for row, (many, more) in enumerate(zip(detected.tolist(), annotated.tolist(), strict=True)):
        for target, name in ((features, "features"), (boxes, "boxes")):
            target[row, :many] = getattr(first, name)[row, :many]
            target[row, many : many + more] = getattr(second, name)[row, :more]
    return RegionBatch(
        first.image_ids,
        features,
        boxes,
        torch.arange(width) < (annotated + detected)[:, None],
        first.sizes,
        image_features=whole / (weights[0] + weights[1]),
    )
