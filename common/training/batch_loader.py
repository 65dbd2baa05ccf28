"""Batches read in processes of their own, whose failures are said as if there were none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import AdaptiveError, DataError

Item = TypeVar("Item", covariant=True)
Read = TypeVar("Read")
ENDED = "exited unexpectedly"


class Reader(Protocol[Item]):
    """Reads the batch of some indices."""

    def __getitem__(self, indices: list[int], /) -> Item:
        """The batch."""


@dataclass(frozen=True)
class _Failure:
    """What a reader raised, on its way to the process that trains."""

    error: AdaptiveError | OSError


class _Told(Dataset[object]):
    """Returns expected failures as values: torch would wrap them in the trace of the worker."""

    def __init__(self, reader: Reader[object]) -> None:
        self.reader = reader

    def __getitem__(self, indices: list[int]) -> object:
        try:
            return self.reader[indices]
        except (AdaptiveError, OSError) as error:
            return _Failure(error)


class BatchLoader(Generic[Read]):
    """Iterates over batches in their order."""

    def __init__(self, reader: Reader[Read], batches: Iterable[list[int]], workers: int) -> None:
        """Prepare to read.

        Args:
            reader: gives the batch of some indices.
            batches: the indices of every batch.
            workers: processes that read; 0: this one.
        """
        self._workers = workers
        self._loader: DataLoader[object] = DataLoader(
            _Told(reader),
            sampler=cast(Sampler[list[int]], batches),
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Read]:
        """The batches.

        Raises:
            AdaptiveError: what the reader raised, or a process that reads was killed.
        """
        try:
            for read in self._loader:
                if isinstance(read, _Failure):
                    raise read.error
                yield cast(Read, read)
        except RuntimeError as error:
            if ENDED not in str(error) and "killed by signal" not in str(error):
                raise
            raise DataError(
                f"a process that reads batches ended ({str(error).splitlines()[0]}): the memory of "
                f"this machine, or of its /dev/shm, may be full: give fewer than {self._workers} "
                "workers, 0 reads in the process that trains"
            ) from error
