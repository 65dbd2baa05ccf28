"""BERT and RoBERTa folders: where their weights are, and the names that backbones know them by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.errors import ConfigError

FILES = ("model.safetensors", "pytorch_model.bin")
PREFIXES = ("bert.", "roberta.")


def find_bert_weights(folder: Path | str, way_out: str) -> Path:
    """The weights in a BERT folder.

    Args:
        folder: of a model.
        way_out: what to do if there are none, for the message.

    Raises:
        ConfigError: there are none.
    """
    files = [Path(folder) / name for name in FILES]
    path = next((file for file in files if file.exists()), None)
    if path is None:
        raise ConfigError(
            f"no BERT weights in {folder}: neither {files[0].name} nor {files[1].name}; {way_out}"
        )
    return path


def bert_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefix `bert.` or `roberta.` and without TensorFlow's gamma and beta."""
    renamed = {}
    for name, tensor in weights.items():
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return renamed
