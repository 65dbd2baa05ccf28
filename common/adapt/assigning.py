"""Decisions by sample: taken down in one evaluation, and given in another one.

Samples are those that `Adaptive.tell` names. Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from common.adapt.encoder import Adaptive

Assigned = Mapping[int, Tensor]  # (D,) by sample


@contextmanager
def note_decisions(part: Adaptive) -> Iterator[dict[int, Tensor]]:
    """Within the context, every sample's decisions (D,) are put into the dictionary, as bytes."""
    noted: dict[int, Tensor] = {}

    def note(samples: Sequence[int], decisions: Tensor) -> None:
        noted.update(zip(samples, decisions.detach().to("cpu", torch.uint8), strict=True))

    part.observer = note
    try:
        yield noted
    finally:
        part.observer = None


@contextmanager
def assign_decisions(part: Adaptive, decisions: Assigned) -> Iterator[None]:
    """Within the context every sample has the decisions (D,) that are given for it."""

    def of_samples(samples: Sequence[int]) -> Tensor:
        rows = torch.stack([decisions[sample] for sample in samples])
        return rows.to(part.global_decisions.dtype)

    with part.force(of_samples):
        yield


def permuted(decisions: Assigned, seed: int) -> dict[int, Tensor]:
    """The decisions of all samples in another order, which depends on seed and samples alone."""
    samples = sorted(decisions)
    generator = torch.Generator().manual_seed(seed % 2**63)
    order = torch.randperm(len(samples), generator=generator).tolist()
    return {sample: decisions[samples[place]] for sample, place in zip(samples, order, strict=True)}
