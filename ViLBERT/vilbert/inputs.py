"""From a batch of questions to the inputs of ViLBERT.

Shape legend: B batch, T tokens, R regions (the first is the image as a whole), F feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQABatch
from common.features.carried import carried
from common.features.store import whole_image
from common.runs.backbones import OpenedRun
from common.runs.places import Places, two_streams
from common.training.padding import Range, padded, region_lengths, text_lengths


@dataclass(frozen=True)
class Limits:
    """The most that is read of a pair.

    Attributes:
        tokens: word pieces of a text with [CLS] and [SEP]; `max_seq_length`.
        regions: with the image as a whole; `max_region_num`.
    """

    tokens: int = 20
    regions: int = 101


def region_inputs(
    features: Tensor, boxes: Tensor, mask: Tensor, limits: Limits, image: Tensor | None = None
) -> dict[str, Tensor]:
    """Regions with the image as a whole before them.

    Args:
        features: (B, R, F), 0 in the padding.
        boxes: (B, R, 4) corners as shares of the image.
        mask: (B, R) bool.
        limits: regions behind the last one are left out; they count in the image's features.
        image: (B, F) features of the image as a whole; None: the mean of its regions.

    Returns:
        features (B, R + 1, F), places (B, R + 1, 5): x1, y1, x2, y2 and area, which is (0, 0, 1,
        1, 1) for the image; image_attention_mask (B, R + 1), 1 = region.
    """
    whole = whole_image(features, mask, image)[:, None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1, keepdim=True)
    places = torch.cat([boxes, area], -1)
    everything = places.new_tensor([0.0, 0.0, 1.0, 1.0, 1.0]).expand(len(places), 1, -1)
    present = torch.cat([mask.new_ones(len(mask), 1), mask], 1).long()
    most = limits.regions
    return {
        "features": carried([whole, features[:, : most - 1]], 1),
        "places": torch.cat([everything, places], 1)[:, :most],
        "image_attention_mask": present[:, :most],
    }


def padded_inputs(
    inputs: Mapping[str, Tensor | None], regions: Range | None, limits: Limits
) -> dict[str, Tensor | None]:
    """Texts and regions padded to fixed lengths.

    Args:
        inputs: of `BertModel.forward`.
        regions: the fewest and the most of an image, without the image as a whole; None: not known.
        limits: of the inputs.
    """
    texts = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}
    found = padded(inputs, texts, text_lengths(limits.tokens))
    shown = {"features": 0, "places": 0, "image_attention_mask": 0}
    return padded(found, shown, shown_lengths(regions, limits))


def shown_lengths(regions: Range | None, limits: Limits) -> list[int]:
    """Lengths that the regions are padded to, with the image as a whole."""
    fewest, most = regions or (1, limits.regions)
    shown = limits.regions - 1
    return region_lengths((min(fewest, shown), min(most, shown)), more=1)


@dataclass(frozen=True)
class ViLBertInputs:
    """Callable that tokenises questions and arranges regions."""

    tokenizer: Tokenizer
    limits: Limits

    @property
    def longest(self) -> int:
        """Word pieces of the longest question that is read whole."""
        return self.limits.tokens - 2

    def __call__(self, batch: VQABatch) -> dict[str, Tensor | None]:
        """Inputs of `BertModel.forward`: ids and mask (B, T), regions as of `region_inputs`."""
        ids, mask = self.tokenizer.encode(batch.questions, self.limits.tokens)
        regions = region_inputs(
            batch.features, batch.boxes, batch.region_mask, self.limits, batch.image_features
        )
        return {"input_ids": ids, "attention_mask": mask, **regions}

    def padded(
        self, inputs: Mapping[str, Tensor | None], regions: Range | None
    ) -> dict[str, Tensor | None]:
        """See `common.tasks.vqa.MakesGpuInputs`."""
        return padded_inputs(inputs, regions, self.limits)


def find_places(run: OpenedRun, inputs: Mapping[str, Tensor | None]) -> list[Places]:
    """What stands at the places of the streams, for each sample of `ViLBertInputs`.

    The one stream of the baseline, `hidden`, has the text before the regions.
    """
    names = ("input_ids", "attention_mask", "features")
    ids, mask, features = (inputs[name] for name in names)
    assert ids is not None and mask is not None and features is not None
    present = inputs["image_attention_mask"]
    found = two_streams(run.tokenizer, ids, mask, features.shape[1], present, whole_first=True)
    return [
        {"lang": words, "vision": regions, "hidden": [*words, *regions]} for words, regions in found
    ]
