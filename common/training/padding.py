"""Fixed lengths: on a GPU the batches of a run have one of a few shapes.

Kernels are chosen, and graphs captured, for a shape. So texts are padded to one of a few lengths,
and regions too where images have different numbers of them. Everything that reads a batch masks
padding, so that results are those of the batch as it was, but for rounding. What is padded, and
with what, stands with each backbone's inputs (`padded`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from common.features.carried import length_of, lengthened

STEP = 8  # short texts
LAST_STEPPED = 32
COARSE = (1.5, 2.0)  # what longer ones are multiples of, times a power of two

Range = tuple[int, int]
Value = TypeVar("Value", Tensor, Tensor | None)


def text_lengths(longest: int | None) -> list[int]:
    """Lengths that texts are padded to.

    Multiples of 8 up to 32 and then half as much and twice as much as a power of two, below
    `longest`, which is the last one; None: no text is too long.
    """
    lengths = list(range(STEP, LAST_STEPPED + 1, STEP))
    end = longest or 2**16
    while lengths[-1] < end:
        base = 2 ** int(math.log2(lengths[-1]))
        lengths.append(int(base * COARSE[lengths[-1] > base]))
    return [length for length in lengths if length < end] + [end]


def region_lengths(regions: Range | None, more: int = 0) -> list[int]:
    """Lengths that the regions of images are padded to: half of the most, or the most.

    Args:
        regions: the fewest and the most of an image; None: not known.
        more: places beside them, such as that of the image as a whole.
    """
    if regions is None:
        return text_lengths(None)
    fewest, most = (number + more for number in regions)
    return [size for size in (-(-most // 2), most) if fewest <= size < most] + [most]


def padded(
    values: Mapping[str, Value], fills: Mapping[str, float], lengths: Sequence[int]
) -> dict[str, Value]:
    """Some tensors of a batch, as long as each other, made as long as the next of some lengths.

    Args:
        values: inputs or labels; what is not named stays, and what is None.
        fills: {name: what stands in the padding}, of tensors (B, T, …).
        lengths: rising; tensors that are longer than all of them stay.
    """
    named = {name: x for name in fills if (x := values.get(name)) is not None}
    if not named:
        return dict(values)
    longest = max(length_of(x) for x in named.values())
    place = bisect_left(lengths, longest)
    length = lengths[place] if place < len(lengths) else longest
    longer = {name: lengthened(x, length, fills[name]) for name, x in named.items()}
    return {**values, **longer}
