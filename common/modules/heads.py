"""Heads that BERT's descendants share, under upstream's names.

Shape legend: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.modules.layers import INITIAL_STD, LAYER_NORM_EPS, find_activation, init_bert_weights


class HeadTransform(nn.Module):
    """dense, activation, LayerNorm in front of a decoder."""

    def __init__(self, channels: int, activation: str = "gelu") -> None:
        super().__init__()
        self.dense = nn.Linear(channels, channels)
        self.LayerNorm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self._activation = find_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C)."""
        normalised: Tensor = self.LayerNorm(self._activation(self.dense(x)))
        return normalised


class WordPrediction(nn.Module):
    """Logits over the vocabulary; the decoder shares the word embeddings' weight."""

    def __init__(
        self, words: nn.Embedding, activation: str = "gelu", std: float = INITIAL_STD
    ) -> None:
        super().__init__()
        self.transform = HeadTransform(words.embedding_dim, activation)
        self.decoder = nn.Linear(words.embedding_dim, words.num_embeddings, bias=False)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))
        init_bert_weights(self.modules(), std)
        self.decoder.weight = words.weight

    def forward(self, lang: Tensor) -> Tensor:
        """(…, C) -> (…, V)."""
        logits: Tensor = self.decoder(self.transform(lang)) + self.bias
        return logits


class Pooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, C)."""
        return torch.tanh(self.dense(x[:, 0]))
