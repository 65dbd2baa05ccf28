"""Regions of one's own photographs: a Faster R-CNN, and what writes its features."""

from common.detector.extracting import ExtractionOptions, extract
from common.detector.faster_rcnn import DetectorOptions, FasterRCNNDetector
from common.detector.names import RegionNames
from common.detector.opening import detector_origin, open_detector
from common.detector.pixels import PixelDetector
from common.detector.regions import Detector, FoundRegions

__all__ = [
    "Detector",
    "DetectorOptions",
    "ExtractionOptions",
    "FasterRCNNDetector",
    "FoundRegions",
    "PixelDetector",
    "RegionNames",
    "detector_origin",
    "extract",
    "open_detector",
]
