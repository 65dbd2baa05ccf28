"""What all plots share: colours, sizes, titles and saving (object API, no pyplot state).

Colours are told apart with the common kinds of colour blindness (Okabe–Ito and Tol palettes), and
a stream, strategy or answer type has the same colour in every plot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ParamSpec, TypeVar

from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.adapt.strategies import STRATEGIES
from common.errors import DataError
from common.projects import title_of
from common.results.files import QUESTIONS, Result, things_of

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")
R = TypeVar("R")
Target = Path | str | BinaryIO
DPI = 160
WIDTH = 8.0
DEAD_COLOUR = "#c4c4c4"
DEAD_HATCH = "////"
STREAM_COLOURS = {
    "lang": "#0072b2",
    "text": "#0072b2",
    "layer": "#0072b2",
    "vision": "#d17c00",
    "image": "#d17c00",
    "cross": "#009e73",
    "connection": "#009e73",
}
SPARE_COLOURS = ("#cc79a7", "#56b4e9", "#b8a900", "#882255")
STRATEGY_COLOURS = {
    "standard": "#222222",
    "Frozen": "#9a9a9a",
    "LastK": "#6d6d6d",
    "FrozenLayers": "#bdbdbd",
    "SpotTune_Block": "#56b4e9",
    "SpotTune_Res": "#0072b2",
    "SpotTune": "#332288",
    "BlockDrop": "#e69f00",
    "BlockReplace": "#d55e00",
}
TYPE_COLOURS = {"yes/no": "#882255", "number": "#44aa99", "other": "#c9a227"}
RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
}


def share_colours() -> Colormap:
    """Map of shares 0–1: from pale (never) to dark (always), lightness falling throughout; masked
    cells are those of dead decisions."""
    return colormaps["YlGnBu"].with_extremes(bad=DEAD_COLOUR)


def stream_colour(stream: str, streams: Sequence[str]) -> str:
    """Colour of a stream; an unknown one takes a spare colour by its place among the unknown."""
    if stream in STREAM_COLOURS:
        return STREAM_COLOURS[stream]
    unknown = [name for name in streams if name not in STREAM_COLOURS]
    return SPARE_COLOURS[unknown.index(stream) % len(SPARE_COLOURS)]


def dead_patch() -> Patch:
    """Legend entry of the decisions that cannot matter."""
    return Patch(
        facecolor=DEAD_COLOUR,
        edgecolor="white",
        hatch=DEAD_HATCH,
        label="no effect on the answer (dead)",
    )


def decision_word(result: Result) -> str:
    """What decision 1 means for the run's strategy: `finetuned` or `kept`."""
    strategy = STRATEGIES.get(result["strategy"])
    return strategy.decision_word if strategy else "chosen"


def run_title(result: Result, what: str) -> str:
    """`SpotTune · LXMERT (small) · easy_vqa`, and below it what the plot shows."""
    size = f" ({result['size']})" if result.get("size") else ""
    seed = f" · seed {result['seed']}" if result.get("seed") is not None else ""
    task = result.get("task")
    told = "" if task in (None, "", QUESTIONS, "pretraining") else f"{task.replace(',', ' + ')} · "
    return (
        f"{result['strategy']} · {title_of(result['backbone'])}{size} · {told}"
        f"{result['dataset']}{seed}\n{what}"
    )


def decisions_of(result: Result) -> dict[str, Any]:
    """The run's decisions.

    Raises:
        DataError: the run has none.
    """
    decisions = result.get("decisions")
    if not decisions or not decisions.get("names"):
        raise DataError(
            f"strategy {result.get('strategy')!r} decides nothing, so there are no "
            f"decisions to draw ({result.get('path', 'result')})"
        )
    return decisions


def questions(result: Result, count: int | None, split: str = "validation") -> str:
    """`9,673 validation questions`; without the number where the run does not say it."""
    things = things_of(result.get("task"), decided=True)
    return f"{split} {things}" if count is None else f"{count:,} {split} {things}"


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Empty white figure of a size in inches, on the Agg canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing or saving function under the style of `RC`, leaving the caller's alone."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context(RC):
            return function(*args, **kwargs)

    return wrapper


@styled
def save(figure: Figure, path: Target) -> None:
    """Write a figure as PNG to a path (its folder is made) or an open binary file."""
    if isinstance(path, Path | str):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
