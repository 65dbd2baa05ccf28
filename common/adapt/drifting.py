"""How far finetuned layers are from their frozen twins."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.adapt.families import find_encoder


@torch.no_grad()
def drift(model: nn.Module) -> dict[str, Any] | None:
    """||w - w0|| / ||w0|| of the weights w of every layer and those w0 of its twin.

    Returns:
        `overall` and by name in `layers`; None where there are no twins.
    """
    part = adaptive_part(model)
    if part is None or not part.twins:
        return None
    encoder = find_encoder(model)
    names: list[str] = []
    squares: list[Tensor] = []
    for layer in encoder.layers():
        twin = part.twin(layer.name)
        assert twin is not None
        pairs = zip(encoder.get_submodule(layer.path).parameters(), twin.parameters(), strict=True)
        squares += [
            torch.stack([_square(ours - theirs), _square(theirs)]) for ours, theirs in pairs
        ]
        names += [layer.name] * (len(squares) - len(names))
    of_layer: dict[str, list[float]] = {}
    for name, (moved, size) in zip(names, torch.stack(squares).tolist(), strict=True):
        sums = of_layer.setdefault(name, [0.0, 0.0])
        sums[0], sums[1] = sums[0] + moved, sums[1] + size
    moved, size = (sum(values) for values in zip(*of_layer.values(), strict=True))
    return {
        "overall": _ratio(moved, size),
        "layers": {name: _ratio(*sums) for name, sums in of_layer.items()},
    }


def _square(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dtype=torch.float64)
    return norm**2


def _ratio(moved: float, size: float) -> float:
    return math.sqrt(moved / size) if size else 0.0
