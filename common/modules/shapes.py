"""Whether shapes may depend on what a batch holds, or on its own shapes alone.

A CUDA graph repeats one recorded step: it has no place for a question to the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from common.errors import AdaptiveError

_STATIC: ContextVar[bool] = ContextVar("static", default=False)


class AsksDevice(AdaptiveError):
    """A step cannot be recorded, because it has to know what its tensors hold."""


@contextmanager
def static_shapes() -> Iterator[None]:
    """Within the context shapes depend on shapes alone, at the price of more padding."""
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)


def shapes_are_static() -> bool:
    """Whether `static_shapes` holds here."""
    return _STATIC.get()
