"""LXMERT's pretraining head for regions, under the names of the original system.

Shape legend: B batch, R regions, C channels.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from common.modules.heads import HeadTransform
from common.modules.layers import LAYER_NORM_EPS, init_bert_weights
from lxrt.sizes import LxmertConfig


class RegionPrediction(nn.Module):
    """Object, attribute and feature predictions for every region."""

    def __init__(self, config: LxmertConfig, losses: tuple[str, ...]) -> None:
        super().__init__()
        sizes = {
            "obj": config.obj_id_num,
            "attr": config.attr_id_num,
            "feat": config.visual_feat_dim,
        }
        self.transform = HeadTransform(config.hidden_size)
        self.decoder_dict = nn.ModuleDict(
            {name: nn.Linear(config.hidden_size, sizes[name]) for name in losses}
        )
        init_bert_weights(self.modules())

    def forward(self, vision: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """(B, R, C) -> {loss name: (B, R, classes or feature width)} of the wanted losses."""
        x = self.transform(vision)
        return {name: decoder(x) for name, decoder in self.decoder_dict.items() if name in wanted}


def answer_head(channels: int, outputs: int) -> nn.Sequential:
    """Linear, GELU, LayerNorm, Linear: upstream's `logit_fc` (parameters at 0, 2 and 3)."""
    head = nn.Sequential(
        nn.Linear(channels, 2 * channels),
        nn.GELU(),
        nn.LayerNorm(2 * channels, eps=LAYER_NORM_EPS),
        nn.Linear(2 * channels, outputs),
    )
    init_bert_weights(head)
    return head
