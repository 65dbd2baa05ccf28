"""Tiny VL-BERT networks and inputs for the tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.common.tiny_models import vlbert_config
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.sizes import ImageConfig, PretrainingConfig

# A ResNet-50 in everything but its width.
IMAGES = ImageConfig(precomputed=False, final_dim=12, waves=2, depth=50, channels=2, dropout=0.0)


def randomise(module: nn.Module, std: float = 0.3, seed: int = 3) -> nn.Module:
    """The same random parameters every time; gains that start at 0 would hide the images."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module


def pretraining_config(**changes: object) -> PretrainingConfig:
    tiny = vlbert_config()
    encoder = replace(tiny.encoder, visual_region_classes=4, with_pooler=True)
    return replace(PretrainingConfig(encoder, tiny.image), **changes)


def pretraining_network(**changes: object) -> ResNetVLBERTForPretraining:
    return randomise(ResNetVLBERTForPretraining(pretraining_config(**changes))).double().eval()


def pretraining_inputs(batch: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(batch) % 3 + 3
    present = torch.arange(6) < lengths[:, None]
    text = torch.randint(1, 40, (batch, 6), generator=generator) * present
    corners = torch.rand(batch, 3, 4, generator=generator, dtype=torch.float64).cumsum(-1) * 20
    features = torch.randn(batch, 3, 7, generator=generator, dtype=torch.float64)
    return {
        "boxes": torch.cat([corners, features], -1),
        "text": text,
        "im_info": torch.tensor([[90.0, 80.0]], dtype=torch.float64).expand(batch, -1),
        "masked": torch.tensor([[False, True, False]]).expand(batch, -1),
    }


def pretraining_labels(inputs: dict[str, Tensor], share: float = 0.5) -> dict[str, Tensor]:
    """Word labels at random tokens, class probabilities at the masked regions."""
    generator = torch.Generator().manual_seed(2)
    text, masked = inputs["text"], inputs["masked"]
    chosen = (torch.rand(text.shape, generator=generator) < share) & (text > 0)
    classes = torch.rand(*masked.shape, 4, generator=generator, dtype=torch.float64).softmax(-1)
    return {
        "words": torch.where(chosen, text, -1),
        "regions": classes * masked[..., None],
        "relationship": torch.arange(len(text)) % 2,
    }
