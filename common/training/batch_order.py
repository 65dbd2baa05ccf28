"""Which samples make up which batch, and which process and micro-batch reads which of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from common.errors import ConfigError
from common.training.distributed import World, split_evenly
from common.training.task import Task, TaskBatch


class Order(Protocol):
    """Which samples make up which batch of an epoch, the same in every process.

    Attributes:
        uniform: every batch trains the same parameters.
    """

    uniform: bool

    def steps_of(self, epoch: int) -> int:
        """Batches of an epoch."""

    def total(self, epochs: int) -> int:
        """Batches of the first so many epochs, at most."""

    def left_out(self, epoch: int) -> int:
        """Batches of an epoch that were planned and then left out, see `follow`."""

    def epoch(self, epoch: int, skip: int = 0) -> list[list[int]]:
        """The batches of an epoch, without the first `skip`."""

    def check_divisible(self, processes: int, micro_batches: int) -> None:
        """Every micro-batch of every process needs a sample; ConfigError otherwise."""

    def follow(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Told what was measured after every epoch so far; coming epochs may depend on it."""


class BatchOrder:
    """Every sample once in an epoch, in an order keyed by (seed, epoch)."""

    uniform = True

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        if samples < 1:
            raise ConfigError("the training set is empty")
        self.batch_size = min(batch_size, samples)
        self.samples, self.seed = samples, seed
        self.steps = samples // self.batch_size

    def steps_of(self, epoch: int) -> int:
        return self.steps

    def total(self, epochs: int) -> int:
        return self.steps * epochs

    def left_out(self, epoch: int) -> int:
        return 0

    def follow(self, history: Sequence[Mapping[str, Any]]) -> None:
        pass

    def epoch(self, epoch: int, skip: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.samples, generator=generator).tolist()
        size = self.batch_size
        return [order[i * size : (i + 1) * size] for i in range(skip, self.steps)]

    def check_divisible(self, processes: int, micro_batches: int) -> None:
        """Every micro-batch of every process needs a sample.

        Raises:
            ConfigError: the batch is too small.
        """
        if self.batch_size < processes * micro_batches:
            raise ConfigError(
                f"a batch of {self.batch_size} samples cannot be divided over "
                f"{processes} processes × {micro_batches} micro-batches; use a "
                "larger batch, fewer processes or a smaller --accumulate"
            )


class WindowOrder(BatchOrder):
    """Every sample once in an epoch, read nearly in the order of the file.

    The file is read in windows of consecutive samples, which come in a random order, and so do the
    samples of each: what is read together lies together on the disk.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, window: int) -> None:
        """As `BatchOrder`; `window` is the number of samples in a window."""
        super().__init__(samples, batch_size, seed)
        if window < 1:
            raise ConfigError(f"a window of {window} samples: give 1 at least")
        self.window = window

    def epoch(self, epoch: int, skip: int = 0) -> list[list[int]]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        starts = torch.arange(0, self.samples, self.window)
        order: list[int] = []
        for start in starts[torch.randperm(len(starts), generator=generator)].tolist():
            count = min(self.window, self.samples - start)
            order += (start + torch.randperm(count, generator=generator)).tolist()
        size = self.batch_size
        return [order[i * size : (i + 1) * size] for i in range(skip, self.steps)]


class MicroBatches(Dataset[list[TaskBatch]]):
    """A data set whose items are this process' part of a batch, as a list of micro-batches."""

    def __init__(self, task: Task, epoch: int, world: World, micro_batches: int) -> None:
        self.task, self.epoch, self.world, self.count = task, epoch, world, micro_batches

    def __getitem__(self, indices: list[int]) -> list[TaskBatch]:
        return [
            self.task.read(list(part), self.epoch)
            for part in split_evenly(self.world.share(indices), self.count)
        ]


def iterate(samples: int, batch_size: int) -> Iterator[list[int]]:
    """Indices 0 … samples - 1 in order, in batches; the last may be smaller."""
    for start in range(0, samples, batch_size):
        yield list(range(start, min(samples, start + batch_size)))
