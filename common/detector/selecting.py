"""Which of the proposals become the regions of a picture: the detector's rule and that of the TSVs.

Shape legend: R proposals, M regions, F width of a region feature, K object classes, L attributes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.detector.network import RegionOutputs
from common.detector.settings import DetectorSettings
from common.modules.boxes import PIXEL, apply_deltas, clip, overlap, suppress

SURE = 0.2  # least confidence of a region in the TSVs
CLASS_OVERLAP = 0.3


@dataclass
class Selection:
    """The regions of a picture.

    Attributes:
        kept: (M,) int64, which proposals.
        boxes: (M, 4) float32: x1, y1, x2, y2 in pixels of the picture as it was given.
        object_ids, attribute_ids: (M,) int64, in 0..K-1 and 0..L-1.
        object_conf, attribute_conf: (M,) float32, in 0..1.
        best_conf: (R,) float32, what the rule of the TSVs goes by; None for the other one.
    """

    kept: Tensor
    boxes: Tensor
    object_ids: Tensor
    object_conf: Tensor
    attribute_ids: Tensor
    attribute_conf: Tensor
    best_conf: Tensor | None = None


def select_regions(
    found: RegionOutputs,
    settings: DetectorSettings,
    size: tuple[int, int],
    scales: Tensor,
    fewest: int,
    most: int,
) -> Selection:
    """The detector's own rule: one box per proposal, that of its likeliest class, and suppression
    among all of them, whatever their class.

    Fewer than `fewest` come back where the last threshold leaves no more.

    Args:
        found: of one image.
        settings: thresholds and box weights.
        size: height and width of the scaled image.
        scales: (2,) float32: given height / scaled height, and widths.
        fewest, most: regions.

    Returns:
        By descending confidence.
    """
    shares = found.class_logits.softmax(1)[:, :-1]
    scores, classes = shares.max(1)
    deltas = found.deltas[torch.arange(len(classes), device=classes.device), classes]
    boxes = apply_deltas(deltas[:, None], found.proposals, settings.box_weights)[:, 0]
    boxes = clip(boxes, *size)
    kept = classes.new_empty(0)
    for threshold in settings.overlaps:
        kept = suppress(boxes, scores, threshold, most)
        if len(kept) >= fewest:
            break
    sure, attributes = found.attribute_logits[kept, :-1].softmax(1).max(1)
    return Selection(
        kept, boxes[kept] * scales.flip(0).repeat(2), classes[kept], scores[kept], attributes, sure
    )


def select_as_tsv(found: RegionOutputs, scale: float, fewest: int, most: int) -> Selection:
    """The rule that LXMERT's TSVs and VL-BERT's JSON were made by (bottom-up attention).

    Boxes are the proposals themselves. For each class by itself overlapping proposals are
    suppressed; what counts is the largest probability of a class in which a proposal survives.

    Args:
        found: of one image.
        scale: scaled height / given height.
        fewest, most: regions; those of at least `SURE` are taken, as far as that gives a number in
            between.

    Returns:
        In the order of the proposals, or by descending confidence where `fewest` or `most` decided.
    """
    shares = found.class_logits.softmax(1)[:, :-1]
    boxes = found.proposals / scale
    best = (shares * survivors(boxes, shares)).amax(1)
    kept = (best.double() >= SURE).nonzero()[:, 0]
    if not fewest <= len(kept) <= most:
        limit = fewest if len(kept) < fewest else most
        kept = best.argsort(descending=True, stable=True)[:limit]
    conf, classes = shares[kept].max(1)
    sure, attributes = found.attribute_logits[kept].softmax(1)[:, :-1].max(1)
    return Selection(kept, boxes[kept], classes, conf, attributes, sure, best)


def survivors(boxes: Tensor, shares: Tensor) -> Tensor:
    """Suppression for every class by itself: boxes (R, 4), shares (R, K) -> (R, K) bool.

    All classes at once: in each step the next best box of every class.
    """
    above = overlap(boxes, boxes, PIXEL).double() >= CLASS_OVERLAP
    above.fill_diagonal_(False)
    alive = torch.ones(shares.shape[1], len(boxes), dtype=torch.bool, device=boxes.device)
    order = shares.t().argsort(dim=1, descending=True, stable=True)
    for each in order.unbind(1):
        living = alive.gather(1, each[:, None])
        alive &= ~(living & above[each])
    return alive.t()
