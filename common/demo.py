"""`make demo`: finetune small pretrained models with five strategies and compare them.

Most questions give known words a new meaning, some keep the old one; see the data set
`easy_vqa_dialect`. A policy that chooses between frozen and finetuned parts is trained in both
ways, `--policy-training published` and `started`.

    python -m common.demo [--quick] [--backbones lxmert,vilbert,…] [--strategies Frozen,standard,…]

Every run goes through its backbone's own run script, on the CPU two at a time; then the runs are
compared: results/, visualizations/, and a table as the last thing on the screen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common.adapt.strategies import find_strategy
from common.data.datasets import resolve_dataset
from common.errors import ConfigError
from common.experiments.plan import STRATEGIES
from common.files import repository_root
from common.projects import projects, title_of
from common.results.comparison import copy_decision_maps, write_comparison
from common.results.files import find_results, load_result
from common.results.table import format_table
from common.runs.backbones import find_backbone
from common.runs.run_script import RunScript
from common.training.launch import Launcher
from common.training.options import POLICY_TRAININGS
from common.voice import spoken

DATASET = "easy_vqa_dialect"
FULL = ("--questions", "1000", "--epochs", "8")
QUICK = ("--questions", "1000", "--epochs", "2", "--tiny")
SEED = ("--seed", "101")  # so that all of them draw the same --questions (not with --tiny)
THREADS = ("--threads", "1", "--quiet")


@dataclass(frozen=True)
class DemoRun:
    """One strategy on one backbone.

    Attributes:
        training: of its policy, see `--policy-training`; empty where there is one way only.
    """

    backbone: str
    strategy: str
    training: str = ""

    @property
    def script(self) -> RunScript:
        return find_backbone(self.backbone).script

    @property
    def name(self) -> str:
        return "_".join(filter(None, ("demo", self.strategy, self.training)))

    @property
    def flags(self) -> list[str]:
        """Of the run script, beside those that all runs are given."""
        training = ["--policy-training", self.training] if self.training else []
        return [*self.script.data(DATASET), "--strategy", self.strategy, *training]

    @property
    def folder(self) -> Path:
        """Where the run writes to."""
        return self.script.run_folder(self.name)

    def __str__(self) -> str:
        return ", ".join(filter(None, (title_of(self.backbone), self.strategy, self.training)))


def demo_runs(strategies: Sequence[str], backbones: Sequence[str]) -> list[DemoRun]:
    """The runs of some strategies, each with every way in which its policy can be trained."""
    return [
        DemoRun(backbone, strategy, training)
        for strategy in strategies
        for training in (POLICY_TRAININGS if find_strategy(strategy)[0].other == "twin" else ("",))
        for backbone in backbones
    ]


class Demo:
    """Does runs, some at a time, saying how far it is."""

    def __init__(self, runs: Sequence[DemoRun], gpu: str, flags: Sequence[str], jobs: int) -> None:
        """Note what is to be done; with several `jobs` a run shows only how it ended."""
        self.runs, self.gpu, self.flags, self.jobs = list(runs), gpu, tuple(flags), jobs
        self._done = 0
        self._lock = threading.Lock()

    def run_all(self) -> None:
        """Do all runs.

        Raises:
            ConfigError: one failed; the others that were running have been finished.
            StoppedError: stopped by a signal.
        """
        with Launcher() as launcher:
            if self.jobs == 1:
                for run in self.runs:
                    self._run(run, launcher)
                return
            with ThreadPoolExecutor(self.jobs) as pool:
                pending = [pool.submit(self._run, run, launcher) for run in self.runs]
                try:
                    for future in pending:
                        future.result()
                finally:
                    for future in pending:
                        future.cancel()
            launcher.check()

    def _run(self, run: DemoRun, launcher: Launcher) -> None:
        script, begin = run.script, time.perf_counter()
        shared = self.jobs > 1
        command = script.train(
            self.gpu,
            run.name,
            [*run.flags, "--overwrite", *SEED, *self.flags, *(THREADS if shared else ())],
        )
        print(
            f"{'' if shared else chr(10)}== {run}: in {script.folder}/: {' '.join(command)}",
            flush=True,
        )
        try:
            if shared:
                launcher.run_silently(command, script.home)
            elif status := launcher.run(command, script.home):
                raise ConfigError(f"exit status {status}; its messages are above")
        except ConfigError as error:
            raise ConfigError(
                f"{run}: the run {run.name} failed: {error}\nits log is in {run.folder}"
            ) from None
        accuracy = load_result(run.folder)["accuracy"]
        with self._lock:
            self._done += 1
            print(
                f"   {run}: train {accuracy['train']['overall']:.1f}, validation "
                f"{accuracy['val']['overall']:.1f} ({time.perf_counter() - begin:.0f} s; run "
                f"{self._done} of {len(self.runs)})",
                flush=True,
            )

    def remarks(self) -> list[str]:
        """What a reader of the table must know of how its times were measured."""
        if self.jobs == 1:
            return []
        return [
            f"The runs were made {self.jobs} at a time with one thread each, so that their "
            "times per step are those of a busy machine: compare them with each other only."
        ]


def run_demo(demo: Demo, out: Path, maps: Path) -> None:
    """All runs, then tables, plots and report."""
    start = time.perf_counter()
    resolve_dataset(DATASET)  # built once, before several runs ask for it
    demo.run_all()
    results = find_results([run.folder for run in demo.runs])
    shutil.rmtree(out / "runs", ignore_errors=True)
    write_comparison(results, out, remarks=demo.remarks())
    for run in demo.runs:
        target = out / "runs" / run.backbone / run.name
        target.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "report.html"):
            if (run.folder / name).exists():
                shutil.copy(run.folder / name, target / name)
    pictures = copy_decision_maps(results, maps)
    root = repository_root()
    shown = [
        path.relative_to(root) if path.is_relative_to(root) else path
        for path in (out / "comparison.html", out / "comparison.md", maps)
    ]
    print(f"\nreport: {shown[0]}, table: {shown[1]}, {len(pictures)} decision maps: {shown[2]}/")
    print(f"made in {(time.perf_counter() - start) / 60:.1f} minutes\n")
    print(format_table(results, demo.remarks()))


def default_jobs(gpu: str) -> int:
    """Two runs at a time where there are two cores for them; on a GPU one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 2 if gpu == "cpu" and (cores or 1) > 1 else 1


