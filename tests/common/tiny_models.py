"""Tiny models of every encoder family, in float64, for the property tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.attention import set_attention
from common.adapt.encoder import AdaptiveOptions, RoutedEncoder, frozen_copy
from common.adapt.policy import SmallPolicy
from common.adapt.steps import Layer, bert_steps
from common.modules.attention import AttentionOptions
from common.modules.layers import BertLayer, init_bert_weights
from lxrt.modeling import VQAModel
from lxrt.sizes import LxmertConfig
from vilbert.heads import VILBertForVQA
from vilbert.sizes import RATES, ViLBertConfig
from vlbert.sizes import EncoderConfig, ImageConfig, NetworkConfig, SpecialTokens
from vlbert.vqa_network import ResNetVLBERT

ADAPTIVE = ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop", "BlockReplace")
BATCH = 6


class SingleStreamEncoder(RoutedEncoder):
    """A plain BERT encoder: what VL-BERT's encoder is to the core."""

    def __init__(self, layers: int, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.layer = nn.ModuleList(
            BertLayer(channels, heads, 2 * channels, dropout, dropout) for _ in range(layers)
        )
        self.set_reads(("hidden",), first=("hidden",))
        init_bert_weights(self.modules())

    def layers(self) -> list[Layer]:
        return [
            Layer(
                f"layer.{n}",
                f"layer.{n - 1}",
                module,
                bert_steps("hidden"),
                {"hidden": self.channels},
                self.heads,
            )
            for n, module in enumerate(self.layer, 1)
        ]


class SingleStream(nn.Module):
    """Embedding, encoder, head on the first token."""

    def __init__(
        self, layers: int = 3, channels: int = 12, heads: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, channels)
        self.encoder = SingleStreamEncoder(layers, channels, heads, dropout)
        self.head = nn.Linear(channels, 5)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """input_ids and mask (B, T) -> (B, 5)."""
        hidden = self.embed(input_ids)
        additive = (1 - mask.to(hidden.dtype))[:, None, None] * -10000.0
        state = self.encoder.run_layers({"hidden": hidden, "hidden.mask": additive})
        return self.head(state["hidden"][:, 0])


@dataclass
class Family:
    """How to build a tiny model of one family and inputs for it."""

    name: str
    build: Callable[[float], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]


def lxmert_config(dropout: float = 0.0) -> LxmertConfig:
    return LxmertConfig(
        vocab_size=40,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        l_layers=2,
        x_layers=2,
        r_layers=1,
        visual_feat_dim=7,
        num_answers=5,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )


def lxmert_inputs(batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(batch) % 4 + 3
    mask = (torch.arange(6)[None] < lengths[:, None]).long()
    regions = (torch.arange(4)[None] < (torch.arange(batch) % 3 + 2)[:, None]).long()
    return {
        "input_ids": torch.randint(1, 40, (batch, 6), generator=generator) * mask,
        "input_mask": mask,
        "region_mask": regions,
        "features": torch.randn(batch, 4, 7, generator=generator, dtype=torch.float64),
        "boxes": torch.rand(batch, 4, 4, generator=generator, dtype=torch.float64),
    }


def single_inputs(batch: int) -> dict[str, Tensor]:
    inputs = lxmert_inputs(batch)
    return {"input_ids": inputs["input_ids"], "mask": inputs["input_mask"]}


def vlbert_config(dropout: float = 0.0) -> NetworkConfig:
    encoder = EncoderConfig(
        vocab_size=40,
        hidden_size=12,
        visual_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    image = ImageConfig(feature_size=7, final_dim=12, waves=2, dropout=dropout)
    return NetworkConfig(
        encoder, image, num_answers=5, classifier_dropout=dropout, tokens=SpecialTokens(1, 2, 3)
    )


def vlbert_inputs(batch: int) -> dict[str, Tensor]:
    inputs = lxmert_inputs(batch)
    boxes = inputs["boxes"].cumsum(-1) * 20  # x1 < y1 < x2 < y2
    present = inputs["region_mask"][..., None].bool()
    return {
        "boxes": torch.cat([boxes, inputs["features"]], -1).where(present, -2.0),
        "im_info": torch.tensor([[90.0, 80.0]], dtype=torch.float64).expand(batch, -1),
        "question": inputs["input_ids"],
    }


def vilbert_config(dropout: float = 0.0, **changes: object) -> ViLBertConfig:
    rates = dict.fromkeys(RATES, dropout)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 20,
        "max_position_embeddings": 16,
        "v_feature_size": 7,
        "v_target_size": 6,
        "v_hidden_size": 8,
        "v_num_hidden_layers": 2,
        "v_num_attention_heads": 2,
        "v_intermediate_size": 10,
        "bi_hidden_size": 16,
        "bi_num_attention_heads": 4,
        "v_biattention_id": (0, 1),
        "t_biattention_id": (1, 2),
        "num_labels": 5,
    }
    return ViLBertConfig(**{**sizes, **rates, **changes})


def tiny_vilbert(dropout: float = 0.0) -> VILBertForVQA:
    """The dropout of its heads has no place in the configuration."""
    model = VILBertForVQA(vilbert_config(dropout))
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


def vilbert_inputs(batch: int) -> dict[str, Tensor]:
    inputs = lxmert_inputs(batch)
    boxes = inputs["boxes"]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1, keepdim=True)
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "features": inputs["features"],
        "places": torch.cat([boxes, area], -1),
        "image_attention_mask": inputs["region_mask"],
    }


