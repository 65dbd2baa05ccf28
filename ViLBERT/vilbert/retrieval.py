"""Scores of every text with every image, and at which place the right ones stand.

A plain model reads a text, or an image, alone up to the first connection: those layers are computed
once for each of them, and what comes behind for every pair. A model that decides for every pair has
nothing to reuse. Shape legend: T texts, I images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from common.adapt.routes import State, read_stream
from common.errors import DataError
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
        self.reuses = reuse and meets and not adapted
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
    def scores(self, texts: Alone, images: Alone) -> Tensor:
        """(T, I)."""
        rows = torch.arange(texts.size).repeat_interleave(images.size)
        columns = torch.arange(images.size).repeat(texts.size)
        if texts.state is None or images.state is None:
            inputs = {**_taken(texts.raw, rows), **_taken(images.raw, columns)}
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
        behind = slice(bert.encoder.before_connections(), None)
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


def text_ranks(blocks: Iterator[tuple[Sequence[int], Tensor]], right: Sequence[int]) -> Ranks:
    """Rank of its image for every text.

    Args:
        blocks: places of texts, and their scores (t, I).
        right: the place of the image of every text.

    Equal scores of other images count as higher ones, so that a model that says the same of all
    images is last and not first.

    Raises:
        DataError: a text has no scores.
    """
    ranks = torch.zeros(len(right), dtype=torch.long)
    for places, scores in blocks:
        own = scores.gather(1, torch.tensor([right[p] for p in places])[:, None])
        ranks[list(places)] = (scores >= own).sum(1)
    _check_whole(ranks)
    return Ranks(ranks)


def image_ranks(
    blocks: Sequence[tuple[Sequence[int], Tensor]], right: Sequence[int], images: int
) -> Ranks:
    """Rank of the first of its texts for every image; see `text_ranks`.

    Args:
        blocks: read twice: once for the best of the right texts, then for all that are above it.
        right: the place of the image of every text.
        images: I; every image has a text.

    Raises:
        DataError: an image has no text.
    """
    best = torch.full((images,), -torch.inf, dtype=torch.float64)
    for places, scores in blocks:
        own = torch.tensor([right[p] for p in places])
        values = scores.double().gather(1, own[:, None])[:, 0]
        best.scatter_reduce_(0, own, values, "amax")
    if bool((best == -torch.inf).any()):
        raise DataError(f"image {int((best == -torch.inf).nonzero()[0])} has no text")
    above = torch.ones(images, dtype=torch.long)
    for places, scores in blocks:
        mine = torch.tensor([right[p] for p in places])[:, None] == torch.arange(images)
        above += ((scores.double() >= best) & ~mine).sum(0)
    return Ranks(above)


def _check_whole(ranks: Tensor) -> None:
    if bool((ranks == 0).any()):
        raise DataError(f"text {int((ranks == 0).nonzero()[0])} has no scores")