def demo_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="under five minutes instead of ten: fewer images and epochs",
    )
    add(
        "--backbones",
        default=",".join(projects()),
        help=f"with commas between (default {','.join(projects())})",
    )
    add(
        "--strategies",
        default=",".join(STRATEGIES),
        help=f"with commas between (default {','.join(STRATEGIES)})",
    )
    add("--gpu", default=os.environ.get("GPU", "cpu"), help="number or cpu")
    add(
        "--jobs",
        type=int,
        default=None,
        help="runs at a time (default: two on the CPU, if it has two cores, else one)",
    )
    add("--out", type=Path, default=None, help="default results/demo/ or results/quick/")
    add(
        "--visualizations",
        type=Path,
        default=None,
        help="folder of the decision maps (default visualizations/, with --quick inside the "
        "results)",
    )
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = demo_parser().parse_args(arguments)
    root = repository_root()
    out = options.out or root / "results" / ("quick" if options.quick else "demo")
    maps = options.visualizations or (
        out / "visualizations" if options.quick else root / "visualizations"
    )
    jobs = default_jobs(options.gpu) if options.jobs is None else options.jobs
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: give a number of at least 1")
    strategies = [find_strategy(name)[0].name for name in options.strategies.split(",")]
    backbones = options.backbones.split(",")
    if wrong := [name for name in backbones if name not in projects()]:
        raise ConfigError(f"--backbones {wrong[0]}: valid are {', '.join(projects())}")
    runs = demo_runs(strategies, backbones)
    run_demo(Demo(runs, options.gpu, QUICK if options.quick else FULL, jobs), out, maps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
