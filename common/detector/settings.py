"""What the detector's `config.yaml` says: every number of the network and of its selection.

The file is that of `unc-nlp/frcnn-vg-finetuned`. What it may say and this code cannot do is
refused, by key and value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from common.errors import DataError
from common.modules.resnet import BLOCKS, Widths
from common.reading import checked, parse_yaml, read_text, short

MAP = ["res4"]
DEEP = [depth for depth in BLOCKS if depth >= 50]
LARGEST = 1_000_000  # of any count, side or number of channels
SOURCE = "config.yaml of unc-nlp/frcnn-vg-finetuned is expected"


class _Model(TypedDict):
    max_pool: bool
    pixel_mean: list[float]
    pixel_std: list[float]
    load_proposals: bool


class _Input(TypedDict):
    min_size_test: int
    max_size_test: int
    format: str


class _Proposals(TypedDict):
    hidden_channels: int
    min_size: float


class _Anchors(TypedDict):
    sizes: list[list[float]]
    aspect_ratios: list[list[float]]
    offset: float


class _Rpn(TypedDict):
    pre_nms_topk_test: int
    post_nms_topk_test: int
    nms_thresh: float
    bbox_reg_weights: list[float]
    in_features: list[str]


class _Heads(TypedDict):
    num_classes: int
    in_features: list[str]
    nms_thresh_test: list[float] | float


class _Box(TypedDict):
    bbox_reg_weights: list[float]
    pooler_resolution: int
    res5halve: bool
    attr: bool
    num_attrs: int
    cls_agnostic_bbox_reg: bool


class _ResNets(TypedDict):
    depth: int
    out_features: list[str]
    stem_out_channels: int
    res2_out_channels: int
    num_groups: int
    width_per_group: int
    norm: str
    stride_in_1x1: bool


class _Config(TypedDict):
    model: _Model
    input: _Input
    proposal_generator: _Proposals
    anchor_generator: _Anchors
    rpn: _Rpn
    roi_heads: _Heads
    roi_box_head: _Box
    resnets: _ResNets
    size_divisibility: int
    pad_value: float
    min_detections: int
    max_detections: int


@dataclass(frozen=True)
class DetectorSettings:
    """The network, and which regions of a picture it gives.

    Attributes:
        means, deviations: of blue, green and red, in 0..255.
        shortest, longest: sides of a scaled picture, in pixels: the shorter one is `shortest`
            unless the longer one would be above `longest`.
        padding: value behind the smaller pictures of a batch, after normalisation.
        depth, widths, stride_in_1x1, caffe_pool: see `common.modules.resnet.ResNetBackbone`.
        hidden: channels of the proposals' convolution.
        sizes, ratios: of anchors that a file without anchors gets.
        offset: of an anchor's centre from the corner of its cell, in cells.
        candidates, proposals: before and after suppression.
        proposal_overlap: above which a proposal is dropped.
        smallest: side of a proposal, in pixels; smaller and equal ones are dropped.
        proposal_weights, box_weights: see `common.modules.boxes.apply_deltas`.
        bins: per side of a pooled region.
        halved: the last stage has stride 2 instead of a dilation.
        classes, attributes: without background and "none".
        overlaps: above which a region is dropped; the next one is tried where too few stay.
        fewest, most: regions of a picture.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    shortest: int
    longest: int
    padding: float
    depth: int
    widths: Widths
    stride_in_1x1: bool
    caffe_pool: bool
    hidden: int
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    offset: float
    candidates: int
    proposals: int
    proposal_overlap: float
    smallest: float
    proposal_weights: tuple[float, ...]
    box_weights: tuple[float, ...]
    bins: int
    halved: bool
    classes: int
    attributes: int
    overlaps: tuple[float, ...]
    fewest: int
    most: int

    @property
    def channels(self) -> int:
        """C of the feature map."""
        return 4 * self.widths.outputs

    @property
    def width(self) -> int:
        """F, numbers per region feature."""
        return 8 * self.widths.outputs


def read_settings(path: Path) -> DetectorSettings:
    """Read a `config.yaml`.

    Raises:
        DataError: missing, no YAML, a key that is missing or of another type, or a value that
            this code cannot do.
    """
    content = parse_yaml(read_text(path, SOURCE, "a YAML file"), str(path))
    return parse_settings(content, str(path))


def parse_settings(content: Any, where: str) -> DetectorSettings:
    """The settings in the content of a `config.yaml`; keys in lower or upper case.

    Raises:
        DataError: see `read_settings`; `where` names the file.
    """
    config: _Config = checked(_lower(content, where), _Config, where, SOURCE)
    _refuse(config, where)
    model, heads, box = config["model"], config["roi_heads"], config["roi_box_head"]
    anchors, rpn, resnets = config["anchor_generator"], config["rpn"], config["resnets"]
    overlaps = heads["nms_thresh_test"]
    hidden = config["proposal_generator"]["hidden_channels"]
    planes = resnets["num_groups"] * resnets["width_per_group"]
    outputs = resnets["res2_out_channels"]
    settings = DetectorSettings(
        tuple(model["pixel_mean"]),
        tuple(model["pixel_std"]),
        config["input"]["min_size_test"],
        config["input"]["max_size_test"],
        config["pad_value"],
        resnets["depth"],
        Widths(resnets["stem_out_channels"], planes, outputs, resnets["num_groups"]),
        resnets["stride_in_1x1"],
        model["max_pool"],
        4 * outputs if hidden == -1 else hidden,
        tuple(anchors["sizes"][0]),
        tuple(anchors["aspect_ratios"][0]),
        anchors["offset"],
        rpn["pre_nms_topk_test"],
        rpn["post_nms_topk_test"],
        rpn["nms_thresh"],
        config["proposal_generator"]["min_size"],
        tuple(rpn["bbox_reg_weights"]),
        tuple(box["bbox_reg_weights"]),
        box["pooler_resolution"],
        box["res5halve"],
        heads["num_classes"],
        box["num_attrs"],
        tuple(overlaps) if isinstance(overlaps, list) else (overlaps,),
        config["min_detections"],
        config["max_detections"],
    )
    _check_finite(settings, where)
    return settings


