"""Rows of a batch that are about one image, or one text: what depends on it alone is computed once.

    with same_rows(vision=SameRows.of(image_ids)):
        model(**inputs)

Within it, in evaluation, an embedding that goes through `once`, and the layers that read the stream
alone, run on one row of each image; what they hand on is spread to all rows where streams meet.
Where parts are routed, rows stay together as long as their decisions have been the same, so that
outputs are those of every row by itself. Shape legend: B batch, U rows that are computed, D
decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from common.adapt.routes import State
from common.adapt.steps import PAIR, Layer, present_watchers
from common.modules.shapes import shapes_are_static

Found = TypeVar("Found", bound=Tensor | tuple[Tensor, ...])


@dataclass(frozen=True)
class SameRows:
    """Which rows of a batch are the same.

    Attributes:
        first: (U,) one row of each.
        group: (B,) which of the U a row is.
    """

    first: Tensor
    group: Tensor

    @classmethod
    def of(cls, keys: Sequence[Hashable], device: torch.device | None = None) -> SameRows:
        """Rows are the same where their keys are; one key for each of the B rows."""
        numbers: dict[Hashable, int] = {}
        first: list[int] = []
        group: list[int] = []
        for row, key in enumerate(keys):
            if key not in numbers:
                numbers[key] = len(numbers)
                first.append(row)
            group.append(numbers[key])
        return cls(torch.tensor(first, device=device), torch.tensor(group, device=device))

    def __len__(self) -> int:
        """U."""
        return len(self.first)

    def take(self, x: Tensor) -> Tensor:
        """(B, …) -> (U, …).

        Raises:
            ValueError: another number of rows.
        """
        if len(x) != len(self.group):
            raise ValueError(
                f"{len(self.group)} rows were compared, but there are {len(x)} of them"
            )
        return x.index_select(0, self.first)

    def spread(self, x: Tensor) -> Tensor:
        """(U, …) -> (B, …)."""
        return x.index_select(0, self.group)

    def refined(self, decisions: Tensor) -> SameRows:
        """The same rows, apart where decisions (B, n) differ."""
        rows = map(tuple, decisions.detach().tolist())
        found = self.of(list(zip(self.group.tolist(), rows, strict=True)), self.group.device)
        return self if len(found) == len(self) else found


@dataclass
class ComputedRows:
    """How often something was computed, and for how many rows."""

    times: int = 0
    rows: int = 0

    def add(self, same: SameRows) -> None:
        """Something is computed for such rows."""
        self.times += len(same.first)
        self.rows += len(same.group)


@dataclass(frozen=True)
class _Same:
    streams: Mapping[str, SameRows]
    computed: ComputedRows


_SAME: ContextVar[_Same | None] = ContextVar("same", default=None)


@contextmanager
def same_rows(computed: ComputedRows | None = None, **streams: SameRows) -> Iterator[None]:
    """Within the context, rows of a stream that are the same are computed once, in evaluation.

    Args:
        computed: is told what was computed.
        streams: by name; their embeddings and masks have to be the same in rows that are the same.
    """
    token = _SAME.set(_Same(streams, computed or ComputedRows()))
    try:
        yield
    finally:
        _SAME.reset(token)


def _same() -> _Same | None:
    """What holds here; None where gradients are wanted, shapes are static (as under torch.compile),
    or somebody watches."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if shapes_are_static() or present_watchers():
        return None
    return _SAME.get()


def once(stream: str, function: Callable[..., Found], *tensors: Tensor | None) -> Found:
    """A function of rows, computed for rows of a stream that are not the same.

    Args:
        stream: what the function depends on.
        function: gives a tensor (B, …), or a named tuple of them.
        tensors: (B, …) that it reads, or None.
    """
    same = _same()
    rows = None if same is None else same.streams.get(stream)
    if same is None or rows is None:
        return function(*tensors)
    same.computed.add(rows)
    found: Any = function(*(None if x is None else rows.take(x) for x in tensors))
    if isinstance(found, Tensor):
        return cast(Found, rows.spread(found))
    return cast(Found, type(found)(*map(rows.spread, found)))


def streams_alone(layers: Sequence[Layer]) -> list[str | None]:
    """The stream that each layer reads alone; None from the layer on in which streams meet."""
    found: list[str | None] = []
    for layer in layers:
        read = {slot.partition(".")[0] for step in layer.steps for slot in step.reads} - {PAIR}
        alone = read == set(layer.streams) and len(read) == 1
        found.append(next(iter(read)) if alone and None not in found else None)
    return found


class SharedStreams:
    """The slots of an encoder that are there once for rows that are the same."""

    def __init__(self, state: State, active: bool) -> None:
        """For slots (B, …) before the first layer; not `active`: nothing is shared."""
        same = _same() if active and state.get(PAIR) is None else None
        self._given = {} if same is None else same.streams
        self._computed = ComputedRows() if same is None else same.computed
        self._rows: dict[str, SameRows] = {}

    def before(
        self,
        state: State,
        alone: str | None,
        decisions: Tensor | None = None,
        columns: Sequence[int] = (),
    ) -> tuple[State, SameRows | None]:
        """The slots that a layer reads, and the rows of the batch that they are.

        Args:
            state: slots before the layer.
            alone: the stream that it reads alone, if it does.
            decisions: (B, D), where the layer is routed.
            columns: those that are about it.

        Returns:
            With the rows None where they are all B.
        """
        if alone is None:
            return self.spread(state), None
        known = self._rows.get(alone)
        rows = self._given.get(alone) if known is None else known
        if rows is None:
            return state, None
        if decisions is not None:
            rows = rows.refined(decisions[:, list(columns)])
        if known is None:
            state = _changed(state, alone, rows.take)
        elif rows is not known:
            places = known.group[rows.first]
            state = _changed(state, alone, lambda x: x.index_select(0, places))
        self._rows[alone] = rows
        self._computed.add(rows)
        return state, rows

    def spread(self, state: State) -> State:
        """All slots with B rows again."""
        for stream, rows in self._rows.items():
            state = _changed(state, stream, rows.spread)
        self._rows = {}
        return state


def _changed(state: State, stream: str, change: Callable[[Tensor], Tensor]) -> State:
    """With other values in the slots of a stream."""
    return {
        slot: x if x is None or slot.partition(".")[0] != stream else change(x)
        for slot, x in state.items()
    }
