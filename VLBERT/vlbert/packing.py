"""Text tokens, objects and the end element put into one sequence without gaps.

Shape legend: B batch, T tokens, K objects, M packed positions, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import DataError
from common.modules.shapes import AsksDevice, shapes_are_static

OBJECT_TYPE = 2


@dataclass
class Packing:
    """Where everything stands: n text tokens, o objects, the end, padding.

    Attributes:
        source: (B, M) which row of [T text rows | K object rows | end | padding] stands there.
        text, objects, mask: (B, M) bool: text tokens, objects, anything but padding.
        text_counts: (B, 1), the n of every sample.
        text_places: (B, T), object_places: (B, K) position of every row; meaningless where it
            is padding.
        object_mask: (B, K) bool, the objects that there are.
    """

    source: Tensor
    text: Tensor
    objects: Tensor
    mask: Tensor
    text_counts: Tensor
    text_places: Tensor
    object_places: Tensor
    object_mask: Tensor

    def take(self, text: Tensor, objects: Tensor, end: Tensor) -> Tensor:
        """Pack rows: text (B, T, C), objects (B, K, C), end (C,) -> (B, M, C); padding is 0."""
        batch, channels = len(text), text.shape[-1]
        rows = torch.cat(
            [text, objects, end.expand(batch, 1, channels), text.new_zeros(batch, 1, channels)], 1
        )
        return rows.gather(1, self.source[..., None].expand(-1, -1, channels))

    def types(self, text_types: Tensor) -> Tensor:
        """Token types (B, M) from the text's (B, T): 2 for objects and end, 0 for padding."""
        batch, objects = self.object_mask.shape
        types = torch.cat(
            [
                text_types,
                text_types.new_full((batch, objects + 1), OBJECT_TYPE),
                text_types.new_zeros(batch, 1),
            ],
            1,
        )
        return types.gather(1, self.source)

    def positions(self, padding_index: int) -> Tensor:
        """Positions (B, M) of the position table: all objects of a sample share one."""
        index = torch.arange(self.mask.shape[1], device=self.mask.device).expand_as(self.mask)
        end = self.mask & ~self.text & ~self.objects
        shared = torch.where(self.objects, self.text_counts, index)
        return torch.where(end, self.text_counts + 1, shared) + 1 + padding_index

    def split_objects(self, hidden: Tensor) -> Tensor:
        """Rows of the objects in their slots: (B, M, C) -> (B, K, C), 0 where there is none."""
        places = torch.where(self.object_mask, self.object_places, 0)
        rows = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        return rows.masked_fill(~self.object_mask[..., None], 0.0)


def pack(text_mask: Tensor, object_mask: Tensor, fixed: bool = False) -> Packing:
    """Plan a packed sequence for the tokens (B, T) and objects (B, K) that the masks leave.

    The order within text and objects is kept; what is masked may stand anywhere. The longest
    sequence has no padding, unless shapes are static: then there is room for T + K + 1.

    Args:
        fixed: there is room for T + K + 1 in any case.
    """
    text_mask, object_mask = text_mask.bool(), object_mask.bool()
    (batch, tokens), objects = text_mask.shape, object_mask.shape[1]
    n, o = text_mask.sum(1, keepdim=True), object_mask.sum(1, keepdim=True)
    static = fixed or shapes_are_static()
    width = (tokens + objects if static else int((n + o).max())) + 1
    text_places = text_mask.cumsum(1) - 1
    object_places = n + object_mask.cumsum(1) - 1
    # What is masked goes to an extra column that is cut off.
    places = torch.cat(
        [
            torch.where(text_mask, text_places, width),
            torch.where(object_mask, object_places, width),
            n + o,
        ],
        1,
    )
    padding = tokens + objects + 1
    source = places.new_full((batch, width + 1), padding)
    source.scatter_(1, places, torch.arange(padding, device=places.device).expand(batch, -1))
    index = torch.arange(width, device=places.device).expand(batch, -1)
    return Packing(
        source[:, :width],
        index < n,
        (index >= n) & (index < n + o),
        index <= n + o,
        n,
        text_places,
        object_places,
        object_mask,
    )


def check_positions(positions: Tensor, mask: Tensor, rows: int, most: int) -> None:
    """Refuse sequences (B, M) that are longer, without their padding, than the position table.

    Args:
        positions, mask: of the sequences.
        rows: of the table.
        most: highest position that can occur; the sequences are looked at where it is too high.

    Raises:
        DataError: names the length and the setting.
        AsksDevice: shapes are static, and do not say that every sequence fits.
    """
    if most < rows:
        return
    if shapes_are_static():
        raise AsksDevice("whether the sequences fit the position table is read from the device")
    longest = int(torch.where(mask, positions, 0).max()) + 1
    if longest > rows:
        raise DataError(
            f"a sequence of {positions.shape[1]} tokens and objects needs {longest} "
            f"positions, the model has {rows} (max_position_embeddings): use shorter "
            "texts or fewer boxes"
        )
