"""Losses of LXMERT's pretraining (formulas of the original system), in float32 at least.

Shape legend: B batch, T tokens, R regions, V vocabulary, A answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from common.modules.losses import labelled_cross_entropy, precise

VISUAL_LOSS_WEIGHT = 1 / 0.15
LOSS_ORDER = ("Mask_LM", "Matched", "Obj", "Attr", "Feat", "QA")


def _mean_over_regions(each: Tensor, present: Tensor | None) -> Tensor:
    """Mean of (B, R) numbers over the regions that are present, (B, R) of 1 / 0; None: all."""
    if present is None:
        return each.mean()
    return (each * present).sum() / present.sum().clamp(min=1)


def region_class_loss(
    logits: Tensor, labels: Tensor, confidence: Tensor, present: Tensor | None = None
) -> Tensor:
    """Cross-entropy of all regions, masked or not, weighted by the detector's confidence.

    logits (B, R, classes), labels and confidence (B, R), present (B, R) of 1 / 0. The mean is over
    the number of regions (upstream always has 36), not over the sum of the confidences.
    """
    each = F.cross_entropy(precise(logits.flatten(0, 1)), labels.flatten(), reduction="none")
    return _mean_over_regions(each.view_as(labels) * confidence, present) * VISUAL_LOSS_WEIGHT


def region_feature_loss(
    predicted: Tensor, target: Tensor, masked: Tensor, present: Tensor | None = None
) -> Tensor:
    """Smooth L1 of masked regions, mean over features, then over all regions.

    predicted and target (B, R, F), masked and present (B, R) of 1 / 0.
    """
    each = F.smooth_l1_loss(precise(predicted), target, reduction="none").mean(-1)
    return _mean_over_regions(each * masked, present) * VISUAL_LOSS_WEIGHT


def pretraining_losses(
    outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All losses that the batch has labels for, in the order of `LOSS_ORDER`.

    Args:
        outputs: of `PretrainingModel`.
        batch: any of word_labels (B, T), matched_label (B,), obj_labels and obj_conf (B, R),
            attr_labels and attr_conf (B, R), feat_target (B, R, F) with feat_mask (B, R),
            answer_label (B,); and region_present (B, R) of 1 / 0 where there is padding.
    """
    losses: dict[str, Tensor] = {}
    present = batch.get("region_present")
    if "word_labels" in batch:
        losses["Mask_LM"] = labelled_cross_entropy(outputs["words"], batch["word_labels"])
    if "matched_label" in batch:
        losses["Matched"] = labelled_cross_entropy(outputs["matched"], batch["matched_label"])
    for name, key in (("Obj", "obj"), ("Attr", "attr")):
        if f"{key}_labels" in batch and key in outputs:
            losses[name] = region_class_loss(
                outputs[key], batch[f"{key}_labels"], batch[f"{key}_conf"], present
            )
    if "feat_target" in batch and "feat" in outputs:
        losses["Feat"] = region_feature_loss(
            outputs["feat"], batch["feat_target"], batch["feat_mask"], present
        )
    if "answer_label" in batch:
        losses["QA"] = labelled_cross_entropy(outputs["answers"], batch["answer_label"])
    if not losses:
        raise ValueError("no pretraining objective: the batch has no labels")
    return {name: losses[name] for name in LOSS_ORDER if name in losses}


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Plain sum, as upstream."""
    return torch.stack(list(losses.values())).sum()
