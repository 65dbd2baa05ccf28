"""A picture as the network reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.detector.settings import DetectorSettings
from common.modules.pixels import normalised_bgr, sample_bilinear


@dataclass
class ScaledPicture:
    """One picture.

    Attributes:
        pixels: (3, H, W) float32, blue-green-red, normalised.
        size: H, W.
        scales: (2,) float32: given height / H, given width / W.
    """

    pixels: Tensor
    size: tuple[int, int]
    scales: Tensor


def scaled_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Height and width after scaling; small pictures are enlarged.

    The shorter side becomes `shortest`, or less where the longer one would be above `longest`.
    """
    scale = shortest / min(height, width)
    sides = (
        (float(shortest), scale * width) if height < width else (scale * height, float(shortest))
    )
    if max(sides) > longest:
        shrink = longest / max(sides)
        sides = (sides[0] * shrink, sides[1] * shrink)
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def scale_picture(picture: Image.Image, settings: DetectorSettings) -> ScaledPicture:
    """Scale and normalise an RGB picture."""
    return scale_pixels(torch.from_numpy(np.array(picture)), settings)


def scale_pixels(pixels: Tensor, settings: DetectorSettings) -> ScaledPicture:
    """The same for pixels (H, W, 3) uint8, red-green-blue."""
    height, width = pixels.shape[:2]
    size = scaled_size(height, width, settings.shortest, settings.longest)
    size = (max(1, size[0]), max(1, size[1]))
    scaled = sample_bilinear(pixels, *size)
    return ScaledPicture(
        normalised_bgr(scaled, settings.means, settings.deviations),
        size,
        torch.tensor([height, width], dtype=torch.float32) / torch.tensor(size),
    )
