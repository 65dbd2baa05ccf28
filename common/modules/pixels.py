"""Pixels for a ResNet: blue-green-red, normalised; bilinear scaling without smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalised_bgr(pixels: Tensor, means: Sequence[float], deviations: Sequence[float]) -> Tensor:
    """(H, W, 3) red-green-blue in 0..255 -> (3, H, W) blue-green-red, float32, normalised.

    Args:
        means, deviations: Of blue, green and red, in 0..255.
    """
    colours = pixels.permute(2, 0, 1).flip(0).float()
    shape = (3, 1, 1)
    return (colours - torch.tensor(means).view(shape)) / torch.tensor(deviations).view(shape)


def sample_bilinear(pixels: Tensor, height: int, width: int) -> Tensor:
    """(H, W, 3) uint8 -> (height, width, 3) float32, not rounded to whole numbers.

    Each pixel is made of the four that are nearest to its centre, also where a large picture is
    made small: `interpolate(mode="bilinear")` without antialiasing, and without the copy of the
    whole picture in float32 that it needs.
    """
    (top, bottom, down), (left, right, across) = (
        _nearest(old, new) for old, new in zip(pixels.shape[:2], (height, width), strict=True)
    )
    across, down = across[None, :, None], down[:, None, None]

    def row_pair(rows: Tensor) -> Tensor:
        chosen = pixels[rows]
        return chosen[:, left].float() * (1 - across) + chosen[:, right].float() * across

    return row_pair(top) * (1 - down) + row_pair(bottom) * down


def _nearest(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the two pixels (new,) int64 next to each place, and the second one's share.

    Rounded as torch's own: the scale in float32, then one rounding of product and difference.
    """
    scale = torch.tensor(float(old)) / new
    centres = torch.arange(new, dtype=torch.float64) + 0.5
    places = (centres * scale.double() - 0.5).float().clamp(min=0)
    low = places.floor()
    share = places - low
    first = low.long().clamp(max=old - 1)
    return first, (first + 1).clamp(max=old - 1), share


def pad_images(images: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """(N, 3, H, W): images (3, h, w) with a value to the right and below."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = images[0].new_full((len(images), 3, height, width), value)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch
