"""A small detector with random weights in the form of the release, and pictures for it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from common.detector.loading import released_name
from common.detector.network import FasterRCNN
from common.detector.settings import parse_settings
from common.reading import read_json
from tests.conftest import GOLDENS

CASE = GOLDENS / "detector"


def config(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """That of the goldens on small pictures; changes are `{"rpn.nms_thresh": 0.5}`."""
    found = {k: v for k, v in read_json(CASE / "config.json").items() if k != "kind"}
    found = deepcopy(found)
    small = {
        "input.min_size_test": 64,
        "input.max_size_test": 96,
        "anchor_generator.sizes": [[16, 24, 40, 60]],
        "rpn.nms_thresh": 0.7,
        "rpn.post_nms_topk_test": 24,
        "min_detections": 6,
        "max_detections": 6,
    }
    for key, value in (small | (changes or {})).items():
        *parts, last = key.split(".")
        place = found
        for part in parts:
            place = place[part]
        place[last] = value
    return found


def random_network(settings: dict[str, Any], seed: int = 0) -> FasterRCNN:
    """Weights that let many classes and attributes occur."""
    torch.manual_seed(seed)
    network = FasterRCNN(parse_settings(settings, "test"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.4, 0.8)
    nn.init.normal_(network.backbone.conv1.weight, std=0.005)
    predictor = network.roi_heads.box_predictor
    for head in (predictor.cls_score, predictor.attr_score):
        nn.init.normal_(head.weight, std=2.0)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.2)
    return network.eval().requires_grad_(False)


def released(network: FasterRCNN) -> dict[str, Tensor]:
    """Its weights under the names of the release."""
    return {released_name(name): x.clone() for name, x in network.state_dict().items()}


def write_detector(folder: Path, changes: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """`config.yaml` and `pytorch_model.bin` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    torch.save(released(random_network(settings, seed)), folder / "pytorch_model.bin")
    return folder


def picture(seed: int, width: int = 60, height: int = 45) -> Image.Image:
    """Coloured rectangles on a slope of grey."""
    generator = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels += np.linspace(40, 200, width, dtype=np.uint8)[None, :, None]
    for _ in range(6):
        x, y = generator.integers(0, width - 8), generator.integers(0, height - 8)
        w, h = generator.integers(6, 30, 2)
        pixels[y : y + h, x : x + w] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"picture_{number:02}.png")
    return folder
