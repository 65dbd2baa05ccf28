"""Draw the diagrams of this folder: `python images/make_diagrams.py [--out DIR]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from diagram_parts import (
    FAINT,
    POLICY,
    Point,
    arrow,
    badge,
    box,
    branches,
    canvas,
    example,
    frame,
    legend,
    save,
    text,
)
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from package_diagram import packages

LAYERS = [f"layer {number}" for number in range(1, 7)]
PAIRS = (("pair A", (1, 0, 0, 1, 0, 1)), ("pair B", (0, 0, 1, 1, 1, 0)))


def whole_layer(
    title: str, lower: str, lower_kind: str, formula: str, meanings: tuple[str, str]
) -> Axes:
    """Diagram of a strategy that decides about whole layers.

    Args:
        lower, lower_kind: words and look of the branch of decision 0; no words: a plain wire.
        meanings: what decisions 1 and 0 do, for the legend.
    """
    axes = canvas(4.3)
    text(axes, (0.3, 4.05), title, 11, "left", bold=True)
    text(axes, (0.5, 2.85), "x", 12, italic=True)
    text(axes, (0.5, 2.58), "input of\nthe layer", 7.5, colour=FAINT)
    end = branches(axes, (0.68, 2.85), 2.3, "layer\n(finetuned weights)", lower, lower_kind)
    arrow(axes, (end[0] + 0.15, end[1]), (end[0] + 0.65, end[1]))
    text(axes, (end[0] + 0.8, end[1]), "y", 12, italic=True)
    box(axes, (6.6, 3.35), (1.9, 0.62), "policy network\n(image, question)", "policy")
    arrow(axes, (6.6, 3.04), (6.6, 2.45), colour=POLICY)
    badge(axes, (6.6, 2.3))
    text(axes, (6.8, 2.3), "0 or 1, per pair", 8.5, "left", POLICY)
    text(axes, (4.0, 1.78), formula, 10.5)
    for (name, decisions), y in zip(PAIRS, (1.25, 0.75), strict=True):
        example(axes, 1.3, y, name, decisions, lower_kind, LAYERS)
    legend(
        axes,
        0.25,
        [("finetuned", f"d = 1: {meanings[0]}"), (lower_kind, f"d = 0: {meanings[1]}")],
        1.5,
        2.2,
    )
    return axes


def spottune_block() -> Axes:
    """SpotTune_Block: finetuned or pretrained weights for each layer."""
    return whole_layer(
        "SpotTune_Block: one decision per layer",
        "layer\n(frozen pretrained twin)",
        "frozen",
        "y = d · finetuned(x) + (1 − d) · frozen(x)",
        ("finetuned", "frozen twin"),
    )


def blockdrop() -> Axes:
    """BlockDrop: each layer runs or is skipped."""
    return whole_layer(
        "BlockDrop: one decision per layer, run it or skip it",
        "",
        "skipped",
        "y = d · layer(x) + (1 − d) · x",
        ("kept", "skipped"),
    )


def blockreplace() -> Axes:
    """BlockReplace: each layer runs, or a linear map of the same input takes its place."""
    return whole_layer(
        "BlockReplace: one decision per layer, run it or replace it",
        "linear map  Wx + b\n(trained)",
        "linear",
        "y = d · layer(x) + (1 − d) · (Wx + b)",
        ("kept", "linear map"),
    )


def spottune_res() -> Axes:
    """SpotTune_Res: a decision for each part between two skip connections."""
    axes = canvas(3.7)
    text(
        axes,
        (0.3, 3.45),
        "SpotTune_Res: one decision per part between two skip connections",
        11,
        "left",
        bold=True,
    )
    frame(axes, (0.5, 0.95), (7.0, 1.72), "one layer")
    text(axes, (0.28, 1.8), "x", 12, italic=True)
    arrow(axes, (0.38, 1.8), (0.72, 1.8), head=False)
    first = branches(
        axes,
        (0.72, 1.8),
        1.75,
        "attention part\n(finetuned)",
        "attention part\n(frozen)",
        decision="d₁",
    )
    arrow(axes, (first[0] + 0.15, 1.8), (first[0] + 0.45, 1.8), head=False)
    second = branches(
        axes,
        (first[0] + 0.45, 1.8),
        1.75,
        "feed-forward part\n(finetuned)",
        "feed-forward part\n(frozen)",
        decision="d₂",
    )
    arrow(axes, (second[0] + 0.15, 1.8), (7.7, 1.8))
    text(axes, (7.82, 1.8), "y", 12, italic=True)
    box(axes, (5.2, 3.03), (2.6, 0.36), "policy network (image, question)", "policy", 8.5)
    for end, name in ((first, "d₁"), (second, "d₂")):
        arrow(axes, (end[0] + 0.02, 2.85), (end[0] + 0.02, 2.55), colour=POLICY, head=False)
        badge(axes, (end[0] + 0.02, 2.52), name, 0.15)
    arrow(
        axes,
        (first[0] + 0.02, 2.86),
        (first[0] + 0.02, 3.03),
        (3.9, 3.03),
        colour=POLICY,
        head=False,
    )
    arrow(
        axes,
        (second[0] + 0.02, 2.86),
        (second[0] + 0.02, 3.03),
        (6.5, 3.03),
        colour=POLICY,
        head=False,
    )
    text(
        axes,
        (4.0, 0.68),
        "every part holds its residual addition and LayerNorm; both branches read the same input",
        8.5,
        colour=FAINT,
    )
    legend(
        axes, 0.28, [("finetuned", "d = 1: finetuned"), ("frozen", "d = 0: frozen twin")], 2.2, 2.1
    )
    return axes


def _twins(axes: Axes, at: Point, size: Point, words: str, decision: str) -> None:
    """Finetuned and frozen box one above the other, the decision at their left."""
    (x, y), (_, height) = at, size
    box(axes, (x, y + height / 2 + 0.02), size, words, "finetuned", 8.5)
    box(axes, (x, y - height / 2 - 0.02), size, words, "frozen", 8.5)
    badge(axes, (x + size[0] / 2, y), decision, 0.16)


def spottune() -> Axes:
    """SpotTune: a decision for each attention head, attention output, intermediate, output."""
    axes = canvas(4.5)
    text(
        axes,
        (0.3, 4.25),
        "SpotTune: one decision per attention head and per dense step",
        11,
        "left",
        bold=True,
    )
    frame(axes, (0.55, 0.85), (6.95, 2.78), "one layer")
    text(axes, (0.22, 2.2), "x", 12, italic=True)
    arrow(axes, (0.32, 2.2), (0.78, 2.2), head=False)
    for place, (y, words) in enumerate(((3.15, "head 1"), (2.45, "head 2"), (1.3, "head H"))):
        arrow(axes, (0.78, 2.2), (0.78, y), (1.05, y))
        _twins(axes, (1.55, y), (1.0, 0.26), words, ("d₁", "d₂", "dₕ")[place])
        arrow(axes, (2.21, y), (2.45, y), (2.45, 2.2), head=False)
    text(axes, (1.55, 1.88), "⋮", 14)
    arrow(axes, (2.45, 2.2), (2.78, 2.2))
    for x, words, name in (
        (3.43, "attention\noutput", "dₐ"),
        (5.07, "inter-\nmediate", "dᵢ"),
        (6.63, "output", "dₒ"),
    ):
        _twins(axes, (x, 2.2), (1.24 if x < 5 else 1.0, 0.52), words, name)
    arrow(axes, (4.21, 2.2), (4.57, 2.2))
    arrow(axes, (5.73, 2.2), (6.13, 2.2))
    arrow(axes, (7.29, 2.2), (7.72, 2.2))
    text(axes, (7.84, 2.2), "y", 12, italic=True)
    _skips(axes)
    box(axes, (5.9, 3.95), (3.0, 0.34), "policy network (image, question)", "policy", 8.5)
    text(axes, (4.3, 3.95), "all d come from", 8.5, "right", POLICY)
    text(axes, (4.0, 0.62), "every step blends:  y = d · finetuned(x) + (1 − d) · frozen(x)", 10)
    legend(
        axes, 0.25, [("finetuned", "d = 1: finetuned"), ("frozen", "d = 0: frozen twin")], 2.2, 2.1
    )
    return axes


def _skips(axes: Axes) -> None:
    """The two skip connections of `spottune`: from x, and from the attention output."""
    arrow(axes, (0.65, 2.2), (0.65, 0.98), (3.43, 0.98), (3.43, 1.66), colour=FAINT)
    arrow(axes, (4.38, 2.2), (4.38, 0.98), (6.63, 0.98), (6.63, 1.66), colour=FAINT)
    text(axes, (2.8, 1.1), "skip connection", 7.5, colour=FAINT)
    text(axes, (5.5, 1.1), "skip connection", 7.5, colour=FAINT)


def layer() -> Axes:
    """A transformer layer as a list of steps, and what one decision covers in each strategy."""
    axes = canvas(3.9)
    text(axes, (0.3, 3.65), "A transformer layer is a list of steps", 11, "left", bold=True)
    y = 2.55
    text(axes, (0.35, y), "hidden", 8.5)
    arrow(axes, (0.62, y), (0.95, y))
    for number, shift in enumerate((0.42, 0.14, -0.14, -0.42)):
        name = ("head 1", "head 2", "…", "head H")[number]
        box(axes, (1.5, y + shift), (1.1, 0.24), name, "plain", 8.5)
    steps = (
        (3.0, "attention\noutput", "dense + skip,\nLayerNorm"),
        (4.75, "intermediate", "dense,\nGELU"),
        (6.35, "output", "dense + skip,\nLayerNorm"),
    )
    for x, words, detail in steps:
        box(axes, (x, y), (1.15, 0.72), words)
        text(axes, (x, y - 0.56), detail, 7.5, colour=FAINT)
    for start, end in ((2.05, 2.42), (3.58, 4.17), (5.33, 5.77), (6.93, 7.3)):
        arrow(axes, (start, y), (end, y))
    text(axes, (7.33, y), "hidden", 8.5, "left")
    arrow(axes, (0.78, y), (0.78, 3.3), (3.0, 3.3), (3.0, y + 0.36), colour=FAINT)
    arrow(axes, (3.85, y), (3.85, 3.3), (6.35, 3.3), (6.35, y + 0.36), colour=FAINT)
    for x in (1.9, 5.1):
        text(axes, (x, 3.42), "skip connection", 8, colour=FAINT)
    _spans(axes)
    return axes


def _spans(axes: Axes) -> None:
    """Below `layer`: how many decisions each strategy makes, and over which steps."""
    whole = "SpotTune_Block, BlockDrop, BlockReplace"
    rows = (
        (
            1.42,
            "SpotTune",
            (
                (0.95, 2.05, "one per head"),
                (2.42, 3.58, "one"),
                (4.17, 5.33, "one"),
                (5.77, 6.93, "one"),
            ),
        ),
        (
            0.98,
            "SpotTune_Res",
            ((0.95, 3.58, "attention part: one"), (4.17, 6.93, "feed-forward part: one")),
        ),
        (0.54, whole, ((0.95, 6.93, f"{whole}: one for the whole layer"),)),
    )
    for y, name, spans in rows:
        for left, right, words in spans:
            box(axes, ((left + right) / 2, y), (right - left, 0.3), words, "policy", 8.5)
        if len(spans) > 1:
            text(axes, (7.02, y), name, 8, "left", POLICY)
    text(axes, (4.0, 0.18), "purple: what one decision covers", 8, colour=POLICY)


def encoder() -> Axes:
    """LXMERT's encoder: two streams, then cross layers; the inside of a cross layer."""
    axes = canvas(5.0)
    text(axes, (0.3, 4.75), "LXMERT: two streams, then cross layers (9-5-5)", 11, "left", bold=True)
    for y, kind, source, count in (
        (4.05, "lang", "words of\nthe question", 9),
        (3.05, "vision", "regions and\ntheir boxes", 5),
    ):
        text(axes, (0.62, y), source, 8.5)
        names = ["1", "2", "3", "…", str(count)]
        for place, name in enumerate(names):
            box(axes, (1.82 + place * 0.5, y), (0.42, 0.5), name, kind)
        arrow(axes, (1.15, y), (1.61, y))
        text(
            axes,
            (2.82, y + 0.4),
            f"{'language' if kind == 'lang' else 'vision'} stream: {kind}.1 … {kind}.{count}",
            8.5,
        )
        arrow(axes, (4.03, y), (4.45, y))
    for place, name in enumerate(("1", "2", "…", "5")):
        box(axes, (4.72 + place * 0.56, 3.55), (0.48, 1.5), name, "cross")
    text(axes, (5.56, 4.45), "cross layers: cross.1 … cross.5", 8.5)
    arrow(axes, (6.64, 4.05), (6.95, 4.05))
    text(axes, (7.0, 4.05), "pooled [CLS]\n→ answer", 8.5, "left")
    arrow(axes, (6.64, 3.05), (6.95, 3.05), colour=FAINT, dashed=True)
    text(axes, (7.0, 3.05), "not read\nfor VQA", 8.5, "left", FAINT)
    _cross_layer(axes)
    return axes


