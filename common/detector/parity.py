"""Runs the golden cases of the region detector: our network on the original's weights and pictures.

Tolerances are absolute, as the tensors are compared after dozens of convolutions; whole numbers and
the order of regions have to be equal. Names: see the README beside the goldens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.detector.loading import fitting_weights
from common.detector.network import FasterRCNN, RegionOutputs
from common.detector.scaling import ScaledPicture, scale_pixels
from common.detector.selecting import Selection, select_as_tsv, select_regions
from common.detector.settings import parse_settings
from common.modules.pixels import pad_images
from common.modules.resnet import fold_norms
from common.reading import read_json
from common.training.weights import load_into

KIND = "detector"
LIMITS = {"v0": (20, 20), "v1": (5, 60), "v2": (47, 47)}  # where meta.json does not say them
TSV_RULES = {"butd36": "v0", "butd_adaptive": "v1"}
EXACT = 0.0
# Absolute, by the last part of a name that is no number.
TOLERANCES = {
    "image": 1e-4,
    "image_every4": 1e-4,
    "scales_yx": 1e-6,
    "res4": 5e-4,
    "pooled_first4": 5e-4,
    "rpn_logits": 1e-3,
    "proposal_logits": 1e-3,
    "rpn_deltas": 3e-4,
    "anchors": 1e-4,
    "proposals": 0.05,
    "boxes": 0.05,
    "region_features": 3e-4,
    "roi_features": 3e-4,
    "obj_logits": 2e-3,
    "attr_logits": 2e-3,
    "box_deltas": 2e-3,
    "obj_probs": 3e-4,
    "attr_probs": 3e-4,
    "objects_conf": 3e-4,
    "attrs_conf": 3e-4,
    "best_conf": 3e-4,
    "normalized_boxes": 2e-4,
}
Tensors = dict[str, Tensor]


def absolute_tolerance(name: str) -> float:
    """How far a tensor may be off; ids, counts and indices not at all."""
    parts = [part for part in name.split(".") if not part.isdecimal()]
    return TOLERANCES.get(parts[-1], EXACT)


@torch.inference_mode()
def run_detector(
    config: dict[str, Any], weights: Tensors, inputs: Tensors, wanted: list[str]
) -> Tensors:
    """Everything from raw pictures to regions (kind `detector`), with folded norms."""
    settings = parse_settings(config, "golden case")
    network = FasterRCNN(settings)
    load_into(network, fitting_weights(network, weights, "golden case"), what="golden case")
    fold_norms(network.eval())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = [name.removesuffix(".raw_rgb") for name in inputs if name.endswith(".raw_rgb")]
    pictures = {name: scale_pixels(inputs[f"{name}.raw_rgb"], settings) for name in names}
    limits = _limits(config, names)
    found: Tensors = {}
    for name, picture in pictures.items():
        found |= _of_one(network, name, picture, limits)
    if together := _batch(inputs, list(pictures.values())):
        found |= _of_several(network, "batch", together, limits)
    return {name: x.clone() for name, x in found.items()}


def _limits(config: dict[str, Any], names: list[str]) -> dict[str, tuple[int, int]]:
    """Fewest and most regions of every variant."""
    path = Path(config.get("folder", "")) / "meta.json"
    if not path.is_file():
        return LIMITS
    case = read_json(path)["cases"][names[0]]
    return {v: (case[v]["min"], case[v]["max"]) for v in LIMITS if v in case} or LIMITS


def _batch(inputs: Tensors, pictures: list[ScaledPicture]) -> list[ScaledPicture]:
    """The pictures of the batch, which the case names by their sizes alone."""
    rows = zip(
        *(inputs.get(f"batch.{n}", torch.zeros(0)) for n in ("sizes", "scales_yx")), strict=False
    )
    return [
        next(p for p in pictures if list(p.size) == size.tolist() and torch.equal(p.scales, scales))
        for size, scales in rows
    ]


def _of_one(
    network: FasterRCNN, name: str, picture: ScaledPicture, limits: dict[str, tuple[int, int]]
) -> Tensors:
    """The tensors of one picture."""
    image = picture.pixels[None]
    maps = network.backbone(image)
    logits, deltas = network.proposal_generator.rpn_head(maps)
    proposals = network.proposal_generator.choose(logits, deltas, [picture.size])[0]
    (outputs,) = network(image, [picture.size])
    found = {
        "image": image,
        "image_every4": image[:, :, ::4, ::4],
        "sizes": torch.tensor([picture.size]),
        "scales_yx": picture.scales[None],
        "res4": maps,
        "rpn_logits": logits,
        "rpn_deltas": deltas,
        "anchors": network.proposal_generator.anchor_generator(*maps.shape[2:]),
        "proposals.0": proposals.boxes,
        "proposal_logits.0": proposals.logits,
        "region_features": outputs.features,
        "obj_logits": outputs.class_logits,
        "attr_logits": outputs.attribute_logits,
        "box_deltas": outputs.deltas.flatten(1),
    }
    rois = torch.nn.functional.pad(proposals.boxes[:4], (1, 0))
    found["pooled_first4"] = network.roi_heads.pool(maps, rois)
    for rule, variant in TSV_RULES.items():
        chosen = select_as_tsv(outputs, 1 / float(picture.scales[0]), *limits[variant])
        found |= {f"{rule}.{key}": x for key, x in _tsv_columns(chosen).items()}
    found |= _variants(network, [picture], [outputs], limits)
    return {f"{name}.{key}": x for key, x in found.items()}


def _tsv_columns(chosen: Selection) -> Tensors:
    found = {
        "keep": chosen.kept,
        "boxes": chosen.boxes,
        "objects_id": chosen.object_ids,
        "objects_conf": chosen.object_conf,
        "attrs_id": chosen.attribute_ids,
        "attrs_conf": chosen.attribute_conf,
    }
    return found if chosen.best_conf is None else found | {"best_conf": chosen.best_conf}


def _of_several(
    network: FasterRCNN,
    name: str,
    pictures: list[ScaledPicture],
    limits: dict[str, tuple[int, int]],
) -> Tensors:
    """The tensors of a padded batch."""
    images = pad_images([each.pixels for each in pictures], network.settings.padding)
    outputs = network(images, [each.size for each in pictures])
    found = {"res4": network.backbone(images)}
    found |= {f"proposals.{i}": each.proposals for i, each in enumerate(outputs)}
    found |= _variants(network, pictures, outputs, limits)
    return {f"{name}.{key}": x for key, x in found.items()}


def _variants(
    network: FasterRCNN,
    pictures: list[ScaledPicture],
    outputs: list[RegionOutputs],
    limits: dict[str, tuple[int, int]],
) -> Tensors:
    """What comes out for every number of regions, padded with zeros to the most."""
    found: Tensors = {}
    for variant, (fewest, most) in limits.items():
        chosen = [
            select_regions(each, network.settings, picture.size, picture.scales, fewest, most)
            for each, picture in zip(outputs, pictures, strict=True)
        ]
        features = [each.features[c.kept] for each, c in zip(outputs, chosen, strict=True)]
        raw = [torch.tensor(p.size) * p.scales for p in pictures]
        boxes = [c.boxes / each.flip(0).repeat(2) for c, each in zip(chosen, raw, strict=True)]
        rows = {
            "obj_ids": [c.object_ids for c in chosen],
            "obj_probs": [c.object_conf for c in chosen],
            "attr_ids": [c.attribute_ids for c in chosen],
            "attr_probs": [c.attribute_conf for c in chosen],
            "boxes": [c.boxes for c in chosen],
            "normalized_boxes": boxes,
            "roi_features": features,
        }
        found |= {f"{variant}.{name}": _padded(each, most) for name, each in rows.items()}
        found |= {f"{variant}.kept.{i}": c.kept for i, c in enumerate(chosen)}
        found[f"{variant}.sizes"] = torch.tensor([p.size for p in pictures])
        found[f"{variant}.preds_per_image"] = torch.tensor([len(c.kept) for c in chosen])
    return found


def _padded(rows: list[Tensor], most: int) -> Tensor:
    """(N, most, …) with zeros behind the rows."""
    batch = rows[0].new_zeros(len(rows), most, *rows[0].shape[1:])
    for into, each in zip(batch, rows, strict=True):
        into[: len(each)] = each
    return batch


PARITY = {KIND: run_detector}
