"""Modules of a post-LayerNorm BERT layer, written once for all backbones.

Only parameters and their upstream names live here; what a layer computes is the list of steps
that `common.adapt.steps` runs on these modules. Shape legend: B batch, T tokens, C channels,
H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError

LAYER_NORM_EPS = 1e-12
INITIAL_STD = 0.02
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
}


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name (gelu is the erf form).

    Raises:
        ConfigError: unknown name; lists the valid ones.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"unknown activation {name!r} (hidden_act); valid: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


class SelfAttention(nn.Module):
    """Query, key and value projections; `context_channels` is the width of what is attended to."""

    def __init__(
        self, channels: int, heads: int, dropout: float, context_channels: int | None = None
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} attention heads")
        self.num_attention_heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(context_channels or channels, channels)
        self.value = nn.Linear(context_channels or channels, channels)
        self.dropout = nn.Dropout(dropout)


class DenseResidual(nn.Module):
    """`LayerNorm(residual + dropout(dense(x)))`: the output half of attention and of the FFN."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)
        self.LayerNorm = nn.LayerNorm(outputs, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (B, T, inputs), residual (B, T, outputs) -> (B, T, outputs)."""
        normalised: Tensor = self.LayerNorm(residual + self.dropout(self.dense(x)))
        return normalised


class Intermediate(nn.Module):
    """The widening dense layer of the FFN; its activation is part of its step."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, expanded)


class Attention(nn.Module):
    """Self-attention and its output under the upstream names `self` and `output`."""

    def __init__(
        self, channels: int, heads: int, attention_dropout: float, hidden_dropout: float
    ) -> None:
        super().__init__()
        self.self = SelfAttention(channels, heads, attention_dropout)
        self.output = DenseResidual(channels, channels, hidden_dropout)


class BertLayer(nn.Module):
    """One BERT encoder layer: `attention.{self,output}`, `intermediate`, `output`."""

    def __init__(
        self,
        channels: int,
        heads: int,
        expanded: int,
        attention_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.attention = Attention(channels, heads, attention_dropout, hidden_dropout)
        self.intermediate = Intermediate(channels, expanded)
        self.output = DenseResidual(expanded, channels, hidden_dropout)


def init_bert_weights(modules: Iterable[nn.Module], std: float = INITIAL_STD) -> None:
    """Draw linear and embedding weights from N(0, std); biases 0, LayerNorm 1 and 0 (BERT).

    Rows at an embedding's `padding_idx` are drawn like the others, as upstream does.
    """
    for module in modules:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)
