"""What pretraining draws at random: keyed numbers, and words that are masked with them.

Every number depends on (seed, epoch, sample) and on what it is for, so that batches may be divided
over processes or micro-batches in any way. Shape legend: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.adapt.gumbel import keyed_uniform
from common.modules.losses import IGNORED

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
_DIGITS = 2**23  # of one number of `keyed_uniform`


@dataclass(frozen=True)
class Draws:
    """The random numbers of B samples in one epoch."""

    seed: int
    epoch: int
    samples: Sequence[int]

    def uniform(self, purpose: int, count: int) -> Tensor:
        """(B, count) float32 in (0, 1); purposes are small whole numbers, one for each use."""
        return keyed_uniform(self.seed + (purpose << 40), self.epoch, self.samples, count)

    def fine(self, purpose: int, count: int) -> Tensor:
        """(B, count) float64 in (0, 1) with 46 digits: enough to choose among millions."""
        pairs = self.uniform(purpose, 2 * count).double().unflatten(1, (count, 2))
        return (torch.floor(pairs[..., 0] * _DIGITS) + pairs[..., 1]) / _DIGITS


def mask_pieces(
    ids: Tensor,
    maskable: Tensor,
    rate: float | Tensor,
    numbers: Tensor,
    mask_id: int,
    pieces: int,
    words: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mask word pieces: 80 % [MASK], 10 % a random piece, 10 % kept.

    Args:
        ids: (B, T).
        maskable: (B, T) bool; other places stay as they are.
        rate: share that is masked, or one for each place (B, T).
        numbers: (B, T, 3) in (0, 1): whether, how, which random piece.
        mask_id: number of [MASK].
        pieces: of the vocabulary; random ones have the numbers `first` … pieces - 1.
        words: (B, T) place of the first piece of each piece's word, to mask words as a whole;
            None masks each piece by itself.

    Returns:
        Masked ids (B, T), and labels (B, T): the original id where masked, else -1.
    """
    whether, how = numbers[..., 0], numbers[..., 1]
    if words is not None:
        whether, how = whether.gather(1, words), how.gather(1, words)
    chosen = maskable & (whether < rate)
    blanked, replaced = blank_or_replace(chosen, how)
    random_ids = first + (numbers[..., 2].double() * (pieces - first)).long()
    masked = torch.where(blanked, mask_id, torch.where(replaced, random_ids, ids))
    return masked, torch.where(chosen, ids, torch.full_like(ids, IGNORED))


def blank_or_replace(chosen: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the chosen places are blanked, and which are replaced by something random."""
    blanked = chosen & (numbers < MASK_SHARE)
    return blanked, chosen & ~blanked & (numbers < MASK_SHARE + RANDOM_SHARE)
