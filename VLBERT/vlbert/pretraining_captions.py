"""Captions with their images.

A caption may have a reply: then it is a question, and the reply its answer, which stands where the
answer stands in VQA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from common.data.annotations import Example
from common.data.easy_vqa.captions import caption_examples


@dataclass(frozen=True)
class Caption:
    """One caption.

    Attributes:
        text: words with blanks between.
        regions: id of the image's record in the region features.
        image: id of the image file.
        reply: what stands behind a second [SEP], with token type 1.
    """

    text: str
    regions: str
    image: str
    reply: str | None = None


class Captions(Protocol):
    """Captions by number.

    Attributes:
        statements: how many of them, the first ones, have no reply.
    """

    statements: int

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Caption:
        """One of them."""


class CaptionImages(Protocol):
    """Image files by the ids that captions have."""

    def read(self, image_id: str) -> Image.Image:
        """An image, in RGB."""


class EmbeddedCaptions:
    """What the questions and answers of some images say about them.

    See `common.data.easy_vqa.captions`.
    """

    def __init__(self, examples: Sequence[Example], questions: bool) -> None:
        """Make captions.

        Args:
            examples: questions with answers.
            questions: whether the questions themselves are captions too, with a reply.
        """
        self._items = [
            Caption(e.question, e.image_id, e.image_id) for e in caption_examples(examples)
        ]
        self.statements = len(self._items)
        if questions:
            self._items += [
                Caption(
                    e.question, e.image_id, e.image_id, max(e.answers, key=e.answers.__getitem__)
                )
                for e in examples
                if e.answers
            ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Caption:
        return self._items[index]

    def texts(self) -> list[str]:
        """All texts and replies, for a vocabulary."""
        return [part for item in self._items for part in (item.text, item.reply) if part]

    def image_ids(self) -> list[str]:
        """Every image once, in order."""
        return list(dict.fromkeys(item.regions for item in self._items))
