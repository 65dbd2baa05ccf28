"""Losses of ViLBERT's tasks and of its pretraining, in float32 at least.

Shape legend: B batch, O options, T tokens, R regions, W words, S classes (or features) of a region.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from common.modules.losses import labelled_cross_entropy, precise

MASKED_REGION = 1


def option_loss(logits: Tensor, target: Tensor, options: int) -> Tensor:
    """Cross-entropy over options: logits (B * O, 1), target (B,) the right option."""
    return F.cross_entropy(precise(logits).view(-1, options), target)


def region_choice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy summed over regions, mean over the batch; (B, R, 1) twice."""
    found = F.binary_cross_entropy_with_logits(precise(logits), precise(target))
    return found * target.shape[1]


def masked_region_loss(
    logits: Tensor, label: Tensor, target: Tensor, features: bool = False
) -> Tensor:
    """How far predictions of masked regions are off; 0 where none is masked.

    Args:
        logits: (B, R, S), without the image as a whole.
        label: (B, R), 1 where a region was masked.
        target: (B, R, S) class probabilities, or features.
        features: mean squared error (the original's `predict_feature`) instead of the divergence
            from the class probabilities. That is a mean over masked regions, this over numbers.
    """
    masked = (label == MASKED_REGION).to(torch.promote_types(logits.dtype, torch.float32))
    wanted = precise(target)
    if features:
        off = (precise(logits) - wanted).square() * masked[..., None]
        return off.sum() / (masked.sum() * target.shape[-1]).clamp(min=1)
    off = F.kl_div(precise(logits).log_softmax(-1), wanted, reduction="none") * masked[..., None]
    return off.sum() / masked.sum().clamp(min=1)


def pretraining_losses(
    outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], features: bool = False
) -> dict[str, Tensor]:
    """The losses that there are labels for; each is 0 where nothing is labelled.

    Args:
        outputs: of `BertForMultiModalPreTraining`: words, regions, aligned.
        labels: any of words (B, T) with -1 where nothing was masked, region_label (B, R - 1) with
            region_target (B, R - 1, S), aligned (B,) with 0 = aligned, 1 = not.
        features: see `masked_region_loss`.
    """
    losses: dict[str, Tensor] = {}
    if "words" in labels:
        losses["masked_lm_loss"] = labelled_cross_entropy(outputs["words"], labels["words"])
    if "region_label" in labels:
        losses["masked_img_loss"] = masked_region_loss(
            outputs["regions"][:, 1:], labels["region_label"], labels["region_target"], features
        )
    if "aligned" in labels:
        losses["next_sentence_loss"] = labelled_cross_entropy(outputs["aligned"], labels["aligned"])
    return losses
