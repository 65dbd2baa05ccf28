"""Plots of what the policy decided: maps over the encoder, by question type, over the epochs.

A share is the share of questions with decision 1 (finetuned, or kept), always drawn on the fixed
scale 0–1. Dead decisions, which cannot change the answer, are grey and hatched.
`draw_…` return the figure, `plot_…` write it as PNG.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from common.results.decision_grid import (
    Panel,
    decides_layers,
    head_number,
    head_spans,
    make_panels,
    stream_of,
)
from common.results.files import Result
from common.results.plot_style import (
    DEAD_COLOUR,
    DEAD_HATCH,
    WIDTH,
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

LEFT, RIGHT, GAP = 0.75, 0.15, 0.85
TITLE_HEIGHT, BAR_HEIGHT, ROW_HEIGHT = 0.62, 0.72, 0.2
WIDEST_CELL, NUMBER_WIDTH, HEADS_HEIGHT = 0.46, 0.3, 0.34
ROOMY = 30
CHARACTER = 0.052
MARK_COLOUR = "#e6550d"


def plot_decisions(
    result: Result, path: Target, split: str = "validation", epoch: int | None = None
) -> None:
    """Write the map of decisions as PNG: bars where whole layers are decided, else a heat map.

    Args:
        result: a run, or as much of it as is known while it trains.
        path: PNG file, or an open binary file.
        split: on which questions the decisions were counted, for the title.
        epoch: after which epoch, for the title; None at the end of a run.

    Raises:
        DataError: the run's strategy decides nothing.
    """
    save(draw_decisions(result, split, epoch), path)


@styled
def draw_decisions(result: Result, split: str = "validation", epoch: int | None = None) -> Figure:
    """Figure with the share of questions of every decision; arguments as in `plot_decisions`."""
    decisions = decisions_of(result)
    unit, draw = ("layer", _draw_bars) if decides_layers(decisions) else ("part", _draw_maps)
    counted = questions(result, decisions.get("count"), split)
    when = "" if epoch is None else f"epoch {epoch}: "
    what = f"{when}share of {counted} for which the {unit} is {decision_word(result)}"
    return draw(result, decisions, run_title(result, what))


def _draw_bars(result: Result, decisions: dict[str, Any], title: str) -> Figure:
    layers, share, live = (decisions[key] for key in ("layers", "share", "live"))
    streams = list(dict.fromkeys(map(stream_of, layers)))
    figure = new_figure(3.6)
    axes = figure.add_axes((0.085, 0.25, 0.9, 0.59))
    for place, (layer, value, alive) in enumerate(zip(layers, share, live, strict=True)):
        if not alive:
            axes.bar(place, 1, color=DEAD_COLOUR, edgecolor="white", hatch=DEAD_HATCH, width=0.8)
            continue
        axes.bar(place, value, color=stream_colour(stream_of(layer), streams), width=0.8)
        axes.text(
            place,
            value + 0.02,
            f"{value:.2f}",
            ha="center",
            va="bottom",
            fontsize=7,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6},
        )
    _mean_line(axes, share, live)
    axes.set(
        ylim=(0, 1.08),
        xlim=(-0.6, len(layers) - 0.4),
        yticks=np.linspace(0, 1, 6),
        ylabel=f"share {decision_word(result)}",
        xlabel="layer, in order of execution",
    )
    axes.set_xticks(
        range(len(layers)),
        layers,
        rotation=45 if len(layers) > 8 else 0,
        ha="right" if len(layers) > 8 else "center",
        rotation_mode="anchor",
    )
    axes.grid(axis="y", visible=True)
    axes.set_title(title, loc="left", pad=10)
    titles = {panel.stream: panel.title for panel in make_panels(decisions)}
    handles: list[Artist] = [
        Patch(color=stream_colour(s, streams), label=titles[s]) for s in streams
    ]
    handles += [*axes.get_lines(), *([] if all(live) else [dead_patch()])]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), borderaxespad=0.2)
    return figure


def _mean_line(axes: Axes, share: Sequence[float], live: Sequence[bool]) -> None:
    alive = [value for value, is_live in zip(share, live, strict=True) if is_live]
    if alive:
        mean = float(np.mean(alive))
        axes.axhline(mean, color="#555555", linewidth=1, linestyle="--", label=f"mean {mean:.2f}")


def _draw_maps(result: Result, decisions: dict[str, Any], title: str) -> Figure:
    """Rows of panels from top to bottom, then the colour bar."""
    height = TITLE_HEIGHT + panels_height(decisions) + BAR_HEIGHT
    figure = new_figure(height)
    figure.text(0.02, 1 - 0.1 / height, title, va="top", fontsize=10)
    image = draw_panels(figure, decisions, height - TITLE_HEIGHT)
    _colour_bar(figure, image, result, height)
    return figure


def panels_height(decisions: dict[str, Any]) -> float:
    """Height in inches of what `draw_panels` draws."""
    return sum(map(_row_height, _pack(make_panels(decisions))))


def numbers_fit(decisions: dict[str, Any]) -> bool:
    """Whether `draw_panels` has room for numbers in any of its cells."""
    return any(_cell_width(row) > NUMBER_WIDTH for row in _pack(make_panels(decisions)))


def draw_panels(
    figure: Figure,
    decisions: dict[str, Any],
    top: float,
    numbers: Sequence[float] | None = None,
    marked: Collection[int] = (),
) -> ScalarMappable | None:
    """Draw the heat map of every stream into a figure `WIDTH` inches wide, in rows.

    Args:
        decisions: `layers`, `components`, `live` and `share`, D each; the share is the colour.
        top: where the first row begins, in inches above the lower edge.
        numbers: D numbers that are written into wide cells; default the share.
        marked: places of decisions that get a frame, from 0.

    Returns:
        What a colour bar needs.
    """
    height = figure.get_figheight()
    image: ScalarMappable | None = None
    for row in _pack(make_panels(decisions)):
        width = _cell_width(row)
        left = LEFT
        for panel in row:
            rows_height = len(panel.layers) * ROW_HEIGHT
            box = (
                left / WIDTH,
                (top - 0.3 - rows_height) / height,
                len(panel.components) * width / WIDTH,
                rows_height / height,
            )
            axes = figure.add_axes(box)
            image = _draw_map(
                axes, panel, decisions, width, decisions["share"] if numbers is None else numbers
            )
            for row_number, column in np.argwhere(np.isin(panel.columns, list(marked))):
                axes.add_patch(marking_frame(column - 0.5, row_number - 0.5))
            left += len(panel.components) * width + GAP
        top -= _row_height(row)
    return image


def marking_frame(x: float, y: float, width: float = 1, height: float = 1) -> Rectangle:
    """The frame of a marked cell whose corner with the lowest coordinates is given."""
    return Rectangle(
        (x, y),
        width,
        height,
        fill=False,
        edgecolor=MARK_COLOUR,
        linewidth=1.6,
        zorder=3,
        clip_on=False,
    )


def _pack(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels side by side as long as their columns stay legible."""
    rows: list[list[Panel]] = []
    for panel in panels:
        used = sum(len(other.components) for other in rows[-1]) if rows else ROOMY
        if used + len(panel.components) <= ROOMY:
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def _cell_width(row: Sequence[Panel]) -> float:
    columns = sum(len(panel.components) for panel in row)
    return min(WIDEST_CELL, (WIDTH - LEFT - RIGHT - GAP * (len(row) - 1)) / columns)


