"""The tables of a measured experiment: all rows, and those that were given one budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.experiments.rows import Experiment, PrunedRow, Row
from common.results.files import Result, find_results, lookup, summarise
from common.results.table import NONE, Column, Table

ACCURACY = Column(("val %", ""), "accuracy.val.overall")
KEPT = Column(("share of", "blocks kept"), "measured.kept_share", decimals=2)
FINETUNED = Column(("share", "finetuned"), "measured.finetuned_share", decimals=2)
COLUMNS = (
    ACCURACY,
    KEPT,
    Column(("M", "param."), "measured.parameters", 1e-6, 2, spread=False),
    Column(("GFLOP per", "sample"), "flops.per_sample", 1e-9, 4),
    Column(("GFLOP", "ratio"), "measured.flops_ratio", decimals=2),
    Column(("ms per", "sample"), "measured.sample_s", 1e3, 2, spread=False),
    Column(("time", "ratio"), "measured.time_ratio", decimals=2),
    Column(("zero", "weights %"), "attention_zero_share", 1e2),
)
LEGEND = (
    "Every row has the same optimiser, schedule, data and epochs; mean ± sample standard deviation "
    "over the seeds. val = of the epoch that was best on held-out training images, chosen before "
    "any layer was taken out. share of blocks kept = of the whole encoder's layers, those that run "
    "for a validation question, in the mean; share finetuned = live decisions for the finetuned "
    "layer. param. = all parameters that the model needs to answer, frozen copies and policy "
    "network among them. GFLOP = counted by torch for {samples} validation questions in evaluation "
    "mode, decisions as they are, 32 in a batch with its padding. ms and time ratio = CPU time for "
    "the same questions, all models of a seed in turn in one process with one thread after "
    "training; ratios are to the first row. zero weights = attention weights that are exactly 0, "
    "padding left out."
)


def measured_tables(experiment: Experiment, folder: Path) -> list[Table]:
    """The table of all rows, and the one by budgets, from the results published in a folder."""
    found = {row.name: _results(folder / row.name) for row in experiment.shown_rows}
    rows = [row for row in experiment.shown_rows if found[row.name]]
    if not rows:
        return []
    counts = {lookup(r, "accuracy.val.count") for row in rows for r in found[row.name]}
    title = f"{experiment.title} ({max(counts):,} validation questions)"

    def cells(row: Row | PrunedRow, columns: Sequence[Column]) -> list[str]:
        results = found[row.name]
        values = (
            column.format(summarise(lookup(result, column.dotted) for result in results))
            for column in columns
        )
        return [row.shown, str(len(results)), *values]

    tables = [_table(title, rows, COLUMNS, cells)]
    budgets = sorted({row.budget for row in rows if row.budget is not None}, reverse=True)
    by_budget = [row for budget in budgets for row in rows if row.budget == budget]
    if by_budget:
        first = rows[0]
        columns = (ACCURACY, KEPT, FINETUNED, *COLUMNS[2:-1])
        title = f"{experiment.title}: under one budget"
        tables.append(_table(title, [first, *by_budget], columns, cells))
    return tables


def legend(results: Sequence[Result]) -> str:
    """What the columns mean."""
    samples = max((lookup(result, "flops.samples") or 0 for result in results), default=0)
    return LEGEND.format(samples=samples)


def _results(folder: Path) -> list[Result]:
    return find_results([folder]) if folder.is_dir() else []


def _table(
    title: str,
    rows: Sequence[Row | PrunedRow],
    columns: Sequence[Column],
    cells: Callable[[Row | PrunedRow, Sequence[Column]], list[str]],
) -> Table:
    """Without columns in which no row has a figure."""
    made = [cells(row, columns) for row in rows]
    shown = [place for place in range(len(columns)) if any(row[2 + place] != NONE for row in made)]
    headings = (("row", ""), ("runs", "n"), *(columns[place].heading for place in shown))
    return Table(
        title, headings, tuple((*row[:2], *(row[2 + place] for place in shown)) for row in made), ()
    )
