"""Products with weights that are laid out once for a whole evaluation on the CPU.

oneDNN multiplies float32 by a weight that lies in blocks in 0.85 to 0.9 of the time that torch's
product takes for 200 rows and more, and in half of it for 14 (AMD EPYC, one thread, 768 to 3,072
channels). Laying a weight out costs what one product of a batch saves, so that it is done where the
same weights meet several batches. The laid out copies need the memory of the weights once more.
Shape legend: C channels in, C' channels out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.modules.products import LinearMode

SAMPLE = 257  # numbers of a weight that are compared at every use; a prime, so that rows differ
CHANNELS = 256  # of a weight, at least, on both sides: with fewer nothing is gained
ROWS = 4  # of a product, at least


@dataclass(frozen=True)
class _Source:
    """A tensor of which something was made, and how to tell that it is still the same.

    Versions do not count what fused optimisers do, nor writes to `.data`: hence the sample.
    """

    tensor: Tensor  # held, so that no other one gets its identity
    version: int
    address: int
    watched: Tensor  # a view
    sample: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Source:
        """The tensor as it is now."""
        flat = tensor.detach().flatten()
        watched = flat[:: max(1, flat.numel() // SAMPLE)]
        return cls(tensor, tensor._version, tensor.data_ptr(), watched, watched.clone())

    @property
    def same(self) -> bool:
        now = self.tensor._version, self.tensor.data_ptr()
        return now == (self.version, self.address) and torch.equal(self.watched, self.sample)


@dataclass(frozen=True)
class _Kept:
    """What was made of tensors."""

    sources: tuple[_Source, ...]
    made: Sequence[Tensor]

    @property
    def same(self) -> bool:
        return all(source.same for source in self.sources)


class PackedWeights(LinearMode):
    """Within it `F.linear` lays out the parameters it meets, and keeps that for later calls.

    Everything is computed as ever where a gradient could be wanted (what was kept is then
    forgotten, since training goes on), under autocast, in other precisions than float32, on other
    devices, and with few rows or channels. It can be entered again and again.

    Attributes:
        bytes: memory of what is kept.
    """

    def __init__(self) -> None:
        """Nothing is kept yet."""
        super().__init__()
        self._kept: dict[tuple[Any, ...], _Kept] = {}
        self._tokens: list[Token[PackedWeights | None]] = []

    def __enter__(self) -> PackedWeights:
        self._tokens.append(_ACTIVE.set(self))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)  # type: ignore[no-untyped-call]
        _ACTIVE.reset(self._tokens.pop())

    @property
    def bytes(self) -> int:
        kept = [made for entry in self._kept.values() for made in entry.made]
        return sum(x.numel() * x.element_size() for x in kept)

    def kept(
        self, name: object, sources: Sequence[Tensor], make: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """What `make` gave when it was last called for these tensors, as long as they are the same.

        Args:
            name: tells apart what is made of the same tensors.
            sources: contiguous tensors that it is made of.
            make: called at first, and after a change.
        """
        key = (name, *map(id, sources))
        entry = self._kept.get(key)
        if entry is None or not entry.same:
            entry = self._kept[key] = _Kept(tuple(map(_Source.of, sources)), make())
        return entry.made

    def forget(self) -> None:
        """Give the memory back."""
        self._kept.clear()

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """See `LinearMode`; parameters of the CPU are laid out where that gains."""
        if torch.is_grad_enabled():
            self.forget()
        if not (
            isinstance(weight, nn.Parameter)
            and weight.is_contiguous()
            and _plain_bias(bias, weight)
            and gains(input, weight)
        ):
            return F.linear(input, weight, bias)
        (packed,) = self.kept("linear", (weight,), lambda: (pack(weight),))
        return packed_linear(input, packed, bias)


_ACTIVE: ContextVar[PackedWeights | None] = ContextVar("packed weights", default=None)


def active_packing(x: Tensor, weight: Tensor) -> PackedWeights | None:
    """What keeps weights now, if a product of x (…, C) with weight (C', C) gains by it."""
    packing = _ACTIVE.get()
    return packing if packing is not None and gains(x, weight) else None


def gains(x: Tensor, weight: Tensor) -> bool:
    """Whether x (…, C) is multiplied sooner by a weight (C', C) that is laid out."""
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and min(weight.shape) >= CHANNELS
        and x.numel() >= ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not weight.is_inference()
        and bool(torch.backends.mkldnn.enabled)
    )


def _plain_bias(bias: Tensor | None, weight: Tensor) -> bool:
    """oneDNN reads a bias as it lies in memory: one number after the other, for every output."""
    return bias is None or (
        bias.is_contiguous() and bias.dtype == weight.dtype and bias.shape == weight.shape[:1]
    )


def pack(weight: Tensor) -> Tensor:
    """Weight (C', C) as oneDNN wants it."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x (…, C), packed weight (C', C), bias (C') -> (…, C')."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def packed_weights(model: nn.Module) -> AbstractContextManager[Any]:
    """What to enter for every batch of an evaluation on the CPU; it can be entered repeatedly.

    Where nothing of the model is worth it, or torch was built without oneDNN, it does nothing.
    """
    worth = any(
        p.dim() == 2
        and min(p.shape) >= CHANNELS
        and p.device.type == "cpu"
        and p.dtype == torch.float32
        for p in model.parameters()
    )
    return PackedWeights() if worth and torch.backends.mkldnn.is_available() else nullcontext()
