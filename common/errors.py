"""Errors that a user can act on.

Every message names the thing (file, row or key), its value, and the way out. Command lines catch
`AdaptiveError` and print it as one line; anything else is a defect and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class AdaptiveError(Exception):
    """Base of all errors that are raised on purpose."""


class DataError(AdaptiveError, ValueError):
    """Annotations, images or region features that are missing, damaged or do not fit together."""


class CheckpointError(AdaptiveError, ValueError):
    """A checkpoint that is missing, damaged, or of another model or strategy."""


class ConfigError(AdaptiveError, ValueError):
    """A flag, a key or a combination of them that makes no sense."""


class StoppedError(AdaptiveError):
    """The run was asked to stop, and saved; every process of it raises this."""


@contextmanager
def named(where: object, kind: type[AdaptiveError] = ConfigError) -> Iterator[None]:
    """Errors of a kind that are raised within say first where the value stands.

    Args:
        where: the file, with the key or the row.
    """
    try:
        yield
    except kind as error:
        raise kind(f"{where}: {error}") from None