def _cross_layer(axes: Axes) -> None:
    frame(axes, (0.3, 0.45), (7.4, 1.72), "inside a cross layer")
    box(
        axes,
        (1.95, 1.3),
        (1.5, 1.4),
        "cross attention\n(both directions,\nshared weights,\nshared decisions)",
        "cross",
        8.5,
    )
    for y, kind, stream in ((1.7, "lang", "language"), (0.9, "vision", "vision")):
        arrow(axes, (0.7, y), (1.2, y))
        arrow(axes, (2.7, y), (3.2, y))
        box(axes, (4.0, y), (1.6, 0.55), f"{stream}\nself-attention", kind, 8.5)
        arrow(axes, (4.8, y), (5.3, y))
        box(axes, (6.1, y), (1.6, 0.55), f"{stream}\nfeed-forward", kind, 8.5)
        arrow(axes, (6.9, y), (7.4, y))
    text(
        axes,
        (4.0, 0.22),
        "in the last cross layer the vision half cannot reach the answer: its "
        "decisions are dead and drawn grey",
        8,
        colour=FAINT,
    )


def vilbert_encoder() -> Axes:
    """ViLBERT's encoder: connections between two streams; the inside of a connection."""
    axes = canvas(5.0)
    title = "ViLBERT: two streams with connections between them (12-6-6)"
    text(axes, (0.3, 4.75), title, 11, "left", bold=True)
    rows = (
        (4.05, "lang", "words of\nthe question", ("1", "…", "6", "7", "8", "…", "12")),
        (3.05, "vision", "image and\nregions", ("1", "2", "…", "6")),
    )
    places = (1.45, 1.92, 2.39, 3.51, 4.63, 5.19, 6.31)
    for y, kind, source, names in rows:
        text(axes, (0.5, y), source, 8.5)
        own = places[-len(names) :]
        arrow(axes, (0.9, y), (own[0] - (0.22 if kind == "lang" else 0.79), y))
        for x, name in zip(own, names, strict=True):
            if name == "…":
                text(axes, (x, y), name, 9)
            else:
                box(axes, (x, y), (0.42, 0.5), name, kind)
        arrow(axes, (6.53, y), (6.8, y))
    for x, name in ((2.95, "1"), (4.07, "2"), (5.75, "6")):
        box(axes, (x, 3.55), (0.42, 1.5), name, "cross")
    text(axes, (1.92, 4.47), "text layers: lang.1 … lang.12", 8.5)
    text(axes, (4.6, 4.47), "connections: connection.1 … connection.6", 8.5)
    text(axes, (4.6, 2.63), "image layers: vision.1 … vision.6", 8.5)
    text(axes, (6.85, 3.55), "first positions,\npooled,\nmultiplied\n→ answer", 8.5, "left")
    _connection(axes)
    return axes


