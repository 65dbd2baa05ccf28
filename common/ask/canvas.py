"""The image of a pair on a figure, with numbered boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from common.ask.image import AskedImage
from common.features.store import Regions
from common.results.plot_style import Target, new_figure, save, styled

MARGIN = 0.15
IMAGE_WIDTH, IMAGE_HEIGHT = 3.8, 3.3
BOX_COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#009e73", "#882255", "#b8a900", "#56b4e9")


def image_height(regions: Regions) -> float:
    """Inches that the image needs: as wide as there is room, unless it is then too high."""
    return min(IMAGE_HEIGHT, IMAGE_WIDTH * regions.height / regions.width)


def plot_boxes(image: AskedImage, path: Target) -> None:
    """Write the image with its numbered boxes, and nothing else, as PNG."""
    save(_boxes_figure(image), path)


@styled
def _boxes_figure(image: AskedImage) -> Figure:
    regions = image.regions
    shown = image_height(regions)
    figure = new_figure(shown + 2 * MARGIN, shown * regions.width / regions.height + 2 * MARGIN)
    axes = draw_image(figure, image, shown + MARGIN)
    draw_boxes(axes, regions.boxes.tolist(), max(regions.width, regions.height))
    return figure


def draw_image(figure: Figure, image: AskedImage, top: float) -> Axes:
    """The picture, or an empty canvas of its size; `top` is in inches. Returns its axes."""
    (width, height), regions = figure.get_size_inches(), image.regions
    shown = image_height(regions)
    axes = figure.add_axes(
        (MARGIN / width, (top - shown) / height, IMAGE_WIDTH / width, shown / height)
    )
    extent = (0, regions.width, regions.height, 0)
    if image.picture is None:
        axes.add_patch(Rectangle((0, 0), regions.width, regions.height, facecolor="#f2f2f2"))
    else:
        pixelated = max(image.picture.size) < 400
        axes.imshow(
            np.asarray(image.picture),
            extent=extent,
            interpolation="nearest" if pixelated else "antialiased",
        )
    pad = 0.02 * max(regions.width, regions.height)
    axes.set(
        xlim=(-pad, regions.width + pad),
        ylim=(regions.height + pad, -pad),
        aspect="equal",
        anchor="NW",
    )
    axes.axis("off")
    return axes


def draw_boxes(axes: Axes, boxes: Sequence[Sequence[float]], size: float) -> None:
    """Outlines with numbers in their upper left corners, moved where corners coincide."""
    step = 0.065 * size
    taken: list[tuple[float, float]] = []
    for number in range(len(boxes), 0, -1):  # the first, most certain ones on top
        x1, y1, x2, y2 = boxes[number - 1]
        colour = BOX_COLOURS[(number - 1) % len(BOX_COLOURS)]
        axes.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=colour,
                linewidth=1.8 if number == 1 else 1.1,
            )
        )
        x = x1
        while any(abs(x - a) < step and abs(y1 - b) < step for a, b in taken) and x + step < x2:
            x += step
        taken.append((x, y1))
        axes.text(
            x,
            y1,
            str(number),
            fontsize=7,
            color="white",
            va="top",
            ha="left",
            fontweight="bold",
            bbox={"facecolor": colour, "linewidth": 0, "pad": 1.2},
        )
