"""Texts without an image, which stand beside the captions of a batch.

Shape legend: A texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.tasks.masking import Draws
from vlbert.pretraining_lines import LineFile
from vlbert.pretraining_masking import TEXT_ORDER, Pieces, word_starts


class Corpus:
    """Sentences of one or several files, one a line; blank lines do not count."""

    def __init__(
        self,
        paths: Sequence[Path],
        tokenizer: Tokenizer,
        longest: int,
        shortest: int,
        progress: bool = True,
    ) -> None:
        """Look where the lines are.

        Args:
            paths: of the files, which count as one.
            tokenizer: of the sentences.
            longest: pieces that a text is cut to.
            shortest: words that a text has at least: following lines are appended.
        """
        self.files = [LineFile(path, progress) for path in paths]
        self.tokenizer, self.longest, self.shortest = tokenizer, longest, shortest
        self._count = sum(len(file) for file in self.files)

    def __len__(self) -> int:
        return self._count

    def line(self, index: int) -> str:
        """One line."""
        for file in self.files:
            if index < len(file):
                return file[index]
            index -= len(file)
        raise IndexError(index)

    def __getitem__(self, index: int) -> Pieces:
        """The text that starts at a line; behind the last line comes the first one."""
        pieces: list[str] = []
        words = added = 0
        while words < max(1, self.shortest) and added < len(self):
            more = self.tokenizer.pieces(self.line((index + added) % len(self)))
            pieces += more
            words += sum(not piece.startswith("##") for piece in more)
            added += 1
        if not pieces:
            raise DataError(f"{self.files[0].path}: no word in this corpus")
        text = Pieces(self.tokenizer.numbers(pieces), word_starts(pieces), [0] * len(pieces))
        return text.first(self.longest)


class Texts:
    """Which texts stand beside which captions; they start again when all have been read."""

    def __init__(self, corpus: Corpus, captions: int, texts: int) -> None:
        """Fix the proportion.

        Args:
            captions, texts: of every so many captions, beside them so many texts.
        """
        self.corpus, self.captions, self.texts = corpus, captions, texts

    def beside(
        self, indices: Sequence[int], seed: int, epoch: int
    ) -> tuple[list[int], list[Pieces]]:
        """The texts beside some captions: A numbers, which key what is drawn, and the texts."""
        numbers = [
            number
            for i in indices
            for number in range(
                i * self.texts // self.captions, (i + 1) * self.texts // self.captions
            )
        ]
        return numbers, [self.corpus[self.place(number, seed, epoch)] for number in numbers]

    def place(self, number: int, seed: int, epoch: int) -> int:
        """The line at which the text with a number starts.

        The lines are read in an order that depends on seed and epoch, all of them before any is
        read again: line (a n + b) modulo their number, with a factor a that it is coprime to.
        """
        count = len(self.corpus)
        cycle, number = divmod(number, count)
        first, second = Draws(seed, epoch, [cycle]).fine(TEXT_ORDER, 2)[0].tolist()
        factor = max(1, int(first * count))
        while math.gcd(factor, count) != 1:
            factor += 1
        return (factor * number + int(second * count)) % count
