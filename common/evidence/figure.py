"""Figures of the evidence: what was learned against what was kept, what fewer layers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.evidence.plan import Study, shown_rows
from common.results.files import Result, lookup
from common.results.plot_style import new_figure, styled

# Row → colour and mark.
MARKS = {
    "standard": ("#222222", "s"),
    "frozen": ("#9a9a9a", "D"),
    "last_2": ("#6d6d6d", "v"),
    "published": ("#56b4e9", "o"),
    "shared": ("#cc79a7", "P"),
    "started": ("#d55e00", "o"),
    "started_permuted": ("#d55e00", "x"),
    "random": ("#e69f00", "X"),
    "oracle": ("#009e73", "*"),
}
PANEL, MARGIN = 3.1, 0.55  # inches
Results = Mapping[str, Mapping[int, Result]]


@styled
def draw_evidence(studies: Sequence[tuple[Study, Results]]) -> Figure:
    """A panel for each study: accuracy on learned questions (x) against kept ones (y), percent.

    Lines join equal means of the two; the cross of dashed lines is what answering each question
    by its most frequent answer gives.
    """
    width = max(2, len(studies)) * PANEL
    figure = new_figure(PANEL + 1.35, width)
    lowest = min((low for _, found in studies for low in _values(found)), default=50.0)
    start = max(0.0, 5 * (lowest // 5) - 5)
    for place, (study, found) in enumerate(studies):
        left = (place * PANEL + MARGIN) * len(studies) * PANEL / width / (len(studies) * PANEL)
        axes = figure.add_axes(
            (
                left,
                1.2 / (PANEL + 1.35),
                (PANEL - MARGIN - 0.15) / width,
                (PANEL - 0.25) / (PANEL + 1.35),
            )
        )
        _panel(axes, study, found, start)
        if place == 0:
            axes.set_ylabel("kept: old words (%)")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    marks, labels = list(handles.values()), list(handles)
    figure.legend(marks, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _values(found: Results) -> list[float]:
    return [
        value
        for of_seed in found.values()
        for result in of_seed.values()
        for kind in ("kept", "learned")
        if (value := lookup(result, f"accuracy.val.{kind}")) is not None
    ]


def _panel(axes: Axes, study: Study, found: Results, start: float) -> None:
    """One point for each run."""
    titles = dict(shown_rows(study))
    for mean in range(int(start), 100, 5):
        axes.axline((mean, mean), slope=-1, color="#e6e6e6", linewidth=0.7, zorder=0)
    for name, (colour, mark) in MARKS.items():
        results = list(found.get(name, {}).values())
        points = [
            (lookup(result, "accuracy.val.learned"), lookup(result, "accuracy.val.kept"))
            for result in results
        ]
        if not points:
            continue
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=60 if mark == "*" else 30,
            c=colour,
            marker=mark,
            linewidths=1.2 if mark == "x" else 0.4,
            edgecolors=None if mark == "x" else "white",
            alpha=0.9,
            zorder=3,
            label=titles[name],
        )
    chance = next(
        (
            lookup(result, "baselines.question_only")
            for of_seed in found.values()
            for result in of_seed.values()
            if lookup(result, "baselines.question_only")
        ),
        None,
    )
    if chance and {"kept", "learned"} <= set(chance):
        axes.axhline(chance["kept"], color="#b8a900", linestyle="--", linewidth=0.9, zorder=1)
        axes.axvline(
            chance["learned"],
            color="#b8a900",
            linestyle="--",
            linewidth=0.9,
            zorder=1,
            label="question only",
        )
        start = min(start, 5 * (min(chance["kept"], chance["learned"]) // 5))
    axes.set_xlim(start, 100)
    axes.set_ylim(start, 100)
    axes.set_title(study.title.split(",")[0], loc="left")
    axes.set_xlabel("learned: dialect (%)")


# Ways to have fewer layers → beginning of their rows' names, title, colour, mark.
REMOVALS = (
    ("blockdrop_", "BlockDrop, learned", "#d55e00", "o"),
    ("static_", "finetuned without them", "#222222", "s"),
    ("random_", "random, same share", "#e69f00", "X"),
    ("layerdrop_", "LayerDrop, pruned", "#56b4e9", "v"),
)


@styled
def draw_kept_shares(study: Study, found: Results) -> Figure:
    """Accuracy (percent) against the share of layers kept; lines join the means of the rows."""
    figure = new_figure(3.6, 5.2)
    axes = figure.add_axes((0.12, 0.15, 0.84, 0.75))
    for beginning, title, colour, mark in REMOVALS:
        names = [name for name in found if name.startswith(beginning) and "permuted" not in name]
        runs = [_points_of(found[name]) for name in names]
        if not runs:
            continue
        axes.scatter(
            [x for points in runs for x, _ in points],
            [y for points in runs for _, y in points],
            s=22,
            c=colour,
            marker=mark,
            edgecolors="white",
            linewidths=0.4,
            zorder=3,
        )
        means = sorted(tuple(map(fmean, zip(*points, strict=True))) for points in runs)
        axes.plot(*zip(*means, strict=True), color=colour, marker=mark, ms=5, label=title, zorder=2)
    whole = _points_of(found.get("standard", {}))
    if whole:
        level = fmean(y for _, y in whole)
        axes.axhline(level, color="#9a9a9a", linestyle="--", linewidth=0.9, label="all layers")
    axes.set_xlabel("share of layers kept")
    axes.set_ylabel("validation accuracy (%)")
    axes.set_title(study.title, loc="left", fontsize=9)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def _points_of(results: Mapping[int, Result]) -> list[tuple[float, float]]:
    """Share of layers kept and accuracy of each run."""
    return [
        (lookup(result, "decisions.mean_live"), lookup(result, "accuracy.val.overall"))
        for result in results.values()
    ]
