"""`make experiments`: strategies at several sizes of data and several seeds, from one command.

    python -m common.experiments [--only NAME,…] [--quick] [--jobs N] [--list]

Every run goes through the backbone's own run script into `snap/vqa/experiments/`. The command can
be given again at any time: a run whose result is there, with the same settings, is kept, one that
was stopped goes on, and a failed one is named at the end while the others are done all the same.
The models of some experiments are compared in one process after their training.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common.data.datasets import load_split, resolve_dataset
from common.data.vqa_metric import score
from common.errors import AdaptiveError, ConfigError
from common.experiments.measuring import keep_measured, measure, measured_rows
from common.experiments.plan import (
    EXPERIMENTS,
    LAST_EPOCH,
    SETTINGS,
    Folder,
    PlannedRun,
    finished,
    flags_of,
    plan,
    run_script,
)
from common.experiments.report import publish
from common.files import exclusive, repository_root, write_json
from common.reading import read_json
from common.results.files import FILE_NAME, Result, load_result
from common.results.table import text_table
from common.training.launch import Launcher, Pace
from common.voice import spoken


class Runner:
    """Does planned runs, saying how far it is."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        gpu: str,
        overwrite: bool = False,
        keep_checkpoints: bool = False,
    ) -> None:
        self.runs, self.gpu = list(runs), gpu
        self.overwrite, self.keep_checkpoints = overwrite, keep_checkpoints
        self.results: list[Result] = []
        self.failures: list[str] = []
        self._places = {run: place for place, run in enumerate(self.runs, 1)}
        self._left = sum(run.cost for run in self.runs)
        self._pace = Pace()
        self._lock = threading.Lock()

    def run_all(self, jobs: int) -> None:
        """Do all runs, `jobs` at a time; experiments one after the other.

        Raises:
            StoppedError: stopped by a signal.
        """
        with Launcher() as launcher, ThreadPoolExecutor(jobs) as pool:
            for _, runs in itertools.groupby(self.runs, key=lambda run: run.experiment.name):
                runs_of = list(runs)
                list(pool.map(lambda run: self._run(run, launcher, jobs), runs_of))
                launcher.check()
                self._measure(runs_of)

    def _run(self, run: PlannedRun, launcher: Launcher, jobs: int) -> None:
        if launcher.stopped:
            return
        try:
            # Another command that does the same runs is waited for; then the result is there.
            with exclusive(run.folder.with_name(f".{run.folder.name}.lock")):
                result = self._result(run, launcher, jobs)
        except AdaptiveError as error:
            if not launcher.stopped:
                self._say(run, f"failed: {error}")
                self.failures.append(f"{run}: {error}")
            return
        finally:
            with self._lock:
                self._left -= run.cost
        self.results.append(result)

    def _measure(self, runs: Sequence[PlannedRun]) -> None:
        """Compare the models of every seed whose runs are all there, if the experiment wants it."""
        if not runs[0].experiment.measured:
            return
        for seed in sorted({run.seed for run in runs}):
            of_seed = [run for run in runs if run.seed == seed]
            name = f"{runs[0].experiment.name}, seed {seed}"
            if any(finished(run) is None for run in of_seed):
                continue  # named among the failures
            if measured_rows(of_seed):
                print(f"{name}: is measured", flush=True)
                continue
            print(f"{name}: its models are compared, a few minutes", flush=True)
            try:
                keep_measured(of_seed, measure(of_seed, self.gpu))
            except AdaptiveError as error:
                self.failures.append(f"{name}: {error}")

    def _result(self, run: PlannedRun, launcher: Launcher, jobs: int) -> Result:
        """Bring a run to its end, from wherever it is."""
        flags = flags_of(run)
        found = Folder.look(run, [] if self.overwrite else flags)
        if found.evaluated:
            kept = load_result(run.folder / FILE_NAME)
            self._say(run, f"is there: {figures(kept)}")
            return kept
        begin = time.perf_counter()
        left = self._pace.minutes(self._left / jobs)
        if not (found.trained and found.resumable):
            how = "--resume" if found.resumable and not found.trained else "--overwrite"
            self._say(
                run, f"{'goes on' if how == '--resume' else 'starts'}, about {left:.0f} min left"
            )
            (run.folder / LAST_EPOCH).unlink(missing_ok=True)
            write_json(run.folder / SETTINGS, flags)
            launcher.run_silently(
                run_script().train(self.gpu, run.name, [*flags, how]), run_script().home
            )
        result = load_result(run.folder)
        dataset = ["--dataset", result["dataset"], "--quiet"]
        launcher.run_silently(
            run_script().test(self.gpu, run.name, "LAST", dataset), run_script().home
        )
        last = last_epoch(result, run.folder / "minival_predict.json")
        write_json(run.folder / LAST_EPOCH, last, indent=1)
        seconds = time.perf_counter() - begin
        if not found.begun:
            self._pace.add(run.cost, seconds)
        self._say(run, f"{figures(result)}; last epoch: {figures(last)} ({seconds:.0f} s)")
        if not self.keep_checkpoints:
            tidy(run.folder, keep=("BEST",) if run.experiment.measured else ())
        return result

    def _say(self, run: PlannedRun, text: str) -> None:
        print(f"run {self._places[run]} of {len(self.runs)}: {run}: {text}", flush=True)