def _row_height(row: Sequence[Panel]) -> float:
    longest = max(
        (len(part) for panel in row for part in panel.components if head_number(part) is None),
        default=0,
    )
    labels = max(HEADS_HEIGHT, 0.1 + CHARACTER * longest)
    return 0.3 + max(len(panel.layers) for panel in row) * ROW_HEIGHT + labels + 0.12


def _draw_map(
    axes: Axes, panel: Panel, decisions: dict[str, Any], width: float, numbers: Sequence[float]
) -> ScalarMappable:
    """One stream's heat map with D numbers in it; `width` of a cell is in inches."""
    values = panel.values(decisions["share"], decisions["live"])
    image = axes.imshow(
        values, cmap=share_colours(), vmin=0, vmax=1, aspect="auto", interpolation="none"
    )
    for row, column in np.argwhere(np.ma.getmaskarray(values)):
        axes.add_patch(
            Rectangle(
                (column - 0.5, row - 0.5),
                1,
                1,
                facecolor=DEAD_COLOUR,
                edgecolor="white",
                linewidth=0,
                hatch=DEAD_HATCH,
            )
        )
    if width > NUMBER_WIDTH:
        shown = panel.values(numbers, decisions["live"]).filled(np.nan)
        for (row, column), value in np.ndenumerate(values.filled(np.nan)):
            if not np.isnan(shown[row, column]):
                axes.text(
                    column,
                    row,
                    f"{shown[row, column]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if value > 0.55 else "black",
                )
    axes.set_title(
        panel.title, loc="left", pad=4, color=stream_colour(panel.stream, [panel.stream])
    )
    _label_cells(axes, panel)
    _bracket_heads(axes, panel, width)
    return image


