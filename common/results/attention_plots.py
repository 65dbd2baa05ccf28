"""Plots of what attention learned: spans and α of every head, layer by layer, over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import DataError
from common.results.decision_grid import stream_of, stream_title
from common.results.files import Result
from common.results.plot_style import WIDTH, Target, new_figure, run_title, save, styled

COLUMNS = 6
LEAST_RANGE = 0.1
LEGEND_AT = 0.345  # inches
PANEL, GAP, NEXT, TOP, FOOT = 1.05, 0.62, 0.36, 0.42, 0.66  # inches
LEFT, RIGHT = 0.64, 0.12
WORDS = {"lang": "language", "text": "language", "image": "vision"}
KINDS = {
    "span": ("span of every head, as a share of the keys", "span", (0.0, 1.0)),
    "alpha": ("α of every head (towards 1: softmax, 2: sparsemax)", "α", (1.0, 2.0)),
}


def plot_spans(result: Result, path: Target) -> None:
    """Write the spans of every head over the epochs as PNG.

    Raises:
        DataError: the run records none.
    """
    save(draw_attention_history(result, "span"), path)


def plot_alphas(result: Result, path: Target) -> None:
    """Write α of every head over the epochs as PNG.

    Raises:
        DataError: the run records none.
    """
    save(draw_attention_history(result, "alpha"), path)


def records_attention(result: Result, kind: str) -> bool:
    """Whether any epoch has spans (`span`) or α (`alpha`)."""
    return bool(_epochs(result, kind))


@styled
def draw_attention_history(result: Result, kind: str) -> Figure:
    """Figure with a panel for each attention, in rows by what attends: a line for each head over
    the epochs, and their mean.

    Args:
        result: of a run.
        kind: `span` or `alpha`.
    """
    epochs = _epochs(result, kind)
    if not epochs:
        raise DataError(f"{result.get('path', 'result')}: no epoch records {KINDS[kind][1]}")
    modules = [name for name, entry in epochs[-1]["attention"].items() if kind in entry]
    rows = _rows(modules)
    inches = sum(PANEL + (GAP if first else NEXT) for _, _, first in rows)
    height = TOP + inches + FOOT
    figure = new_figure(height)
    what, label, _ = KINDS[kind]
    limits = _limits(epochs, modules, kind)
    figure.text(0.02, 1 - 0.08 / height, run_title(result, what), va="top", fontsize=10)
    heads = max(len(epochs[-1]["attention"][name][kind]) for name in modules)
    columns = max(len(names) for _, names, _ in rows)
    width = (WIDTH - LEFT - RIGHT) / max(columns, 3)
    top = height - TOP
    for title, names, first in rows:
        top -= GAP if first else NEXT
        if first:
            figure.text(LEFT / WIDTH, (top + 0.22) / height, title, fontsize=9, va="bottom")
        for column, name in enumerate(names):
            left = LEFT + column * width
            axes = figure.add_axes(
                (left / WIDTH, (top - PANEL) / height, (width - 0.14) / WIDTH, PANEL / height)
            )
            _panel(axes, epochs, name, kind, heads)
            axes.set(ylim=limits)
            axes.set_title(stream_layer(name), fontsize=7.5, pad=2)
            axes.set_ylabel(label if not column else "")
            axes.tick_params(labelleft=not column)
        top -= PANEL
    _legend(figure, heads)
    return figure


def stream_layer(module: str) -> str:
    """`cross.2.lang.head` → `cross.2`."""
    return ".".join(module.split(".")[:2])


def module_title(module: str) -> str:
    """`cross.2.lang.head` → `cross layers: language`."""
    layer = stream_layer(module)
    component = module.removeprefix(f"{layer}.").rpartition(".")[0] or "self"
    return f"{stream_title(stream_of(layer))}: {WORDS.get(component, component)}"


def _epochs(result: Result, kind: str) -> list[dict[str, Any]]:
    return [
        epoch
        for epoch in result.get("epochs") or []
        if any(kind in entry for entry in (epoch.get("attention") or {}).values())
    ]


def _rows(modules: Sequence[str]) -> list[tuple[str, list[str], bool]]:
    """Title, modules, and whether it is the first of its title; at most `COLUMNS` in a row."""
    groups: dict[str, list[str]] = {}
    for name in modules:
        groups.setdefault(module_title(name), []).append(name)
    return [
        (title, names[start : start + COLUMNS], start == 0)
        for title, names in groups.items()
        for start in range(0, len(names), COLUMNS)
    ]


def _limits(
    epochs: Sequence[dict[str, Any]], modules: Sequence[str], kind: str
) -> tuple[float, float]:
    """One scale for all panels: what occurs, with some room, but no less than a tenth."""
    values = [v for epoch in epochs for name in modules for v in epoch["attention"][name][kind]]
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    least, most = KINDS[kind][2]
    return max(low - room, least - 0.02), min(high + room, most + 0.02)


def _panel(
    axes: Axes, epochs: Sequence[dict[str, Any]], module: str, kind: str, heads: int
) -> None:
    numbers = [epoch["epoch"] for epoch in epochs]
    values = np.array([epoch["attention"][module][kind] for epoch in epochs])
    for head in range(values.shape[1]):
        axes.plot(
            numbers,
            values[:, head],
            color=_head_colours(heads)(head),
            linewidth=1.1,
            marker="o",
            markersize=2.5,
        )
    axes.plot(numbers, values.mean(1), color="black", linewidth=1.6, linestyle=(0, (4, 2)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=4))
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", visible=True)


def _head_colours(heads: int) -> Colormap:
    return colormaps["viridis"].resampled(max(heads, 2))


def _legend(figure: Figure, heads: int) -> None:
    height = figure.get_figheight()
    axes = figure.add_axes((0.45, 0.3 / height, 0.35, 0.09 / height))
    norm = BoundaryNorm(np.arange(heads + 1) + 0.5, max(heads, 2))
    bar = figure.colorbar(
        ScalarMappable(norm, _head_colours(heads)), cax=axes, orientation="horizontal"
    )
    bar.set_ticks(list(range(1, heads + 1)))
    bar.ax.tick_params(labelsize=7, length=0, which="both")
    bar.outline.set_visible(False)
    figure.text(0.44, LEGEND_AT / height, "head", ha="right", va="center", fontsize=8)
    figure.text(LEFT / WIDTH, LEGEND_AT / height, "x: epoch", va="center", fontsize=8)
    mean = Line2D([], [], color="black", linewidth=1.6, linestyle=(0, (4, 2)), label="mean")
    figure.legend(
        handles=[mean],
        loc="center right",
        bbox_to_anchor=(0.99, LEGEND_AT / height),
        borderaxespad=0,
    )
