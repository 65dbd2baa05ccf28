"""The beginning of every training run: its folder, its processes, its log."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.training.distributed import start_world
from common.training.run_folder import check_unused
from common.training.runtime import Runtime, make_runtime, seed_everything, set_threads
from common.training.tracking import Tracker
from vlbert.building import size_name
from vlbert.config import Config
from vlbert.config_remarks import idle_keys
from vlbert.outputs import open_tracker, output_folder, wants_resume


@dataclass(frozen=True)
class Started:
    """Where a run computes and reports to.

    Attributes:
        folder: of the run.
        resume: it goes on with an earlier one.
        runtime: device, precision and processes.
        tracker: log and curves.
    """

    folder: Path
    resume: bool
    runtime: Runtime
    tracker: Tracker


@contextmanager
def started(
    args: argparse.Namespace, config: Config, gpus: str | None, command: str
) -> Iterator[Started]:
    """Join the other processes, seed everything, open the log and say what runs where.

    Raises:
        ConfigError: the folder holds a run that this one would not go on with, or a device or
            precision that is not there.
    """
    folder = output_folder(args, config)
    resume = wants_resume(args, config, folder)
    if not resume:
        check_unused(folder, args.overwrite)
    world = start_world()
    runtime = make_runtime(gpus, chosen_precision(args, config), world)
    seed_everything(config.seed)
    set_threads(args.threads, size_name(config) == "small", world.local_size)
    with open_tracker(args, config, folder, resume, world.main) as tracker:
        tracker.log(command)
        tracker.log(runtime.describe())
        for remark in idle_keys(config):
            tracker.log(f"note: {remark}")
        yield Started(folder, resume, runtime, tracker)


def chosen_precision(args: argparse.Namespace, config: Config) -> str:
    """--precision, else TRAIN.FP16."""
    return args.precision or ("fp16" if config.TRAIN.FP16 else "fp32")