def _label_cells(axes: Axes, panel: Panel) -> None:
    """Heads get their number and a bracket below, other components their upright name."""
    rows, columns = panel.columns.shape
    axes.set_yticks(range(rows), panel.layers)
    labels = axes.set_xticks(
        range(columns), [head_number(part) or part for part in panel.components]
    )
    for tick, part in zip(labels, panel.components, strict=True):
        tick.label1.set(fontsize=7, rotation=0 if head_number(part) else 90)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", visible=True, color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)


def _bracket_heads(axes: Axes, panel: Panel, width: float) -> None:
    """A line and a name below every run of heads; `width` of a cell is in inches."""
    below = axes.get_xaxis_transform()
    depth = -0.17 / (len(panel.layers) * ROW_HEIGHT)
    for kind, first, last in head_spans(panel.components):
        axes.plot(
            [first - 0.4, last + 0.4],
            [depth, depth],
            transform=below,
            clip_on=False,
            color="#555555",
            linewidth=0.9,
        )
        title = _heads_title(kind, (last - first + 1) * width)
        axes.text(
            (first + last) / 2,
            depth * 1.25,
            title,
            transform=below,
            ha="center",
            va="top",
            fontsize=7.5,
        )


def _heads_title(kind: str, width: float) -> str:
    """The longest name of the heads that fits into a width in inches."""
    prefix = kind.removesuffix("heads").rstrip(".")
    titles = [f"{prefix} attention heads".strip(), f"{prefix} heads".strip(), prefix or "heads"]
    fitting = [title for title in titles if len(title) * CHARACTER * 1.1 <= width]
    return fitting[0] if fitting else titles[-1]


def _colour_bar(
    figure: Figure, image: ScalarMappable | None, result: Result, height: float
) -> None:
    """Colour bar of the shares, and the legend of the dead decisions where there are any."""
    image = image or ScalarMappable(Normalize(0, 1), share_colours())
    box = (LEFT / WIDTH, 0.42 / height, 0.45, 0.14 / height)
    bar = figure.colorbar(
        image, cax=figure.add_axes(box), orientation="horizontal", ticks=np.linspace(0, 1, 6)
    )
    word = decision_word(result)
    bar.set_label(f"share {word} (0 = never, 1 = always {word})", labelpad=1)
    bar.outline.set_visible(False)
    if not all(decisions_of(result)["live"]):
        figure.legend(
            handles=[dead_patch()],
            loc="lower right",
            borderaxespad=0,
            bbox_to_anchor=(1 - 0.02, 0.36 / height),
        )
