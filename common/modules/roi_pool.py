"""RoI max pooling in plain PyTorch (Fast R-CNN, Girshick 2015): the maximum of every bin of a box.

Each bin is a bag of rows of the feature map, so that one `embedding_bag` pools all boxes without a
copy of the map for each of them. Shape legend: N images, C channels, H x W feature map, R boxes,
P bins a side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_pool(features: Tensor, rois: Tensor, bins: int, spatial_scale: float) -> Tensor:
    """Pool each box into P x P bins; no gradient.

    Corners are rounded half away from zero to pixels of the map, both of which belong to the box.
    Edges of bins are computed in float32, as in all systems that have this operation: that
    decides which pixels a bin has where a side is not a multiple of P.

    Args:
        features: (N, C, H, W).
        rois: (R, 5): number of the image, then x1, y1, x2, y2 in pixels of the image.
        bins: P.
        spatial_scale: pixels of the feature map per pixel of the image.

    Returns:
        (R, C, P, P), laid out channels last in memory; 0 where a bin has no pixel of the map.
    """
    _images, channels, height, width = features.shape
    flat = features.detach().permute(0, 2, 3, 1).reshape(-1, channels)
    corners = round_half_away(rois[:, 1:].float() * spatial_scale).long()
    left, right = axis_bins(corners[:, 0], corners[:, 2], width, bins)
    top, bottom = axis_bins(corners[:, 1], corners[:, 3], height, bins)
    wide, high = (right - left)[:, None, :], (bottom - top)[:, :, None]
    first = rois[:, :1, None].long() * (height * width) + top[:, :, None] * width + left[:, None, :]
    counts = (high * wide).flatten()
    ends = counts.cumsum(0)
    # The pixels of a bin, row by row.
    number = torch.arange(int(ends[-1]) if len(ends) else 0, device=features.device)
    number -= (ends - counts).repeat_interleave(counts)
    each = wide.expand(-1, bins, -1).flatten().repeat_interleave(counts)
    rows = first.flatten().repeat_interleave(counts) + number // each * width + number % each
    pooled = F.embedding_bag(rows, flat, ends - counts, mode="max")
    return pooled.view(len(rois), bins, bins, channels).permute(0, 3, 1, 2)


def round_half_away(values: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero."""
    size = values.abs()
    whole = size.floor()
    return (whole + (size - whole >= 0.5)).copysign(values)


def axis_bins(start: Tensor, end: Tensor, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """Along one axis: first pixel of each bin, and the one behind its last.

    Args:
        start, end: (R,) first and last pixel of the boxes, int64.
        size: of the map.
        bins: P.

    Returns:
        (R, P) each, int64, in 0..size; equal where a bin is empty.
    """
    side = (end - start + 1).clamp(min=1).float()[:, None] / bins
    number = torch.arange(bins, device=start.device, dtype=torch.float32)
    low = (number * side).floor().long() + start[:, None]
    high = ((number + 1) * side).ceil().long() + start[:, None]
    return low.clamp(0, size), high.clamp(0, size)
