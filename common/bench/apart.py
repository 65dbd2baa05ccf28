"""A call in a process of its own: alone in its memory, and what it breaks ends with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from common.errors import ConfigError

Found = TypeVar("Found")


def in_own_process(died: str, call: Callable[..., Found], *arguments: object) -> Found:
    """Start a process, make the call there, and return what it returned.

    Args:
        died: what is said if the process died.
        call: a function of a module.
        arguments: of it; they are pickled.

    Raises:
        ConfigError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(call, *arguments).result()
        except BrokenProcessPool:
            raise ConfigError(died) from None
