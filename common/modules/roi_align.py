"""ROIAlign in plain PyTorch: bilinear samples of a feature map under each box, averaged in bins.

Every bin is a weighted sum of a few rows of the feature map, so that one `embedding_bag` computes
all bins of all boxes without a copy of the map for each box.
Shape legend: N images, C channels, H x W feature map, R boxes, P x Q bins.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 1,
) -> Tensor:
    """Pool each box into P x Q bins (original alignment, without a shift by half a pixel).

    Args:
        features: (N, C, H, W).
        rois: (R, 5): number of the image, then x1, y1, x2, y2 in pixels of the image.
        output_size: P, Q.
        spatial_scale: pixels of the feature map per pixel of the image.
        sampling_ratio: samples per bin and direction; 0: as many as the bin has pixels, at least
            one (rounded up).

    Returns:
        (R, C, P, Q), laid out channels last in memory. Samples more than one pixel outside the
        map count as 0.
    """
    _images, channels, height, width = features.shape
    flat = features.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = rois[:, 1:].to(features.dtype) * spatial_scale
    ys, wy = axis_samples(corners[:, 1], corners[:, 3], height, output_size[0], sampling_ratio)
    xs, wx = axis_samples(corners[:, 0], corners[:, 2], width, output_size[1], sampling_ratio)
    start = rois[:, 0].long() * (height * width)
    rows = (
        start[:, None, None, None, None] + ys[:, :, None, :, None] * width + xs[:, None, :, None, :]
    )
    weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
    bins = F.embedding_bag(
        rows.flatten(3).flatten(0, 2),
        flat,
        mode="sum",
        per_sample_weights=weights.flatten(3).flatten(0, 2),
    )
    return bins.view(len(rois), *output_size, channels).permute(0, 3, 1, 2)


def axis_samples(
    start: Tensor, end: Tensor, size: int, bins: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Along one axis: which pixels each bin reads, with which weights.

    Args:
        start, end: (R,) in pixels of the feature map.
        size: its number of pixels.
        bins: P.
        sampling_ratio: see `roi_align`.

    Returns:
        pixels (R, P, S) int64 and weights (R, P, S), two entries for each sample.
    """
    bin_size = (end - start).clamp(min=1.0) / bins
    counts = torch.full_like(bin_size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil()
    most = int(counts.max()) if len(counts) else 1
    sample = torch.arange(most, device=start.device, dtype=start.dtype)
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    offset = (sample + 0.5) * (bin_size / counts)[:, None]
    places = (start[:, None] + number * bin_size[:, None])[:, :, None] + offset[:, None]
    counted = (sample < counts[:, None])[:, None] & (places >= -1.0) & (places <= size)
    places = places.clamp(0.0, size - 1.0)
    low = places.floor()
    upper = places - low
    pixels = torch.stack([low, (low + 1).clamp(max=size - 1.0)], -1).long()
    weights = torch.stack([1.0 - upper, upper], -1) * counted[..., None]
    return pixels.flatten(2), weights.flatten(2) / counts[:, None, None]
