"""Boxes in pixels, x1, y1, x2, y2: overlap, suppression of overlapping ones, offsets, edges.

Shape legend: R and S boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIXEL = 1.0  # of width where both corner pixels belong to a box
TILE = 1024
LARGEST_SCALE = 4.135166556742356  # ln(1000 / 16), of decoded sides


def overlap(ours: Tensor, theirs: Tensor, end: float = 0.0) -> Tensor:
    """Intersection over union of boxes (R, 4) and (S, 4) -> (R, S); NaN of two empty ones.

    Args:
        end: Added to x2 - x1 and y2 - y1: `PIXEL` as in caffe's detectors and RefCOCO's evaluation.
    """
    width, height = (
        torch.minimum(ours[:, None, axis + 2], theirs[None, :, axis + 2])
        .sub_(torch.maximum(ours[:, None, axis], theirs[None, :, axis]))
        .add_(end)
        .clamp_(min=0)
        for axis in (0, 1)
    )
    shared = width.mul_(height)
    areas = [(x[:, 2] - x[:, 0] + end) * (x[:, 3] - x[:, 1] + end) for x in (ours, theirs)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    limit: int | None = None,
    end: float = 0.0,
    equal: bool = False,
) -> Tensor:
    """Non-maximum suppression: the boxes that no better one overlaps too much.

    Boxes are looked at in tiles, and no further than the limit.

    Args:
        boxes: (R, 4).
        scores: (R,); of equal ones the first is the better.
        threshold: Overlap above which a box is dropped, compared in double precision.
        limit: Most boxes.
        end: See `overlap`.
        equal: An overlap that is the threshold drops a box, too.

    Returns:
        Indices of what stays, best first, int64.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    limit = len(boxes) if limit is None else limit
    kept = order.new_empty(0)
    for start in range(0, len(boxes), TILE):
        if len(kept) >= limit:
            break
        tile = ranked[start : start + TILE]
        alive = ~_above(tile, ranked[kept], threshold, end, equal).any(1)
        numbers = alive.nonzero()[:, 0]
        tile = tile[numbers]
        chosen = _greedy(_above(tile, tile, threshold, end, equal), limit - len(kept))
        kept = torch.cat([kept, start + numbers[chosen.to(numbers.device)]])
    return order[kept]


def _above(ours: Tensor, theirs: Tensor, threshold: float, end: float, equal: bool) -> Tensor:
    """(R, S) bool: which overlap too much."""
    found = overlap(ours, theirs, end).double()
    return found >= threshold if equal else found > threshold


def _greedy(above: Tensor, limit: int) -> Tensor:
    """Which of the boxes of one tile (R, R) stay, in their order."""
    table = above.cpu().numpy()
    dropped = table.diagonal() & False
    chosen: list[int] = []
    for i in range(len(table)):
        if len(chosen) == limit:
            break
        if not dropped[i]:
            chosen.append(i)
            dropped |= table[i]
    return torch.tensor(chosen, dtype=torch.int64)


def apply_deltas(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes moved and scaled by what a network predicts (R-CNN, Girshick et al. 2014, C).

    Args:
        deltas: (R, K, 4) dx, dy, dw, dh; those of the sides are cut at ln(1000 / 16).
        boxes: (R, 4).
        weights: What the four are divided by.

    Returns:
        (R, K, 4).
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + 0.5 * sides
    scaled = deltas / deltas.new_tensor(list(weights))
    moved = scaled[..., :2] * sides[:, None] + centres[:, None]
    half = 0.5 * (scaled[..., 2:].clamp(max=LARGEST_SCALE).exp() * sides[:, None])
    return torch.cat([moved - half, moved + half], -1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (…, 4) cut at the edges of their image, which belong to it: 0 to width, 0 to height."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
