"""Losses of VL-BERT's pretraining, in float32 at least, and what they are means over.

Shape legend: B captions with an image, A texts without one, T tokens, K boxes, V words, S region
classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from common.modules.losses import IGNORED, labelled_cross_entropy, precise
from vlbert.sizes import PretrainingConfig

LABEL_TOLERANCE = 0.1  # a region is labelled if its class probabilities sum to 1 within this
SMALL = 1e-4


def pretraining_losses(
    config: PretrainingConfig, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All losses that there are outputs and labels for; each is 0 where nothing is labelled.

    Args:
        outputs: of `ResNetVLBERTForPretraining`, without word_places.
        labels: any of relationship (B,), words (B, T) and aux_words (A, T') with -1 where nothing
            was masked, regions (B, K', S) class probabilities with zeros where nothing was masked.

    Returns:
        {relationship_loss, mlm_loss_wvc (captions), mlm_loss_aux (other texts), mvrc_loss}.
    """
    losses: dict[str, Tensor] = {}
    if "relationship" in outputs and "relationship" in labels:
        losses["relationship_loss"] = labelled_cross_entropy(
            outputs["relationship"], labels["relationship"]
        )
    for key, name in (("words", "mlm_loss_wvc"), ("aux_words", "mlm_loss_aux")):
        if key in outputs and key in labels:
            logits, wanted = _cut(outputs[key], labels[key])
            losses[name] = (
                by_sample(word_losses(logits, wanted), wanted != IGNORED)
                if config.words_by_sample
                else labelled_cross_entropy(logits, wanted)
            )
    if "regions" in outputs and "regions" in labels:
        logits, wanted = _cut(outputs["regions"], labels["regions"])
        each, labelled = region_losses(logits, wanted), labelled_regions(wanted)
        losses["mvrc_loss"] = (
            by_sample(each, labelled)
            if config.regions_by_sample
            else (each * labelled).sum() / labelled.sum().clamp(min=1)
        )
    return losses


def loss_weights(config: PretrainingConfig, labels: Mapping[str, Tensor]) -> dict[str, float]:
    """How many things each loss is a mean over, for `TaskBatch.weights`.

    These are labelled words or regions, or samples with at least one where the config averages
    over each sample first. Arguments as in `pretraining_losses`.
    """
    weights: dict[str, float] = {}
    if config.relationship and "relationship" in labels:
        weights["relationship_loss"] = float((labels["relationship"] != IGNORED).sum())
    for key, name in (("words", "mlm_loss_wvc"), ("aux_words", "mlm_loss_aux")):
        if config.words and key in labels:
            weights[name] = _count(labels[key] != IGNORED, config.words_by_sample)
    if config.regions and "regions" in labels:
        weights["mvrc_loss"] = _count(labelled_regions(labels["regions"]), config.regions_by_sample)
    return weights


def _count(labelled: Tensor, by_samples: bool) -> float:
    return float(labelled.any(1).sum() if by_samples else labelled.sum())


def word_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each place, 0 where the label is -1: (B, T, V), (B, T) -> (B, T)."""
    return F.cross_entropy(
        precise(logits).transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )


def labelled_regions(labels: Tensor) -> Tensor:
    """Which regions carry class probabilities: (B, K, S) -> (B, K) bool."""
    return (labels.sum(-1) - 1).abs() < LABEL_TOLERANCE


def region_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy to class probabilities: (B, K, S) twice -> (B, K), 0 where unlabelled."""
    each = -(labels * precise(logits).log_softmax(-1)).sum(-1)
    return torch.where(labelled_regions(labels), each, 0.0)


def by_sample(each: Tensor, labelled: Tensor) -> Tensor:
    """Mean over the labelled places of a sample, then over samples that have any; (B, T) twice.

    The original adds 1e-4 to both denominators.
    """
    counts = labelled.sum(1, keepdim=True)
    return (each / (counts + SMALL)).sum() / ((counts > 0).sum() + SMALL)


def _cut(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Both as long as the shorter one; nothing is labelled behind a sequence."""
    length = min(outputs.shape[1], labels.shape[1])
    return outputs[:, :length], labels[:, :length]
