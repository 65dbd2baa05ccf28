"""`make experiments`: strategies at several sizes of data and several seeds, from one command.

    python -m common.experiments [--only NAME,…] [--quick] [--jobs N] [--list]

Every run goes through the backbone's own run script into `snap/vqa/experiments/`. The command can
be given again at any time: a run whose result is there, with the same settings, is kept, one that
was stopped goes on, and a failed one is named at the end while the others are done all the same.
The models of some experiments are compared in one process after their training.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import AdaptiveError, ConfigError
from common.experiments.measuring import keep_measured, measure, measured_rows
from common.experiments.plan import EXPERIMENTS, LAST_EPOCH, PlannedRun, flags_of, plan, run_script
from common.experiments.report import publish
from common.files import exclusive, repository_root, write_json
from common.results.files import FILE_NAME, Result, load_result
from common.results.table import text_table
from common.runs.planned_runs import Folder, PlannedRuns, finished, tidy, validated
from common.training.launch import Launcher
from common.voice import spoken


class Experiments(PlannedRuns[PlannedRun]):
    """Does the runs of experiments, one experiment after the other."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        gpu: str,
        overwrite: bool = False,
        keep_checkpoints: bool = False,
    ) -> None:
        super().__init__(runs, gpu, overwrite)
        self.keep_checkpoints = keep_checkpoints

    def part_of(self, run: PlannedRun) -> str:
        return run.experiment.name

    def after_part(self, runs: Sequence[PlannedRun]) -> None:
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

    def finish(self, run: PlannedRun, launcher: Launcher) -> None:
        flags, evaluated = flags_of(run), run.folder / LAST_EPOCH
        found = Folder.look(run, [] if self.overwrite else flags)
        if found.trained and evaluated.exists():
            self.say(run, f"is there: {figures(load_result(run.folder / FILE_NAME))}")
            return
        begin = time.perf_counter()
        if not (found.trained and found.resumable):
            evaluated.unlink(missing_ok=True)
            self.train(run, flags, launcher)
        result = load_result(run.folder)
        dataset = ["--dataset", result["dataset"], "--quiet"]
        launcher.run_silently(run.script.test(self.gpu, run.name, "LAST", dataset), run.script.home)
        last = last_epoch(result, run.folder / "minival_predict.json")
        write_json(evaluated, last, indent=1)
        seconds = time.perf_counter() - begin
        self.say(run, f"{figures(result)}; last epoch: {figures(last)} ({seconds:.0f} s)")
        if not self.keep_checkpoints:
            tidy(run.folder, keep=("BEST",) if run.experiment.measured else ())


def last_epoch(result: Result, predictions: Path) -> dict[str, Any]:
    """Accuracy after the last epoch, in the form of result.json.

    The training part is that epoch's running accuracy (before each question's own update); the
    validation part is of the predictions that the last state made.
    """
    train, val = result["epochs"][-1]["train_accuracy"], validated(result["dataset"], predictions)
    return {
        "accuracy": {"train": {"overall": train}, "val": val},
        "generalization_error": train - val["overall"],
    }


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
    runner = Experiments(runs, options.gpu, options.overwrite, options.keep_checkpoints)
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
