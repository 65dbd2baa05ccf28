"""How a policy behaved while it was trained: plots and a table over the epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.errors import DataError
from common.results.decision_grid import stream_of
from common.results.files import Result, lookup
from common.results.page import html_table
from common.results.plot_style import (
    Target,
    decision_word,
    new_figure,
    run_title,
    save,
    stream_colour,
    styled,
)

Epochs = list[dict[str, Any]]
Drawer = Callable[[Axes, Epochs, str], None]
COLUMNS = 3  # panels side by side
DARK, WARM, COLD = "#222222", "#d17c00", "#0072b2"
# What decisions may tell: titles and colours.
TOLD = {
    "kind": ("kind of question", "#882255"),
    "type": ("answer type", "#c9a227"),
    "pretrained": ("pretrained model right", "#009e73"),
}


def records_policy(result: Result) -> bool:
    """Whether an epoch records its policy."""
    return bool(_epochs(result))


def _epochs(result: Result) -> Epochs:
    return [epoch for epoch in result.get("epochs") or [] if epoch.get("policy")]


def plot_policy(result: Result, path: Target) -> None:
    """Write the policy's epochs as PNG.

    Raises:
        DataError: no epoch records its policy.
    """
    save(draw_policy(result), path)


@styled
def draw_policy(result: Result) -> Figure:
    """Figure with a panel for each thing that was recorded, over the epochs."""
    epochs = _epochs(result)
    if not epochs:
        raise DataError(f"{result.get('path', 'result')}: no epoch records its policy")
    panels = _panels(epochs)
    rows = math.ceil(len(panels) / COLUMNS)
    height = 0.62 + 2.3 * rows
    figure = new_figure(height)
    best = result.get("best_epoch")
    what = "the policy over the training samples of each epoch"
    what += "" if best is None else f"; dotted: the epoch that was kept ({best})"
    figure.text(0.02, 1 - 0.08 / height, run_title(result, what), va="top", fontsize=10)
    places = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    figure.subplots_adjust(
        left=0.075,
        right=0.985,
        top=1 - 0.85 / height,
        bottom=0.45 / height,
        wspace=0.34,
        hspace=0.5,
    )
    first, last = epochs[0]["epoch"], epochs[-1]["epoch"]
    for axes, draw in zip(places, panels, strict=False):
        draw(axes, epochs, decision_word(result))
        axes.set(xlabel="epoch", xlim=(first - 0.2, last + 0.2))
        if best is not None:
            axes.axvline(best, color="#999999", linewidth=1, linestyle=":", zorder=1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", visible=True)
    for axes in places[len(panels) :]:
        axes.remove()
    return figure


def _panels(epochs: Epochs) -> list[Drawer]:
    def has(key: str) -> bool:
        return any(lookup(epoch, f"policy.{key}") for epoch in epochs)

    wanted: list[tuple[bool, Drawer]] = [
        (True, _probability),
        (True, _spread),
        (has("information"), _information),
        (has("gradient"), _norm),
        (has("gradient"), _agreement),
        (has("drift"), _drift),
    ]
    return [draw for there, draw in wanted if there]


def _line(axes: Axes, epochs: Epochs, key: str, colour: str, label: str = "") -> None:
    """One figure over the epochs; a gap where it was not measured."""
    values = [lookup(epoch, f"policy.{key}") for epoch in epochs]
    axes.plot(
        [epoch["epoch"] for epoch in epochs],
        [math.nan if value is None else value for value in values],
        marker="o",
        markersize=4,
        linewidth=1.6,
        color=colour,
        label=label,
    )


def _probability(axes: Axes, epochs: Epochs, word: str) -> None:
    numbers = [epoch["epoch"] for epoch in epochs]
    means = [epoch["policy"]["p"] for epoch in epochs]
    spreads = [epoch["policy"]["spread"] for epoch in epochs]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    axes.fill_between(numbers, low, high, color=COLD, alpha=0.2, linewidth=0)
    _line(axes, epochs, "p", COLD)
    axes.set(ylim=(0, 1), ylabel=f"probability of {word}")
    axes.set_title("mean ± spread over inputs", loc="left", fontsize=8.5)


def _spread(axes: Axes, epochs: Epochs, word: str) -> None:
    _line(axes, epochs, "spread", COLD, "spread over inputs")
    _line(axes, epochs, "entropy", WARM, "entropy (nats)")
    axes.set_ylim(0, 0.72)
    axes.set_title("of a decision, mean", loc="left", fontsize=8.5)
    axes.legend(loc="best")


def _information(axes: Axes, epochs: Epochs, word: str) -> None:
    for family, (title, colour) in TOLD.items():
        if any(lookup(epoch, f"policy.information.{family}") for epoch in epochs):
            _line(axes, epochs, f"information.{family}.most", colour, title)
            level = max(lookup(epoch, f"policy.information.{family}.of") or 0.0 for epoch in epochs)
            axes.axhline(level, color=colour, linewidth=0.9, linestyle="--", alpha=0.7)
    axes.set_ylim(0, 1.6 * axes.get_ylim()[1])  # room for the legend
    axes.set(ylabel="nats, best decision")
    axes.set_title("tells (dashed: all there is)", loc="left", fontsize=8.5)
    axes.legend(loc="upper left")


def _norm(axes: Axes, epochs: Epochs, word: str) -> None:
    _line(axes, epochs, "gradient.norm", DARK)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set(ylabel="norm before clipping")
    axes.set_title("gradient of the policy", loc="left", fontsize=8.5)


def _agreement(axes: Axes, epochs: Epochs, word: str) -> None:
    _line(axes, epochs, "gradient.agreement", DARK)
    axes.set(ylim=(0, 1), ylabel="|sum| / sum of sizes")
    axes.set_title("inputs pushed the same way", loc="left", fontsize=8.5)


def _drift(axes: Axes, epochs: Epochs, word: str) -> None:
    moved = [epoch["policy"]["drift"]["layers"] for epoch in epochs]
    numbers = [epoch["epoch"] for epoch in epochs]
    streams = list(dict.fromkeys(stream_of(layer) for layer in moved[0]))
    named: set[str] = set()
    for layer in moved[0]:
        stream = stream_of(layer)
        axes.plot(
            numbers,
            [100 * layers[layer] for layers in moved],
            linewidth=0.8,
            alpha=0.5,
            color=stream_colour(stream, streams),
            label=None if stream in named else stream,
        )
        named.add(stream)
    overall = [100 * epoch["policy"]["drift"]["overall"] for epoch in epochs]
    axes.plot(numbers, overall, marker="o", markersize=4, linewidth=2, color=DARK, label="overall")
    axes.set_ylim(bottom=0)
    axes.set(ylabel="% of the frozen weights")
    axes.set_title("finetuned weights moved by", loc="left", fontsize=8.5)
    axes.legend(loc="best")


EXPLANATION = (
    "p: probability of decision 1, before anything is drawn; spread: standard deviation of p over "
    "the inputs; both, and the entropy of p, are means over the decisions that have an effect. "
    "“tells”: mutual information between a decision and what is named, of the decision that tells "
    "most, of what there is to tell. Gradient: norm before clipping, and how far the inputs agree "
    "on its direction (1: all push a decision the same way; near 0: the policy is told to treat "
    "them differently). Moved: distance of the finetuned weights from the frozen ones."
)


def policy_table(result: Result) -> str:
    """A row for each epoch, as HTML, and what the columns mean."""
    epochs = _epochs(result)
    families = [
        family
        for family in TOLD
        if any(lookup(epoch, f"policy.information.{family}") for epoch in epochs)
    ]
    headings = [
        ("epoch",),
        ("p",),
        ("spread",),
        ("entropy", "nats"),
        *((f"tells {TOLD[family][0]}", "nats") for family in families),
        ("gradient", "norm"),
        ("gradient", "agreement"),
        ("moved", "%"),
    ]
    rows = []
    for epoch in epochs:
        policy = epoch["policy"]
        told = [lookup(policy, f"information.{family}") for family in families]
        moved = lookup(policy, "drift.overall")
        cells = [
            str(epoch["epoch"]),
            *(_shown(policy[name]) for name in ("p", "spread", "entropy")),
            *(_shown(None) if t is None else f"{t['most']:.3f} of {t['of']:.3f}" for t in told),
            _shown(lookup(policy, "gradient.norm"), ".3g"),
            _shown(lookup(policy, "gradient.agreement")),
            _shown(None if moved is None else 100 * moved, ".2f"),
        ]
        rows.append((cells, False))
    return html_table(headings, rows) + f"<p class='legend'>{EXPLANATION}</p>"


def _shown(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)
