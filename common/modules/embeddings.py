"""The embeddings of a text in BERT and its descendants, under BERT's names."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from common.errors import DataError
from common.modules.layers import LAYER_NORM_EPS


class TextSizes(Protocol):
    """What a backbone's config says of its text."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def hidden_dropout_prob(self) -> float: ...


class TextEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, LayerNorm, dropout.

    Shape legend: B batch, T tokens, C channels.
    """

    def __init__(self, config: TextSizes, padded: bool = False) -> None:
        """Make the three tables.

        Args:
            config: their sizes, and the rate of dropout.
            padded: row 0 of all three gets no gradient, as LXMERT has it; else that of words alone.
        """
        super().__init__()
        row, size = 0 if padded else None, config.hidden_size
        positions = config.max_position_embeddings
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, size, padding_idx=row)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size, padding_idx=row)
        self.LayerNorm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """input_ids and token_type_ids (B, T) -> (B, T, C).

        Raises:
            DataError: more tokens than there are positions.
        """
        tokens, most = input_ids.shape[1], self.position_embeddings.num_embeddings
        if tokens > most:
            raise DataError(
                f"a text of {tokens} word pieces, the model has {most} positions "
                "(max_position_embeddings): cut texts to so many"
            )
        positions = torch.arange(tokens, device=input_ids.device)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = (
            self.word_embeddings(input_ids)
            + self.position_embeddings(positions)
            + self.token_type_embeddings(types)
        )
        found: Tensor = self.dropout(self.LayerNorm(x))
        return found
