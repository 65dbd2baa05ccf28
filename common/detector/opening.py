"""Which detector is meant: a folder of weights, or the pixel regions of easy-VQA."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.detector.faster_rcnn import DetectorOptions, FasterRCNNDetector
from common.detector.pixels import PixelDetector
from common.detector.regions import Detector
from common.errors import ConfigError
from common.features.origin import origin_of

PIXELS = "pixels"


def open_detector(name: str, options: DetectorOptions) -> Detector:
    """The detector that a command line names: a folder of weights, or `pixels`.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the config.
        DataError: a config that this code cannot do.
        ConfigError: options that this detector has not.
    """
    if name != PIXELS:
        return FasterRCNNDetector.open(Path(name), options)
    if options != DetectorOptions():
        raise ConfigError(
            "--detector pixels has nothing to set: leave --boxes, --rule, --device, --precision "
            "and --chunk out"
        )
    return PixelDetector()


def detector_origin(detector: Detector) -> dict[str, Any]:
    """The same as `origin_of` for a store of this detector's regions."""
    return origin_of(detector.width, {"detector": detector.name, "extraction": detector.record})


def options_of_origin(
    origin: Mapping[str, Any],
    boxes: tuple[int, int] | None = None,
    rule: str | None = None,
    device: str = "cpu",
) -> DetectorOptions:
    """Options by which a detector finds the regions that a model was trained with.

    Args:
        origin: that the model's checkpoint remembers; what it does not know is as the detector's
            own config says.
        boxes: fewest and most, instead of the origin's.
        rule: likewise.
        device: of the detector.
    """
    fewest, most = boxes or origin.get("boxes") or (None, None)
    rule = rule or origin.get("rule", DetectorOptions.rule)
    precision = origin.get("precision", DetectorOptions.precision)
    return DetectorOptions(fewest, most, rule, device, precision)


def parse_boxes(text: str) -> tuple[int, int]:
    """`36` or `10-100` as the fewest and the most boxes.

    Raises:
        argparse.ArgumentTypeError: something else.
    """
    fewest, _, most = text.partition("-")
    if not fewest.isdecimal() or not (most or fewest).isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: a number such as 36, or a range as 10-100")
    return int(fewest), int(most or fewest)
