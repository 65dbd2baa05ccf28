"""Scores of every text with every image, and at which place the right ones stand.

A plain model reads a text, or an image, alone up to the first connection: those layers are computed
once for each of them, and what comes behind for every pair. A model that decides for every pair
shares, block by block, what its decisions leave equal (`common.adapt.sharing`). Shape legend: T
texts, I images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.adapt.adapting import adaptive_part
from common.adapt.routes import State, read_stream
from common.adapt.sharing import SameRows, same_rows
from common.errors import DataError
from common.tasks.evaluation import EVALUATION
from vilbert.heads import VILBertForVLTasks
from vilbert.modeling import BertOutput

TEXT = ("input_ids", "token_type_ids", "attention_mask")
IMAGE = ("features", "places", "image_attention_mask")
ALIGNED = 0  # class of `vil_binary_prediction`
AMONG = (1, 5, 10)
Inputs = Mapping[str, Tensor | None]


class Alone(NamedTuple):
    """Texts, or images, as far as they are read without the other.

    Attributes:
        raw: their inputs.
        state: after the layers before the first connection; None where nothing is reused.
    """

    raw: Inputs
    state: State | None

    @property
    def size(self) -> int:
        return next(len(x) for x in self.raw.values() if x is not None)


class PairScorer:
    """How well texts and images fit: `vil_logit`, or the alignment that pretraining has learned.

    Attributes:
        reuses: whether layers before the first connection are computed once for each.
    """

    def __init__(
        self, model: VILBertForVLTasks, zero_shot: bool = False, reuse: bool = True
    ) -> None:
        """Make a scorer.

        Args:
            model: in evaluation mode; computes one head from now on. One with the same decisions
                for all pairs is merged first (`common.adapt.merging`), so that it is plain.
            zero_shot: score with the probability that text and image are aligned.
            reuse: False: compute everything for every pair, which is what reuse is compared with.
        """
        self.model, self.zero_shot = model, zero_shot
        adapted = model.bert.encoder.adaptive is not None
        meets = model.bert.encoder.meets
        self.reuses = reuse and meets and model.bert.encoder.runs_in_parts
        self._shares = reuse
        self._head = "vil_binary_prediction" if zero_shot else "vil_logit"
        if not adapted:  # an adapted model was made for its head
            model.use((self._head,))

    @torch.no_grad()
    def texts(self, raw: Inputs) -> Alone:
        """Texts, from inputs of `BertModel.forward` (T, …)."""
        return self._alone({name: raw.get(name) for name in TEXT}, "lang")

    @torch.no_grad()
    def images(self, raw: Inputs) -> Alone:
        """Images, likewise (I, …)."""
        return self._alone({name: raw.get(name) for name in IMAGE}, "vision")

    def _alone(self, raw: Inputs, stream: str) -> Alone:
        if not self.reuses:
            return Alone(raw, None)
        bert = self.model.bert
        state = bert.embed_texts(raw) if stream == "lang" else bert.embed_images(raw)
        return Alone(raw, bert.encoder.run_layers(state, part=bert.encoder.alone(stream)))

    @torch.no_grad()
    def scores(self, texts: Alone, images: Alone, keys: Sequence[int] | None = None) -> Tensor:
        """(T, I).

        Args:
            texts, images: of `texts` and `images`.
            keys: a number for every pair, text by text, which keys decisions that are drawn.
        """
        part = adaptive_part(self.model)
        if part is not None and keys is not None:
            part.tell(0, EVALUATION, keys)
        rows = torch.arange(texts.size).repeat_interleave(images.size)
        columns = torch.arange(images.size).repeat(texts.size)
        if texts.state is None or images.state is None:
            inputs = {**_taken(texts.raw, rows), **_taken(images.raw, columns)}
            same = {"lang": rows, "vision": columns} if self._shares else {}
            device = next(self.model.parameters()).device
            equal = {name: SameRows.of(x.tolist(), device) for name, x in same.items()}
            with same_rows(None, **equal):
                found = getattr(self.model(**inputs), self._head)
        else:
            state = {**_taken(texts.state, rows), **_taken(images.state, columns)}
            found = self._joined(state)
        if self.zero_shot:
            found = found.softmax(-1)[:, ALIGNED]
        scores: Tensor = found.reshape(texts.size, images.size)
        return scores

    def _joined(self, state: State) -> Tensor:
        """What the head says of pairs that have not met yet."""
        bert = self.model.bert
        behind = slice(bert.encoder.before_meeting(), None)
        last = bert.encoder.run_layers(state, part=behind)
        lang, vision = read_stream(last, "lang"), read_stream(last, "vision")
        output = BertOutput(lang, vision, bert.t_pooler(lang), bert.v_pooler(vision), {})
        return self.model.head(self._head, output, None)


def _taken(values: Mapping[str, Tensor | None], places: Tensor) -> dict[str, Tensor | None]:
    return {n: None if x is None else x[places.to(x.device)] for n, x in values.items()}


def blocks_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Places of texts in blocks of `size`, texts of like length together."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@dataclass(frozen=True)
class Ranks:
    """At which place, from 1, the first right one stands for every question.

    Attributes:
        ranks: (N,) whole numbers.
    """

    ranks: Tensor

    def figures(self) -> dict[str, float]:
        """R@1, R@5, R@10 in percent, median and mean rank."""
        ranks = self.ranks.double()
        among = {f"R@{k}": 100 * (ranks <= k).double().mean().item() for k in AMONG}
        return among | {"median rank": ranks.quantile(0.5).item(), "mean rank": ranks.mean().item()}


def text_ranks(
    blocks: Iterable[tuple[Sequence[int], Tensor]], right: Sequence[Sequence[int]]
) -> Ranks:
    """Rank of the best of its images for every text.

    Args:
        blocks: places of texts, and their scores (t, I).
        right: the places of the images of every text.

    Equal scores of other images count as higher ones, so that a model that says the same of all
    images is last and not first.

    Raises:
        DataError: a text has no scores, or no image.
    """
    ranks = torch.zeros(len(right), dtype=torch.long)
    for places, scores in blocks:
        own = _right(places, right, scores.shape[1])
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks[list(places)] = 1 + ((scores >= best) & ~own).sum(1)
    if bool((ranks == 0).any()):
        raise DataError(f"text {int((ranks == 0).nonzero()[0])} has no scores")
    return Ranks(ranks)


def image_ranks(
    blocks: Callable[[], Iterable[tuple[Sequence[int], Tensor]]],
    right: Sequence[Sequence[int]],
    images: int,
) -> Ranks:
    """Rank of the best of its texts for every image; see `text_ranks`.

    Args:
        blocks: called twice: for the best of the right texts, then for all that are above it.
        right: the places of the images of every text.
        images: I; every image has a text.

    Raises:
        DataError: an image has no text.
    """
    best = torch.full((images,), -torch.inf)
    for places, scores in blocks():
        own = _right(places, right, images)
        best = torch.maximum(best, scores.masked_fill(~own, -torch.inf).amax(0))
    if bool((best == -torch.inf).any()):
        raise DataError(f"image {int((best == -torch.inf).nonzero()[0])} has no text")
    above = torch.ones(images, dtype=torch.long)
    for places, scores in blocks():
        above += ((scores >= best) & ~_right(places, right, images)).sum(0)
    return Ranks(above)


def _right(places: Sequence[int], right: Sequence[Sequence[int]], images: int) -> Tensor:
    """(t, I) bool: the images of each text."""
    own = torch.zeros(len(places), images, dtype=torch.bool)
    for row, place in enumerate(places):
        if not right[place]:
            raise DataError(f"text {place} has no image")
        own[row, list(right[place])] = True
    return own
