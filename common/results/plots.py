"""All plots of runs: decisions, training curves, and the comparison of strategies.

Every `plot_…` takes results as `common.results.files` reads them and writes a PNG to a path or an
open binary file; the matching `draw_…` returns the figure. No pyplot, so nothing global changes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import DataError
from common.results.files import BASELINES, Result, RunGroup, Section, group_results, lookup
from common.results.plot_style import STRATEGY_COLOURS, Target, new_figure, run_title, save, styled

if TYPE_CHECKING:
    from matplotlib.typing import LineStyleType

BASELINE_STYLES: dict[str, LineStyleType] = {"majority": ":", "question_only": "--", "chance": "-."}
LONGEST_LABEL = 45  # of a row, in characters of a line


def plot_training(result: Result, path: Target) -> None:
    """Write the training curves as PNG.

    Raises:
        DataError: the run records no epochs.
    """
    save(draw_training(result), path)


@styled
def draw_training(result: Result) -> Figure:
    """Figure with loss, accuracy (running and held-out) and, where recorded, the policy's
    temperature for each epoch."""
    epochs = result.get("epochs") or []
    if not epochs:
        raise DataError(f"{result.get('path', 'result')}: no epochs are recorded")
    adaptive = any(epoch.get("policy_temperature") is not None for epoch in epochs)
    best = result.get("best_epoch")
    what = "training" + ("" if best is None else f"; dotted: the epoch that was kept ({best})")
    figure = new_figure(3.0)
    figure.text(0.02, 0.97, run_title(result, what), va="top", fontsize=10)
    panels = figure.subplots(1, 3 if adaptive else 2)
    figure.subplots_adjust(left=0.075, right=0.985, top=0.76, bottom=0.17, wspace=0.36)
    _curve(panels[0], epochs, "train_loss", "training loss", "#222222")
    panels[0].set_ylim(bottom=0)
    _curve(panels[1], epochs, "train_accuracy", "training, running mean", "#d17c00")
    _curve(panels[1], epochs, "heldout.overall", "held-out part", "#0072b2")
    panels[1].set(ylabel="accuracy (%)")
    panels[1].legend(loc="best")
    panels[0].set(ylabel="training loss")
    if adaptive:
        _curve(panels[2], epochs, "policy_temperature", "temperature", "#009e73")
        panels[2].set(ylabel="policy temperature")
        panels[2].set_ylim(bottom=0)
    for axes in panels:
        axes.set(xlabel="epoch")
        if best is not None:
            axes.axvline(best, color="#999999", linewidth=1, linestyle=":", zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", visible=True)
    return figure


def _curve(axes: Axes, epochs: Sequence[dict[str, Any]], key: str, label: str, colour: str) -> None:
    """One figure over the epochs, by their recorded numbers; epochs that lack it are left out."""
    points = [
        (epoch["epoch"], value) for epoch in epochs if (value := lookup(epoch, key)) is not None
    ]
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        marker="o",
        markersize=4,
        linewidth=1.6,
        color=colour,
        label=label,
    )


def plot_comparison(results: Iterable[Result], path: Target) -> None:
    """Write the comparison of strategies as PNG.

    Raises:
        DataError: there are no results.
    """
    save(draw_comparison(results), path)


@styled
def draw_comparison(results: Iterable[Result]) -> Figure:
    """Figure with one row of plots per section: accuracies of the strategies on the left with the
    baselines as lines, generalization errors on the right; whiskers are ± one sd over seeds.
    Sections of one data set have the same scales."""
    sections = group_results(results)
    if not sections:
        raise DataError("no results to compare")
    heights = [1.05 + 0.34 * len(section.groups) for section in sections]
    total = sum(heights) + 0.35
    figure = new_figure(total)
    top = total
    labels = (_row_label(group) for section in sections for group in section.groups)
    margin = 0.02 + 0.0083 * max(len(line) for label in labels for line in label.splitlines())
    panels: dict[str, list[tuple[Axes, Axes]]] = {}
    for section, height in zip(sections, heights, strict=True):
        inner = (height - 1.0) / total
        bottom = (top - height + 0.5) / total
        left = figure.add_axes((margin, bottom, 0.665 - margin, inner))
        right = figure.add_axes((0.715, bottom, 0.265, inner))
        _accuracies(left, section)
        _generalization_errors(right, section)
        left.set_title(section.title, loc="left", pad=16)
        panels.setdefault(section.dataset, []).append((left, right))
        top -= height
    for pairs in panels.values():
        for column in zip(*pairs, strict=True):
            _share_scale(column)
    figure.legend(handles=_comparison_legend(), loc="lower center", ncols=4, borderaxespad=0.2)
    return figure


def _share_scale(panels: Sequence[Axes]) -> None:
    """Give panels one range, which holds that of each."""
    low, high = zip(*(axes.get_xlim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_xlim(min(low), max(high))


def _accuracies(axes: Axes, section: Section) -> None:
    """Train (hollow) and validation (filled) accuracy of every strategy, joined by a line."""
    for place, group in enumerate(section.groups):
        colour = STRATEGY_COLOURS.get(group.strategy, "#555555")
        train, val = (group.figure(f"accuracy.{part}.overall") for part in ("train", "val"))
        if train and val:
            axes.plot(
                [train.mean, val.mean],
                [place, place],
                color=colour,
                linewidth=1.5,
                alpha=0.5,
                zorder=2,
            )
        for figure, fill in ((train, "white"), (val, colour)):
            if figure:
                axes.errorbar(
                    figure.mean,
                    place,
                    xerr=figure.sd,
                    fmt="o",
                    color=colour,
                    markerfacecolor=fill,
                    markersize=7,
                    capsize=3,
                    zorder=3,
                )
        if val:
            axes.annotate(
                f"{val.mean:.1f}",
                (val.mean, place),
                (0, 6),
                ha="center",
                textcoords="offset points",
                fontsize=7.5,
            )
    for name in BASELINES:
        baseline = section.baseline(name, "overall")
        if baseline:
            axes.axvline(
                baseline.mean,
                color="#777777",
                linestyle=BASELINE_STYLES[name],
                linewidth=1.2,
                zorder=1,
            )
    _strategy_axis(axes, section.groups)
    several = any(len(group.results) > 1 for group in section.groups)
    axes.set(xlabel="accuracy (%)" + (", whiskers: ± one sd over seeds" if several else ""))
    axes.margins(x=0.06)


def _generalization_errors(axes: Axes, section: Section) -> None:
    for place, group in enumerate(section.groups):
        error = group.figure("generalization_error")
        if not error:
            continue
        axes.barh(
            place,
            error.mean,
            xerr=error.sd,
            height=0.6,
            capsize=3,
            ecolor="#808080",
            color=STRATEGY_COLOURS.get(group.strategy, "#555555"),
        )
        end = error.mean + np.copysign(error.sd or 0.0, error.mean)
        axes.annotate(
            f"{error.mean:.1f}",
            (end, place),
            (3 if end >= 0 else -3, 0),
            va="center",
            ha="left" if end >= 0 else "right",
            textcoords="offset points",
            fontsize=7.5,
        )
    axes.axvline(0, color="#222222", linewidth=0.8)
    _strategy_axis(axes, section.groups)
    axes.set_yticklabels([])
    axes.use_sticky_edges = False
    axes.margins(x=0.2)
    axes.set(xlabel="generalization error (points)")


def _strategy_axis(axes: Axes, groups: Sequence[RunGroup]) -> None:
    """Strategies from top to bottom, with the number of runs where there are several."""
    axes.set_yticks(range(len(groups)), map(_row_label, groups))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(axis="x", visible=True)
    axes.tick_params(axis="y", length=0)


def _row_label(group: RunGroup) -> str:
    runs = f" (n={len(group.results)})" if len(group.results) > 1 else ""
    return textwrap.fill(group.label + runs, LONGEST_LABEL)


def _comparison_legend() -> list[Line2D]:
    dots = [
        Line2D(
            [],
            [],
            marker="o",
            color="#555555",
            linestyle="",
            label=f"{name} accuracy",
            markerfacecolor=fill,
            markersize=6,
        )
        for name, fill in (("train", "white"), ("validation", "#555555"))
    ]
    lines = [
        Line2D(
            [], [], color="#777777", linestyle=BASELINE_STYLES[name], label=f"{title} (validation)"
        )
        for name, title in BASELINES.items()
    ]
    return dots + lines
