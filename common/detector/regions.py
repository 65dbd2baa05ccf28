"""What every detector gives, whatever it is.

Shape legend: R regions, F width of a region feature, K object classes, L attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from common.detector.names import RegionNames


@dataclass
class FoundRegions:
    """The regions of one picture, in the order of the detector's rule."""

    boxes: Tensor
    """(R, 4) float32: x1, y1, x2, y2 in pixels of the picture as it was given."""
    features: Tensor
    """(R, F) float32."""
    object_ids: Tensor
    """(R,) int64, in 0..K-1; `attribute_ids` likewise in 0..L-1."""
    object_conf: Tensor
    """(R,) float32 in 0..1; `attribute_conf` likewise."""
    attribute_ids: Tensor
    attribute_conf: Tensor
    class_probabilities: Tensor | None = None
    """(R, K + 1) float32 in 0..1, the background first; None where the detector has none."""
    attribute_probabilities: Tensor | None = None
    """(R, L + 1) likewise, "none" first."""


class Detector(Protocol):
    """Finds regions in pictures."""

    @property
    def name(self) -> str:
        """Kept with the features: a checkpoint takes features of its own detector only."""

    @property
    def width(self) -> int:
        """F."""

    @property
    def classes(self) -> int | None:
        """K + 1, numbers in `class_probabilities`; None where there are none."""

    @property
    def box_policy(self) -> str:
        """How many boxes a picture gets, and which."""

    @property
    def record(self) -> dict[str, Any]:
        """What else meta.json keeps: files and their checksums, settings."""

    @property
    def names(self) -> RegionNames:
        """Of classes and attributes, as far as they are known."""

    @property
    def doubt(self) -> str:
        """What a doubt of `doubts` means."""

    def detect(self, picture: Image.Image) -> FoundRegions:
        """The regions of an RGB picture.

        Raises:
            DataError: it cannot be used, or nothing is found in it.
        """

    def doubts(self, found: FoundRegions, picture: Image.Image) -> dict[str, float]:
        """What is outside the range of real features: {what it is, with the range: the number}."""
