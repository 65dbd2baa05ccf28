"""A picture of one answer: the image with its boxes, the likeliest answers, and the decisions."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from common.ask.answering import Answer, Answered, PairDecisions
from common.ask.attention_picture import attention_height, draw_attention
from common.ask.canvas import BOX_COLOURS, MARGIN, draw_boxes, draw_image, image_height
from common.ask.image import AskedImage
from common.detector.names import RegionNames
from common.features.store import Regions
from common.results.decision_grid import decides_layers, stream_of
from common.results.decision_plots import (
    MARK_COLOUR,
    draw_panels,
    marking_frame,
    numbers_fit,
    panels_height,
)
from common.results.plot_style import (
    DEAD_COLOUR,
    DEAD_HATCH,
    WIDTH,
    Target,
    dead_patch,
    new_figure,
    save,
    share_colours,
    stream_colour,
    styled,
)

TITLE, ID_ROW, FOOT = 0.55, 0.15, 0.42
ANSWERS_LEFT, ANSWER_ROW, MOST_ANSWERS, AXIS = 4.4, 0.27, 10, 0.55
QUESTION_ROW, NOTE_ROW = 0.25, 0.14
STRIP, STRIP_TITLE, PANELS_TITLE = 0.62, 0.5, 0.22
ID_COLUMNS, MOST_IDS = 2, 36
QUESTION_WIDTH, NOTE_WIDTH, NAME_WIDTH = 40, 58, 18


def plot_answer(
    image: AskedImage, answered: Answered, title: str, nothing: str, path: Target
) -> None:
    """Write the picture as PNG.

    Args:
        image: with its regions.
        answered: the question with its answers and decisions.
        title: of the run.
        nothing: what to say where nothing is decided.
        path: PNG file, or an open binary file.
    """
    save(draw_answer(image, answered, title, nothing), path)


@styled
def draw_answer(image: AskedImage, answered: Answered, title: str, nothing: str) -> Figure:
    """The figure; arguments as in `plot_answer`."""
    rows = -(-min(MOST_IDS, len(image.regions.boxes)) // ID_COLUMNS)
    notes = image.notes + answered.notes
    if len(answered.answers) > MOST_ANSWERS:
        notes.append(f"{MOST_ANSWERS} of the {len(answered.answers)} answers are drawn")
    notes = [line for note in notes for line in textwrap.wrap(f"note: {note}", NOTE_WIDTH)]
    question = textwrap.wrap(answered.question, QUESTION_WIDTH, max_lines=6, placeholder=" …")
    shown = image_height(image.regions)
    upper = 0.2 + max(
        shown + 0.12 + ID_ROW * rows,
        QUESTION_ROW * len(question)
        + 0.18
        + AXIS
        + ANSWER_ROW * min(MOST_ANSWERS, len(answered.answers))
        + NOTE_ROW * len(notes),
    )
    decided = answered.decisions
    table = None if decided is None else decision_table(decided)
    lower = 0.3 if table is None else _decisions_height(table)
    middle = 0.0 if answered.attention is None else attention_height(image, answered.attention)
    height = TITLE + upper + middle + lower
    figure = new_figure(height)
    figure.text(
        MARGIN / WIDTH,
        1 - 0.1 / height,
        f"{title}\n{Path(image.name).name}",
        va="top",
        fontsize=10,
        linespacing=1.35,
    )
    top = height - TITLE
    boxes = image.regions.boxes.tolist()
    draw_boxes(
        draw_image(figure, image, top), boxes, max(image.regions.width, image.regions.height)
    )
    _draw_ids(figure, image.regions, image.names, top - shown - 0.1)
    _draw_answers(figure, answered.answers, question, notes, top)
    if answered.attention is not None:
        draw_attention(figure, image, answered.attention, lower + middle)
    if table is None or decided is None:
        figure.text(MARGIN / WIDTH, 0.14 / height, f"decided: {nothing}", fontsize=10)
    else:
        _draw_decisions(figure, table, decided, lower)
    return figure


def plot_pair_decisions(
    found: PairDecisions, path: Target, marked: Collection[int] | None = None
) -> None:
    """Write what was decided for a pair as PNG, and nothing else.

    Args:
        found: of the pair.
        path: PNG file, or an open binary file.
        marked: places of decisions that are not those of most questions; None: not known.
    """
    save(_pair_figure(found, marked), path)


@styled
def _pair_figure(found: PairDecisions, marked: Collection[int] | None) -> Figure:
    table = decision_table(found)
    height = 0.12 + _decisions_height(table)
    figure = new_figure(height)
    _draw_decisions(figure, table, found, height - 0.12, marked)
    return figure


def decision_table(found: PairDecisions) -> dict[str, Any]:
    """One pair's decisions in the form of `decisions` in result.json; each share is 0 or 1."""
    return {
        "layers": found.layers,
        "components": found.components,
        "live": found.live,
        "share": found.decisions,
    }