FAMILIES = {
    "single": Family("single", lambda dropout: SingleStream(dropout=dropout), single_inputs),
    "lxmert": Family("lxmert", lambda dropout: VQAModel(lxmert_config(dropout)), lxmert_inputs),
    "vilbert": Family("vilbert", tiny_vilbert, vilbert_inputs),
    "vlbert": Family("vlbert", lambda dropout: ResNetVLBERT(vlbert_config(dropout)), vlbert_inputs),
}


def pretrained(family: str, dropout: float = 0.0) -> nn.Module:
    """The 'pretrained' model of a family: the same weights every time, float64."""
    torch.manual_seed(3)
    model = FAMILIES[family].build(dropout).double()
    for name, parameter in model.named_parameters():
        if name.endswith("weight_g"):  # the norm of a whole matrix
            nn.init.constant_(parameter, 8.0)
        else:
            nn.init.normal_(parameter, std=0.3)
    return model


def adapted(
    family: str,
    strategy: str,
    drift: float = 0.1,
    dropout: float = 0.0,
    policy: str = "small",
    narrowed: bool = True,
    attention: AttentionOptions | None = None,
    **options: object,
) -> nn.Module:
    """An adapted model whose finetuned weights have drifted away from the twins.

    With `narrowed` its last layer computes only the first position, which is all that is read.
    """
    model = pretrained(family, dropout)
    if not narrowed:
        encoder = next(m for m in model.modules() if isinstance(m, RoutedEncoder))
        encoder.set_reads(encoder.reads)
    set_attention(model, attention or AttentionOptions())
    extra = {"LastK": {"trainable_layers": "last:1"}, "FrozenLayers": {"frozen_layers": "2"}}
    torch.manual_seed(4)
    adapt(model, strategy, policy, options=AdaptiveOptions(**options), **extra.get(strategy, {}))
    part = adaptive_part(model)
    if part is not None:
        for parameter in part.linears.parameters():
            nn.init.normal_(parameter, std=0.3)
    drift_layers(model, drift)
    if part is not None and isinstance(part.policy, SmallPolicy):
        spread_policy(model, family)
    return model


@cache
def _built(family: str, strategy: str, drift: float, narrowed: bool) -> nn.Module:
    return adapted(family, strategy, drift, narrowed=narrowed)


def shared(
    family: str,
    strategy: str,
    executor: str,
    drift: float = 0.1,
    narrowed: bool = True,
    sampled_share: float = 0.25,
) -> nn.Module:
    """`adapted` without gradients, to run with an executor; built once.

    For tests that leave its weights as they are.
    """
    model = _built(family, strategy, drift, narrowed)
    part = adaptive_part(model)
    if part is not None:
        part.options.executor = part.options.eval_executor = executor
        part.options.sampled_share = sampled_share
    model.zero_grad()
    return model


def drift_layers(model: nn.Module, size: float) -> None:
    """Move the weights of the encoder's layers, always by the same amounts."""
    generator = torch.Generator().manual_seed(5)
    encoder = next(m for m in model.modules() if isinstance(m, RoutedEncoder))
    for layer in encoder.layers():
        for parameter in layer.module.parameters():
            with torch.no_grad():
                parameter += size * torch.randn(
                    parameter.shape, generator=generator, dtype=parameter.dtype
                )


def spread_policy(model: nn.Module, family: str) -> None:
    """Make a fresh small policy decide 0 for about half of the samples at every site."""
    part = adaptive_part(model)
    model.eval()
    with torch.no_grad():
        run(model, family)
        logits = part.last.logits
        centre = (logits[..., 1] - logits[..., 0]).median(0).values
        part.policy.head[-1].bias.view(-1, 2)[:, 1] -= centre + 1e-9


def run(model: nn.Module, family: str, batch: int = BATCH) -> Tensor:
    """Logits (batch, 5)."""
    return model(**FAMILIES[family].inputs(batch))


def random_decisions(model: nn.Module, batch: int = BATCH, seed: int = 7) -> Tensor:
    """(B, D) of random 0 / 1 in which some columns are constant."""
    part = adaptive_part(model)
    generator = torch.Generator().manual_seed(seed)
    decisions = torch.randint(0, 2, (batch, len(part.live)), generator=generator).double()
    decisions[:, 0] = 0
    decisions[:, -1] = 1
    return decisions


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


__all__ = [
    "ADAPTIVE",
    "BATCH",
    "FAMILIES",
    "Family",
    "SingleStream",
    "SingleStreamEncoder",
    "adapted",
    "drift_layers",
    "frozen_copy",
    "gradients",
    "lxmert_config",
    "pretrained",
    "random_decisions",
    "run",
    "shared",
    "spread_policy",
    "vilbert_config",
    "vlbert_config",
]
