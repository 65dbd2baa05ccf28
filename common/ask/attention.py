"""The attention of one layer and head for one pair of image and question.

Shape legend: Q queries, K keys.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from common.adapt.attention_capture import attention_heads
from common.errors import ConfigError
from common.runs.attention_blocks import KINDS, Block, Kinds, arrow, check_places
from common.runs.backbones import OpenedRun
from common.runs.places import REGION, TEXT, Place

PREFERRED: tuple[Kinds, ...] = ((TEXT, REGION), (REGION, TEXT), (TEXT, TEXT), (REGION, REGION))


@dataclass(frozen=True)
class Choice:
    """Which attention to show.

    Attributes:
        layer: a name of the encoder's.
        head: from 1; None: the mean of all heads.
        kinds: of queries and keys; None: the first of `PREFERRED` that the layer has.
        word: of the question, from which to look at the regions; None: from all.
    """

    layer: str
    head: int | None = None
    kinds: Kinds | None = None
    word: str | None = None


@dataclass
class PairAttention:
    """What is shown.

    Attributes:
        choice: what was asked for.
        queries, keys: words or regions; both empty where the layer was skipped.
        weights: (Q, K), 0..1.
        chosen: places of the queries that the picture of the image is about, all where no word
            is chosen.
        notes: what the user should know.
    """

    choice: Choice
    queries: list[Place] = field(default_factory=list)
    keys: list[Place] = field(default_factory=list)
    weights: Tensor | None = None
    chosen: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`attention of cross.1, head 2: from text to region`."""
        head = "mean of all heads" if self.choice.head is None else f"head {self.choice.head}"
        kinds = "" if not self.queries else f": {arrow((self.queries[0].kind, self.keys[0].kind))}"
        return f"attention of {self.choice.layer}, {head}{kinds}"

    def received(self) -> Tensor:
        """(K,) what each key gets, the mean over the chosen queries."""
        assert self.weights is not None
        return self.weights[self.chosen].mean(0)


def parse_choice(
    run: OpenedRun, text: str, kinds: Kinds | None = None, word: str | None = None
) -> Choice:
    """`cross.1:2` or `cross.1` of the command line.

    Raises:
        ConfigError: an unknown layer or head; lists those that there are.
    """
    check_places(run)
    heads = attention_heads(run.model)
    layer, colon, head = text.strip().partition(":")
    if layer not in heads:
        near = get_close_matches(layer, heads, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"attention of layer {layer!r}: no such layer.{hint} Those of {run.folder}: "
            f"{', '.join(heads)}"
        )
    if not colon:
        return Choice(layer, None, kinds, word)
    if not head.isdecimal() or not 1 <= int(head) <= heads[layer]:
        raise ConfigError(
            f"attention of {layer}, head {head!r}: it has the heads 1 to {heads[layer]}; without "
            "a head the mean of all is shown"
        )
    return Choice(layer, int(head), kinds, word)


def default_layer(found: Sequence[Block], kinds: Kinds | None = None) -> str | None:
    """The last layer in which more than one place attends, as is wanted; None: nothing attended.

    Of the last layer of all only one place may be computed.
    """
    for wanted in PREFERRED if kinds is None else (kinds,):
        own = [block for block in found if block.kinds == wanted]
        several = [block for block in own if len(block.queries) > 1]
        if own:
            return (several or own)[-1].layer
    return found[-1].layer if found else None


def choose_block(choice: Choice, found: Sequence[Block]) -> PairAttention:
    """The attention that was asked for among that of one sample.

    Raises:
        ConfigError: the layer has no attention of these kinds; lists those that it has.
    """
    own = {block.kinds: block for block in found if block.layer == choice.layer}
    if not own:
        ran = ", ".join(dict.fromkeys(block.layer for block in found)) or "none"
        note = (
            f"{choice.layer} was skipped for this pair: nothing attended (layers that ran: {ran})"
        )
        return PairAttention(choice, notes=[note])
    wanted = PREFERRED if choice.kinds is None else (choice.kinds,)
    kinds = next((kinds for kinds in wanted if kinds in own), None)
    if kinds is None:
        raise ConfigError(
            f"{choice.layer} has no attention {arrow(wanted[0])}: it has "
            f"{', '.join(arrow(kinds) for kinds in KINDS if kinds in own)}"
        )
    return _view(choice, own[kinds])


def _view(choice: Choice, block: Block) -> PairAttention:
    heads = len(block.weights)
    if choice.head is not None and choice.head > heads:
        raise ConfigError(
            f"attention of {choice.layer}, head {choice.head}: {arrow(block.kinds)} has the heads "
            f"1 to {heads}"
        )
    weights = block.weights.mean(0) if choice.head is None else block.weights[choice.head - 1]
    chosen = list(range(len(block.queries)))
    notes: list[str] = []
    if choice.word is not None:
        chosen, notes = _chosen(choice.word, block)
    share = float(weights.sum(-1).mean())
    if share < 0.995:
        notes.append(f"these keys get {share:.0%} of the attention; the rest goes to the others")
    return PairAttention(choice, block.queries, block.keys, weights, chosen, notes)


def _chosen(word: str, block: Block) -> tuple[list[int], list[str]]:
    """Places of the pieces of a word among the queries, and what to say where there are none."""
    every = list(range(len(block.queries)))
    if block.kinds[0] != TEXT:
        return every, [f"word {word!r}: here regions attend, not words: the mean of all is shown"]
    wanted = word.lower().strip(string.punctuation) or word
    for start, first in enumerate(block.queries):
        spelled = first.name
        pieces = [start]
        for place in range(start + 1, len(block.queries)):
            if not block.queries[place].name.startswith("##"):
                break
            spelled += block.queries[place].name.removeprefix("##")
            pieces.append(place)
        if spelled.lower() == wanted or first.name.lower() == word.lower():
            return pieces, []
    names = ", ".join(place.name for place in block.queries)
    return every, [f"no word {word!r} attends here ({names}): the mean of all is shown"]


def attention_json(found: PairAttention) -> dict[str, Any]:
    """For machines."""
    return {
        "layer": found.choice.layer,
        "head": found.choice.head,
        "from": found.queries[0].kind if found.queries else None,
        "to": found.keys[0].kind if found.keys else None,
        "queries": [place.name for place in found.queries],
        "keys": [place.name for place in found.keys],
        "weights": None if found.weights is None else found.weights.tolist(),
        "notes": found.notes,
    }


def attention_lines(found: PairAttention, top: int = 5) -> list[str]:
    """The keys with the largest weights, as text."""
    lines = [f"{found.title}"]
    if found.weights is not None:
        received = found.received()
        order = received.argsort(descending=True, stable=True)[:top].tolist()
        kind = found.keys[0].kind
        keys = ", ".join(f"{found.keys[n].name} {float(received[n]):.2f}" for n in order)
        lines.append(f"{'regions' if kind == REGION else 'words'} with the most: {keys}")
    return lines
