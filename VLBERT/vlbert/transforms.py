"""Scaling, flipping and colours, as VL-BERT has them, for boxes and for images.

Sizes and ratios are computed in float32 with the operations of the original, so that boxes agree
with it to the last bit. Shape legend: B batch, K objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.modules.pixels import normalised_bgr

PADDING = -2.0
MIRRORED = {"left": "right", "right": "left"}


def scaled_size(width: int, height: int, scales: Sequence[int]) -> tuple[int, int]:
    """Size of an image after scaling, in pixels.

    The shorter side becomes `scales[0]`, or less where the longer one would be above `scales[1]`.
    Without scales the size stays.
    """
    if not scales:
        return width, height
    shorter, longer = scales
    short, long = min(width, height), max(width, height)
    if long / short * shorter > longer:
        shorter = int(longer * short / long)
    other = int(torch.tensor(float(shorter * long)) / torch.tensor(float(short)))
    return (shorter, other) if width < height else (other, shorter)


def image_info(width: int, height: int, scales: Sequence[int]) -> Tensor:
    """(4,) float32: width and height after scaling, and the factors of the two directions.

    The factors differ slightly, as both sides are whole pixels.
    """
    size = torch.tensor(scaled_size(width, height, scales), dtype=torch.float32)
    # A number divided by a tensor is the number times its reciprocal.
    ratios = torch.tensor([width, height], dtype=torch.float32).reciprocal() * size
    return torch.cat([size, ratios])


def transform_boxes(boxes: Tensor, info: Tensor, flip: Tensor) -> Tensor:
    """Scale boxes, mirror those of flipped samples, and cut them at the edges of the image.

    Args:
        boxes: (B, K, 4) float32: x1, y1, x2, y2 in pixels of the original image.
        info: (B, 4), see `image_info`.
        flip: (B,) bool.

    Returns:
        (B, K, 4) in pixels of the scaled image.
    """
    boxes = boxes * info[:, 2:].repeat(1, 2).unsqueeze(1)
    last = info[:, None, :2] - 1
    mirrored = torch.stack(
        [last[..., 0] - boxes[..., 2], boxes[..., 1], last[..., 0] - boxes[..., 0], boxes[..., 3]],
        -1,
    )
    boxes = torch.where(flip[:, None, None], mirrored, boxes)
    return boxes.clamp(min=0).minimum(last.repeat(1, 1, 2))


def transform_image(
    image: Image.Image,
    size: Sequence[int],
    flip: bool,
    means: Sequence[float],
    deviations: Sequence[float],
) -> Tensor:
    """An RGB image as (3, H, W) float32: scaled, mirrored, blue-green-red, normalised.

    Args:
        image: In RGB.
        size: Width and height after scaling.
        flip: Whether to mirror it.
        means, deviations: Of blue, green and red, in 0..255.
    """
    width, height = (int(side) for side in size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalised_bgr(torch.from_numpy(np.asarray(image).copy()), means, deviations)


def is_flipped(seed: int, epoch: int, sample: int | str, probability: float) -> bool:
    """Whether a sample is mirrored in an epoch; depends on nothing else, such as the batch."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < probability * 2**64


def mirror_words(words: Sequence[str]) -> list[str]:
    """Words with left and right exchanged."""
    return [MIRRORED.get(word, word) for word in words]


def mirror_answers(answers: dict[str, float]) -> dict[str, float]:
    """Scores of answers in whose words left and right are exchanged."""
    return {" ".join(mirror_words(answer.split(" "))): value for answer, value in answers.items()}
