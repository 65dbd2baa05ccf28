"""The rows of a batch that take each branch.

Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from common.adapt.dropout import Replay
from common.adapt.row_routing import Rows, merge_rows, split_rows, with_zero_gradients

State = dict[str, Tensor | None]  # slots by name; streams are tensors, a mask may be None
Written = dict[str, Tensor]  # what steps, a branch or a site hand on: streams only
Branch = Callable[[int, State], Written]  # `branch(value, inputs)`


class Routes:
    """For each decision the rows of the batch that chose 0 and that chose 1.

    Built once per batch: one stable sort of the decision matrix (and one transfer of its column
    sums) serves all sites.
    """

    def __init__(self, decisions: Tensor, training: bool) -> None:
        """decisions (B, D) of exact 0 / 1; in `training` branches that nobody chose get gradients.

        These are 0, and not None: the optimiser and DistributedDataParallel then see the same
        parameters in every step. No branch is run on no rows, which fused kernels do not take.
        """
        # No numbers come after a loss that was not finite, until that is read from the device.
        hard = decisions.detach().nan_to_num()
        self.batch = hard.shape[0]
        self.training = training and torch.is_grad_enabled()
        order = torch.argsort(hard, dim=0, stable=True)
        self._order = order.unbind(1)
        self._ones = [int(n) for n in hard.sum(0).tolist()]

    def rows(self, column: int, value: int) -> Tensor:
        """Indices (n,) of the samples whose decision in `column` is `value`."""
        zeros = self.batch - self._ones[column]
        return self._order[column][zeros:] if value else self._order[column][:zeros]

    def count(self, column: int, value: int) -> int:
        return self._ones[column] if value else self.batch - self._ones[column]

    def both(self, column: int, flip: bool = False) -> Rows:
        """The samples that take branch 0 and those that take branch 1 (`flip`: the other way)."""
        return self.rows(column, int(flip)), self.rows(column, int(not flip))

    def select(
        self,
        inputs: State,
        outputs: Sequence[str],
        column: int,
        run: Branch,
        flip: bool = False,
        replay: Replay | None = None,
        parameters: Callable[[int], Sequence[Tensor]] = lambda value: (),
    ) -> Written:
        """Run each sample through the branch it chose (`flip`: through the other one).

        Args:
            inputs: slots (B, ...) that the branches read.
            outputs: slots that are merged and returned.
            column: which decision.
            run: `run(value, inputs)`, the branch of that value on some rows.
            replay: makes the flipped run draw the dropout masks of the first one.
            parameters: `parameters(value)`, those of the branch of that value.
        """

        def branch(value: int, state: State) -> Written:
            with replay.draw(value) if replay else nullcontext():
                return run(value ^ flip, state)

        with_grad = self.training and torch.is_grad_enabled()
        for value in (0, 1):
            if self.count(column, value) == self.batch:
                found = branch(value, inputs)
                idle: list[Tensor] = []
                if with_grad:  # also into what the idle branch alone reads, hence before it
                    read = [x for x in inputs.values() if x is not None]
                    idle = [*parameters((1 - value) ^ flip), *read]
                return {slot: with_zero_gradients(found[slot], idle) for slot in outputs}
        rows = self.both(column)
        zero, one = (branch(value, part) for value, part in enumerate(split(inputs, rows)))
        return {slot: merge_rows(zero[slot], one[slot], rows) for slot in outputs}

    def restricted(self, mask: Tensor, decisions: Tensor) -> tuple[Tensor, Routes]:
        """The rows where mask (B,) is true, and the routes of the batch made of them."""
        rows = mask.nonzero().squeeze(1)
        return rows, Routes(decisions.detach().index_select(0, rows), training=False)


def read_stream(state: State, slot: str) -> Tensor:
    """A stream (B, T, C) of the state: unlike a mask, it is never None."""
    x = state[slot]
    assert x is not None
    return x


def split(state: State, rows: Rows) -> tuple[State, State]:
    """The samples that take branch 0 and those that take branch 1; None stays None."""
    parts = {slot: (None, None) if x is None else split_rows(x, rows) for slot, x in state.items()}
    return {slot: p[0] for slot, p in parts.items()}, {slot: p[1] for slot, p in parts.items()}


def take(state: State, rows: Tensor) -> State:
    """The given rows of every slot; slots that are None stay None."""
    return {slot: None if x is None else x.index_select(0, rows) for slot, x in state.items()}
