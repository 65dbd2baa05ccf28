"""Doing many planned runs through their run scripts, several at a time, saying how far it is."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from common.data.datasets import load_split, resolve_dataset
from common.data.vqa_metric import score
from common.errors import AdaptiveError, DataError
from common.files import exclusive, write_json
from common.reading import read_json
from common.results.files import FILE_NAME, Result, load_result
from common.runs.run_script import RunScript
from common.training.launch import Launcher, Pace

SETTINGS = "settings.json"  # the flags that a run was started with


class PlannedRun(Protocol):
    """One run of a plan; it is hashable, and says what it is as a string."""

    @property
    def name(self) -> str:
        """NAME of the run script."""
        ...

    @property
    def script(self) -> RunScript:
        """What starts it."""
        ...

    @property
    def folder(self) -> Path:
        """Where it writes to."""
        ...

    @property
    def cost(self) -> float:
        """Expected minutes on one core."""
        ...


Run = TypeVar("Run", bound=PlannedRun)


def finished(run: PlannedRun) -> Result | None:
    """The result of a run, or None where there is none that can be read."""
    try:
        return load_result(run.folder / FILE_NAME)
    except DataError:
        return None


@dataclass(frozen=True)
class Folder:
    """What a run's folder holds.

    Attributes:
        begun: a run with the same flags was started.
        resumable: it has a last state to go on from.
        trained: it was trained to its end.
    """

    begun: bool
    resumable: bool
    trained: bool

    @classmethod
    def look(cls, run: PlannedRun, flags: Sequence[str]) -> Folder:
        """Look into the folder of a run that would be given these flags."""
        settings = run.folder / SETTINGS
        if not settings.is_file() or read_json(settings) != list(flags):
            return cls(False, False, False)
        last = run.folder / "LAST.safetensors"
        return cls(True, last.exists(), finished(run) is not None)


class PlannedRuns(ABC, Generic[Run]):
    """Brings planned runs to their end, one after the other or several at a time.

    A run that fails is noted while the others are done all the same; one that another command does
    at the same time is waited for.

    Attributes:
        failures: what went wrong, a line for each run.
    """

    def __init__(self, runs: Sequence[Run], gpu: str, overwrite: bool) -> None:
        self.runs, self.gpu, self.overwrite = list(runs), gpu, overwrite
        self.failures: list[str] = []
        self._places = {run: place for place, run in enumerate(self.runs, 1)}
        self._left = sum(run.cost for run in self.runs)
        self._pace, self._lock, self._jobs = Pace(), threading.Lock(), 1

    @abstractmethod
    def finish(self, run: Run, launcher: Launcher) -> None:
        """Bring a run to its end, from wherever it is.

        Raises:
            AdaptiveError: it failed, or the launcher was stopped.
        """

    def part_of(self, run: Run) -> Hashable:
        """Runs that follow each other and have this in common are done before the next begin."""
        return None

    def after_part(self, runs: Sequence[Run]) -> None:
        """What is done after the runs of a part."""

    def after_run(self, run: Run) -> None:
        """What is done after a run that was finished or failed."""

    def run_all(self, jobs: int) -> None:
        """Do all runs, `jobs` at a time.

        Raises:
            StoppedError: stopped by a signal.
        """
        self._jobs = jobs
        with Launcher() as launcher, ThreadPoolExecutor(jobs) as pool:
            for _, part in itertools.groupby(self.runs, key=self.part_of):
                runs = list(part)
                list(pool.map(lambda run: self._run(run, launcher), runs))
                launcher.check()
                self.after_part(runs)

    def _run(self, run: Run, launcher: Launcher) -> None:
        try:
            if not launcher.stopped:
                with exclusive(run.folder.with_name(f".{run.folder.name}.lock")):
                    self.finish(run, launcher)
        except AdaptiveError as error:
            if not launcher.stopped:
                self.say(run, f"failed: {error}")
                self.failures.append(f"{run}: {error}")
        finally:
            with self._lock:
                self._left -= run.cost
            self.after_run(run)

    def train(self, run: Run, flags: Sequence[str], launcher: Launcher) -> None:
        """Train a run with these flags, or go on with one that was stopped; see `launcher`."""
        resumable = not self.overwrite and Folder.look(run, flags).resumable
        minutes = self._pace.minutes(self._left / self._jobs)
        self.say(run, f"{'goes on' if resumable else 'starts'}, about {minutes:.0f} min left")
        write_json(run.folder / SETTINGS, list(flags))
        how = "--resume" if resumable else "--overwrite"
        begin = time.perf_counter()
        command = run.script.train(self.gpu, run.name, [*flags, how])
        launcher.run_silently(command, run.script.home)
        if not resumable:
            self._pace.add(run.cost, time.perf_counter() - begin)

    def say(self, run: Run, text: str) -> None:
        """A line about a run, with its place among all."""
        print(f"run {self._places[run]} of {len(self.runs)}: {run}: {text}", flush=True)


def validated(dataset: str, predictions: Path) -> dict[str, Any]:
    """Accuracy of predictions for the validation questions of a data set, with their `count`.

    Args:
        dataset: an embedded one.
        predictions: a file in the form that is submitted.

    Raises:
        DataError: see `common.data.vqa_metric.score`.
    """
    examples = load_split(resolve_dataset(dataset), "minival")
    answers = {row["question_id"]: row["answer"] for row in read_json(predictions)}
    return score(answers, examples) | {"count": len(examples)}


def tidy(folder: Path, keep: Sequence[str] = ()) -> None:
    """Remove what a finished run needs no more: checkpoints, predictions, the copy of the code.

    Args:
        folder: of the run.
        keep: names of checkpoints that stay.
    """
    for path in (*folder.glob("*.safetensors"), *folder.glob("*_predict.json")):
        if path.stem not in keep:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "src", ignore_errors=True)
