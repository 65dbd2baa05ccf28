"""The embedded data: easy-VQA with regions made of pixels, changing priors, captions."""

from common.data.easy_vqa.build import (
    COLOURS,
    DETECTOR,
    SHAPES,
    Question,
    assign_splits,
    build_easy_vqa,
    is_whole,
    load_package,
    question_kind,
)
from common.data.easy_vqa.captions import caption_examples
from common.data.easy_vqa.changing_priors import assign_cp_splits, build_easy_vqa_cp
from common.data.easy_vqa.regions import (
    ATTRIBUTE_CLASSES,
    FOREGROUND_DIFFERENCE,
    LAYOUT,
    NO_ATTRIBUTE,
    NO_OBJECT,
    OBJECT_CLASSES,
    WIDTH,
    background_colour,
    connected_regions,
    extract_regions,
)

__all__ = [
    "ATTRIBUTE_CLASSES",
    "COLOURS",
    "DETECTOR",
    "FOREGROUND_DIFFERENCE",
    "LAYOUT",
    "NO_ATTRIBUTE",
    "NO_OBJECT",
    "OBJECT_CLASSES",
    "SHAPES",
    "WIDTH",
    "Question",
    "assign_cp_splits",
    "assign_splits",
    "background_colour",
    "build_easy_vqa",
    "build_easy_vqa_cp",
    "caption_examples",
    "connected_regions",
    "extract_regions",
    "is_whole",
    "load_package",
    "question_kind",
]
