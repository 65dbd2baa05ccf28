"""Faster R-CNN (Ren et al. 2015) on a ResNet's third stage, with object classes and attributes.

The network of `unc-nlp/frcnn-vg-finetuned`: proposals from the feature map, RoI max pooling, the
last stage as a head on every proposal, and predictors of class, box and attribute.
Shape legend: N images, C channels, h x w feature map, A anchors per cell, R proposals, F width of a
region feature, K object classes, L attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.detector.settings import DetectorSettings
from common.errors import DataError
from common.modules.boxes import apply_deltas, clip, suppress
from common.modules.resnet import ResNetBackbone, last_stage
from common.modules.roi_pool import roi_pool

STRIDE = 16
CHUNK = 60  # regions at a time: 0.35 GB of activations in the released network


@dataclass
class Proposals:
    """Of one image, best first."""

    boxes: Tensor
    """(R, 4) float32: x1, y1, x2, y2 in pixels of the scaled image."""
    logits: Tensor
    """(R,) float32."""


@dataclass
class RegionOutputs:
    """What the network says of the proposals of one image."""

    proposals: Tensor
    """(R, 4) float32, as in `Proposals`."""
    features: Tensor
    """(R, F) float32, 0 or more."""
    class_logits: Tensor
    """(R, K + 1), the background last."""
    attribute_logits: Tensor
    """(R, L + 1), "none" last; of the likeliest class of each region."""
    deltas: Tensor
    """(R, K, 4), of a box for each class."""


class AnchorGenerator(nn.Module):
    """Anchors of a cell, which the file holds: the channels of the proposals are in their order."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.offset = settings.offset
        self.cell_anchors = nn.ParameterList([nn.Parameter(fresh_anchors(settings))])

    def forward(self, height: int, width: int) -> Tensor:
        """(h * w * A, 4) anchors of a feature map in pixels: rows, columns, anchors of a cell."""
        anchors = self.cell_anchors[0].float()
        x, y = (
            (torch.arange(side, device=anchors.device, dtype=torch.float32) + self.offset) * STRIDE
            for side in (width, height)
        )
        columns, rows = x.expand(height, width), y[:, None].expand(height, width)
        places = torch.stack([columns, rows, columns, rows], -1)
        return (places[:, :, None] + anchors).view(-1, 4)


def fresh_anchors(settings: DetectorSettings) -> Tensor:
    """(A, 4) anchors around 0, size by size, each with every ratio of height to width."""
    boxes = []
    for size in settings.sizes:
        for ratio in settings.ratios:
            width = (size * size / ratio) ** 0.5
            height = ratio * width
            boxes.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(boxes)


