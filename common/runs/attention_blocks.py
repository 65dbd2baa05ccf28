"""Attention of a run's model between words and regions.

A stream may hold words, regions or both; what is captured by stream (`common.adapt`) is here taken
apart by what stands at its places. Shape legend: H heads, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.adapt.attention_capture import Attended, capture
from common.data.vqa_dataset import VQABatch
from common.errors import ConfigError
from common.runs.backbones import OpenedRun, find_backbone
from common.runs.places import REGION, TEXT, Place, Places

Kinds = tuple[str, str]
KINDS: tuple[Kinds, ...] = ((TEXT, TEXT), (REGION, REGION), (TEXT, REGION), (REGION, TEXT))


@dataclass(frozen=True)
class Block:
    """Attention of one sample in one layer, from places of one kind to places of one kind.

    Attributes:
        layer: its name.
        queries, keys: what attends, and what it attends to.
        weights: (H, Q, K); where a query attends to both kinds, its weights sum to less than 1.
    """

    layer: str
    queries: list[Place]
    keys: list[Place]
    weights: Tensor

    @property
    def kinds(self) -> Kinds:
        """Of queries and keys: `(text, region)`."""
        return self.queries[0].kind, self.keys[0].kind


def arrow(kinds: Kinds) -> str:
    """`text → region`."""
    return " → ".join(kinds)


def check_places(run: OpenedRun) -> None:
    """Refuse a backbone that does not say what stands where.

    Raises:
        ConfigError: names it.
    """
    backbone = run.meta["backbone"]
    if find_backbone(backbone).places is None:
        raise ConfigError(
            f"{run.folder}: attention of {backbone} cannot be shown: its package does not say what "
            "stands at the places of its streams (`places` of its Backbone)"
        )


@torch.no_grad()
def attention_of(run: OpenedRun, batch: VQABatch) -> list[Block]:
    """Run a batch and return the attention of every sample, layer by layer."""
    inputs = run.make_inputs(batch)
    with capture(run.model) as found:
        run.model(**inputs)
    return blocks(run, inputs, found)


def blocks(
    run: OpenedRun, inputs: Mapping[str, Tensor | None], found: Sequence[Attended]
) -> list[Block]:
    """What was captured of a batch, taken apart by sample and kinds.

    Raises:
        ConfigError: the backbone does not say what stands where.
    """
    check_places(run)
    find_places = find_backbone(run.meta["backbone"]).places
    assert find_places is not None
    places = find_places(run, inputs)
    return [block for attended in found for block in _blocks(attended, places)]


def _blocks(found: Attended, places: Sequence[Places]) -> Iterator[Block]:
    for row, weights in zip(found.rows.tolist(), found.weights.float().cpu(), strict=True):
        queries = _by_kind(places[row][found.queries][: weights.shape[1]])
        keys = _by_kind(places[row][found.keys])
        for asking in queries.values():
            for asked in keys.values():
                yield Block(
                    found.layer,
                    [place for _, place in asking],
                    [place for _, place in asked],
                    weights[:, [n for n, _ in asking]][..., [n for n, _ in asked]],
                )


def _by_kind(places: Sequence[Place | None]) -> dict[str, list[tuple[int, Place]]]:
    """Number and place, without padding."""
    found: dict[str, list[tuple[int, Place]]] = {}
    for number, place in enumerate(places):
        if place is not None:
            found.setdefault(place.kind, []).append((number, place))
    return found
