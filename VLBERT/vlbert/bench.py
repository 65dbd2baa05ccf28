"""What `make bench` measures of VL-BERT: random weights, base width, real lengths of questions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from common.modules.losses import first_answer_loss
from common.runs.backbones import BenchModel, BenchSettings
from vlbert.sizes import NetworkConfig
from vlbert.vqa_network import ResNetVLBERT

SHORTEST, LONGEST = 6, 12  # word pieces of a question; [CLS], [SEP] and [MASK] come on top
REGIONS = 36
WIDTH, HEIGHT = 640.0, 480.0
KEPT = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6, 0.0)


def bench_model(settings: BenchSettings) -> BenchModel:
    """The VQA network of VL-BERT-base on precomputed features, and one batch.

    `settings.layers` limits the layers. No other library has this model, so there is no reference.
    """
    config = bench_config(settings.layers)
    description = (
        f"VL-BERT-base, {config.encoder.num_hidden_layers} layers, {settings.batch} "
        f"questions of {SHORTEST}–{LONGEST} word pieces, {REGIONS} regions and the "
        f"image as a box, precomputed features, dropout "
        f"{config.encoder.hidden_dropout_prob:g} in training"
    )
    return BenchModel(
        description,
        lambda: ResNetVLBERT(config),
        bench_inputs(config, settings.batch, settings.seed),
        first_answer_loss,
        kept=KEPT,
    )


def bench_config(layers: int | None) -> NetworkConfig:
    """Base size with at most so many layers."""
    config = NetworkConfig()
    if layers is None:
        return config
    encoder = replace(
        config.encoder, num_hidden_layers=min(layers, config.encoder.num_hidden_layers)
    )
    return replace(config, encoder=encoder)


def bench_inputs(config: NetworkConfig, batch: int, seed: int) -> dict[str, Tensor]:
    """Random questions, one of them as long as they get, and regions behind the image's box."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (batch,), generator=generator)
    lengths[0] = LONGEST
    words = torch.randint(1, config.encoder.vocab_size, (batch, LONGEST), generator=generator)
    corners = torch.rand(batch, REGIONS, 2, 2, generator=generator).sort(2).values
    corners = corners.flatten(2) * torch.tensor([WIDTH - 1, HEIGHT - 1] * 2)
    features = torch.randn(batch, REGIONS, config.image.feature_size, generator=generator).relu()
    image = torch.tensor([0.0, 0.0, WIDTH - 1, HEIGHT - 1]).expand(batch, 1, 4)
    boxes = torch.cat(
        [
            torch.cat([image, features.mean(1, keepdim=True)], -1),
            torch.cat([corners, features], -1),
        ],
        1,
    )
    return {
        "boxes": boxes,
        "question": words * (torch.arange(LONGEST) < lengths[:, None]),
        "im_info": torch.tensor([WIDTH, HEIGHT, 1.0, 1.0]).expand(batch, -1),
    }