def _connection(axes: Axes) -> None:
    frame(axes, (0.3, 0.45), (7.4, 1.72), "inside a connection")
    words = (("lang", "text asks\nthe image"), ("vision", "image asks\nthe text"))
    for y, (kind, attention) in zip((1.7, 0.9), words, strict=True):
        stream = "text" if kind == "lang" else "image"
        arrow(axes, (0.6, y), (1.3, y))
        box(axes, (2.1, y), (1.6, 0.55), attention, "cross", 8.5)
        arrow(axes, (2.9, y), (3.3, y))
        box(axes, (4.1, y), (1.6, 0.55), f"{stream}\nattention output", kind, 8.5)
        arrow(axes, (4.9, y), (5.3, y))
        box(axes, (6.1, y), (1.6, 0.55), f"{stream}\nfeed-forward", kind, 8.5)
        arrow(axes, (6.9, y), (7.4, y))
    arrow(axes, (0.85, 1.7), (1.3, 0.98))
    arrow(axes, (0.85, 0.9), (1.3, 1.62))
    words = "each direction has weights of its own; one decision of SpotTune_Block covers both"
    text(axes, (4.0, 0.22), words, 8, colour=FAINT)


def _picture(axes: Axes, at: Point, size: float) -> None:
    """A small image with two shapes and a region box."""
    x, y = at
    axes.add_patch(
        Rectangle(
            (x - size / 2, y - size / 2),
            size,
            size,
            facecolor="#cfe3d4",
            edgecolor="#444444",
            linewidth=1.2,
            zorder=3,
        )
    )
    axes.add_patch(
        Circle((x - size * 0.12, y + size * 0.05), size * 0.2, facecolor="#c1272d", zorder=4)
    )
    axes.add_patch(
        Rectangle(
            (x - size * 0.36, y - size * 0.19),
            size * 0.48,
            size * 0.48,
            facecolor="none",
            edgecolor="#222222",
            linewidth=1,
            linestyle="--",
            zorder=5,
        )
    )


