"""The table of strategies: one row per strategy, the baselines below, as text or Markdown."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.projects import title_of
from common.results.files import (
    ANSWER_TYPES,
    BASELINES,
    QUESTIONS,
    Result,
    RunGroup,
    Section,
    Statistic,
    comparison_notes,
    group_results,
    lookup,
    summarise,
)

NONE = "–"


@dataclass(frozen=True)
class Column:
    """One column: its two-line heading, its figure, the factor to its unit and its decimals.

    `answer_type` is set where the baselines have a value as well; `spread` says whether the
    deviation over seeds is shown.
    """

    heading: tuple[str, str]
    dotted: str
    factor: float = 1.0
    decimals: int = 1
    answer_type: str | None = None
    spread: bool = True

    def format(self, figure: Statistic | None) -> str:
        """`mean`, or `mean ± sd` over several runs, in the column's unit; a dash for none."""
        if figure is None:
            return NONE
        rounded = round(figure.mean * self.factor, self.decimals) + 0.0  # not -0.0
        mean = f"{rounded:,.{self.decimals}f}"
        if figure.sd is None or not self.spread:
            return mean
        return f"{mean} ± {figure.sd * self.factor:,.{self.decimals}f}"


def _accuracy(answer_type: str) -> Column:
    return Column(("val %", answer_type), f"accuracy.val.{answer_type}", answer_type=answer_type)


COLUMNS = (
    Column(("train %", "overall"), "accuracy.train.overall"),
    _accuracy("overall"),
    _accuracy("yes/no"),
    _accuracy("number"),
    _accuracy("other"),
    Column(("gen. error", "points"), "generalization_error"),
    Column(("trainable", "M param."), "parameters.trainable", 1e-6, 2, spread=False),
    Column(("frozen", "M param."), "parameters.frozen", 1e-6, 2, spread=False),
    Column(("policy", "M param."), "parameters.policy", 1e-6, 2, spread=False),
    Column(("finetuned", "or kept"), "decisions.mean_live", 1.0, 2),
    Column(("GFLOP per", "sample"), "flops.per_sample", 1e-9, 3, spread=False),
    Column(("time per", "step ms"), "time.train_step_s", 1e3, 0, spread=False),
    Column(("peak mem.", "MB"), "memory.peak_rss_bytes", 1e-6, 0, spread=False),
    Column(("peak GPU", "MB"), "memory.peak_cuda_bytes", 1e-6, 0, spread=False),
)
# Shown where a run has them.
OPTIONAL = ("accuracy.val.number", "flops.per_sample", "memory.peak_cuda_bytes")
OF_QUESTIONS = ("accuracy.val.yes/no", "accuracy.val.other")  # always shown where questions are
MOST_KINDS = 4  # with columns of their own, beside those of questions
LEGEND = (
    "gen. error = train − validation accuracy; finetuned or kept = mean share of live decisions "
    "that chose the finetuned part (SpotTune*) or ran the block (BlockDrop, BlockReplace); "
    "several seeds: mean ± sample standard deviation."
)


@dataclass(frozen=True)
class Table:
    """A table of runs: every row has one cell per heading; the first column is a label."""

    title: str
    headings: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    baseline_rows: tuple[tuple[str, ...], ...]


def make_tables(results: Iterable[Result]) -> list[Table]:
    """One table for each size, task and dataset: backbones one below the other."""
    families: dict[tuple[str, str, str], list[Section]] = {}
    for section in group_results(results):
        families.setdefault((section.size, section.task, section.dataset), []).append(section)
    return [_family_table(sections) for sections in families.values()]


def _family_table(sections: Sequence[Section]) -> Table:
    """The runs of all backbones; with several there is a column that names them."""
    several = len(sections) > 1
    asked = any(section.task in ("", QUESTIONS) for section in sections)
    results = [result for section in sections for result in section.results]
    optional = OPTIONAL if asked else (*OPTIONAL, *OF_QUESTIONS)
    columns = [
        column
        for column in all_columns(results)
        if column.dotted not in optional
        or any(lookup(result, column.dotted) is not None for result in results)
    ]
    rows = [
        _row(
            group.label,
            section,
            several,
            str(len(group.results)),
            (column.format(group.figure(column.dotted)) for column in columns),
        )
        for section in sections
        for group in section.groups
    ]
    headings = (
        ("strategy", ""),
        *([("backbone", "")] if several else []),
        ("runs", "n"),
        *(column.heading for column in columns),
    )
    return Table(
        _table_title(sections), headings, tuple(rows), tuple(_baseline_rows(sections, columns))
    )


def all_columns(results: Iterable[Result]) -> tuple[Column, ...]:
    """The columns that some runs may need."""
    return (*COLUMNS[:2], *_kinds(results), *COLUMNS[2:])


def _kinds(results: Iterable[Result]) -> list[Column]:
    """Columns of scores beside those of answer types: kinds of questions, tasks of several."""
    found = {
        kind: None
        for result in results
        for kind in lookup(result, "accuracy.val") or {}
        if kind not in (*ANSWER_TYPES, "count")
    }
    return [_accuracy(kind) for kind in found] if len(found) <= MOST_KINDS else []


