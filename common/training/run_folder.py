"""The output folder of a run: the names of its checkpoints, and what an earlier run left there."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError


@dataclass(frozen=True)
class SnapshotNames:
    """File names (without ending) of the best, the last and the numbered checkpoints.

    Attributes:
        best, last: names.
        epoch: of the numbered ones, with a place for the number (`Epoch{:02d}`); None: there are
            none.
        first: number of the first epoch.
        every: epochs from one numbered checkpoint to the next.
        keep: the newest so many numbered ones are kept.
    """

    best: str = "BEST"
    last: str = "LAST"
    epoch: str | None = None
    first: int = 1
    every: int = 1
    keep: int = 3

    def of_epoch(self, done: int) -> str | None:
        """Name of the numbered checkpoint after so many epochs; None where there is none."""
        if self.epoch is None or done % self.every:
            return None
        return self.epoch.format(done - 1 + self.first)

    @property
    def epoch_files(self) -> str | None:
        """Pattern of the files of numbered checkpoints."""
        if self.epoch is None:
            return None
        before, after = re.split(r"\{[^}]*\}", self.epoch)
        return f"{glob.escape(before)}[0-9]*{glob.escape(after)}.safetensors"


def check_unused(out_dir: Path, overwrite: bool, names: SnapshotNames | None = None) -> None:
    """A folder that holds a run is not used again by accident.

    Raises:
        ConfigError: it does, and `overwrite` is not set.
    """
    last = Path(out_dir) / f"{(names or SnapshotNames()).last}.safetensors"
    if last.exists() and not overwrite:
        raise ConfigError(
            f"{last} exists: add --resume to go on, --overwrite to start again, or "
            "choose another name"
        )


def remove_run(out_dir: Path, names: SnapshotNames) -> None:
    """Remove what an earlier run left in a folder, so that nothing of it passes for the new one."""
    patterns = [
        f"{names.best}.safetensors",
        f"{names.last}.safetensors",
        "result.json",
        "report.html",
        "visualizations/*.png",
        "non_finite_batch*.safetensors",
    ]
    if names.epoch_files is not None:
        patterns.append(names.epoch_files)
    for pattern in patterns:
        for path in Path(out_dir).glob(pattern):
            path.unlink()
