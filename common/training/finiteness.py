"""Whether all losses were finite, without asking the device in every step.

On the CPU every batch is looked at before its backward pass. On a GPU the first step that was not
finite is noted there and read where something is written anyway: with the lines of the log, before
every save and at the end of an epoch. So nothing is kept that such a step has spoiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import AdaptiveError
from common.training.checkpoint import save_checkpoint
from common.training.task import TaskBatch

Again = Callable[[int], TaskBatch | None]  # the batch of a step, read once more


class FinitenessCheck:
    """Looks at the losses of every (micro-)batch of this process."""

    def __init__(self, folder: Path, process: str, again: Again, at_once: bool) -> None:
        """Prepare to look.

        Args:
            folder: gets the batch that is to blame.
            process: ends its name.
            again: `again(step)`, that batch, where it is found out later.
            at_once: ask in every step.
        """
        self.path = folder / f"non_finite_batch{process}.safetensors"
        self.again, self.at_once = again, at_once
        self._first: Tensor | None = None  # step of the first one, 0-d; -1: none
        self._names: tuple[str, ...] = ()
        self._bad: Tensor | None = None  # (losses,): which of them were not

    def look(self, losses: Mapping[str, Tensor], batch: TaskBatch, step: int) -> None:
        """Look at the losses (0-d) of a batch before its backward pass.

        Raises:
            AdaptiveError: one is not finite, and that is asked at once.
        """
        if self.at_once:
            bad = [name for name, loss in losses.items() if not torch.isfinite(loss)]
            if bad:
                raise self._error(bad, step, batch)
            return
        self._names = tuple(losses)
        bad_now = ~torch.stack([loss.detach().isfinite() for loss in losses.values()])
        if self._first is None or self._bad is None or len(self._bad) != len(bad_now):
            self.check()  # other losses than before
            self._first = torch.full((), -1, dtype=torch.int64, device=bad_now.device)
            self._bad = torch.zeros_like(bad_now)
        new = (self._first < 0) & bad_now.any()
        self._first = torch.where(new, step, self._first)
        self._bad = torch.where(new, bad_now, self._bad)

    def check(self) -> None:
        """Read what was noted.

        Raises:
            AdaptiveError: a loss was not finite; names step, losses and samples.
        """
        if self._first is None or self._bad is None:
            return
        step = int(self._first)
        if step >= 0:
            bad = [name for name, one in zip(self._names, self._bad.tolist(), strict=True) if one]
            raise self._error(bad, step, self.again(step))

    def _error(self, bad: list[str], step: int, batch: TaskBatch | None) -> AdaptiveError:
        where = ""
        if batch is not None:
            save_checkpoint(
                self.path,
                {"samples": batch.samples, "inputs": batch.inputs, "labels": batch.labels},
                {"step": step},
            )
            where = f"; the batch (samples {batch.samples[:4]} …) is in {self.path}"
        return AdaptiveError(
            f"loss {', '.join(bad)} is not finite at step {step}{where}. Lower the learning rate "
            "or use --precision fp32, and start again with --overwrite"
        )
