"""The embeddings of a text in BERT and its descendants, under BERT's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.errors import DataError
from common.modules.layers import LAYER_NORM_EPS


class TextEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, LayerNorm, dropout.

    Shape legend: B batch, T tokens, C channels.
    """

    def __init__(
        self,
        words: int,
        channels: int,
        positions: int,
        types: int,
        dropout: float,
        padded: bool = False,
    ) -> None:
        """Make the three tables.

        Args:
            words, positions, types: rows of the tables.
            channels: C.
            dropout: rate.
            padded: row 0 of all three gets no gradient, as LXMERT has it; else that of words alone.
        """
        super().__init__()
        row = 0 if padded else None
        self.word_embeddings = nn.Embedding(words, channels, padding_idx=0)
        self.position_embeddings = nn.Embedding(positions, channels, padding_idx=row)
        self.token_type_embeddings = nn.Embedding(types, channels, padding_idx=row)
        self.LayerNorm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

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
