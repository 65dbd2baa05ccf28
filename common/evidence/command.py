"""`make evidence`: does a policy earn more than chance, on every backbone, from one command.

    python -m common.evidence [--only STUDY,…] [--quick] [--jobs N] [--list]

Every run goes through its backbone's own run script. A result that is among the kept ones already,
made with the same flags, is not made again; a run that was stopped goes on; one that fails is named
at the end while the others are done all the same. Then tables, differences and the figure are made
from what is there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError
from common.evidence.plan import EvidenceRun, Pruned, embedded, plan, studies
from common.evidence.report import publish
from common.files import repository_root, write_json
from common.results.files import FILE_NAME, Result, load_result, mean_of_live
from common.results.table import text_table
from common.runs.planned_runs import Folder, PlannedRuns, tidy, validated
from common.training.launch import Launcher
from common.voice import spoken

FLAGS = "flags"  # of the run script, in a kept result
BULK = ("decisions", "train_decisions", "policy")  # of every epoch
EXTREME = 0.001  # a random policy decides neither always nor never


class Evidence(PlannedRuns[EvidenceRun]):
    """Does the runs of studies, and keeps their results where they are published."""

    def __init__(
        self, runs: Sequence[EvidenceRun], gpu: str, out: Path, overwrite: bool = False
    ) -> None:
        super().__init__(runs, gpu, overwrite)
        self.out = out
        self._done = {run: threading.Event() for run in self.runs}

    def after_run(self, run: EvidenceRun) -> None:
        self._done[run].set()

    def finish(self, run: EvidenceRun, launcher: Launcher) -> None:
        """Bring a run to its end, from wherever it is, and keep its result."""
        flags = run.flags(self._share(run))
        kept = None if self.overwrite else kept_result(run, self.out)
        made = all(run.published(self.out, pruned.name).is_file() for pruned in run.row.pruned)
        if kept is not None and kept[FLAGS] == flags and made:
            self.say(run, f"is there: {figures(kept)}")
            return
        found = Folder.look(run, [] if self.overwrite else flags)
        if not (found.trained and (found.resumable or not run.row.pruned)):
            self.train(run, flags, launcher)
        result = load_result(run.folder / FILE_NAME)
        for pruned in run.row.pruned:
            write_json(
                run.published(self.out, pruned.name),
                to_keep(self._pruned(run, pruned, result, launcher), flags),
                indent=1,
            )
        write_json(run.published(self.out), to_keep(result, flags), indent=1)
        self.say(run, figures(result))
        tidy(run.folder)

    def _pruned(
        self, run: EvidenceRun, pruned: Pruned, result: Result, launcher: Launcher
    ) -> Result:
        """The result of a run's best epoch without some layers."""
        flags = [*run.script.data(run.study.dataset), "--prune", pruned.rule, "--quiet"]
        command = run.script.test(self.gpu, run.name, "BEST", flags)
        launcher.run_silently(command, run.script.home)
        accuracy = validated(run.study.dataset, run.folder / "minival_predict.json")
        return result | {"accuracy": {"val": accuracy}, "epochs": []}

    def _share(self, run: EvidenceRun) -> float | None:
        """Of a random control: mean share of the row beside it over the epochs of its training."""
        if not run.row.share_of:
            return None
        (source,) = (
            other
            for other in self.runs
            if (other.study, other.seed, other.row.name) == (run.study, run.seed, run.row.share_of)
        )
        self._done[source].wait()
        found = kept_result(source, self.out)
        if found is None:
            raise DataError(f"its share is that of {source}, which has no result")
        shares = [epoch["train_share"] for epoch in found["epochs"] if "train_share" in epoch]
        if not shares or None in shares:
            raise DataError(f"its share is that of {source}, whose result does not say it")
        return min(max(statistics.fmean(shares), EXTREME), 1 - EXTREME)


def kept_result(run: EvidenceRun, out: Path) -> Result | None:
    """What is kept of a run; None where there is nothing yet."""
    path = run.published(out)
    return load_result(path) if path.is_file() else None


def to_keep(result: Result, flags: list[str]) -> dict[str, Any]:
    """What is kept of a result: without the decisions of every epoch, but with their share."""
    live = (result.get("decisions") or {}).get("live")
    kept = {key: value for key, value in result.items() if key != "path"} | {FLAGS: flags}
    kept["epochs"] = [
        {key: value for key, value in epoch.items() if key not in BULK}
        | {"train_share": share_of(epoch.get("train_decisions"), live)}
        for epoch in result["epochs"]
    ]
    return kept


def share_of(decided: dict[str, Any] | None, live: Sequence[bool] | None) -> float | None:
    """Mean share of live decisions that are 1."""
    if not decided or not live:
        return None
    return mean_of_live(decided["share"], live)


def figures(result: Result) -> str:
    """Accuracies in a few words."""
    shown = {k: v for k, v in result["accuracy"]["val"].items() if k != "count" and v is not None}
    kinds = {k: v for k, v in shown.items() if k not in ("overall", "yes/no", "number", "other")}
    more = ", ".join(f"{kind} {value:.1f}" for kind, value in kinds.items())
    return f"validation {shown['overall']:.1f}{f' ({more})' if more else ''}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m common.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--only", metavar="STUDY,…", help=f"some of {', '.join(studies())} (default: all)"
    )
    made.add_argument(
        "--quick", action="store_true", help="a tiny version, to see that all of it works (3 min)"
    )
    made.add_argument("--list", action="store_true", help="only list the runs")
    made.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    made.add_argument(
        "--gpu", default=os.environ.get("GPU", "cpu"), help="number or cpu (default cpu)"
    )
    made.add_argument("--overwrite", action="store_true", help="start all chosen runs again")
    made.add_argument(
        "--out",
        type=Path,
        default=None,
        help="default results/evidence/, with --quick results/quick/evidence/",
    )
    return made


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: give a number of at least 1")
    runs = plan(options.only.split(",") if options.only else None, options.quick)
    out = options.out or repository_root() / (
        "results/quick/evidence" if options.quick else "results/evidence"
    )
    if options.list:
        for run in runs:
            print(f"{run}: {'is there' if run.published(out).is_file() else 'to do'}")
        return 0
    for run in {run.study.dataset: run for run in runs}.values():
        embedded(run)
    runner = Evidence(runs, options.gpu, out, options.overwrite)
    runner.run_all(options.jobs)
    for table in publish(out, {run.study.name: run.study for run in runs}):
        print(f"\n{text_table(table)}")
    print(f"\nresults: {out}")
    for failure in runner.failures:
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(runner.failures))