def last_epoch(result: Result, predictions: Path) -> dict[str, Any]:
    """Accuracy after the last epoch, in the form of result.json.

    The training part is that epoch's running accuracy (before each question's own update); the
    validation part is of the predictions that the last state made.
    """
    examples = load_split(resolve_dataset(result["dataset"]), "minival")
    answers = {row["question_id"]: row["answer"] for row in read_json(predictions)}
    train, val = result["epochs"][-1]["train_accuracy"], score(answers, examples)
    return {
        "accuracy": {"train": {"overall": train}, "val": val | {"count": len(examples)}},
        "generalization_error": train - val["overall"],
    }


def tidy(folder: Path, keep: Sequence[str] = ()) -> None:
    """Remove what a finished run needs no more: checkpoints, predictions, the copy of the code.

    Args:
        folder: of the run.
        keep: names of checkpoints that stay.
    """
    for path in (*folder.glob("*.safetensors"), folder / "minival_predict.json"):
        if path.stem not in keep:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "src", ignore_errors=True)


def figures(result: Mapping[str, Any]) -> str:
    """Accuracies and generalization error in a few words."""
    train, val = (result["accuracy"][part]["overall"] for part in ("train", "val"))
    return (
        f"train {train:.1f}, validation {val:.1f}, generalization error "
        f"{result['generalization_error']:.1f}"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m common.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--only",
        default=",".join(EXPERIMENTS),
        metavar="NAME,…",
        help=f"some of {', '.join(EXPERIMENTS)} (default: all)",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="a tiny version of every run, to see that all of it works",
    )
    made.add_argument("--list", action="store_true", help="only list the runs")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    made.add_argument(
        "--gpu", default=os.environ.get("GPU", "cpu"), help="number or cpu (default cpu)"
    )
    made.add_argument("--overwrite", action="store_true", help="start all chosen runs again")
    made.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="leave BEST and LAST in the folders of finished runs",
    )
    made.add_argument(
        "--out",
        type=Path,
        default=None,
        help="default results/experiments/, with --quick results/quick/experiments/",
    )
    return made


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: give a number of at least 1")
    runs = plan(options.only.split(","), options.quick)
    if options.list:
        print("\n".join(f"{run}: {run.folder.relative_to(repository_root())}" for run in runs))
        return 0
    runner = Runner(runs, options.gpu, options.overwrite, options.keep_checkpoints)
    runner.run_all(options.jobs)
    out = options.out or repository_root() / (
        "results/quick/experiments" if options.quick else "results/experiments"
    )
    with exclusive(run_script().run_folder(runs[0].root) / ".publish.lock"):
        summaries = publish(runs, out)
    for summary in summaries:
        tables = "\n\n".join(map(text_table, summary.tables))
        print(f"\n{tables}\n\n{textwrap.fill(summary.legend, 100)}")
    if summaries:
        print(f"\nresults: {out}")
    for failure in runner.failures:
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(runner.failures))
