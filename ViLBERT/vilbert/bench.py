"""What `make bench` measures of ViLBERT: random weights, base width, real lengths of questions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.modules.losses import first_answer_loss
from common.runs.backbones import BenchModel, BenchSettings
from vilbert.heads import VILBertForVQA
from vilbert.inputs import Limits, region_inputs
from vilbert.sizes import ViLBertConfig

SHORTEST, LONGEST = 8, 14  # word pieces with [CLS] and [SEP]
REGIONS = 36


def bench_model(settings: BenchSettings) -> BenchModel:
    """ViLBERT-base and one batch; no other library has this model, so there is no reference.

    `settings.layers` limits the connections and the layers of every stream.
    """
    config = bench_config(settings.layers)
    description = (
        f"ViLBERT-base, {config.num_hidden_layers} text and {config.v_num_hidden_layers} image "
        f"layers, {len(config.v_biattention_id)} connections, {settings.batch} questions of "
        f"{SHORTEST}–{LONGEST} word pieces, {REGIONS} regions and the image as a whole, dropout "
        f"{config.hidden_dropout_prob:g} in training"
    )
    inputs = bench_inputs(config, settings.batch, settings.seed)
    return BenchModel(description, lambda: VILBertForVQA(config), inputs, first_answer_loss)


def bench_config(layers: int | None) -> ViLBertConfig:
    """The 6-layer base model with at most so many layers in every stack.

    Connections stand before the last layers of both streams, as in the whole model.
    """
    config = ViLBertConfig()
    if layers is None:
        return config
    text = min(layers, config.num_hidden_layers)
    image = min(layers, config.v_num_hidden_layers)
    both = min(text, image, len(config.v_biattention_id))
    return replace(
        config,
        num_hidden_layers=text,
        v_num_hidden_layers=image,
        t_biattention_id=tuple(range(text - both, text)),
        v_biattention_id=tuple(range(image - both, image)),
    )


def bench_inputs(config: ViLBertConfig, batch: int, seed: int) -> dict[str, Tensor]:
    """Random questions, one of them as long as they get, and regions behind the image."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (batch,), generator=generator)
    lengths[0] = LONGEST
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    words = torch.randint(1, config.vocab_size, (batch, LONGEST), generator=generator)
    corners = torch.rand(batch, REGIONS, 2, 2, generator=generator).sort(2).values
    features = torch.randn(batch, REGIONS, config.v_feature_size, generator=generator).relu()
    present = torch.ones(batch, REGIONS, dtype=torch.bool)
    regions = region_inputs(features, corners.flatten(2), present, Limits())
    return {"input_ids": words * mask, "attention_mask": mask, **regions}