class ProposalHead(nn.Module):
    """For every anchor of every cell whether there is something, and where exactly."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        anchors = len(settings.sizes) * len(settings.ratios)
        self.conv = nn.Conv2d(settings.channels, settings.hidden, 3, 1, 1)
        self.objectness_logits = nn.Conv2d(settings.hidden, anchors, 1)
        self.anchor_deltas = nn.Conv2d(settings.hidden, 4 * anchors, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> logits (N, A, h, w) and deltas (N, 4 A, h, w)."""
        hidden = F.relu(self.conv(maps), inplace=True)
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class ProposalGenerator(nn.Module):
    """The region proposal network."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.anchor_generator = AnchorGenerator(settings)
        self.rpn_head = ProposalHead(settings)

    def forward(self, maps: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Proposals]:
        """Proposals of N images.

        Args:
            maps: (N, C, h, w).
            sizes: N heights and widths in pixels, without padding.

        Raises:
            DataError: numbers that are not finite.
        """
        logits, deltas = self.rpn_head(maps)
        return self.choose(logits, deltas, sizes)

    def choose(
        self, logits: Tensor, deltas: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Proposals]:
        """The proposals that logits (N, A, h, w) and deltas (N, 4 A, h, w) mean."""
        count, height, width = logits.shape[0], *logits.shape[2:]
        anchors = self.anchor_generator(height, width)
        flat = logits.float().permute(0, 2, 3, 1).reshape(count, -1)
        offsets = deltas.float().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).reshape(count, -1, 4)
        if not bool(torch.isfinite(flat.sum() + offsets.sum())):
            raise DataError("the detector's proposals are not finite: its weights are damaged")
        return [self._of_image(anchors, *each) for each in zip(flat, offsets, sizes, strict=True)]

    def _of_image(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, size: tuple[int, int]
    ) -> Proposals:
        settings = self.settings
        best = logits.argsort(descending=True, stable=True)[: settings.candidates]
        boxes = apply_deltas(deltas[best, None], anchors[best], settings.proposal_weights)[:, 0]
        boxes, logits = clip(boxes, *size), logits[best]
        there = (boxes[:, 2:] - boxes[:, :2] > settings.smallest).all(1)
        boxes, logits = boxes[there], logits[there]
        kept = suppress(boxes, logits, settings.proposal_overlap, settings.proposals)
        return Proposals(boxes[kept], logits[kept])


class BoxPredictor(nn.Module):
    """Class, box and attribute of a region."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        width, classes = settings.width, settings.classes
        embedded, hidden = width // 8, width // 4
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * classes)
        self.cls_embedding = nn.Embedding(classes + 1, embedded)
        self.fc_attr = nn.Linear(width + embedded, hidden)
        self.attr_score = nn.Linear(hidden, settings.attributes + 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, F) -> class logits (R, K + 1), attribute logits (R, L + 1), deltas (R, K, 4).

        The attribute is that of the likeliest class, which may be the background.
        """
        logits = self.cls_score(features)
        embedded = self.cls_embedding(logits.argmax(1))
        hidden = F.relu(self.fc_attr(torch.cat([features, embedded], 1)))
        return logits, self.attr_score(hidden), self.bbox_pred(features).unflatten(1, (-1, 4))


class RegionHeads(nn.Module):
    """The last stage on every region, and its predictors."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.bins = settings.bins
        self.res5 = last_stage(
            settings.depth,
            dilated=not settings.halved,
            stride_in_1x1=settings.stride_in_1x1,
            widths=settings.widths,
        )
        self.box_predictor = BoxPredictor(settings)

    def pool(self, maps: Tensor, rois: Tensor) -> Tensor:
        """Regions (R, 5), image first, of feature maps (N, C, h, w) -> (R, C, bins, bins)."""
        return roi_pool(maps, rois, self.bins, 1 / STRIDE)

    def forward(self, maps: Tensor, boxes: Sequence[Tensor], chunk: int) -> list[RegionOutputs]:
        """Features and predictions of the boxes (R, 4) of N images, `chunk` of them at a time."""
        numbered = [F.pad(each, (1, 0), value=float(i)) for i, each in enumerate(boxes)]
        features = [
            self.res5(self.pool(maps, rois)).float().mean((2, 3))
            for rois in torch.cat(numbered).split(chunk)
        ]
        together = torch.cat(features) if features else maps.new_zeros(0, 0)
        counts = [len(each) for each in boxes]
        return [
            RegionOutputs(own, found, *self.box_predictor(found))
            for own, found in zip(boxes, together.split(counts), strict=True)
        ]


class FasterRCNN(nn.Module):
    """The whole network, for inference."""

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = ResNetBackbone(
            settings.depth,
            stride_in_1x1=settings.stride_in_1x1,
            widths=settings.widths,
            caffe_pool=settings.caffe_pool,
        )
        self.proposal_generator = ProposalGenerator(settings)
        self.roi_heads = RegionHeads(settings)

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], chunk: int = CHUNK
    ) -> list[RegionOutputs]:
        """What there is in N images.

        Padding changes what is found near it: give one image, or several of one size.

        Args:
            images: (N, 3, H, W) blue-green-red, normalised.
            sizes: N heights and widths in pixels, without padding.
            chunk: regions that the last stage computes at a time; bounds the memory.

        Raises:
            DataError: an image without any proposal, or numbers that are not finite.
        """
        maps = self.backbone(images)
        found = self.proposal_generator(maps, sizes)
        for size, proposals in zip(sizes, found, strict=True):
            if not len(proposals.boxes):
                raise DataError(f"no region is proposed in the image of {size[1]} x {size[0]}")
        outputs = self.roi_heads(maps, [each.boxes for each in found], chunk)
        for each in outputs:
            if not bool(torch.isfinite(each.class_logits.sum() + each.features.sum())):
                raise DataError("the detector's features are not finite: its weights are damaged")
        return outputs
