"""What `make experiments` leaves in results/: results, comparisons, and one summary of them all.

A published result is the run's `result.json` without the decisions of every epoch, and with
`last_epoch`: what the run would have given without choosing the best epoch on held-out images.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.experiments.measured_report import legend, measured_tables
from common.experiments.measuring import measured_rows
from common.experiments.plan import EXPERIMENTS, LAST_EPOCH, PlannedRun
from common.experiments.plots import plot_experiments
from common.experiments.rows import Experiment
from common.files import write_bytes, write_json
from common.reading import read_json
from common.results.comparison import write_comparison
from common.results.files import (
    FILE_NAME,
    Result,
    find_results,
    group_results,
    load_result,
    mean_of_live,
)
from common.results.table import NONE, Column, Table, markdown_table
from common.runs.planned_runs import finished

SUMMARY, CHART = "summary.md", "summary.png"
BULK = ("decisions", "train_decisions")  # of every epoch
COLUMNS = (
    Column(("train %", "kept"), "accuracy.train.overall"),
    Column(("val %", "kept"), "accuracy.val.overall"),
    Column(("gen. error", "kept"), "generalization_error"),
    Column(("finetuned or used", "kept"), "decisions.mean_live", decimals=2),
    Column(("train %", "last"), "last_epoch.accuracy.train.overall"),
    Column(("val %", "last"), "last_epoch.accuracy.val.overall"),
    Column(("gen. error", "last"), "last_epoch.generalization_error"),
    Column(("finetuned or used", "last"), "last_epoch.decisions.mean_live", decimals=2),
)
LEGEND = (
    "kept = the epoch that was best on held-out training images, evaluated again on its training "
    "questions and on the validation questions; last = after the last epoch: its running train "
    "accuracy, and the same validation questions. gen. error = train − validation, in points. "
    "finetuned or used = mean share of live decisions that chose the finetuned part (SpotTune*) "
    "or ran the block (BlockDrop), on validation questions (kept) or held-out ones (last). Several "
    "seeds: mean ± sample standard deviation."
)


@dataclass(frozen=True)
class Summary:
    """Tables with what their columns mean."""

    tables: list[Table]
    legend: str


def publish(runs: Iterable[PlannedRun], out: Path) -> list[Summary]:
    """Copy the results of finished runs, compare each experiment, and write the summary.

    Experiments of which no run is finished keep what was published of them before.

    Args:
        runs: of one or several experiments, whole ones.
        out: `results/experiments`.

    Returns:
        The summary of all experiments that are not measured, and that of each that is.
    """
    by_experiment: dict[str, list[PlannedRun]] = {}
    for run in runs:
        if finished(run) is not None and (run.folder / LAST_EPOCH).is_file():
            by_experiment.setdefault(run.experiment.name, []).append(run)
    for name, done in by_experiment.items():
        shutil.rmtree(out / name, ignore_errors=True)
        for row_name, seed, result in all_published(done):
            write_json(out / name / row_name / f"seed_{seed}" / FILE_NAME, result, indent=1)
    found = {row: results for row in EXPERIMENTS.values() if (results := results_of(row, out))}
    for row in found:
        if row.name in by_experiment or row.control_of in by_experiment:
            write_comparison(found[row], out / row.name)
    measured = [write_measured(row, results, out) for row, results in found.items() if row.measured]
    found = {row: results for row, results in found.items() if not row.measured}
    if found:
        plot_experiments({row.title: results for row, results in found.items()}, out / CHART)
    tables = {row.name: table(row, results) for row, results in found.items()}
    for name, one in tables.items():
        write_summary([one], out / name / SUMMARY)
    if tables:
        write_summary(tables.values(), out / SUMMARY)
    return [Summary(list(tables.values()), LEGEND)] * bool(tables) + measured


def all_published(runs: Sequence[PlannedRun]) -> Iterator[tuple[str, int, Result]]:
    """Row, seed and published result of every run of an experiment, and of what was made of it."""
    of_seed: dict[int, list[PlannedRun]] = {}
    for run in runs:
        of_seed.setdefault(run.seed, []).append(run)
    for seed, some in of_seed.items():
        measured = measured_rows(some) if runs[0].experiment.measured else {}
        for run in some:
            yield run.row, seed, published(run) | measured.pop(run.row, {})
        yield from ((name, seed, result) for name, result in measured.items())


def write_measured(experiment: Experiment, results: Sequence[Result], out: Path) -> Summary:
    """The tables of a measured experiment, which stand for themselves."""
    summary = Summary(measured_tables(experiment, out / experiment.name), legend(results))
    write_summary(summary.tables, out / experiment.name / SUMMARY, summary.legend)
    return summary


def write_summary(tables: Iterable[Table], path: Path, legend: str = LEGEND) -> None:
    """Write tables and their legend as Markdown."""
    text = "\n\n".join([*map(markdown_table, tables), legend.replace("*", "\\*")])
    write_bytes(path, f"{text}\n".encode())


def published(run: PlannedRun) -> Result:
    """What is kept of a run's result."""
    result = {
        key: value for key, value in load_result(run.folder / FILE_NAME).items() if key != "path"
    }
    last = read_json(run.folder / LAST_EPOCH)
    result["last_epoch"] = last | {"decisions": last_decisions(result)}
    result["epochs"] = [
        {key: value for key, value in epoch.items() if key not in BULK}
        for epoch in result["epochs"]
    ]
    return result


def last_decisions(result: Result) -> dict[str, Any] | None:
    """Mean share of live decisions of the last epoch, on held-out questions."""
    if not result.get("decisions"):
        return None
    shares = result["epochs"][-1]["decisions"]["share"]
    return {"mean_live": mean_of_live(shares, result["decisions"]["live"])}


def results_of(experiment: Experiment, out: Path) -> list[Result]:
    """Published results of an experiment; a control has the learned policies beside it."""
    folders = [out / experiment.name]
    if experiment.control_of and folders[0].is_dir():
        folders += [out / experiment.control_of / row.name for row in experiment.rows]
    return find_results([folder for folder in folders if folder.is_dir()])


def table(experiment: Experiment, results: Sequence[Result]) -> Table:
    """One row for each strategy, both epochs side by side."""
    (section,) = group_results(results)
    rows = [
        (
            group.label,
            str(len(group.results)),
            *(column.format(group.figure(column.dotted)) for column in COLUMNS),
        )
        for group in section.groups
    ]
    counts = {result["accuracy"]["val"]["count"] for result in results}
    title = f"{experiment.title} ({max(counts):,} validation questions)"
    baselines = [
        (
            name,
            NONE,
            *(
                column.format(section.baseline(key, "overall"))
                if column.dotted.endswith("accuracy.val.overall")
                else NONE
                for column in COLUMNS
            ),
        )
        for key, name in (("majority", "majority answer"), ("question_only", "question only"))
    ]
    return Table(
        title,
        (("strategy", ""), ("runs", "n"), *(c.heading for c in COLUMNS)),
        tuple(rows),
        tuple(baselines),
    )
