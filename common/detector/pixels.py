"""The pixel regions of easy-VQA as a detector: plain shapes, nothing learned, no photographs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from common.data.easy_vqa.build import DETECTOR
from common.data.easy_vqa.regions import (
    FOREGROUND_DIFFERENCE,
    MAX_BOXES,
    WIDTH,
    background_colour,
    extract_regions,
)
from common.detector.names import RegionNames
from common.detector.regions import FoundRegions
from common.errors import DataError

SMALLEST, LARGEST = 16, 2048
MOST_FOREGROUND = 0.5


class PixelDetector:
    """See `common.data.easy_vqa.regions`."""

    name = DETECTOR
    width = WIDTH
    classes: int | None = None
    box_policy = f"tight boxes of foreground, windows, whole image; at most {MAX_BOXES}"

    names = RegionNames()
    doubt = (
        "the pixel detector is made for plain shapes; it says nothing on photographs, so such "
        "regions mean nothing"
    )

    @property
    def record(self) -> dict[str, Any]:
        return {}

    def detect(self, picture: Image.Image) -> FoundRegions:
        """The regions of an RGB picture.

        Raises:
            DataError: a side is too short or too long.
        """
        if not SMALLEST <= min(picture.size) <= max(picture.size) <= LARGEST:
            raise DataError(
                f"{picture.width} x {picture.height} pixels: the pixel detector needs "
                f"{SMALLEST} to {LARGEST} on each side (easy-VQA's images have 64 x 64); "
                "scale the picture first"
            )
        found = extract_regions(picture)
        confidence = torch.from_numpy(found.confidence)
        return FoundRegions(
            torch.from_numpy(found.boxes),
            torch.from_numpy(found.features),
            torch.from_numpy(found.object_ids).long(),
            confidence,
            torch.from_numpy(found.attribute_ids).long(),
            confidence,
        )

    def doubts(self, found: FoundRegions, picture: Image.Image) -> dict[str, float]:
        """How much of the picture is foreground, if it is no plain shape on a plain background."""
        share = foreground_share(picture)
        if share <= MOST_FOREGROUND:
            return {}
        return {f"share of the picture that is foreground (usual: 0 to {MOST_FOREGROUND:g})": share}


def foreground_share(picture: Image.Image) -> float:
    """How much of an RGB picture differs from its most frequent colour."""
    pixels = np.asarray(picture)
    different = np.abs(pixels.astype(np.int32) - background_colour(pixels)).max(-1)
    return float((different > FOREGROUND_DIFFERENCE).mean())
