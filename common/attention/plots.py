"""A picture of each measure: layers × heads, a panel for each pair of modalities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from common.attention.measures import MEASURES, Measured
from common.results.plot_style import WIDTH, Target, new_figure, save, share_colours, styled
from common.runs.attention_blocks import KINDS, Kinds, arrow

ROW, TOP, TITLE, FOOT, LEFT, RIGHT, GAP = 0.23, 0.75, 0.3, 0.5, 0.85, 0.9, 0.75  # inches
NOTHING = "#c4c4c4"


def plot_measure(measured: Sequence[Measured], name: str, title: str, path: Target) -> None:
    """Write one measure of all layers and heads as PNG.

    Args:
        measured: of all layers.
        name: of the measure.
        title: of the run.
        path: PNG file, or an open binary file.
    """
    save(_figure(measured, name, title), path)


@styled
def _figure(measured: Sequence[Measured], name: str, title: str) -> Figure:
    panels = [kinds for kinds in KINDS if any(m.kinds == kinds for m in measured)]
    rows = [panels[n : n + 2] for n in range(0, len(panels), 2)]
    tall = [ROW * max(_layers(measured, kinds) for kinds in row) for row in rows]
    height = TOP + sum(tall) + (TITLE + FOOT) * len(rows)
    figure = new_figure(height)
    what = MEASURES[name].format(threshold=measured[0].threshold)
    figure.text(0.02, 1 - 0.1 / height, f"{title}\n{what}", va="top", fontsize=9, linespacing=1.4)
    known = [v for m in measured for v in m.mean(name) if v is not None]
    largest = 1.0 if name != "above" else max(known, default=1.0)
    width = (WIDTH - LEFT - RIGHT - GAP) / 2
    top, image = height - TOP, None
    for row, inches in zip(rows, tall, strict=True):
        top -= TITLE
        for column, kinds in enumerate(row):
            left = LEFT + column * (width + GAP)
            own = ROW * _layers(measured, kinds)
            box = (left / WIDTH, (top - own) / height, width / WIDTH, own / height)
            image = _panel(figure.add_axes(box), measured, kinds, name, largest)
        top -= inches + FOOT
    if image is not None:
        inner = height - TOP - TITLE - FOOT
        box = ((WIDTH - 0.6) / WIDTH, FOOT / height, 0.13 / WIDTH, inner / height)
        bar = figure.colorbar(image, cax=figure.add_axes(box))
        bar.outline.set_visible(False)
    return figure


def _layers(measured: Sequence[Measured], kinds: Kinds) -> int:
    return sum(m.kinds == kinds for m in measured)


def _panel(
    axes: Axes, measured: Sequence[Measured], kinds: Kinds, name: str, largest: float
) -> AxesImage:
    own = [m for m in measured if m.kinds == kinds]
    heads = max(m.heads for m in own)
    grid = np.full((len(own), heads), np.nan)
    for row, one in enumerate(own):
        grid[row, : one.heads] = [np.nan if v is None else v for v in one.mean(name)]
    image = axes.imshow(
        np.ma.masked_invalid(grid),
        cmap=share_colours().with_extremes(bad=NOTHING),
        vmin=0,
        vmax=largest,
        aspect="auto",
        interpolation="none",
    )
    for (row, head), value in np.ndenumerate(grid):
        if np.isfinite(value):
            axes.text(
                head,
                row,
                f"{value:.1f}" if value >= 9.95 else f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7 if heads <= 8 else 5.2,
                color="white" if value > 0.55 * largest else "black",
            )
    axes.set_yticks(range(len(own)), [m.layer for m in own])
    axes.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
    axes.tick_params(length=0, labelsize=7.5)
    axes.set_xlabel("head", fontsize=8)
    axes.set_title(arrow(kinds), fontsize=9)
    axes.spines[:].set_visible(False)
    return image
