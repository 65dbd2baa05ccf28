"""Processes that train one model together: who takes which samples, and how numbers are summed.

A run on one process uses the same code with a `World` of size 1, in which nothing is sent. Control
numbers (weights of losses, stop requests, predictions) go over the CPU, gradients over whatever
`torch.nn.parallel.DistributedDataParallel` uses on the device. Shape legend: B batch, D decisions.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import AdaptiveError, ConfigError, StoppedError
from common.voice import said

Item = TypeVar("Item")
TIMEOUT = timedelta(minutes=60)  # the first process may be importing features meanwhile
WAIT_FOR_PEERS = timedelta(seconds=10)


class PeerError(AdaptiveError):
    """Another process of the run ended, so this one cannot go on."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, 0 … size − 1.
        size: number of processes on all machines.
        local_rank: number of this process on its machine.
        local_size: number of processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process' part of some items; all parts together are the items, in their order."""
        return split_evenly(items, self.size)[self.rank]

    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, which give the same names."""
        names = sorted(numbers)
        if self.size == 1:
            return {name: float(numbers[name]) for name in names}
        values = torch.tensor([float(numbers[name]) for name in names], dtype=torch.float64)
        with peers():
            dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def gather(self, value: Item) -> list[Item]:
        """The values of all processes in their order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with peers():
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return self.sum({"flag": float(flag)})["flag"] > 0

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter the sum of its gradients over all processes; one without has 0."""
        if self.size == 1:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        with peers():
            dist.all_reduce(flat)
        parts = flat.split([grad.numel() for grad in grads])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every parameter that has a gradient the mean of its gradients over all processes.

        All processes have gradients of the same parameters.
        """
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        with peers():
            dist.all_reduce(flat)
        parts = (flat / self.size).split([grad.numel() for grad in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum({"here": 1})

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process runs the block before the others do: for files that it makes."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def mean(self, x: Tensor) -> Tensor:
        """Mean (D,) over the samples (B, D) of all processes.

        Its gradient is scaled so that, averaged over the processes as DistributedDataParallel
        does, it is that of a function of the mean over the whole batch.
        """
        if self.size == 1:
            return x.mean(0)
        count = self.sum({"count": len(x)})["count"]
        total: Tensor = _SumOverProcesses.apply(x.sum(0), self.size)  # type: ignore[no-untyped-call]
        return total / count


class _SumOverProcesses(torch.autograd.Function):
    """Sum over processes; see `World.mean` for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        out = x.detach().clone()
        with peers():
            dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every process computes the same function of the sum, hence has the same gradient here.
        return gradient * ctx.size, None


@contextmanager
def peers() -> Iterator[None]:
    """Say plainly when a process could not be reached.

    Raises:
        PeerError: the others ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise PeerError(
                "another process of this run ended or did not answer; its own error "
                "says why. Go on with the same command and --resume"
            ) from error
        raise


def start_world(device_type: str | None = None) -> World:
    """Join the other processes, if `torchrun` or `common.training.processes` started several.

    From then on only the first process writes to standard output; errors of all are shown.

    Args:
        device_type: `cpu` or `cuda`; default: CUDA where there is a GPU.

    Raises:
        ConfigError: the environment variables of torchrun are incomplete.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return World()
    try:
        rank, size, local, local_size = (
            int(os.environ[name])
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {error} is not set as "
            "torchrun does; start with torchrun or a run script, or unset "
            "WORLD_SIZE"
        ) from None
    if not dist.is_initialized():
        cuda = device_type == "cuda" or (device_type is None and torch.cuda.is_available())
        with peers():
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=TIMEOUT)
        if rank:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return World(rank, size, local, local_size)


def end_world() -> None:
    """Leave the other processes.

    What still refers to the group (a DistributedDataParallel in a cycle) would keep its threads
    alive, which abort the process if they meet the interpreter at its end.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def split_evenly(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Parts in order whose lengths differ by one at most; the first ones are the longer ones."""
    short, longer = divmod(len(items), parts)
    starts = [i * short + min(i, longer) for i in range(parts + 1)]
    return [items[a:b] for a, b in itertools.pairwise(starts)]


def one_voice(run: Callable[[], int], trace: bool = False) -> int:
    """Run a command and turn its failures into a line and an exit status, see `common.voice`.

    An error that all processes share (a missing file, an unknown flag) is said by the first one
    only; the others wait to hear it.

    Args:
        run: the command.
        trace: also print where an unexpected error comes from.

    Returns:
        The command's exit status, that of `common.voice` after an error, or 3 where another
        process ended.
    """
    rank = int(os.environ.get("RANK", "0"))
    status = 2
    try:
        return run()
    except PeerError as error:
        status, message = 3, f"process {rank}: {error}"
        time.sleep(WAIT_FOR_PEERS.total_seconds() / 5)  # in which the launcher ends this process
    except AdaptiveError as error:
        known = rank > 0 and (isinstance(error, StoppedError) or _said_by_first(str(error)))
        message = "" if known else f"error{f' (process {rank})' if rank else ''}: {error}"
        if rank == 0:
            _tell(str(error))
    except (Exception, KeyboardInterrupt) as error:
        status, message = said(error)
        if trace:
            traceback.print_exc()
        if isinstance(error, OSError):
            message += "; a run that has saved goes on with --resume"
    finally:
        end_world()
    if message:
        print(message, file=sys.stderr, flush=True)
    return status


def _tell(message: str) -> None:
    """Leave the first process' error where the others look for it."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.distributed_c10d._get_default_store().set("error of process 0", message)


def _said_by_first(message: str) -> bool:
    """Whether the first process has, or soon has, the same error."""
    if not dist.is_initialized():
        # The flags or files are wrong: so they are for the first one of this machine.
        return os.environ.get("LOCAL_RANK", "0") != "0"
    store = dist.distributed_c10d._get_default_store()
    try:
        store.wait(["error of process 0"], WAIT_FOR_PEERS)
        return store.get("error of process 0").decode() == message
    except RuntimeError:
        return False
