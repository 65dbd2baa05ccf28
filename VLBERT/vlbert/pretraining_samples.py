"""Captions with their regions, masked, as the pretraining network reads them.

Shape legend: B captions, T tokens, R regions, K boxes (the image as a whole may be the first),
C channels, S region classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.features.sources import FeatureSources
from common.features.store import RegionBatch
from common.modules.losses import IGNORED
from common.tasks.masking import Draws
from vlbert.boxes import PADDING
from vlbert.pretraining_captions import Caption, CaptionImages, Captions
from vlbert.pretraining_masking import (
    RELATIONSHIP,
    WORDS,
    Pieces,
    Rates,
    assemble,
    cut_lengths,
    mask_regions,
    mask_words,
    pad,
)
from vlbert.sizes import PretrainingConfig
from vlbert.transforms import image_info, is_flipped, mirror_words
from vlbert.vqa_dataset import Size, Transform, network_images, object_boxes

Tensors = dict[str, Tensor]
Inputs = dict[str, Tensor | None]  # as those of a `TaskBatch`


@dataclass
class Seen:
    """What is seen of B images, before anything is cut to the length of a sample.

    Attributes:
        boxes: (B, K, 4 + C) or (B, K, 4), see `object_boxes`.
        info: (B, 4), see `image_info`.
        hidden: (B, K) bool, boxes whose features or pixels are hidden.
        classes: (B, K, S) class probabilities of the boxes that were masked, else zeros.
        image: (B, 3, H, W), where images are read.
    """

    boxes: Tensor
    info: Tensor
    hidden: Tensor
    classes: Tensor
    image: Tensor | None


class CaptionSamples:
    """Captions of one part of the data; everything random is keyed by (seed, epoch, caption)."""

    def __init__(
        self,
        captions: Captions,
        features: FeatureSources,
        tokenizer: Tokenizer,
        transform: Transform,
        config: PretrainingConfig,
        rates: Rates,
        images: CaptionImages | None = None,
        attributes: int = 1,
    ) -> None:
        """Put captions and images together.

        Args:
            captions: one at least.
            features: boxes, class probabilities and, without `images`, features of every image.
            transform: of images and boxes.
            config: of the network: what is masked, and how many region classes there are.
            images: where images are read from; None takes the features.
            attributes: number of attribute classes; where it is above 1 and there are no class
                probabilities, a region's class is its pair of an object and an attribute class.
        """
        self.captions, self.features, self.tokenizer = captions, features, tokenizer
        self.transform, self.config, self.rates = transform, config, rates
        self.images, self.attributes = images, attributes

    def __len__(self) -> int:
        return len(self.captions)

    def read(self, indices: Sequence[int], draws: Draws) -> tuple[Inputs, Tensors]:
        """The captions at some places: inputs of the network, and labels of the losses."""
        chosen = [self.captions[i] for i in indices]
        flips = [is_flipped(draws.seed, draws.epoch, i, self.transform.flip) for i in indices]
        seen = self._look(chosen, flips, draws)
        texts, matched = self._texts(indices, chosen, flips, draws)
        lengths = [
            cut_lengths(len(text.ids), int(count))
            for text, count in zip(texts, (seen.boxes[..., 0] > PADDING).sum(1), strict=True)
        ]
        texts = [text.cut(tokens) for text, (tokens, _) in zip(texts, lengths, strict=True)]
        kept = torch.tensor([boxes for _, boxes in lengths])
        width = int(kept.max())
        beyond = torch.arange(width) >= kept[:, None]
        text, words = mask_words(texts, self.tokenizer, draws, WORDS, self.rates)
        inputs: Inputs = {
            "boxes": seen.boxes[:, :width].masked_fill(beyond[..., None], PADDING),
            "im_info": seen.info,
            "text": text,
            "masked": seen.hidden[:, :width] & ~beyond,
            "text_types": pad([t.types for t in texts], text.shape[1]),
        }
        if seen.image is not None:
            inputs["image"] = seen.image
        labels: Tensors = {}
        if self.config.words:
            labels["words"] = words
        if self.config.regions:
            labels["regions"] = seen.classes[:, :width].masked_fill(beyond[..., None], 0.0)
        if self.config.relationship:
            labels["relationship"] = matched
        return inputs, labels

    def _texts(
        self, indices: Sequence[int], chosen: Sequence[Caption], flips: Sequence[bool], draws: Draws
    ) -> tuple[list[Pieces], Tensor]:
        """The captions, half of them replaced where that is a task.

        Labels (B,): 1 = own, 0 = replaced, -1 = not asked: a question with its reply says nothing
        that could belong to another image.
        """
        matched = torch.tensor([1 if caption.reply is None else IGNORED for caption in chosen])
        if self.config.relationship:
            numbers = draws.fine(RELATIONSHIP, 2)
            matched[(matched == 1) & (numbers[:, 0] >= 0.5)] = 0
            chosen = [
                caption if label else self._of_another_image(caption, number)
                for caption, label, number in zip(
                    chosen, matched.tolist(), numbers[:, 1].tolist(), strict=True
                )
            ]
        return [
            self._pieces(caption, flip) for caption, flip in zip(chosen, flips, strict=True)
        ], matched

    def _of_another_image(self, caption: Caption, number: float) -> Caption:
        """The caption at a random place, or the next behind it that is about another image.

        Raises:
            DataError: all are about one image.
        """
        count = self.captions.statements
        first = int(number * count)
        for place in range(first, first + count):
            other = self.captions[place % count]
            if other.regions != caption.regions:
                return other
        raise DataError(
            f"all captions are about image {caption.regions!r}, so none can be "
            "replaced by one about another image (WITH_REL_LOSS): use more images"
        )

    def _pieces(self, caption: Caption, flip: bool) -> Pieces:
        reply = None if caption.reply is None else self._words(caption.reply, flip)
        return assemble(self.tokenizer, self._words(caption.text, flip), reply)

    def _words(self, text: str, flip: bool) -> list[str]:
        pieces = self.tokenizer.pieces(text)
        return mirror_words(pieces) if flip else pieces

    def _look(self, chosen: Sequence[Caption], flips: Sequence[bool], draws: Draws) -> Seen:
        regions = self.features.read([c.regions for c in chosen], classes=True)
        present, classes = regions.mask, self._classes(regions)
        likeliest = classes.amax(-1).masked_fill(~present, -1)
        order = likeliest.argsort(dim=1, descending=True, stable=True)
        classes = _in_order(classes, order)
        features = _in_order(regions.features, order)
        masked, hidden = self._mask(present, chosen, draws)
        images = None if self.images is None else [self.images.read(c.image) for c in chosen]
        sizes = [image.size for image in images] if images else _sizes(regions)
        info = torch.stack([image_info(*size, self.transform.scales) for size in sizes])
        shown = (present & ~hidden)[..., None]
        whole = (features * shown).sum(1) / shown.sum(1).clamp(min=1)
        boxes = object_boxes(
            _in_order(regions.boxes, order),
            present,
            None if images else features,
            whole,
            sizes,
            info,
            torch.tensor(flips),
            self.transform.whole_image,
        )
        classes = classes * masked[..., None]
        if self.transform.whole_image:
            hidden, classes = F.pad(hidden, (1, 0)), F.pad(classes, (0, 0, 1, 0))
        pixels = None
        if images:
            pixels = network_images(images, info, flips, self.transform)
            if self.config.mask_raw_pixels:
                _hide_pixels(pixels, boxes, hidden)
        return Seen(boxes, info, hidden, classes, pixels)

    def _mask(
        self, present: Tensor, chosen: Sequence[Caption], draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Which of the regions that are present are masked, and which are hidden; (B, R) bool."""
        if not self.config.regions:
            return torch.zeros_like(present), torch.zeros_like(present)
        masked, hidden = mask_regions(present, draws)
        if self.rates.questions:
            return masked, hidden
        stated = torch.tensor([caption.reply is None for caption in chosen])[:, None]
        return masked & stated, hidden & stated

    def _classes(self, regions: RegionBatch) -> Tensor:
        """(B, R, S): the detector's probabilities, or 1 for the class of each region.

        Raises:
            DataError: there are none, or they are not of as many classes as the network has.
        """
        count = self.config.encoder.visual_region_classes
        found = regions.class_probabilities
        if found is None and regions.object_ids is not None:
            ids = regions.object_ids
            if self.attributes > 1 and regions.attribute_ids is not None:
                ids = ids * self.attributes + regions.attribute_ids
            if int(ids.max()) < count:
                return F.one_hot(ids, count).float()
            found = regions.features.new_zeros(1, 1, int(ids.max()) + 1)
        if found is None:
            raise DataError(
                f"image {regions.image_ids[0]!r}: its features have no class "
                "probabilities (field 'classes' of the JSON files), which masked "
                "regions and the order of the regions need: use the features for "
                "pretraining"
            )
        if found.shape[-1] != count:
            raise DataError(
                f"image {regions.image_ids[0]!r}: its regions are of one of "
                f"{found.shape[-1]} classes, the network tells {count}: set NETWORK."
                "VLBERT.visual_region_classes, or use features of that detector"
            )
        return found


def _in_order(x: Tensor, order: Tensor) -> Tensor:
    """(B, R, C) with the regions in another order (B, R)."""
    return x.gather(1, order[..., None].expand_as(x))


def _sizes(regions: RegionBatch) -> list[Size]:
    sizes = [(int(width), int(height)) for width, height in regions.sizes.tolist()]
    for image_id, size in zip(regions.image_ids, sizes, strict=True):
        if min(size) < 1:
            raise DataError(
                f"image {image_id!r}: its features do not say its size (fields "
                "'image_w', 'image_h')"
            )
    return sizes


def _hide_pixels(images: Tensor, boxes: Tensor, hidden: Tensor) -> None:
    """Set the pixels in hidden boxes to 0, which is the mean colour."""
    for row, box in hidden.nonzero().tolist():
        left, top, right, bottom = (int(edge) for edge in boxes[row, box, :4])
        images[row, :, top : bottom + 1, left : right + 1] = 0
