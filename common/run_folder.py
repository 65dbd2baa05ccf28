"""The output folder of a run: the names of its checkpoints, and what an earlier run left there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError


@dataclass(frozen=True)
class SnapshotNames:
    """File names (without ending) of the best, the last and the numbered checkpoints."""

    best: str = "BEST"
    last: str = "LAST"
    epoch: str | None = None
    keep: int = 3


def check_unused(out_dir: Path, overwrite: bool, names: SnapshotNames | None = None) -> None:
    """A folder that holds a run is not used again by accident.

    Raises:
        ConfigError: it does, and `overwrite` is not set.
    """
    last = Path(out_dir) / f"{(names or SnapshotNames()).last}.safetensors"
    if last.exists() and not overwrite:
        raise ConfigError(f"{last} exists: add --resume to go on, --overwrite to start again, or "
                          "choose another name")


def remove_run(out_dir: Path, names: SnapshotNames) -> None:
    """Remove what an earlier run left in a folder, so that nothing of it passes for the new one."""
    patterns = [f"{names.best}.safetensors", f"{names.last}.safetensors", "result.json",
                "report.html", "visualizations/*.png"]
    if names.epoch is not None:
        patterns.append(f"{names.epoch.replace('{:02d}', '[0-9][0-9]')}.safetensors")
    for pattern in patterns:
        for path in Path(out_dir).glob(pattern):
            path.unlink()
