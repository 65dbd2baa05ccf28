"""Everything random in LXMERT's pretraining: masked words and regions, drawn answers.

Every number depends on (seed, epoch, sample) and on what it is for, so that batches may be divided
over processes or micro-batches in any way. Shape legend: B batch, T tokens, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.gumbel import keyed_uniform
from common.losses import IGNORED
from common.text import Tokenizer

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
# What numbers are for.
MATCHING, ANSWER, WORDS, REGIONS, PICKED_IMAGE, PICKED_REGION = range(6)
_DIGITS = 2**23  # of one number of `keyed_uniform`


@dataclass(frozen=True)
class Draws:
    """The random numbers of B samples in one epoch."""

    seed: int
    epoch: int
    samples: Sequence[int]

    def uniform(self, purpose: int, count: int) -> Tensor:
        """(B, count) float32 in (0, 1)."""
        return keyed_uniform(self.seed + (purpose << 40), self.epoch, self.samples, count)

    def fine(self, purpose: int, count: int) -> Tensor:
        """(B, count) float64 in (0, 1) with 46 digits: enough to choose among millions."""
        pairs = self.uniform(purpose, 2 * count).double().unflatten(1, (count, 2))
        return (torch.floor(pairs[..., 0] * _DIGITS) + pairs[..., 1]) / _DIGITS


def mask_words(ids: Tensor, mask: Tensor, rate: float, tokenizer: Tokenizer,
               draws: Draws) -> tuple[Tensor, Tensor]:
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
    chosen = inner & (numbers[..., 0] < rate)
    blanked, replaced = _how(chosen, numbers[..., 1])
    random_ids = (numbers[..., 2].double() * len(tokenizer)).long()
    masked = torch.where(blanked, tokenizer.mask_id, torch.where(replaced, random_ids, ids))
    return masked, torch.where(chosen, ids, torch.full_like(ids, IGNORED))


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
    return chosen, *_how(chosen, numbers[..., 1])


def _how(chosen: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the chosen places are blanked, and which are replaced by something random."""
    blanked = chosen & (numbers < MASK_SHARE)
    return blanked, chosen & ~blanked & (numbers < MASK_SHARE + RANDOM_SHARE)


def draw_answer(labels: np.ndarray, scores: np.ndarray, number: float) -> int:
    """One answer, drawn from the normalised soft scores; -1 where there is none.

    Args:
        labels, scores: of the answers of one sentence.
        number: uniform in (0, 1).
    """
    if not len(labels):
        return IGNORED
    limits = np.cumsum(scores, dtype=np.float64)
    return int(labels[np.searchsorted(limits, number * limits[-1], side="right").clip(
        max=len(labels) - 1)])
