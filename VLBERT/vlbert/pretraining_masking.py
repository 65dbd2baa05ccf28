"""What is masked in VL-BERT's pretraining, and how long a sample may be.

Shape legend: B samples, T tokens, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.tasks.masking import Draws, mask_pieces

REGION_RATE, HIDDEN_SHARE = 0.15, 0.9
LONGEST = 64  # tokens and boxes of a caption together
# What numbers are for.
RELATIONSHIP, WORDS, TEXT_WORDS, REGIONS, TEXT_ORDER = range(5)


@dataclass(frozen=True)
class Rates:
    """What is masked.

    Attributes:
        words, replies: share of the words of texts and of replies.
        questions: a text with a reply loses words and regions as every other one does; otherwise
            it is read as VQA reads a question: all of its words and regions are shown, and [MASK]
            stands for the reply.
    """

    words: float = 0.15
    replies: float = 0.15
    questions: bool = True


@dataclass(frozen=True)
class Pieces:
    """A text as the network reads it.

    Attributes:
        ids: numbers of its pieces.
        words: for each, the place of the first piece of its word.
        types: 0, and 1 for a reply.
    """

    ids: list[int]
    words: list[int]
    types: list[int]

    def cut(self, length: int) -> Pieces:
        """At most so many pieces; the last one, [SEP], stays."""
        if len(self.ids) <= length:
            return self
        kept = [*range(length - 1), len(self.ids) - 1]
        # The last piece is a word by itself.
        words = [self.words[i] for i in kept[:-1]] + [length - 1]
        return Pieces([self.ids[i] for i in kept], words, [self.types[i] for i in kept])

    def first(self, length: int) -> Pieces:
        """At most so many pieces."""
        return Pieces(self.ids[:length], self.words[:length], self.types[:length])


def word_starts(pieces: Sequence[str], offset: int = 0) -> list[int]:
    """For each piece the place of the first piece of its word."""
    starts: list[int] = []
    for place, piece in enumerate(pieces, offset):
        starts.append(starts[-1] if starts and piece.startswith("##") else place)
    return starts


def assemble(tokenizer: Tokenizer, pieces: Sequence[str], reply: Sequence[str] | None) -> Pieces:
    """[CLS] pieces [SEP], or [CLS] pieces [SEP] reply [SEP]."""
    parts = ["[CLS]", *pieces, "[SEP]"]
    types = [0] * len(parts)
    if reply is not None:
        parts += [*reply, "[SEP]"]
        types += [1] * (len(reply) + 1)
    return Pieces(tokenizer.numbers(parts), word_starts(parts), types)


def pad(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """(B, width) int64 with zeros behind the shorter ones."""
    found = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.int64)
    return found


def mask_words(
    texts: Sequence[Pieces], tokenizer: Tokenizer, draws: Draws, purpose: int, rates: Rates
) -> tuple[Tensor, Tensor]:
    """Mask whole words: 80 % [MASK], 10 % random pieces, 10 % kept; never [CLS] and [SEP].

    Args:
        texts: B of them.
        purpose: of the numbers, WORDS or TEXT_WORDS.
        rates: without `questions`, a text with a reply keeps its words, and what is masked of the
            reply is always [MASK].

    Returns:
        ids (B, T), padding 0, and labels (B, T), -1 where nothing was masked.
    """
    width = max((len(text.ids) for text in texts), default=0) or 1
    ids, words = (pad([getattr(t, name) for t in texts], width) for name in ("ids", "words"))
    replies = pad([t.types for t in texts], width) > 0
    maskable = (ids > 0) & (ids != tokenizer.cls_id) & (ids != tokenizer.sep_id)
    numbers = draws.uniform(purpose, 3 * width).unflatten(1, (width, 3))
    rate = torch.where(replies, rates.replies, rates.words)
    if not rates.questions:
        whole = replies.any(1, keepdim=True) & ~replies
        rate = rate.masked_fill(whole, 0.0)
        numbers[..., 1].masked_fill_(replies, 0.0)  # how: the lowest number is [MASK]
    # Piece 0 is padding, which the network leaves out: it never replaces a word.
    return mask_pieces(ids, maskable, rate, numbers, tokenizer.mask_id, len(tokenizer), words, 1)


def mask_regions(present: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Choose 15 % of the regions; 90 % of them are hidden, 10 % shown.

    Args:
        present: (B, R) bool.

    Returns:
        (B, R) bool each: chosen, hidden.
    """
    width = present.shape[1]
    numbers = draws.uniform(REGIONS, 2 * width).unflatten(1, (width, 2))
    chosen = present & (numbers[..., 0] < REGION_RATE)
    return chosen, chosen & (numbers[..., 1] < HIDDEN_SHARE)


def cut_lengths(tokens: int, boxes: int, longest: int = LONGEST) -> tuple[int, int]:
    """Tokens and boxes that stay: what is longer loses its end; equally long, the text.

    Two tokens ([CLS], [SEP]) and one box stay in any case.
    """
    while tokens + boxes > longest and min(tokens, boxes) > 0:
        if boxes > tokens:
            boxes -= 1
        else:
            tokens -= 1
    return max(tokens, 2), max(boxes, 1)