def _baseline_rows(
    sections: Sequence[Section], columns: Sequence[Column]
) -> Iterator[tuple[str, ...]]:
    """Baselines; those that are the same for all backbones once."""
    for name, title in BASELINES.items():
        found = [
            (
                section,
                tuple(
                    column.format(section.baseline(name, column.answer_type))
                    if column.answer_type
                    else NONE
                    for column in columns
                ),
            )
            for section in sections
            if any(section.baseline(name, c.answer_type) for c in columns if c.answer_type)
        ]
        if len(found) == len(sections) and len({cells for _, cells in found}) == 1:
            (_, cells), *_ = found
            yield (title, *([NONE] if len(sections) > 1 else []), NONE, *cells)
        else:
            yield from (_row(title, section, True, NONE, cells) for section, cells in found)


def _row(
    label: str, section: Section, several: bool, runs: str, cells: Iterable[str]
) -> tuple[str, ...]:
    return (label, *([title_of(section.backbone)] if several else []), runs, *cells)


def _table_title(sections: Sequence[Section]) -> str:
    first, names = sections[0], [title_of(section.backbone) for section in sections]
    title = (
        first.title
        if len(sections) == 1
        else (
            f"{', '.join(names[:-1])} and {names[-1]}"
            + (f" ({first.size})" if first.size else "")
            + f" on {first.dataset}"
        )
    )
    counts = [
        text
        for name, part in (("train", "train"), ("validation", "val"))
        if (text := _counts(sections, names, name, part))
    ]
    return title + (f": {', '.join(counts)}" if counts else "")


def _counts(sections: Sequence[Section], names: Sequence[str], name: str, part: str) -> str:
    """`4,000 train questions`, or which backbone has how many where they differ."""
    figures = [
        summarise(lookup(result, f"accuracy.{part}.count") for result in section.results)
        for section in sections
    ]
    counts = [f"{figure.mean:,.0f}" if figure else NONE for figure in figures]
    things = sections[0].things
    if set(counts) == {NONE}:
        return ""
    if len(set(counts)) == 1:
        return f"{counts[0]} {name} {things}"
    listed = ", ".join(
        f"{backbone}: {count}" for backbone, count in zip(names, counts, strict=True)
    )
    return f"{name} {things} ({listed})"


def format_table(results: Iterable[Result], remarks: Sequence[str] = ()) -> str:
    """Aligned plain text for a terminal: the tables, the legend, the notes, and some remarks."""
    results = list(results)
    blocks = [text_table(table) for table in make_tables(results)]
    return "\n\n".join([*blocks, _footer(results, remarks, _wrap)]) + "\n"


def text_table(table: Table) -> str:
    """One table as aligned plain text under its title."""
    lines = [tuple(upper for upper, _ in table.headings), tuple(low for _, low in table.headings)]
    cells = [*lines, *table.rows, *table.baseline_rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.headings))]

    def align(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    body = [align(row) for row in table.rows]
    if table.baseline_rows:
        body += [rule, *(align(row) for row in table.baseline_rows)]
    return "\n".join([table.title, rule, *map(align, lines), rule, *body, rule])


def format_markdown(results: Iterable[Result], remarks: Sequence[str] = ()) -> str:
    """The same as Markdown tables."""
    results = list(results)
    blocks = [markdown_table(table) for table in make_tables(results)]
    return "\n\n".join([*blocks, _footer(results, remarks, _escape_markdown, "- ")]) + "\n"


def markdown_table(table: Table) -> str:
    """One table in Markdown under its title."""
    headings = [_escape_markdown(" ".join(filter(None, heading))) for heading in table.headings]
    marks = [":--" if i == 0 else "--:" for i in range(len(headings))]
    rows = [[_escape_markdown(cell) for cell in row] for row in table.rows]
    rows += [[f"*{_escape_markdown(row[0])}*", *row[1:]] for row in table.baseline_rows]
    lines = [f"| {' | '.join(row)} |" for row in (headings, marks, *rows)]
    return "\n".join([f"**{_escape_markdown(table.title)}**", "", *lines])


def _escape_markdown(text: str) -> str:
    for mark in "\\|*_<>`":
        text = text.replace(mark, f"\\{mark}")
    return text


def _wrap(text: str) -> str:
    return textwrap.fill(text, 100)


def _footer(
    results: Sequence[Result], remarks: Sequence[str], write: Callable[[str], str], mark: str = ""
) -> str:
    notes = [mark + write(note) for note in [*comparison_notes(results), *remarks]]
    return "\n".join([write(LEGEND), *([""] if notes else []), *notes])


def group_summary(group: RunGroup, out_dir: Path) -> dict[str, Any]:
    """A row of the table with full precision; paths of its runs relative to a folder."""
    figures = {column.dotted: group.figure(column.dotted) for column in all_columns(group.results)}
    runs = [
        os.path.relpath(result["path"], out_dir) for result in group.results if result.get("path")
    ]
    return {
        "strategy": group.strategy,
        "policy": group.policy,
        "seeds": [result.get("seed") for result in group.results],
        "runs": runs,
        "figures": {key: asdict(found) if found else None for key, found in figures.items()},
    }
