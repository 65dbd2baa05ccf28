"""What stands at the places of the streams that attention is about: word pieces and regions.

Shape legend: B batch, T tokens, R regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from common.data.tokenizer import Tokenizer

TEXT, REGION = "text", "region"
WHOLE_IMAGE = "image"


@dataclass(frozen=True)
class Place:
    """One word piece or region.

    Attributes:
        kind: `text` or `region`.
        name: the word piece; the number of the region from 1, or `image` where it is all of it.
        region: its number from 0; None for words and the image as a whole.
    """

    kind: str
    name: str
    region: int | None = None


Places = dict[str, list[Place | None]]  # of a sample, by stream; None is padding


def text_places(tokenizer: Tokenizer, ids: Sequence[int], there: Iterable[bool]) -> list[Place]:
    """The word pieces with T numbers, of which padding is left out."""
    kept = [number for number, is_there in zip(ids, there, strict=True) if is_there]
    return [Place(TEXT, name) for name in tokenizer.names(kept)]


def region_place(number: int, whole_first: bool) -> Place:
    """The region at a place of the inputs; `whole_first`: the image as a whole is before them."""
    number -= whole_first
    if number < 0:
        return Place(REGION, WHOLE_IMAGE)
    return Place(REGION, str(number + 1), number)


def two_streams(
    tokenizer: Tokenizer,
    ids: Tensor,
    text_mask: Tensor,
    regions: int,
    region_mask: Tensor | None,
    whole_first: bool,
) -> list[tuple[list[Place | None], list[Place | None]]]:
    """Places of a text and of regions, which are in the order of the inputs.

    Args:
        tokenizer: of the text.
        ids, text_mask: (B, T); mask 1 = token, padding is behind.
        regions: R.
        region_mask: (B, R), 1 = region; None: all.
        whole_first: the first region is the image as a whole.
    """
    found: list[tuple[list[Place | None], list[Place | None]]] = []
    for row, mask in enumerate(text_mask.bool().tolist()):
        words = text_places(tokenizer, ids[row].tolist(), mask)
        there = [True] * regions if region_mask is None else region_mask[row].bool().tolist()
        boxes = [region_place(n, whole_first) if there[n] else None for n in range(regions)]
        found.append(([*words, *[None] * (len(mask) - len(words))], boxes))
    return found