def overview() -> Axes:
    """The whole idea: the policy looks at the pair and routes it through the encoder."""
    axes = canvas(4.6)
    text(
        axes,
        (0.3, 4.35),
        "Adaptive finetuning: a route through the encoder for every image–question pair",
        11,
        "left",
        bold=True,
    )
    _picture(axes, (0.95, 2.75), 1.05)
    text(axes, (0.95, 2.08), "regions of the image", 8, colour=FAINT)
    box(axes, (0.95, 1.45), (1.5, 0.55), "“What colour is\nthe circle?”", "plain", 8.5)
    text(axes, (0.95, 1.04), "question", 8, colour=FAINT)
    arrow(axes, (1.5, 2.75), (2.05, 2.75), (2.05, 3.55), (2.4, 3.55))
    arrow(axes, (1.7, 1.45), (2.05, 1.45), (2.05, 2.75), head=False)
    box(axes, (3.15, 3.55), (1.5, 0.62), "policy network\n(small)", "policy")
    arrow(axes, (3.9, 3.55), (4.3, 3.55), colour=POLICY)
    decisions = (1, 0, 0, 1, 1)
    columns = [3.0 + 0.82 * place for place in range(5)]
    for place, decision in enumerate(decisions):
        badge(axes, (4.5 + 0.34 * place, 3.55), str(decision), 0.14)
    text(axes, (6.28, 3.55), "decisions d, 0 or 1\n(hard Gumbel-softmax)", 8.5, "left", POLICY)
    frame(axes, (2.45, 0.72), (4.22, 2.02), "")
    for x, decision, place in zip(columns, decisions, range(5), strict=True):
        _routed_layer(axes, x, decision, place + 1)
        arrow(
            axes,
            (4.5 + 0.34 * place, 3.41),
            (4.5 + 0.34 * place, 3.1),
            (x, 2.93),
            (x, 2.7),
            colour=POLICY,
            dashed=True,
        )
    arrow(axes, (2.05, 1.7), (2.5, 1.7))
    levels = [2.08 if decision else 1.28 for decision in decisions]
    for left, right, a, b in zip(columns, columns[1:], levels, levels[1:], strict=False):
        arrow(axes, (left + 0.3, a), (right - 0.3, b))
    arrow(axes, (columns[-1] + 0.3, levels[-1]), (6.75, levels[-1]), (6.75, 1.7), (6.95, 1.7))
    box(axes, (7.35, 1.7), (0.75, 0.5), "answer:\nred", "plain", 8.5)
    legend(
        axes,
        0.35,
        [
            ("finetuned", "finetuned weights"),
            ("frozen", "frozen pretrained twin"),
            ("policy", "decided for each pair"),
        ],
        1.3,
        2.1,
    )
    return axes


def _routed_layer(axes: Axes, x: float, decision: int, number: int) -> None:
    """The twins of one layer; the one that is not chosen is pale."""
    text(axes, (x, 2.55), f"layer {number}", 8)
    for y, kind, chosen in ((2.08, "finetuned", decision == 1), (1.28, "frozen", decision == 0)):
        box(axes, (x, y), (0.6, 0.6), "✓" if chosen else "", kind if chosen else "skipped", 12)


DIAGRAMS: dict[str, Callable[[], Axes]] = {
    "overview": overview,
    "encoder": encoder,
    "vilbert_encoder": vilbert_encoder,
    "layer": layer,
    "spottune_block": spottune_block,
    "spottune_res": spottune_res,
    "spottune": spottune,
    "blockdrop": blockdrop,
    "blockreplace": blockreplace,
    "packages": packages,
}


def main() -> None:
    """Draw all diagrams into a folder."""
    parser = argparse.ArgumentParser(description="Draw the diagrams of the README files.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder for the PNG files (default: the folder of this script)",
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in DIAGRAMS.items():
        save(draw(), out / f"{name}.png")


if __name__ == "__main__":
    main()
