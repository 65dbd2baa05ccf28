"""Plots of how decisions depend on the question's type, and of how they moved while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import DataError
from common.results.decision_grid import (
    decides_layers,
    kind_means,
    layer_means,
    make_panels,
    stream_means,
    stream_of,
)
from common.results.files import Result, things_of
from common.results.plot_style import (
    DEAD_COLOUR,
    DEAD_HATCH,
    SPARE_COLOURS,
    TYPE_COLOURS,
    Target,
    dead_patch,
    decision_word,
    decisions_of,
    new_figure,
    questions,
    run_title,
    save,
    share_colours,
    stream_colour,
    styled,
)

Means = dict[str, float | None]
MOST_IN_A_ROW = 4  # entries of a legend


def plot_decisions_by_type(result: Result, path: Target) -> None:
    """Write the decisions split by question type as PNG.

    Raises:
        DataError: the run's strategy decides nothing, or no question type is recorded.
    """
    save(draw_decisions_by_type(result), path)


@styled
def draw_decisions_by_type(result: Result) -> Figure:
    """Figure with the mean share per layer, and below per kind of component, for each type."""
    decisions = decisions_of(result)
    types = {
        kind: entry
        for kind, entry in (decisions.get("share_by_type") or {}).items()
        if entry.get("count")
    }
    if not types:
        raise DataError(
            f"{result.get('path', 'result')}: 'decisions.share_by_type' is empty, so "
            f"decisions cannot be split by question type"
        )
    per_layer = {kind: layer_means(decisions, entry["share"]) for kind, entry in types.items()}
    counts = {kind: entry["count"] for kind, entry in types.items()}
    if decides_layers(decisions):
        figure = new_figure(3.6)
        boxes = [(0.085, 0.27, 0.9, 0.55)]
    else:
        figure = new_figure(6.6)
        boxes = [(0.085, 0.61, 0.9, 0.275), (0.085, 0.265, 0.9, 0.235)]
        per_kind = {kind: kind_means(decisions, entry["share"]) for kind, entry in types.items()}
        _grouped_bars(figure.add_axes(boxes[1]), per_kind, result, "component, mean over layers")
    axes = figure.add_axes(boxes[0])
    _grouped_bars(axes, per_layer, result, "layer, in order of execution")
    counted = questions(result, decisions.get("count"))
    what = f"share of {counted} by type{_largest_gap(decisions, types)}"
    axes.set_title(run_title(result, what), loc="left", pad=8)
    handles: list[Artist | Container] = [*axes.containers]
    things = things_of(result.get("task"), decided=True)
    labels = [f"{kind}: {count:,} {things}" for kind, count in counts.items()]
    if None in next(iter(per_layer.values())).values():
        handles, labels = [*handles, dead_patch()], [*labels, str(dead_patch().get_label())]
    # A container of bars is a handle too, though no Artist.
    figure.legend(  # type: ignore[call-overload]
        handles,
        labels,
        loc="lower center",
        ncols=min(MOST_IN_A_ROW, len(labels)),
        borderaxespad=0.2,
    )
    return figure


def _grouped_bars(axes: Axes, means: dict[str, Means], result: Result, label: str) -> None:
    """One group of bars per layer or component, one bar per question type; dead ones grey."""
    names = list(next(iter(means.values())))
    width = 0.84 / len(means)
    places = np.arange(len(names))
    for number, (kind, shares) in enumerate(means.items()):
        heights = [shares[name] or 0.0 for name in names]
        axes.bar(
            places + (number - (len(means) - 1) / 2) * width,
            heights,
            width * 0.92,
            color=_type_colour(kind, list(means)),
            label=kind,
        )
    dead = [place for place, name in enumerate(names) if next(iter(means.values()))[name] is None]
    for place in dead:
        axes.axvspan(
            place - 0.42,
            place + 0.42,
            facecolor=DEAD_COLOUR,
            edgecolor="white",
            hatch=DEAD_HATCH,
            linewidth=0,
        )
    crowded = len(names) > 8 or max(map(len, names)) > 12
    axes.set_xticks(
        places,
        names,
        rotation=45 if crowded else 0,
        rotation_mode="anchor",
        ha="right" if crowded else "center",
        fontsize=7 if len(names) > 20 else 8,
    )
    axes.set(
        ylim=(0, 1),
        xlim=(-0.6, len(names) - 0.4),
        yticks=np.linspace(0, 1, 6),
        ylabel=f"mean share {decision_word(result)}",
        xlabel=label,
    )
    axes.grid(axis="y", visible=True)


def _type_colour(kind: str, kinds: Sequence[str]) -> str:
    if kind in TYPE_COLOURS:
        return TYPE_COLOURS[kind]
    unknown = [name for name in kinds if name not in TYPE_COLOURS]
    return SPARE_COLOURS[unknown.index(kind) % len(SPARE_COLOURS)]


def _largest_gap(decisions: dict[str, Any], types: dict[str, Any]) -> str:
    """Which single live decision differs most between two types, as part of a title."""
    if len(types) < 2 or not any(decisions["live"]):
        return ""
    shares = np.array([entry["share"] for entry in types.values()])
    gaps = np.where(decisions["live"], np.ptp(shares, axis=0), -1.0)
    place = int(gaps.argmax())
    where = " ".join(filter(None, (decisions["layers"][place], decisions["components"][place])))
    return f"; largest gap: {gaps[place]:.2f} ({where})"


def plot_decision_history(result: Result, path: Target) -> None:
    """Write the share of decisions at every epoch as PNG.

    Raises:
        DataError: the run's strategy decides nothing, or its epochs record no decisions.
    """
    save(draw_decision_history(result), path)


@styled
def draw_decision_history(result: Result) -> Figure:
    """Figure with a map layers × epochs, and the means of the streams as lines."""
    decisions = decisions_of(result)
    epochs = [epoch for epoch in result.get("epochs") or [] if epoch.get("decisions")]
    if not epochs:
        raise DataError(f"{result.get('path', 'result')}: no epoch records its decisions")
    shares = [epoch["decisions"]["share"] for epoch in epochs]
    if any(len(share) != len(decisions["names"]) for share in shares):
        raise DataError(
            f"{result.get('path', 'result')}: an epoch's 'decisions.share' does not "
            f"have {len(decisions['names'])} entries"
        )
    numbers = [epoch["epoch"] for epoch in epochs]
    layers = list(dict.fromkeys(decisions["layers"]))
    inches = max(2.0, 0.17 * len(layers))
    height = inches + 1.35
    figure = new_figure(height)
    bottom, tall = 0.55 / height, inches / height
    count = epochs[-1]["decisions"].get("count")
    samples = "" if count is None else f" on {questions(result, count, 'held-out')}"
    figure.text(
        0.02,
        1 - 0.1 / height,
        va="top",
        fontsize=10,
        s=run_title(result, f"share {decision_word(result)} after each epoch{samples}"),
    )
    _history_map(figure, figure.add_axes((0.09, bottom, 0.33, tall)), decisions, shares, numbers)
    _history_lines(figure.add_axes((0.6, bottom, 0.38, tall)), result, shares, numbers)
    if None in layer_means(decisions, shares[0]).values():
        figure.legend(handles=[dead_patch()], loc="lower left", borderaxespad=0.1)
    return figure


def _history_map(
    figure: Figure,
    axes: Axes,
    decisions: dict[str, Any],
    shares: Sequence[Sequence[float]],
    numbers: Sequence[int],
) -> None:
    """Mean share over the live decisions of each layer (rows) after each epoch (columns)."""
    means = [layer_means(decisions, share) for share in shares]
    layers = list(means[0])
    grid = np.array(
        [
            [np.nan if column[layer] is None else column[layer] for column in means]
            for layer in layers
        ]
    )
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=share_colours(),
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="none",
    )
    axes.set_yticks(range(len(layers)), layers, fontsize=7 if len(layers) > 12 else 8)
    step = max(1, len(numbers) // 8)
    axes.set_xticks(range(0, len(numbers), step), [str(number) for number in numbers[::step]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="epoch", ylabel="")
    bar = figure.colorbar(image, ax=axes, ticks=np.linspace(0, 1, 6), fraction=0.06, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("mean share in the layer")


def _history_lines(
    axes: Axes, result: Result, shares: Sequence[Sequence[float]], numbers: Sequence[int]
) -> None:
    """Means of the streams as thick lines, of their layers as thin ones."""
    decisions = decisions_of(result)
    by_layer = [layer_means(decisions, share) for share in shares]
    by_stream = [stream_means(decisions, share) for share in shares]
    streams = list(by_stream[0])
    for layer in by_layer[0]:
        if by_layer[0][layer] is not None:
            axes.plot(
                numbers,
                np.array([column[layer] for column in by_layer], dtype=float),
                linewidth=0.8,
                alpha=0.35,
                color=stream_colour(stream_of(layer), streams),
            )
    for panel in make_panels(decisions):
        if by_stream[0][panel.stream] is not None:
            axes.plot(
                numbers,
                np.array([column[panel.stream] for column in by_stream], dtype=float),
                marker="o",
                markersize=4,
                linewidth=2,
                label=panel.title,
                color=stream_colour(panel.stream, streams),
            )
    axes.set(
        ylim=(0, 1),
        yticks=np.linspace(0, 1, 6),
        xlabel="epoch",
        ylabel=f"mean share {decision_word(result)}",
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", visible=True)
    axes.legend(loc="best", title="thick: mean; thin: each layer", title_fontsize=7.5)
