"""Dropout masks that both branches of a site share.

The policy learns from the difference of the branches, in which masks of their own would drown. Two
ways: the generator is put back to where it was, which costs nothing on the CPU and fits branches
that run on different rows; or the masks themselves are kept, which asks nothing of the generator,
so that a step can be captured as a CUDA graph. Shape legend: B batch, H heads, T queries, S keys.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Replay(ABC):
    """Draws masks once and again.

    Attributes:
        device: where they are drawn.
        active: whether any dropout is.
    """

    def __init__(self, device: torch.device, active: bool) -> None:
        """See the attributes."""
        self.device = device
        self.active = active

    @abstractmethod
    def draw(self, key: int) -> AbstractContextManager[Any]:
        """The first time under `key`: draw as usual. After that: draw the same masks again."""


class DropoutReplay(Replay):
    """Remembers the state of the generator before each branch."""

    def __init__(self, device: torch.device, active: bool) -> None:
        super().__init__(device, active)
        self._states: dict[int, Tensor] = {}

    @contextmanager
    def draw(self, key: int) -> Iterator[None]:
        if not self.active:
            yield
        elif key not in self._states:
            self._states[key] = get_generator_state(self.device)
            yield
        else:
            now = get_generator_state(self.device)
            set_generator_state(self.device, self._states[key])
            try:
                yield
            finally:
                set_generator_state(self.device, now)


class MaskReplay(Replay):
    """Keeps the masks. The runs under a key have the same functions on samples in one order."""

    def __init__(self, device: torch.device, active: bool) -> None:
        """Nothing is kept yet."""
        super().__init__(device, active)
        self._masks: dict[int, list[Tensor]] = {}

    def draw(self, key: int) -> AbstractContextManager[Any]:
        if not self.active:
            return nullcontext()
        if key in self._masks:
            return _Masked([], iter(self._masks[key]))
        return _Masked(self._masks.setdefault(key, []))


class _Masked(TorchFunctionMode):
    """Within it dropout takes masks that are given, or keeps those that it draws."""

    def __init__(self, kept: list[Tensor], given: Iterator[Tensor] | None = None) -> None:
        super().__init__()
        self.kept, self.given = kept, given

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.dropout:
            return self._dropout(*args, **given)
        if func is F.scaled_dot_product_attention and given.get("dropout_p"):
            return self._attention(*args, **given)
        return func(*args, **given)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return x
        if self.given is not None:
            mask = next(self.given)
        else:
            mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p)
            self.kept.append(mask)
        return x * mask * (1 / (1 - p))

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """As torch's, whose kernels do not say which weights they drop; q (B, H, T, c)."""
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return self._dropout(weights, dropout_p).to(v.dtype) @ v


def replay_for(device: torch.device, active: bool, together: bool) -> Replay:
    """How the branches of a site share their masks.

    Args:
        device, active: see `Replay`.
        together: both branches run on all samples.
    """
    return (MaskReplay if together and device.type != "cpu" else DropoutReplay)(device, active)


def get_generator_state(device: torch.device) -> Tensor:
    """State of the default generator of the device."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def set_generator_state(device: torch.device, state: Tensor) -> None:
    """Set the state of the default generator of the device."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
