"""Where a decision is drawn: streams of layers, and in each a grid of layers × components."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

STREAM_TITLES = {
    "lang": "language stream",
    "vision": "vision stream",
    "cross": "cross layers",
    "layer": "encoder",
}
HEAD = re.compile(r"^(?:(?P<prefix>.+)\.)?heads?\.(?P<number>\d+)$")


@dataclass(frozen=True)
class Panel:
    """The decisions of one stream.

    Attributes:
        stream: what the names of its layers begin with, `lang` for `lang.1`.
        layers: L names, in order of execution.
        components: C names, in the order of the decisions; [""] where whole layers are decided.
        columns: (L, C), place of each decision in the decision vector; −1 where there is none.
    """

    stream: str
    layers: tuple[str, ...]
    components: tuple[str, ...]
    columns: np.ndarray

    @property
    def title(self) -> str:
        return stream_title(self.stream)

    def values(
        self, vector: Sequence[float] | np.ndarray, live: Sequence[bool] | None = None
    ) -> np.ma.MaskedArray:
        """(D,) → (L, C); masked where there is no decision or, with `live`, where it is dead."""
        vector = np.asarray(vector, dtype=float)
        missing = self.columns < 0
        if live is not None:
            missing = missing | ~np.asarray(live, dtype=bool)[self.columns]
        return np.ma.array(vector[self.columns], mask=missing)


def stream_of(layer: str) -> str:
    """`lang.1` → `lang`."""
    return layer.rpartition(".")[0] or layer


def stream_title(stream: str) -> str:
    """`lang` → `language stream`."""
    return STREAM_TITLES.get(stream, f"{stream} layers")


def make_panels(decisions: dict[str, Any]) -> list[Panel]:
    """One panel per stream, in the order in which the streams first occur."""
    layers, components = decisions["layers"], decisions["components"]
    streams: dict[str, list[int]] = {}
    for column, layer in enumerate(layers):
        streams.setdefault(stream_of(layer), []).append(column)
    panels = []
    for stream, columns in streams.items():
        rows = tuple(dict.fromkeys(layers[column] for column in columns))
        parts = tuple(dict.fromkeys(components[column] for column in columns))
        grid = np.full((len(rows), len(parts)), -1)
        for column in columns:
            grid[rows.index(layers[column]), parts.index(components[column])] = column
        panels.append(Panel(stream, rows, parts, grid))
    return panels


def decides_layers(decisions: dict[str, Any]) -> bool:
    """Whether every decision is about a whole layer."""
    return not any(decisions["components"])


def head_number(component: str) -> str | None:
    """`cross.head.3` → `3`; None for what is no attention head."""
    match = HEAD.match(component)
    return match.group("number") if match else None


def component_kind(component: str) -> str:
    """What several components are an instance of: `cross.head.3` → `cross.heads`."""
    match = HEAD.match(component)
    if not match:
        return component
    return ".".join(filter(None, (match.group("prefix"), "heads")))


def head_spans(components: Sequence[str]) -> list[tuple[str, int, int]]:
    """Runs of neighbouring heads: (kind, first place, last place)."""
    spans: list[tuple[str, int, int]] = []
    for place, component in enumerate(components):
        if head_number(component) is None:
            continue
        kind = component_kind(component)
        if spans and spans[-1][0] == kind and spans[-1][2] == place - 1:
            spans[-1] = (kind, spans[-1][1], place)
        else:
            spans.append((kind, place, place))
    return spans


def layer_means(decisions: dict[str, Any], share: Sequence[float]) -> dict[str, float | None]:
    """Mean share over the live decisions of each layer; None for a layer that has none."""
    return _means(decisions["layers"], share, decisions["live"])


def kind_means(decisions: dict[str, Any], share: Sequence[float]) -> dict[str, float | None]:
    """Mean share over the live decisions of each kind of component, over all layers."""
    kinds = [component_kind(component) for component in decisions["components"]]
    return _means(kinds, share, decisions["live"])


def stream_means(decisions: dict[str, Any], share: Sequence[float]) -> dict[str, float | None]:
    """Mean share over the live decisions of each stream."""
    streams = [stream_of(layer) for layer in decisions["layers"]]
    return _means(streams, share, decisions["live"])


def _means(
    keys: Sequence[str], share: Sequence[float], live: Sequence[bool]
) -> dict[str, float | None]:
    found: dict[str, list[float]] = {key: [] for key in keys}
    for key, value, alive in zip(keys, share, live, strict=True):
        if alive:
            found[key].append(float(value))
    return {key: float(np.mean(values)) if values else None for key, values in found.items()}
