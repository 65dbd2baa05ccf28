"""The beginning of every run: its folder, its processes, its device, its log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.training.checkpoint import load_meta
from common.training.distributed import World, start_world
from common.training.folder_lock import alone
from common.training.run_folder import SnapshotNames, check_unused
from common.training.runtime import Runtime, make_runtime, seed_everything, set_threads
from common.training.tracking import Tracker


@dataclass(frozen=True)
class RunOptions:
    """Where a run writes to, and where it computes.

    Attributes:
        folder: of the run.
        resume: it goes on with the run that the folder holds.
        overwrite: it takes the place of the run that the folder holds.
        gpus, precision: see `make_runtime`.
        seed: of everything that is drawn at random.
        threads: on the CPU; None: one for small models, else one per core.
        names: of the checkpoints.
        graph: see `make_runtime`.
    """

    folder: Path
    resume: bool = False
    overwrite: bool = False
    gpus: str | None = None
    precision: str = "fp32"
    seed: int = 0
    threads: int | None = None
    names: SnapshotNames = field(default_factory=SnapshotNames)
    graph: str = "auto"


@dataclass(frozen=True)
class LogOptions:
    """Log and curves of a run; see `Tracker`.

    Attributes:
        tensorboard, wandb: what else than the log file is written.
        config: settings of the run, shown by wandb.
        log, curves: names of the log file and of the folder of the curves.
        name: of the run; None: that of its folder.
    """

    tensorboard: bool = True
    wandb: str = "off"
    config: Mapping[str, Any] = field(default_factory=dict)
    log: str = "log.log"
    curves: str | Path = "tensorboard"
    name: str | None = None


@dataclass(frozen=True)
class Started:
    """A run that has begun: it knows its processes and its device."""

    options: RunOptions
    runtime: Runtime
    _open: ExitStack

    @property
    def world(self) -> World:
        return self.runtime.world

    @property
    def folder(self) -> Path:
        return self.options.folder

    def open_log(self, command: str, small: bool, options: LogOptions) -> Tracker:
        """Choose the threads, open the log until the run ends, and say what runs where.

        Args:
            command: as it was typed.
            small: the model is a small one, which is faster on one thread.
            options: what is written; the curves of a resumed run are continued.
        """
        set_threads(self.options.threads, small, self.world.local_size)
        last = self.folder / f"{self.options.names.last}.safetensors"
        resumed = self.options.resume and last.exists()
        tracker = self._open.enter_context(
            Tracker(
                self.folder,
                options.tensorboard,
                options.wandb,
                options.config,
                load_meta(last).get("step") if resumed else None,
                self.world.main,
                log=options.log,
                curves=options.curves,
                name=options.name,
            )
        )
        tracker.log(command)
        tracker.log(self.runtime.describe())
        return tracker

    def seed_processes(self) -> None:
        """Seed every process differently, so that their dropout differs; once the model is made."""
        seed_everything((self.options.seed + self.world.rank) % 2**32)


def join(gpus: str | None, precision: str, seed: int, graph: str = "auto") -> Runtime:
    """Join the other processes, choose the device, and seed everything."""
    runtime = make_runtime(gpus, precision, start_world(), graph)
    seed_everything(seed)
    return runtime


@contextmanager
def started(options: RunOptions) -> Iterator[Started]:
    """Begin a run; what it opened is closed at the end.

    Raises:
        ConfigError: the folder holds a run that this one would not go on with, another one that is
            running uses it, or a device or precision that is not there.
    """
    if not options.resume:
        check_unused(options.folder, options.overwrite, options.names)
    runtime = join(options.gpus, options.precision, options.seed, options.graph)
    with ExitStack() as stack:
        stack.enter_context(alone(options.folder, runtime.world))
        yield Started(options, runtime, stack)
