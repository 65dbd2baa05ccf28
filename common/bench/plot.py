"""The chart of `make bench`: ratios of steps and evaluations, with their targets."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.adapt.strategies import STRATEGIES
from common.bench.cases import ADAPTIVE, DEFAULT_EXECUTOR, Case
from common.bench.dropping import draw_dropping, dropping
from common.bench.report import targets
from common.bench.results import BenchFile
from common.results.plot_style import STRATEGY_COLOURS, new_figure, save, styled

ROW = 0.21
DROPPING = 2.1
MODES = {"train": "training step", "eval": "evaluation"}
MARKERS = {"exact": "o", "gathered": "o", "sampled": "^", "dense": "s"}


def plot_bench(file: BenchFile, path: Path | str | BinaryIO) -> None:
    """Write the chart as PNG."""
    save(draw_bench(file), path)


@styled
def draw_bench(file: BenchFile) -> Figure:
    """Steps on the left, evaluation on the right; strategies above, the reference below.

    At the bottom, over both, evaluation with dropped blocks where it was measured.
    """
    precision = file.settings["precisions"][-1]
    shares = file.settings["shares"]
    rows = [(strategy, share) for strategy in ADAPTIVE for share in shares]
    compared = reference_rows(file)
    heights = [ROW * len(rows), ROW * len(compared)]
    dropped = dropping(file, precision)
    below = DROPPING + 0.75 if dropped else 0.0
    total = sum(heights) + (1.9 if compared else 1.2) + below
    figure = new_figure(total)
    for column, mode in enumerate(MODES):
        left, width = 0.26 + 0.38 * column, 0.345
        axes = figure.add_axes((left, 1 - (0.4 + heights[0]) / total, width, heights[0] / total))
        _strategies(axes, file, mode, rows, precision)
        _label(axes, f"{MODES[mode]} / standard ({precision})", column)
        if compared:
            axes = figure.add_axes((left, (0.62 + below) / total, width, heights[1] / total))
            _reference(axes, file, mode, compared)
            _label(axes, f"{MODES[mode]} / {file.reference} (fp32)", column)
    if dropped:
        axes = figure.add_axes((0.26, 0.85 / total, 0.725, DROPPING / total))
        draw_dropping(axes, dropped)
        axes.set_title(
            f"evaluation with dropped blocks / standard, all {dropped.blocks} blocks ({precision})",
            loc="left",
        )
    figure.legend(handles=_legend(), loc="lower center", ncols=5, borderaxespad=0.1)
    return figure


def _label(axes: Axes, title: str, column: int) -> None:
    axes.set_title(title, loc="left")
    axes.axvline(1, color="#222222", linewidth=0.8, zorder=1)
    axes.grid(axis="x")
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    if column:
        axes.tick_params(labelleft=False)


def _strategies(
    axes: Axes, file: BenchFile, mode: str, rows: list[tuple[str, float]], precision: str
) -> None:
    aims = {t.case: t.value for t in targets(file.reference) if t.field == "ratio"}
    names = []
    for place, (strategy, share) in enumerate(rows):
        word = STRATEGIES[strategy].decision_word
        names.append(f"{strategy}, {share:.0%} {word}")
        colour = STRATEGY_COLOURS[strategy]
        for executor in ("dense", "sampled", DEFAULT_EXECUTOR[mode]):
            case = Case(mode, strategy, executor, share, precision=precision)
            _point(axes, file.get(case), place, colour, executor)
            if precision == "fp32" and case in aims:
                axes.plot(
                    aims[case],
                    place,
                    "|",
                    color="#cc2222",
                    markersize=11,
                    markeredgewidth=1.6,
                    zorder=4,
                )
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for boundary in range(1, len(ADAPTIVE)):
        axes.axhline(boundary * len(rows) / len(ADAPTIVE) - 0.5, color="#dddddd", linewidth=0.6)


def _point(axes: Axes, record: dict | None, place: float, colour: str, executor: str) -> None:
    """Median with its quartiles; hollow unless it is the default executor."""
    if record is None:
        return
    value = record["ratio"]
    spread = [[value - record["low"]], [record["high"] - value]]
    hollow = executor not in DEFAULT_EXECUTOR.values() and executor != ""
    axes.errorbar(
        value,
        place,
        xerr=spread,
        fmt=MARKERS.get(executor, "o"),
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=5,
        elinewidth=1,
        zorder=3,
    )


def reference_rows(file: BenchFile) -> list[tuple[str, str, str, dict]]:
    """(label, colour, executor, fields of the case without its mode) of what was compared."""
    rows: dict[tuple, tuple[str, str, str, dict]] = {}
    for record in file.cases.values():
        if record["against"] != "reference":
            continue
        fields = {k: record[k] for k in ("strategy", "share", "policy", "precision")}
        sampled = record["executor"] == "sampled"
        name = file.reference if record["strategy"] == "reference" else record["strategy"]
        if record["share"] is not None:
            name = f"{name}, {record['share']:.0%}"
        notes = [record["policy"]] if record["policy"] == "published" else []
        notes += ["sampled"] if sampled else []
        notes += [record["precision"]] if record["precision"] != "fp32" else []
        label = name + (f" ({', '.join(notes)})" if notes else "")
        colour = STRATEGY_COLOURS.get(record["strategy"], "#888888")
        executor = "sampled" if sampled else ""
        rows.setdefault((*fields.values(), sampled), (label, colour, executor, fields))
    return list(rows.values())


def _reference(
    axes: Axes, file: BenchFile, mode: str, rows: list[tuple[str, str, str, dict]]
) -> None:
    aims = {t.case: t.value for t in targets(file.reference)}
    for place, (_, colour, executor, fields) in enumerate(rows):
        decides = fields["share"] is not None
        used = executor or (DEFAULT_EXECUTOR[mode] if decides else "")
        case = Case(mode, executor=used, against="reference", **fields)
        _point(axes, file.get(case), place, colour, used)
        if case in aims:
            axes.plot(
                aims[case],
                place,
                "|",
                color="#cc2222",
                markersize=11,
                markeredgewidth=1.6,
                zorder=4,
            )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)


def _legend() -> list[Line2D]:
    def entry(marker: str, face: str, label: str) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            color="#444444",
            markersize=5,
            markerfacecolor=face,
            label=label,
        )

    return [
        entry("o", "#444444", "exact / gathered (defaults)"),
        entry("^", "white", "sampled"),
        entry("s", "white", "dense"),
        Line2D(
            [],
            [],
            linestyle="",
            marker="|",
            color="#cc2222",
            markersize=10,
            markeredgewidth=1.6,
            label="target",
        ),
    ]
