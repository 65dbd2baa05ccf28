"""`--seeds N`: the same training with several seeds, one after the other, and what they show."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.files import write_bytes, write_json
from common.reading import read_json
from common.results.files import FILE_NAME, Result, group_results, load_result
from common.results.table import format_markdown, format_table, group_summary
from common.training.folder_lock import alone
from common.training.launch import Launcher
from common.training.processes import STARTED
from common.training.run_folder import SnapshotNames, check_unused, remove_run

SETTINGS, SUMMARY, TABLE = "settings.json", "seeds.json", "seeds.md"
# What may differ when seeds are added or resumed: it changes no result.
FREE = (
    "gpus",
    "threads",
    "resume",
    "overwrite",
    "save_every",
    "max_steps",
    "eval_batch_size",
    "eval_auto",
    "workers",
    "wandb",
    "no_tensorboard",
    "no_plots",
    "quiet",
    "version",
    "output",
    "seeds",
)


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ in their seed alone.

    Attributes:
        first: seed of the first one; the following ones count on.
        count: of runs.
        folder: of all; each has `seed_<seed>/` in it.
        name: of all.
        resume, overwrite: go on with the runs in the folder, or start again in their place.
        flags: of the command line, as texts.
    """

    first: int
    count: int
    folder: Path
    name: str
    resume: bool
    overwrite: bool
    flags: Mapping[str, str]

    @property
    def settings(self) -> dict[str, str]:
        """The flags that all runs must share."""
        return {key: value for key, value in self.flags.items() if key not in FREE}

    def folders(self) -> dict[int, Path]:
        """The folder of each seed."""
        seeds = range(self.first, self.first + self.count)
        return {seed: self.folder / f"seed_{seed}" for seed in seeds}


def run_seeds(runs: SeedRuns, words: Sequence[str], script: Path) -> int:
    """Train with the seeds into `seed_<seed>/` of the folder.

    Each run is a process of its own, so that its peak memory is its own too. With `resume`,
    finished seeds are kept and the others go on. At the end the table is printed and written with
    `seeds.json`: mean and sample standard deviation of every figure.

    Args:
        runs: which ones.
        words: of the command line.
        script: what trains one seed, with the same command line.

    Raises:
        ConfigError: a folder that is in use, settings other than those of the earlier seeds, or
            a seed whose training failed.
        StoppedError: stopped by a signal.
    """
    if STARTED in os.environ:
        raise ConfigError(
            "--seeds does not work under torchrun: give the seeds one by one with "
            "--seed, or start with the run script, which takes several GPUs (0,1)"
        )
    with alone(runs.folder):
        return _run_seeds(runs, words, script)


def _run_seeds(runs: SeedRuns, words: Sequence[str], script: Path) -> int:
    folders = runs.folders()
    prepare(runs)
    with Launcher() as launcher:
        for place, (seed, folder) in enumerate(folders.items(), 1):
            if runs.resume and (folder / FILE_NAME).exists():
                print(f"seed {seed} ({place} of {len(folders)}): kept, {folder} has a result")
                continue
            print(f"seed {seed} ({place} of {len(folders)}): {folder}", flush=True)
            command = [sys.executable, str(script), *seed_words(runs, words, seed, folder)]
            if status := launcher.run(command, Path.cwd()):
                raise ConfigError(
                    f"training with seed {seed} failed with exit status {status}; "
                    "its message is above. Finished seeds are kept: go on with the "
                    "same command and --resume"
                )
    unfinished = [
        str(seed) for seed, folder in folders.items() if not (folder / FILE_NAME).exists()
    ]
    if unfinished:
        print(
            f"no result yet of seed {', '.join(unfinished)}: go on with --resume and without "
            "--max-steps"
        )
        return 0
    print(summarise_seeds([load_result(folder) for folder in folders.values()], runs.folder))
    return 0


def seed_words(runs: SeedRuns, words: Sequence[str], seed: int, folder: Path) -> list[str]:
    """The command line that trains one seed: the same one with other values at its end."""
    remover = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    remover.add_argument("--seeds")
    remover.add_argument(
        *("--resume"[:length] for length in range(5, 9)), action="store_true", dest="resume"
    )
    kept = remover.parse_known_args(list(words))[1]
    if runs.resume and (folder / f"{SnapshotNames().last}.safetensors").exists():
        kept.append("--resume")
    name = f"{runs.name}/{folder.name}"
    return [*kept, "--seed", str(seed), "--output", str(folder), "--version", name]


def prepare(runs: SeedRuns) -> None:
    """Check or clear the folder, and note the settings that all seeds share.

    Raises:
        ConfigError: it holds runs and neither `resume` nor `overwrite` is set, or `resume` is and
            there is nothing to go on with, or its settings are others.
    """
    path = runs.folder / SETTINGS
    if runs.resume:
        if not path.exists():
            raise ConfigError(f"nothing to resume: {path} does not exist; start without --resume")
        check_settings(read_json(path), runs.settings, path)
        return
    earlier = [runs.folder, *sorted(runs.folder.glob("seed_*"))]
    for folder in earlier:
        check_unused(folder, runs.overwrite)
        if (folder / FILE_NAME).exists() and not runs.overwrite:
            raise ConfigError(
                f"{folder / FILE_NAME} exists: add --resume to go on, --overwrite "
                "to start again, or choose another name"
            )
    for folder in earlier:
        remove_run(folder, SnapshotNames())
    for name in (SUMMARY, TABLE):
        (runs.folder / name).unlink(missing_ok=True)
    write_json(path, runs.settings, indent=1)


def check_settings(before: dict[str, str], now: dict[str, str], path: Path) -> None:
    """Refuse to put seeds together that were trained differently."""
    other = [
        f"{key} {before.get(key)} (now {now.get(key)})"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if other:
        raise ConfigError(
            f"{path}: the earlier seeds were trained with {', '.join(other)}: give "
            "the same flags, --overwrite to start again, or choose another name"
        )


def summarise_seeds(results: Iterable[Result], folder: Path) -> str:
    """Write `seeds.json` and `seeds.md` for runs that differ in their seed; returns the table."""
    results = list(results)
    (section,) = group_results(results)
    (group,) = section.groups
    text = json.dumps(group_summary(group, folder), indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / SUMMARY, text.encode())
    write_bytes(folder / TABLE, format_markdown(results).encode())
    return f"\n{format_table(results)}\nsummary: {folder / SUMMARY}"
