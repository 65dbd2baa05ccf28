"""Tiny ViLBERT models in float64 and inputs for the tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from tests.common.tiny_models import vilbert_config, vilbert_inputs
from vilbert.heads import VILBertForVLTasks
from vilbert.modeling import BertModel, BertOutput

Model = TypeVar("Model", bound=nn.Module)
BATCH = 4
STREAMS = ("lang", "vision", "pooled_lang", "pooled_vision")
TEXT = ("input_ids", "token_type_ids", "attention_mask")


def randomise(module: Model, std: float = 0.3, seed: int = 3) -> Model:
    """The same random parameters every time; the norms of the classifier's weights are large."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
            if name.endswith("weight_g"):
                parameter.fill_(8.0)
    return module


def tasks_model(**changes: object) -> VILBertForVLTasks:
    """All heads, in evaluation mode."""
    return randomise(VILBertForVLTasks(vilbert_config(**changes))).double().eval()


def bare_model(**changes: object) -> BertModel:
    """Encoder and poolers of `tasks_model`."""
    return tasks_model(**changes).bert


def inputs_of(batch: int = 4) -> dict[str, Tensor]:
    """Texts and images of several lengths, with token types."""
    inputs = vilbert_inputs(batch)
    types = torch.arange(inputs["input_ids"].shape[1]).expand(batch, -1) > 2
    return {**inputs, "token_type_ids": types.long() * inputs["attention_mask"]}


def rows(inputs: dict[str, Tensor], texts: list[int], images: list[int]) -> dict[str, Tensor]:
    """Pairs of the given texts and images of a batch."""
    return {name: x[texts if name in TEXT else images] for name, x in inputs.items()}


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding in float64."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def agree(found: BertOutput, expected: BertOutput) -> None:
    for name in STREAMS:
        close(getattr(found, name), getattr(expected, name))


def without_gradient(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.grad is None}


def under(names: Iterable[str], *starts: str) -> set[str]:
    return {name for name in names if name.startswith(starts)}
