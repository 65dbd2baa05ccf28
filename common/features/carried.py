"""Features on their way to a GPU: in half precision as far as they are kept so.

float16 is exact in float32, so that half of the bytes travel through workers, pinned memory and the
copy, and the model sees the numbers that it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Carried:
    """A float32 tensor in parts, which `common.training.runtime.Runtime.move` puts together.

    Batches hold it in the place of the tensor that it becomes, and are typed so: nothing but the
    functions of this module looks at it on the way.

    Attributes:
        parts: one behind the other along `dim`; float16 or float32, or carried themselves.
        dim: of all parts.
    """

    parts: tuple[Tensor, ...]
    dim: int

    def joined(self) -> Tensor:
        """The tensor, float32, on the device of its parts."""
        parts = [part.joined() if isinstance(part, Carried) else part for part in self.parts]
        return torch.cat([part.float() for part in parts], self.dim)


def carried(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Parts along a dimension as one tensor, which is `Carried` where some are float16."""
    if any(isinstance(part, Carried) or part.dtype == torch.float16 for part in parts):
        return cast(Tensor, Carried(tuple(parts), dim))
    return torch.cat(list(parts), dim) if len(parts) > 1 else parts[0]


def first_part(x: Tensor) -> Tensor:
    """The tensor itself, or what stands first in a carried one."""
    return first_part(x.parts[0]) if isinstance(x, Carried) else x


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Samples at places (B,) of a tensor that may be carried."""
    if isinstance(x, Carried):
        return cast(Tensor, replace(x, parts=tuple(take_rows(part, rows) for part in x.parts)))
    return x[rows]


def length_of(x: Tensor) -> int:
    """Length of the second dimension of a tensor that may be carried."""
    if not isinstance(x, Carried):
        return x.shape[1]
    lengths = [length_of(part) for part in x.parts]
    return sum(lengths) if x.dim == 1 else lengths[0]


def lengthened(x: Tensor, length: int, fill: float) -> Tensor:
    """The same with `fill` behind its last place, so that the second dimension is so long.

    Args:
        x: (B, T, …) with T at most `length`; it may be carried.
        length: of the result.
        fill: a number that float16 holds exactly.
    """
    if not isinstance(x, Carried):
        behind = x.new_full((len(x), length - x.shape[1], *x.shape[2:]), fill)
        return torch.cat([x, behind], 1) if behind.shape[1] else x
    if x.dim == 1:
        *before, last = x.parts
        room = length - sum(length_of(part) for part in before)
        parts = (*before, lengthened(last, room, fill))
    else:
        parts = tuple(lengthened(part, length, fill) for part in x.parts)
    return cast(Tensor, replace(x, parts=parts))
