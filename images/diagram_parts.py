"""Building blocks of the diagrams: boxes, arrows, branches, rows of decisions.

All positions and sizes are in inches on a canvas whose lower left corner is (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Outline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH, DPI, COLOURS = 8.0, 160, 128
INK, FAINT = "#222222", "#777777"
POLICY = "#6a4c93"
Point = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Colours of a kind of box."""

    face: str
    edge: str
    dashed: bool = False


LOOKS = {
    "finetuned": Look("#fbd9b0", "#b85c00"),
    "frozen": Look("#d3e6f3", "#2f6f9f"),
    "skipped": Look("#ffffff", "#9a9a9a", dashed=True),
    "linear": Look("#dcefd9", "#3c8a3a"),
    "policy": Look("#e6dcf1", POLICY),
    "plain": Look("#f1f1f1", "#666666"),
    "dead": Look("#dddddd", "#a0a0a0", dashed=True),
    "lang": Look("#d9e8f5", "#0072b2"),
    "vision": Look("#f9e6cc", "#d17c00"),
    "cross": Look("#d5efe6", "#009e73"),
}


def canvas(height: float) -> Axes:
    """Empty drawing of the common width and a height in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, height))
    axes.set_axis_off()
    return axes


def save(axes: Axes, path: Path) -> None:
    """Write the drawing as PNG; a label of its axes is kept in the file as its description."""
    drawn = BytesIO()
    axes.figure.savefig(drawn, dpi=DPI, facecolor="white")
    kept = PngInfo()
    if description := str(axes.get_label()):
        kept.add_text("Description", description)
    with Image.open(drawn) as picture:  # a palette is enough, and a third of the size
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
            path, optimize=True, pnginfo=kept, dpi=(DPI, DPI)
        )


def text(
    axes: Axes,
    at: Point,
    words: str,
    size: float = 9.0,
    align: str = "center",
    colour: str = INK,
    bold: bool = False,
    italic: bool = False,
) -> None:
    """Words, vertically centred on a point."""
    axes.text(
        *at,
        words,
        fontsize=size,
        ha=align,
        va="center",
        color=colour,
        zorder=6,
        family="DejaVu Sans",
        weight="bold" if bold else "normal",
        style="italic" if italic else "normal",
        linespacing=1.3,
    )


def box(
    axes: Axes, at: Point, size: Point, words: str = "", kind: str = "plain", font: float = 9.0
) -> None:
    """Rounded box around a centre, with its words inside."""
    look = LOOKS[kind]
    (x, y), (width, height) = at, size
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            facecolor=look.face,
            edgecolor=look.edge,
            boxstyle=f"round,pad=0,rounding_size={min(0.07, width / 4, height / 4)}",
            linewidth=1.3,
            linestyle="--" if look.dashed else "-",
            zorder=3,
        )
    )
    if words:
        text(axes, at, words, font)


def frame(axes: Axes, corner: Point, size: Point, words: str = "", colour: str = FAINT) -> None:
    """Dashed frame around several boxes, with its words above the upper left corner."""
    axes.add_patch(
        FancyBboxPatch(
            corner,
            *size,
            facecolor="#fafafa",
            edgecolor=colour,
            boxstyle="round,pad=0,rounding_size=0.08",
            linewidth=1,
            linestyle=(0, (4, 3)),
            zorder=1,
        )
    )
    if words:
        text(axes, (corner[0] + 0.05, corner[1] + size[1] + 0.13), words, 9, "left", colour)


def arrow(
    axes: Axes, *points: Point, colour: str = INK, dashed: bool = False, head: bool = True
) -> None:
    """Line through points with its head at the last one."""
    axes.add_patch(
        FancyArrowPatch(
            path=Outline(points),
            arrowstyle="-|>" if head else "-",
            mutation_scale=11,
            linewidth=1.4,
            color=colour,
            linestyle="--" if dashed else "-",
            fill=head,
            zorder=2,
            shrinkA=0,
            shrinkB=0,
            joinstyle="round",
            capstyle="butt",
        )
    )


def blend(axes: Axes, at: Point, words: str = "+", radius: float = 0.15) -> None:
    """Circle where the two branches are added."""
    axes.add_patch(Circle(at, radius, facecolor="white", edgecolor=INK, linewidth=1.3, zorder=4))
    text(axes, at, words, 11)


def badge(axes: Axes, at: Point, words: str = "d", radius: float = 0.13) -> None:
    """Purple disc: a decision of the policy."""
    axes.add_patch(Circle(at, radius, facecolor=POLICY, edgecolor="white", linewidth=1, zorder=5))
    text(axes, at, words, 8.5, colour="white", bold=True)


def branches(
    axes: Axes,
    start: Point,
    width: float,
    upper: str,
    lower: str,
    lower_kind: str = "frozen",
    *,
    gap: float = 0.5,
    height: float = 0.62,
    decision: str = "d",
    font: float = 9.0,
) -> Point:
    """Finetuned (upper) and other (lower) branch of the same input, added by a decision.

    Args:
        start: where the input arrives.
        width: of the two boxes.
        upper, lower: words in the boxes; an empty `lower` is a plain wire, the identity.
        lower_kind: look of the lower box.
        gap: from the input's height to the middle of either box.
        decision: name of the decision, written on the wires.

    Returns:
        The centre of the adding circle.
    """
    x, y = start
    split, middle = x + 0.12, x + 0.45 + width / 2
    end = (x + 0.45 + width + 0.75, y)
    arrow(axes, start, (split, y), head=False)
    for side, words, kind, factor in (
        (1, upper, "finetuned", decision),
        (-1, lower, lower_kind, f"1−{decision}"),
    ):
        level = y + side * gap
        if words:
            arrow(axes, (split, y), (split, level), (middle - width / 2, level))
            box(axes, (middle, level), (width, height), words, kind, font)
            arrow(axes, (middle + width / 2, level), (end[0], level), (end[0], y + side * 0.15))
        else:
            arrow(axes, (split, y), (split, level), (end[0], level), (end[0], y + side * 0.15))
        text(
            axes,
            (end[0] - 0.33, level + 0.13),
            f"× {factor}" if len(factor) < 3 else f"× ({factor})",
            9,
            colour=POLICY,
        )
    blend(axes, end)
    return end


def example(
    axes: Axes,
    left: float,
    y: float,
    title: str,
    decisions: Sequence[int],
    other: str,
    names: Sequence[str],
    size: Point = (0.72, 0.34),
) -> None:
    """One image–question pair: its decisions, and the layers that they choose.

    Args:
        left: x of the first box's left edge.
        other: kind of box that decision 0 chooses.
    """
    text(axes, (left - 0.15, y), title, 9, "right")
    arrow(axes, (left - 0.1, y), (left + len(decisions) * (size[0] + 0.12) + 0.1, y), colour=FAINT)
    for place, (name, decision) in enumerate(zip(names, decisions, strict=True)):
        middle = left + 0.1 + place * (size[0] + 0.12) + size[0] / 2
        box(axes, (middle, y), size, name, "finetuned" if decision else other, 8)
        badge(axes, (middle + size[0] / 2 - 0.02, y + size[1] / 2), str(decision), 0.1)


def legend(
    axes: Axes, y: float, entries: Sequence[tuple[str, str]], left: float = 0.3, step: float = 1.9
) -> None:
    """Row of (kind, words) with a small box of that kind in front."""
    for place, (kind, words) in enumerate(entries):
        box(axes, (left + place * step, y), (0.26, 0.17), "", kind)
        text(axes, (left + place * step + 0.2, y), words, 8.5, "left")
