"""Everything random in LXMERT's pretraining: masked words and regions, drawn answers.

Every number depends on (seed, epoch, sample) and on what it is for, so that batches may be divided
over processes or micro-batches in any way. Shape legend: B batch, T tokens, R regions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.modules.losses import IGNORED
from common.tasks.masking import Draws, blank_or_replace, mask_pieces

__all__ = ["Draws", "choose_regions", "draw_answer", "mask_words"]

# What numbers are for.
MATCHING, ANSWER, WORDS, REGIONS, PICKED_IMAGE, PICKED_REGION = range(6)


def mask_words(
    ids: Tensor, mask: Tensor, rate: float, tokenizer: Tokenizer, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Mask word pieces: 80 % [MASK], 10 % a random piece, 10 % kept.

    Args:
        ids, mask: (B, T); the first and the last token of a sentence are never masked.

    Returns:
        Masked ids (B, T), and labels (B, T): the original id where masked, else -1.
    """
    width = ids.shape[1]
    numbers = draws.uniform(WORDS, 3 * width).unflatten(1, (width, 3))
    places = torch.arange(width)[None]
    inner = (places > 0) & (places < mask.sum(1, keepdim=True) - 1)
    return mask_pieces(ids, inner, rate, numbers, tokenizer.mask_id, len(tokenizer))


def choose_regions(present: Tensor, rate: float, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Choose regions to mask: 80 % become zeros, 10 % a region of another image, 10 % stay.

    Args:
        present: (B, R) bool; False is padding, which is never chosen.

    Returns:
        (B, R) bool each: chosen at all, to become zeros, to be replaced.
    """
    width = present.shape[1]
    numbers = draws.uniform(REGIONS, 2 * width).unflatten(1, (width, 2))
    chosen = present & (numbers[..., 0] < rate)
    return chosen, *blank_or_replace(chosen, numbers[..., 1])


def draw_answer(labels: np.ndarray, scores: np.ndarray, number: float) -> int:
    """One answer, drawn from the normalised soft scores; -1 where there is none.

    Args:
        labels, scores: of the answers of one sentence.
        number: uniform in (0, 1).
    """
    if not len(labels):
        return IGNORED
    limits = np.cumsum(scores, dtype=np.float64)
    return int(
        labels[np.searchsorted(limits, number * limits[-1], side="right").clip(max=len(labels) - 1)]
    )
