"""Boxes: which are padding, their coordinates as sines and cosines.

Shape legend: B batch, K boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = -2.0


def box_mask(boxes: Tensor) -> Tensor:
    """(B, K, 4 and more) with padding -2 -> (B, K) bool, true where there is a box."""
    return boxes[..., 0] > PADDING + 0.5


def coordinate_embedding(boxes: Tensor, sizes: Tensor, waves: int) -> Tensor:
    """Centre, width and height of boxes, relative to the image, as waves of many lengths.

    Args:
        boxes: (…, 4) x1, y1, x2, y2 in pixels.
        sizes: (…, 2) width and height of the image.
        waves: number of wave lengths w; they go from 1 to 1000 hundredths of the image.

    Returns:
        (…, 4, 2 w): for each of x, y, width, height w sines, then w cosines.
    """
    corners = boxes.unflatten(-1, (2, 2))
    centre, extent = corners.sum(-2) / 2, corners[..., 1, :] - corners[..., 0, :]
    hundredths = 100 * torch.cat([centre / sizes, extent / sizes], -1)
    exponents = torch.arange(waves, device=boxes.device, dtype=boxes.dtype) / waves
    angles = hundredths[..., None] / 1000**exponents
    return torch.cat([angles.sin(), angles.cos()], -1)
