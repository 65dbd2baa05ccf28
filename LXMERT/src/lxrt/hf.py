"""Adapting the LXMERT of `transformers`: its encoder, with routed layers, under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.encoder import RoutedEncoder
from common.adapt.routes import State, read_stream
from common.adapt.steps import Layer
from common.errors import ConfigError
from lxrt.modeling import Stacks, encoder_layers


class HFConfig(Protocol):
    """What is used of the config of a `transformers` LXMERT."""

    hidden_act: str
    hidden_size: int
    num_attention_heads: int

    def update(self, config_dict: dict[str, Any]) -> None:
        """Set attributes."""


class HFEncoder(Stacks, Protocol):
    """What is used of a `LxmertEncoder`."""

    config: HFConfig
    visn_fc: nn.Module
    training: bool


class HFModel(Protocol):
    """What is used of a `LxmertModel`."""

    encoder: HFEncoder


class RoutedHFEncoder(RoutedEncoder):
    """Takes the place of a `LxmertEncoder` and keeps its children, hence its state-dict names."""

    def __init__(self, encoder: HFEncoder) -> None:
        super().__init__()
        self.config = encoder.config
        if self.config.hidden_act != "gelu":
            raise ConfigError(f"hidden_act {self.config.hidden_act!r} is not supported, only gelu")
        self.visn_fc = encoder.visn_fc
        self.layer = encoder.layer
        self.x_layers = encoder.x_layers
        self.r_layers = encoder.r_layers
        self.reads = ("lang", "vision")
        self.train(encoder.training)

    def layers(self) -> list[Layer]:
        return encoder_layers(self, self.config.hidden_size, self.config.num_attention_heads)

    def layers_removed(self, names: Sequence[str]) -> None:
        counts = {
            "l_layers": len(self.layer),
            "x_layers": len(self.x_layers),
            "r_layers": len(self.r_layers),
        }
        self.config.update(
            counts
            | {
                "num_hidden_layers": {
                    "language": counts["l_layers"],
                    "cross_encoder": counts["x_layers"],
                    "vision": counts["r_layers"],
                }
            }
        )

    def forward(
        self,
        lang_feats: Tensor,
        lang_attention_mask: Tensor | None,
        visual_feats: Tensor,
        visual_pos: Tensor,
        visual_attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
    ) -> tuple[tuple[tuple[Tensor, ...], None], tuple[tuple[Tensor, ...], None], None]:
        """lang_feats (B, T, C), visual_feats (B, R, F), visual_pos (B, R, 4), additive masks.

        Returns what `LxmertModel` expects: the states after every layer of either stream.
        """
        if output_attentions:
            raise ConfigError("an adapted encoder does not return attentions")
        passed: list[State] = []
        self.run_layers(
            {
                "lang": lang_feats,
                "lang.mask": lang_attention_mask,
                "vision": self.visn_fc(visual_feats, visual_pos),
                "vision.mask": visual_attention_mask,
            },
            passed=passed,
        )
        lang, vision = len(self.layer), len(self.r_layers)
        lang_states = [read_stream(s, "lang") for s in passed[:lang] + passed[lang + vision :]]
        vision_states = [read_stream(s, "vision") for s in passed[lang:]]
        # What is not read is not computed: no number may pass for it.
        if "vision" not in self.reads:
            vision_states[-1] = torch.full_like(vision_states[-1], torch.nan)
        unread = lang_feats.shape[1] - lang_states[-1].shape[1]
        lang_states[-1] = F.pad(lang_states[-1], (0, 0, 0, unread), value=torch.nan)
        return (tuple(vision_states), None), (tuple(lang_states), None), None


def wrap(model: nn.Module) -> RoutedEncoder | None:
    """Put a routed encoder into a `transformers` LXMERT model; None for other models."""
    found = next((m for m in model.modules() if type(m).__name__ == "LxmertModel"), None)
    if found is None:
        return None
    owner = cast(HFModel, found)
    encoder = RoutedHFEncoder(owner.encoder)
    owner.encoder = encoder
    if type(model).__name__ == "LxmertForQuestionAnswering":  # reads the pooled language only
        encoder.set_reads(("lang",), first=("lang",))
    return encoder