def _lower(value: Any, where: str) -> Any:
    """The same with keys in lower case."""
    if not isinstance(value, Mapping):
        return value
    found = {str(key).lower(): _lower(item, where) for key, item in value.items()}
    if len(found) < len(value):
        raise DataError(f"{where}: a key occurs in lower and in upper case: {short(list(value))}")
    return found


def _refuse(config: _Config, where: str) -> None:
    """Raise DataError for what the original accepts, or would crash on, and this code cannot do."""
    model, box, resnets = config["model"], config["roi_box_head"], config["resnets"]
    rpn, heads, anchors = config["rpn"], config["roi_heads"], config["anchor_generator"]
    known: dict[str, tuple[object, bool, str]] = {
        "resnets.norm": (resnets["norm"], resnets["norm"] == "BN", "BN"),
        "resnets.depth": (resnets["depth"], resnets["depth"] in DEEP, f"one of {DEEP}"),
        "resnets.out_features": (resnets["out_features"], resnets["out_features"] == MAP, f"{MAP}"),
        "rpn.in_features": (rpn["in_features"], rpn["in_features"] == MAP, f"{MAP}"),
        "roi_heads.in_features": (heads["in_features"], heads["in_features"] == MAP, f"{MAP}"),
        "roi_box_head.attr": (box["attr"], box["attr"], "true (the network has attributes)"),
        "roi_box_head.cls_agnostic_bbox_reg": (
            box["cls_agnostic_bbox_reg"],
            not box["cls_agnostic_bbox_reg"],
            "false (a box for each class)",
        ),
        "model.load_proposals": (
            model["load_proposals"],
            not model["load_proposals"],
            "false (proposals are the network's own)",
        ),
        "input.format": (config["input"]["format"], config["input"]["format"] == "BGR", "BGR"),
        "size_divisibility": (config["size_divisibility"], config["size_divisibility"] == 0, "0"),
        "anchor_generator.sizes": (
            anchors["sizes"],
            len(anchors["sizes"]) == len(anchors["aspect_ratios"]) == 1,
            "one list, as aspect_ratios, for the one feature map",
        ),
        "max_detections": (
            config["max_detections"],
            1 <= config["min_detections"] <= config["max_detections"],
            f"at least min_detections ({config['min_detections']})",
        ),
        "model.pixel_std": (
            model["pixel_std"],
            len(model["pixel_mean"]) == len(model["pixel_std"]) == 3
            and min(model["pixel_std"]) > 0,
            "three numbers above 0, and three of pixel_mean",
        ),
        "rpn.bbox_reg_weights, roi_box_head.bbox_reg_weights": (
            [rpn["bbox_reg_weights"], box["bbox_reg_weights"]],
            all(
                len(each) == 4 and min(each) > 0
                for each in (rpn["bbox_reg_weights"], box["bbox_reg_weights"])
            ),
            "four numbers above 0 each",
        ),
    }
    for key, (value, fine, expected) in known.items():
        if not fine:
            raise DataError(f"{where}: {key} is {short(value)}: this detector knows {expected}")
    _refuse_sizes(config, where)


def _refuse_sizes(config: _Config, where: str) -> None:
    """Raise DataError for counts and sides that are none, and numbers that are not finite."""
    sides = {
        "input": ("min_size_test", "max_size_test"),
        "rpn": ("pre_nms_topk_test", "post_nms_topk_test"),
        "roi_heads": ("num_classes",),
        "roi_box_head": ("pooler_resolution", "num_attrs"),
        "resnets": ("stem_out_channels", "res2_out_channels", "num_groups", "width_per_group"),
    }
    for part, keys in sides.items():
        for key in keys:
            value = config[part][key]  # type: ignore[literal-required]
            if not 1 <= value <= LARGEST:
                raise DataError(f"{where}: {part}.{key} is {value}: expected 1 to {LARGEST:,}")
    hidden = config["proposal_generator"]["hidden_channels"]
    if not 1 <= hidden <= LARGEST and hidden != -1:
        raise DataError(
            f"{where}: proposal_generator.hidden_channels is {hidden}: expected 1 or more, or -1 "
            "for as many as the feature map has"
        )
    anchors, overlaps = config["anchor_generator"], config["roi_heads"]["nms_thresh_test"]
    if not all([anchors["sizes"][0], anchors["aspect_ratios"][0]]) or overlaps == []:
        raise DataError(
            f"{where}: anchor_generator.sizes, aspect_ratios and roi_heads.nms_thresh_test need "
            "values"
        )
    if min(*anchors["sizes"][0], *anchors["aspect_ratios"][0]) <= 0:
        raise DataError(f"{where}: anchor_generator: sizes and aspect_ratios have to be above 0")


def _check_finite(settings: DetectorSettings, where: str) -> None:
    for field in fields(settings):
        value = getattr(settings, field.name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
            raise DataError(f"{where}: {short(value)} ({field.name}): expected finite numbers")
