"""A picture of the attention of one layer and head: on the image, and as a table of weights."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.ask.attention import PairAttention
from common.ask.canvas import IMAGE_WIDTH, MARGIN, draw_boxes, draw_image, image_height
from common.ask.image import AskedImage
from common.results.plot_style import WIDTH, Target, new_figure, save, share_colours, styled
from common.runs.places import REGION, Place

HEADING, FOOTING, SIDE = 0.45, 0.75, 0.85  # inches: above, below, and left of the table
GAP, BAR = 0.35, 0.75
HEAT = "#d7301f"
DARKEST, HEAT_PIXELS = 0.72, 320
NOTE_COLOUR = "#a34700"
SHOWN_BOXES = 5
LINE = 0.15


def plot_attention(image: AskedImage, found: PairAttention, title: str, path: Target) -> None:
    """Write the picture of one attention as PNG.

    Args:
        image: with its regions.
        found: its attention.
        title: of the run, and the question.
        path: PNG file, or an open binary file.
    """
    save(_figure(image, found, title), path)


@styled
def _figure(image: AskedImage, found: PairAttention, title: str) -> Figure:
    lines = [line for part in title.split("\n") for line in textwrap.wrap(part, 95)]
    head = 0.2 + 0.19 * len(lines)
    height = head + attention_height(image, found)
    figure = new_figure(height)
    figure.text(
        MARGIN / WIDTH, 1 - 0.1 / height, "\n".join(lines), va="top", fontsize=10, linespacing=1.35
    )
    draw_attention(figure, image, found, height - head)
    return figure


def attention_height(image: AskedImage, found: PairAttention) -> float:
    """Inches that `draw_attention` needs."""
    notes = LINE * len(_notes(found))
    if found.weights is None:
        return HEADING + notes
    return HEADING + max(image_height(image.regions), _table_height(found)) + FOOTING + notes


def draw_attention(figure: Figure, image: AskedImage, found: PairAttention, top: float) -> None:
    """Draw it below `top` inches: the image on the left, the weights on the right."""
    height = figure.get_figheight()
    figure.text(MARGIN / WIDTH, (top - 0.08) / height, found.title, va="top", fontsize=10)
    top -= HEADING
    bottom = top
    if found.weights is not None:
        bottom -= max(image_height(image.regions), _table_height(found)) + FOOTING
        axes = draw_image(figure, image, top)
        said = _draw_heat(axes, image, found)
        figure.text(
            MARGIN / WIDTH,
            (top - image_height(image.regions) - 0.08) / height,
            textwrap.fill(said, 62),
            va="top",
            fontsize=7.5,
            linespacing=1.3,
        )
        _draw_table(figure, found, top)
    figure.text(
        MARGIN / WIDTH,
        bottom / height,
        "\n".join(_notes(found)),
        va="top",
        fontsize=7.5,
        color=NOTE_COLOUR,
        linespacing=1.3,
    )


def _notes(found: PairAttention) -> list[str]:
    return [line for note in found.notes for line in textwrap.wrap(f"note: {note}", 110)]


def _table_height(found: PairAttention) -> float:
    return float(min(3.3, max(0.5, 0.3 * len(found.queries))))


def _draw_heat(axes: Axes, image: AskedImage, found: PairAttention) -> str:
    """Shade the regions by the attention that they get; returns what is to be seen."""
    regions = image.regions
    boxes = regions.boxes.tolist()
    if found.keys[0].kind != REGION:
        draw_boxes(axes, boxes, max(regions.width, regions.height))
        return "here words are attended to, so no region is bright or dark"
    received = found.received().tolist()
    shares = list(zip(received, found.keys, strict=True))
    placed = [(share, key.region) for share, key in shares if key.region is not None]
    heat = _heat(placed, boxes, regions.width, regions.height)
    shade = np.zeros((*heat.shape, 4))
    shade[..., 3] = DARKEST * (1 - heat / (heat.max() or 1.0))
    extent = (0, regions.width, regions.height, 0)
    axes.imshow(shade, extent=extent, interpolation="nearest")
    shown = [
        (share, n) for share, n in sorted(placed, reverse=True)[:SHOWN_BOXES] if share >= 0.005
    ]
    for _, region in shown:
        _outline(axes, boxes[region], HEAT, 1.0)
    _name_boxes(axes, shown, boxes, max(regions.width, regions.height))
    whole = [share for share, key in shares if key.region is None]
    said = (
        f"bright: regions that get much from {_from(found)}, where they overlap their sum; "
        "numbers: region and weight of the largest"
    )
    return said + (f"; the image as a whole gets {whole[0]:.2f}" if whole else "")


def _heat(
    placed: Sequence[tuple[float, int]], boxes: Sequence[Sequence[float]], width: int, height: int
) -> np.ndarray:
    """(rows, columns): the sum of the weights of the regions that cover a place."""
    scale = HEAT_PIXELS / max(width, height)
    rows, columns = (max(1, round(size * scale)) for size in (height, width))
    heat = np.zeros((rows, columns))
    for share, region in placed:
        x1, y1, x2, y2 = (round(edge * scale) for edge in boxes[region])
        heat[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] += share
    return heat


def _from(found: PairAttention) -> str:
    names = [found.queries[place].name for place in found.chosen]
    if len(names) < len(found.queries) or len(names) == 1:
        word = "".join(name.removeprefix("##") for name in names)
        return f"{word!r}" if found.queries[0].kind != REGION else f"region {word}"
    kind = "words" if found.queries[0].kind != REGION else "regions"
    return f"all {len(names)} {kind} (mean)"


def _name_boxes(
    axes: Axes, placed: Sequence[tuple[float, int]], boxes: Sequence[Sequence[float]], size: float
) -> None:
    """Number and share in the upper left corners, moved down where corners coincide."""
    taken: list[tuple[float, float]] = []
    for share, region in placed:
        x, y = boxes[region][:2]
        while any(abs(x - a) < 0.2 * size and abs(y - b) < 0.07 * size for a, b in taken):
            y += 0.07 * size
        taken.append((x, y))
        axes.text(
            x,
            y,
            f"{region + 1}: {share:.2f}",
            fontsize=7,
            color="white",
            va="top",
            ha="left",
            fontweight="bold",
            bbox={"facecolor": HEAT, "linewidth": 0, "pad": 1.2},
        )


def _outline(axes: Axes, box: Sequence[float], colour: str, width: float) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width)
    )


def _draw_table(figure: Figure, found: PairAttention, top: float) -> None:
    """Queries as rows, keys as columns; a weight of exactly 0 is white."""
    assert found.weights is not None
    height, tall = figure.get_figheight(), _table_height(found)
    left = MARGIN + IMAGE_WIDTH + GAP + SIDE
    width = WIDTH - left - BAR
    axes = figure.add_axes((left / WIDTH, (top - tall) / height, width / WIDTH, tall / height))
    weights = found.weights.numpy()
    image = axes.imshow(
        np.ma.masked_equal(weights, 0),
        cmap=share_colours().with_extremes(bad="white"),
        vmin=0,
        vmax=max(float(weights.max()), 1e-6),
        aspect="auto",
        interpolation="none",
    )
    if min(width / len(found.keys), tall / len(found.queries) * 1.6) > 0.27:
        _write_numbers(axes, weights)
    _name_axis(axes.set_yticks, found.queries, tall / 0.11)
    _name_axis(axes.set_xticks, found.keys, width / 0.11)
    axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#bbbbbb")
    for axis, places in ((axes.xaxis, found.keys), (axes.yaxis, found.queries)):
        axis.set_label_text(
            ("to " if axis is axes.xaxis else "from ")
            + ("regions" if places[0].kind == REGION else "words"),
            fontsize=8,
        )
    bar_axes = figure.add_axes(
        ((WIDTH - BAR + 0.1) / WIDTH, (top - tall) / height, 0.11 / WIDTH, tall / height)
    )
    bar = figure.colorbar(image, cax=bar_axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("weight", fontsize=7, pad=3)


def _write_numbers(axes: Axes, weights: np.ndarray) -> None:
    largest = weights.max() or 1.0
    for (row, column), weight in np.ndenumerate(weights):
        if weight:
            axes.text(
                column,
                row,
                f"{weight:.2f}".removeprefix("0"),
                ha="center",
                va="center",
                fontsize=6,
                color="white" if weight > 0.55 * largest else "black",
            )


def _name_axis(set_ticks: Callable[..., object], places: Sequence[Place], room: float) -> None:
    """Names of the places; only every n-th where there is no room for all."""
    step = max(1, int(np.ceil(len(places) / max(room, 1))))
    shown = range(0, len(places), step)
    set_ticks(list(shown), [places[n].name for n in shown], fontsize=7)
