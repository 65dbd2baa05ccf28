"""The chart of `make experiments`: accuracy and generalization error of every strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.errors import DataError
from common.results.files import Result, RunGroup, group_results
from common.results.plot_style import STRATEGY_COLOURS, Target, new_figure, save, styled

EPOCHS = {"kept": "", "last": "last_epoch."}  # which epoch → where its figures are
OFFSET = {"kept": -0.17, "last": 0.17}
LABELS = {"kept": "kept epoch (best on held-out images)", "last": "last epoch"}


def plot_experiments(experiments: Mapping[str, Sequence[Result]], path: Target) -> None:
    """Write the chart as PNG; see `draw_experiments`."""
    save(draw_experiments(experiments), path)


@styled
def draw_experiments(experiments: Mapping[str, Sequence[Result]]) -> Figure:
    """Figure with a row of two plots per experiment {title: results}: validation accuracy on the
    left, generalization error on the right, of the kept (filled) and of the last (hollow) epoch;
    whiskers are ± one sample standard deviation over seeds.

    Raises:
        DataError: there are no results.
    """
    groups = {
        title: [group for section in group_results(results) for group in section.groups]
        for title, results in experiments.items()
    }
    if not any(groups.values()):
        raise DataError("no results of experiments to draw")
    heights = [0.85 + 0.36 * len(members) for members in groups.values()]
    total = sum(heights) + 0.45
    figure = new_figure(total)
    margin = 0.02 + 0.0083 * max(
        len(_label(group)) for members in groups.values() for group in members
    )
    middle = margin + (0.98 - margin) / 2
    top = total
    for (title, members), height in zip(groups.items(), heights, strict=True):
        bottom, inner = (top - height + 0.4) / total, (height - 0.75) / total
        left = figure.add_axes((margin, bottom, middle - margin - 0.02, inner))
        right = figure.add_axes((middle + 0.02, bottom, 0.96 - middle, inner))
        _panel(left, members, "accuracy.val.overall", labels=True)
        _panel(right, members, "generalization_error", labels=False)
        right.axvline(0, color="#222222", linewidth=0.8, zorder=1)
        left.set_title(title, loc="left")
        top -= height
    left.set_xlabel("validation accuracy (%)")
    right.set_xlabel("generalization error (points)")
    figure.legend(handles=_legend(), loc="lower center", ncols=2, borderaxespad=0.2)
    return figure


def _panel(axes: Axes, groups: Sequence[RunGroup], dotted: str, labels: bool) -> None:
    """One figure of every strategy for both epochs, with its value written beside it."""
    for place, group in enumerate(groups):
        colour = STRATEGY_COLOURS.get(group.strategy, "#555555")
        for epoch, prefix in EPOCHS.items():
            figure = group.figure(prefix + dotted)
            if figure is None:
                continue
            axes.errorbar(
                figure.mean,
                place + OFFSET[epoch],
                xerr=figure.sd,
                fmt="o",
                color=colour,
                markersize=5.5,
                capsize=2.5,
                linewidth=1.2,
                markerfacecolor=colour if epoch == "kept" else "white",
                zorder=3,
            )
            axes.annotate(
                f"{round(figure.mean, 1) + 0.0:.1f}",  # not -0.0
                (figure.mean + (figure.sd or 0.0), place + OFFSET[epoch]),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axes.set_yticks(range(len(groups)), map(_label, groups) if labels else [""] * len(groups))
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", visible=True)
    axes.margins(x=0.12)


def _label(group: RunGroup) -> str:
    return group.label + (f" (n={len(group.results)})" if len(group.results) > 1 else "")


def _legend() -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            marker="o",
            color="#555555",
            linestyle="",
            markersize=6,
            label=label,
            markerfacecolor="#555555" if epoch == "kept" else "white",
        )
        for epoch, label in LABELS.items()
    ]