def _draw_ids(figure: Figure, regions: Regions, names: RegionNames, top: float) -> None:
    """Below the image, what the detector says of every box."""
    height = figure.get_figheight()
    count = min(MOST_IDS, len(regions.boxes))
    rows = -(-count // ID_COLUMNS)
    for place in range(count):
        column, row = divmod(place, rows)
        colour = BOX_COLOURS[place % len(BOX_COLOURS)]
        figure.text(
            (MARGIN + 1.9 * column) / WIDTH,
            (top - ID_ROW * row) / height,
            box_label(regions, place, names),
            fontsize=6.5,
            color=colour,
            va="top",
        )
    if count < len(regions.boxes):
        figure.text(
            MARGIN / WIDTH,
            (top - ID_ROW * rows) / height,
            va="top",
            fontsize=6.5,
            s=f"and {len(regions.boxes) - count} more boxes",
        )


def box_label(regions: Regions, place: int, names: RegionNames | None = None) -> str:
    """`3  object 6 (0.98), attribute 4 (0.31)`, as far as the detector gave that.

    With names `3  dog (0.98), brown (0.31)`.
    """
    known = names or RegionNames()
    parts, shares = [], []
    for kind in ("object", "attribute"):
        ids, certain = (getattr(regions, f"{kind}_{what}") for what in ("ids", "conf"))
        if ids is not None:
            number = int(ids[place])
            parts.append((known.of(kind, number) or f"{kind} {number}")[:NAME_WIDTH])
            shares.append("" if certain is None else f" ({float(certain[place]):.2f})")
    if len(set(shares)) == 1:  # one confidence for both
        shares[:-1] = [""] * (len(shares) - 1)
    parts = [part + share for part, share in zip(parts, shares, strict=True)]
    if not parts:
        parts = [", ".join(f"{value:.0f}" for value in regions.boxes[place].tolist())]
    return f"{place + 1}  {', '.join(parts)}"


def _draw_answers(
    figure: Figure,
    answers: Sequence[Answer],
    question: Sequence[str],
    notes: Sequence[str],
    top: float,
) -> None:
    """The lines of the question, one bar for each answer, and the lines of the notes."""
    height = figure.get_figheight()
    figure.text(
        ANSWERS_LEFT / WIDTH,
        (top - 0.02) / height,
        "\n".join(question),
        va="top",
        fontsize=11,
        fontweight="bold",
        linespacing=1.3,
    )
    top -= QUESTION_ROW * len(question) + 0.18
    shown = answers[:MOST_ANSWERS]
    names = [a.text if len(a.text) <= NAME_WIDTH else a.text[: NAME_WIDTH - 1] + "…" for a in shown]
    left = ANSWERS_LEFT + 0.12 + 0.075 * max(map(len, names))
    rows_height = ANSWER_ROW * len(shown)
    axes = figure.add_axes(
        (
            left / WIDTH,
            (top - rows_height) / height,
            (WIDTH - left - 0.6) / WIDTH,
            rows_height / height,
        )
    )
    for row, answer in enumerate(shown):
        axes.barh(row, answer.probability, height=0.7, color="#0072b2" if row == 0 else "#9ab8cf")
        axes.text(
            answer.probability + 0.02, row, f"{answer.probability:.3f}", va="center", fontsize=8
        )
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.45, -0.55), xticks=np.linspace(0, 1, 6))
    axes.set_yticks(range(len(shown)), names, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("probability of each answer by itself", fontsize=8)
    figure.text(
        ANSWERS_LEFT / WIDTH,
        (top - rows_height - AXIS) / height,
        "\n".join(notes),
        va="top",
        fontsize=7.5,
        color="#a34700",
        linespacing=1.3,
    )


def _decisions_height(table: dict[str, Any]) -> float:
    return FOOT + (
        STRIP_TITLE + STRIP if decides_layers(table) else PANELS_TITLE + panels_height(table)
    )


def _draw_decisions(
    figure: Figure,
    table: dict[str, Any],
    found: PairDecisions,
    lower: float,
    marked: Collection[int] | None = None,
) -> None:
    """The decisions of the pair in the lower part of the figure, with a legend."""
    height = figure.get_figheight()
    numbers, whole = found.probabilities, decides_layers(table)
    live = sum(table["live"])
    ones = sum(d for d, alive in zip(found.decisions, found.live, strict=True) if alive)
    unit = "layers" if whole else "parts"
    figure.text(
        MARGIN / WIDTH,
        lower / height,
        va="top",
        fontsize=10,
        s=f"decided: {ones} of {live} {unit} {found.words[1]}",
    )
    if whole:
        _draw_strip(figure, table, found, lower - STRIP_TITLE, marked or ())
    else:
        draw_panels(
            figure,
            table,
            lower - PANELS_TITLE,
            [np.nan] * len(found.decisions) if numbers is None else numbers,
            marked or (),
        )
    zero, one = found.words
    handles = [
        Patch(facecolor=share_colours()(1.0), label=one),
        Patch(facecolor=share_colours()(0.0), label=zero),
    ]
    if not all(table["live"]):
        handles.append(dead_patch())
    if marked is not None:
        label = "other than for most questions"
        handles.append(Patch(facecolor="white", edgecolor=MARK_COLOUR, linewidth=1.6, label=label))
    says = {
        "argmax": "the policy's likelier decision",
        "sample": "drawn by the policy",
        "global": "one decision for all pairs (global)",
    }[found.how]
    if numbers is not None and (whole or numbers_fit(table)):
        says += f"; numbers: its probability of {one}"
    figure.legend(
        handles=handles,
        loc="lower left",
        ncols=len(handles),
        borderaxespad=0,
        bbox_to_anchor=(MARGIN / WIDTH, 0.12 / height),
    )
    figure.text(
        1 - MARGIN / WIDTH,
        lower / height,
        says,
        ha="right",
        va="top",
        fontsize=7.5,
        color="#444444",
    )


def _draw_strip(
    figure: Figure, table: dict[str, Any], found: PairDecisions, top: float, marked: Collection[int]
) -> None:
    """Whole layers as a row of cells, in order of execution; `top` is in inches."""
    height, layers = figure.get_figheight(), table["layers"]
    axes = figure.add_axes(
        (MARGIN / WIDTH, (top - STRIP) / height, 1 - 2 * MARGIN / WIDTH, STRIP / height)
    )
    streams = list(dict.fromkeys(map(stream_of, layers)))
    roomy = len(layers) <= 8
    for place, (layer, decision, alive) in enumerate(
        zip(layers, found.decisions, found.live, strict=True)
    ):
        face = share_colours()(float(decision)) if alive else DEAD_COLOUR
        axes.add_patch(
            Rectangle(
                (place + 0.04, 0),
                0.92,
                1,
                facecolor=face,
                linewidth=0.6,
                edgecolor="#888888",
                hatch=None if alive else DEAD_HATCH,
            )
        )
        if place in marked:
            axes.add_patch(marking_frame(place + 0.04, 0, 0.92))
        axes.text(
            place + 0.5,
            1.08,
            layer,
            ha="center",
            va="bottom",
            fontsize=8 if roomy else 6.5,
            color=stream_colour(stream_of(layer), streams),
        )
        lines = [found.words[decision] if alive else "dead"] if roomy else []
        if alive and found.probabilities is not None:
            lines.append(f"{found.probabilities[place]:.2f}")
        axes.text(
            place + 0.5,
            0.5,
            "\n".join(lines),
            ha="center",
            va="center",
            linespacing=1.4,
            fontsize=8 if roomy else 7,
            color="white" if alive and decision else "black",
        )
    axes.set(xlim=(0, len(layers)), ylim=(-0.02, 1.02))
    axes.axis("off")
