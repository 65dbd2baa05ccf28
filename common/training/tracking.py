"""Where a run reports to: the screen, `log.log`, TensorBoard event files, Weights & Biases."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import ConfigError

WANDB_MODES = ("off", "offline", "online")
PROJECT = "adaptive-finetuning"
FLUSH_SECONDS = 30  # what a killed run may lose of its curves


class Tracker:
    """Writes the log, curves and pictures of one run.

    Use it as a context, or call `close`. Lines of an existing log stay before the new ones, so a
    resumed run continues its log.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        tensorboard: bool = True,
        wandb: str = "off",
        config: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
        enabled: bool = True,
        log: str = "log.log",
        curves: str | os.PathLike[str] = "tensorboard",
        name: str | None = None,
    ) -> None:
        """Open everything that was asked for.

        Args:
            out_dir: folder of the run; log, curves and `wandb/` appear in it.
            tensorboard: write event files.
            wandb: `off`, `offline` (files only, nothing leaves the machine) or `online`.
            config: settings of the run, shown by wandb.
            resume_step: on resuming, TensorBoard forgets points from this step on, which the
                interrupted run may have written already.
            enabled: False on every process but the first: nothing is written or shown.
            log: name of the log file.
            curves: folder of the TensorBoard files, in `out_dir` unless it is absolute.
            name: of the run, for wandb; default: of the folder.

        Raises:
            ConfigError: unknown mode, or wandb is wanted and not installed.
        """
        if wandb not in WANDB_MODES:
            raise ConfigError(f"unknown wandb mode {wandb!r}; valid: {', '.join(WANDB_MODES)}")
        self.out_dir = Path(out_dir)
        self.enabled = enabled
        self._writer: Any = None
        self._wandb: ModuleType | None = None
        self._log: Any = None
        curves = self.out_dir / curves
        self._earlier = list(curves.glob("events.*"))
        if not enabled:
            return
        self._wandb = None if wandb == "off" else _import_wandb(wandb)
        self._name = log
        self.open_log()
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(curves), flush_secs=FLUSH_SECONDS, purge_step=resume_step
            )
        if self._wandb is not None:
            self._wandb.init(
                project=PROJECT,
                name=name or self.out_dir.name,
                dir=str(self.out_dir),
                mode=wandb,
                config=dict(config or {}),
            )

    def open_log(self) -> None:
        """Open the log file, anew where its folder was deleted."""
        if not self.enabled:
            return
        if self._log is not None:
            self._log.close()
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._log = open(self.out_dir / self._name, "a", encoding="utf-8")  # noqa: SIM115

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """One point of each curve.

        Args:
            values: name (`train/loss`) → number or one-element tensor; None has no point.
            step: update that it belongs to.
        """
        if not self.enabled:
            return
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        if self._writer is not None:
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)
        if self._wandb is not None:
            finite = {name: number for name, number in numbers.items() if math.isfinite(number)}
            self._wandb.log(finite, step=step)

    def image(self, name: str, path: str | os.PathLike[str], step: int) -> None:
        """A picture from a file, for example the decisions of an epoch."""
        if self._writer is not None:
            from PIL import Image

            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({name: self._wandb.Image(os.fspath(path))}, step=step)

    def note(self, line: str) -> None:
        """A line in the log only, where the screen shows a progress bar instead."""
        if self._log is not None:
            self._log.write(line + "\n")
            self._log.flush()

    def log(self, line: str) -> None:
        """A line (or several) on the screen, above a progress bar, and in the log."""
        if not self.enabled:
            return
        tqdm.write(line)
        self.note(line)

    def forget_earlier(self) -> None:
        """Remove the curves of an earlier run in the same folder."""
        for path in self._earlier:
            path.unlink(missing_ok=True)
        self._earlier = []

    def close(self) -> None:
        """Write what is still in memory; the tracker shows only lines on the screen afterwards."""
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._log is not None:
            self._log.close()
        self._writer = self._wandb = self._log = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _import_wandb(mode: str) -> ModuleType:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            f"wandb {mode} was asked for, but wandb is not installed: pip install "
            "wandb, or use wandb off (log.log and TensorBoard files are written "
            "anyway)"
        ) from None
