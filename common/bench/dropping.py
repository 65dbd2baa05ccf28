"""Evaluation with dropped blocks beside the straight line: whether dropping a block saves its time.

In the whole model, against plain finetuning of it. The line runs from what is left when every block
is dropped (all that is outside the blocks, measured) to plain finetuning with all blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from common.bench.cases import dropping_cases
from common.bench.results import BenchFile
from common.results.plot_style import STRATEGY_COLOURS

ROWS = (
    "decided for every sample",
    "the same with its small policy network",
    "one decision for all samples",
)
MARKERS = ("o", "s", "D")
COLOURS = (STRATEGY_COLOURS["BlockDrop"], "#222222", STRATEGY_COLOURS["SpotTune_Res"])


@dataclass(frozen=True)
class Dropping:
    """What was measured at some numbers of kept blocks, most first.

    Attributes:
        blocks: of the whole model.
        seconds: of plain finetuning's evaluation, per sample.
        kept: numbers of blocks.
        line: ratios on the straight line.
        rows: {one of ROWS: its record or None for each number}.
    """

    blocks: int
    seconds: float
    kept: tuple[int, ...]
    line: tuple[float, ...]
    rows: dict[str, tuple[dict[str, Any] | None, ...]]

    def distance(self) -> float:
        """By how much the ratio without a policy network is above the line at most."""
        return max(
            record["ratio"] - line
            for name in (ROWS[0], ROWS[2])
            for record, line in zip(self.rows.get(name, ()), self.line, strict=False)
            if record is not None
        )


def dropping(file: BenchFile, precision: str) -> Dropping | None:
    """What the file holds of it; None unless the ends of the line were measured."""
    shares = sorted(
        {
            record["share"]
            for record in file.cases.values()
            if record["strategy"] == "BlockDrop"
            and record["against"] == "whole"
            and record["precision"] == precision
        },
        reverse=True,
    )
    records = [[file.get(case) for case in dropping_cases(share, precision)] for share in shares]
    if not shares or shares[-1] != 0 or records[-1][0] is None:
        return None
    first = records[-1][0]
    blocks, outside = first["decisions"], first["ratio"]
    return Dropping(
        blocks,
        first["baseline_seconds"] / file.settings["batch"],
        tuple(round(share * blocks) for share in shares),
        tuple(outside + (1 - outside) * share for share in shares),
        {
            name: found
            for name, found in zip(ROWS, zip(*records, strict=True), strict=True)
            if any(found)
        },
    )


def format_dropping(file: BenchFile, precision: str, cell: Any) -> str:
    """The table in Markdown, or nothing; `cell` writes a record."""
    found = dropping(file, precision)
    if found is None:
        return ""
    title = (
        f"evaluation with dropped blocks; plain finetuning in {precision}, "
        f"{found.blocks} blocks, {found.seconds * 1e3:.1f} ms per sample = 1"
    )
    lines = [
        f"| {title} | {' | '.join(f'{kept} kept' for kept in found.kept)} |",
        "| :-- |" + " --: |" * len(found.kept),
    ]
    lines += [
        f"| BlockDrop, {name} | {' | '.join(map(cell, records))} |"
        for name, records in found.rows.items()
    ]
    lines.append(f"| straight line | {' | '.join(f'{value:.2f}' for value in found.line)} |")
    return "\n".join(lines) + (
        f"\n\nHere: {file.reference_description}. Executor gathered; kept: blocks that run, in the "
        "mean over the samples where each decides for itself, spread evenly over the blocks. "
        "Straight line: from what is outside the blocks (0 kept, measured) to 1, in proportion to "
        "the blocks kept. A last block of which only one position is read costs less than the "
        "others, so one decision for all that drops or keeps it is beside the line."
    )


def summary_of_dropping(file: BenchFile) -> str:
    """One sentence with the ratios, or nothing."""
    found = dropping(file, file.settings["precisions"][0])
    if found is None:
        return ""
    pairs = [
        f"{record['ratio']:.2f} with {kept}"
        for kept, record in zip(found.kept, found.rows[ROWS[0]], strict=True)
        if record is not None
    ]
    return (
        f"Evaluation time per sample of BlockDrop in the whole model ({found.blocks} blocks), "
        f"by the number of blocks kept: {', '.join(pairs)}."
    )


def draw_dropping(axes: Axes, found: Dropping) -> None:
    """Ratios over the number of kept blocks, with the straight line."""
    axes.plot(
        found.kept,
        found.line,
        color="#444444",
        linewidth=0.9,
        linestyle="--",
        zorder=1,
        label="straight line: outside the blocks + share kept",
    )
    for (name, records), marker, colour in zip(
        found.rows.items(), _of(found, MARKERS), _of(found, COLOURS), strict=True
    ):
        points = [(kept, r) for kept, r in zip(found.kept, records, strict=True) if r]
        values = [r["ratio"] for _, r in points]
        spread = [
            [v - r["low"] for v, (_, r) in zip(values, points, strict=True)],
            [r["high"] - v for v, (_, r) in zip(values, points, strict=True)],
        ]
        axes.errorbar(
            [kept for kept, _ in points],
            values,
            yerr=spread,
            fmt=marker,
            color=colour,
            markerfacecolor=colour if name == ROWS[0] else "none",
            markersize=6,
            elinewidth=1,
            label=name,
            zorder=3,
        )
    axes.set_xlabel(f"blocks kept of {found.blocks}")
    axes.set_xticks(found.kept)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(loc="upper left")


def _of(found: Dropping, values: tuple[str, ...]) -> list[str]:
    """One value for each row that was measured."""
    return [value for name, value in zip(ROWS, values, strict=True) if name in found.rows]
