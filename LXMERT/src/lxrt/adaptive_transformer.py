"""Checkpoints of adaptive_transformer, the LXMERT with span, entmax, LayerDrop (Bhargava 2020)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from common.errors import CheckpointError
from common.modules.attention import AttentionOptions

SPAN, ALPHA = ".adaptive_span.current_val", ".entmax_alpha.alpha_chooser"
AGAIN = ".entmax_alpha.alpha"  # the same parameter, registered twice
TEMPLATE = ".adaptive_span.mask_template_"  # the places of the keys, which we compute


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its tensors under our names; those of other files stay as they are.

    With LayerDrop the original puts `module_list` into the names of layers.
    """
    found = {}
    for name, tensor in weights.items():
        if name.endswith(AGAIN) or TEMPLATE in name:
            continue
        name = re.sub(r"\.(layer|[xr]_layers)\.module_list\.", r".\1.", name)
        if name.endswith(SPAN):
            name = name.removesuffix(SPAN) + ".weighting.span.current_val"
        elif name.endswith(ALPHA):
            name = name.removesuffix(ALPHA) + ".weighting.normaliser.alpha_chooser"
        found[name] = tensor
    return found


def published_attention(weights: Mapping[str, Tensor]) -> AttentionOptions | None:
    """The mechanism that a file of the original's was trained with; None for other files.

    Raises:
        CheckpointError: its spans are of several batch sizes.
    """
    batches = {len(tensor) for name, tensor in weights.items() if name.endswith(SPAN)}
    sparse = any(name.endswith(ALPHA) for name in weights)
    if len(batches) > 1:
        raise CheckpointError(f"spans of batches of {sorted(batches)}: they are of one size")
    if not batches and not sparse:
        return None
    return AttentionOptions(
        "published" if sparse else "softmax",
        "published" if batches else "none",
        batch=next(iter(batches), 0),
    )
