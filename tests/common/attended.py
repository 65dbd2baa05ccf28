"""Whether a backbone says rightly what stands at the places of its streams."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from common.adapt.attention_capture import capture
from common.ask.answering import make_batch
from common.features.store import Regions
from common.runs.attention_blocks import Block, attention_of
from common.runs.backbones import OpenedRun, find_backbone
from common.runs.places import Place


def check_places(run: OpenedRun, regions: Regions, question: str, word: str, other: str) -> None:
    """What changes with a word or a box are the values, in the first layer of its stream, at the
    place that is said to be that word or box.

    Args:
        run: whose places are checked.
        regions: of an image.
        question: with `word` in it, for which `other` is put.
    """
    before = _values(run, regions, question)
    changed = _values(run, regions, question.replace(word, other))
    found = _changed(before, changed)
    assert {(place.kind, place.name) for place, _ in found} == {("text", word)}, found
    assert {(place.kind, place.name) for _, place in found} == {("text", other)}, found
    boxes = regions.boxes.clone()
    boxes[1, :2] += 0.4 * (boxes[1, 2:] - boxes[1, :2])
    moved = _values(run, replace(regions, boxes=boxes), question)
    assert {(p.kind, p.name, p.region) for p, _ in _changed(before, moved)} == {("region", "2", 1)}


def _values(run: OpenedRun, regions: Regions, question: str) -> dict[str, list]:
    """Per stream: place and value of each position in the first layer that attends to it."""
    inputs = run.make_inputs(make_batch(regions, question))
    part = run.adaptive
    same = nullcontext() if part is None else part.force(torch.ones(len(part.live)))
    with torch.no_grad(), same, capture(run.model) as found:
        run.model(**inputs)
    (places,) = find_backbone(run.meta["backbone"]).places(run, inputs)
    first = {each.keys: each for each in reversed(found)}
    values = {name: each.values[0].transpose(0, 1).flatten(1) for name, each in first.items()}
    return {name: list(zip(places[name], x, strict=True)) for name, x in values.items()}


def _changed(before: dict[str, list], after: dict[str, list]) -> list[tuple[Place, Place]]:
    pairs: list[tuple[Place, Place]] = []
    for name in before:
        for (place, x), (new, y) in zip(before[name], after[name], strict=True):
            if not torch.allclose(x, y, atol=1e-7):
                pairs.append((place, new))
    assert pairs, "nothing changed"
    return pairs


def blocks_by_kind(
    run: OpenedRun, regions: Regions, question: str
) -> dict[tuple[str, str], dict[str, Block]]:
    """Attention of a pair by kinds and layer."""
    found: dict[tuple[str, str], dict[str, Block]] = {}
    for block in attention_of(run, make_batch(regions, question)):
        found.setdefault(block.kinds, {})[block.layer] = block
    return found


def mass(blocks: dict[tuple[str, str], dict[str, Block]], query: str, layer: str) -> Tensor:
    """(H, Q) what a query gives to keys of all kinds together."""
    own = [of[layer].weights.sum(-1) for kinds, of in blocks.items() if kinds[0] == query]
    return torch.stack(own).sum(0)
