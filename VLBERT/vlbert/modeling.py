"""VL-BERT (Su et al. 2020) under the parameter names of the original system: the bare encoder.

One stream: text tokens, then objects, then an end element, each the sum of a linguistic and a
visual embedding. Shape legend: B batch, T tokens, K objects, M packed positions, C channels, V
width of the visual embeddings, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.encoder import PolicyFactory, RoutedEncoder
from common.adapt.heads import split_heads
from common.adapt.routes import State, read_stream
from common.adapt.steps import PAIR, Layer, bert_steps, find_weighting, key_weights
from common.modules.heads import Pooler
from common.modules.layers import LAYER_NORM_EPS, BertLayer, find_activation, init_bert_weights
from common.modules.masks import additive_mask
from vlbert.packing import Packing, check_positions, pack
from vlbert.sizes import EncoderConfig

SPECIAL_WORDS = 1000


@dataclass
class VLBertOutput:
    """What the encoder computed.

    Attributes:
        hidden: (B, M, C) after the last layer. Where the encoder was told that only one position
            is read, it is (B, 1, C), that position's row.
        packing: what stands at the M positions.
        embedding: (B, M, C), before the first layer.
        read: (B, C), the row of `hidden` at `read_at`; None where none was asked for.
        pooled: (B, C), or None where there is no pooler.
        layers: (B, M, C) after every layer, if asked for; the last one is `hidden`.
        attention: (B, H, M, M) probabilities of every layer, without dropout, if asked for.
    """

    hidden: Tensor
    packing: Packing
    embedding: Tensor
    read: Tensor | None = None
    pooled: Tensor | None = None
    layers: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)

    def text(self, tokens: int) -> Tensor:
        """The first T rows, (B, min(T, M), C); behind a shorter text they hold other things."""
        return self.hidden[:, :tokens]

    def objects(self) -> Tensor:
        """Rows of the objects in their slots, (B, K, C); 0 where there is no object."""
        return self.packing.split_objects(self.hidden)


class VLBertEncoder(RoutedEncoder):
    """The BERT layers."""

    def __init__(self, config: EncoderConfig, policy_factory: PolicyFactory | None = None) -> None:
        super().__init__(policy_factory)
        self.config = config
        self.layer = nn.ModuleList(
            BertLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.attention_probs_dropout_prob,
                config.hidden_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.set_reads(("hidden",))

    def layers(self) -> list[Layer]:
        config = self.config
        steps = bert_steps("hidden", activation=find_activation(config.hidden_act))
        return [
            Layer(
                f"layer.{n}",
                f"layer.{n - 1}",
                module,
                steps,
                {"hidden": config.hidden_size},
                config.num_attention_heads,
            )
            for n, module in enumerate(self.layer, 1)
        ]

    def layers_removed(self, names: Sequence[str]) -> None:
        self.config = replace(self.config, num_hidden_layers=len(self.layer))


class VisualLinguisticBert(nn.Module):
    """Embeddings, encoder and, where there is one, pooler."""

    def __init__(self, config: EncoderConfig, policy_factory: PolicyFactory | None = None) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.end_embedding = nn.Embedding(1, size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.embedding_LayerNorm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout_prob)
        if config.visual_size != size:
            self.visual_1x1_text = nn.Linear(config.visual_size, size)
            self.visual_1x1_object = nn.Linear(config.visual_size, size)
        if config.visual_ln:
            self.visual_ln_text = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
            self.visual_ln_object = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        else:
            self.visual_scale_text = nn.Parameter(torch.empty(()))
            self.visual_scale_object = nn.Parameter(torch.empty(()))
        self.encoder = VLBertEncoder(config, policy_factory)
        if config.with_pooler:
            self.pooler = Pooler(size)
        if config.word_embedding_frozen:
            self.special_word_embeddings = nn.Embedding(SPECIAL_WORDS, size)
        self.init_weights()

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def init_weights(self) -> None:
        """Draw all weights as the original does; freeze what the config freezes."""
        config = self.config
        init_bert_weights(self.modules(), config.initializer_range)
        for kind, value in (
            ("text", config.visual_scale_text_init),
            ("object", config.visual_scale_object_init),
        ):
            gain = (
                getattr(self, f"visual_ln_{kind}").weight
                if config.visual_ln
                else getattr(self, f"visual_scale_{kind}")
            )
            nn.init.constant_(gain, value)
        if config.word_embedding_frozen:
            self.word_embeddings.requires_grad_(False)
            self.copy_special_words()
        if config.pos_embedding_frozen:
            self.position_embeddings.requires_grad_(False)

    def copy_special_words(self) -> None:
        """Start the trainable special words from the frozen word table."""
        with torch.no_grad():
            words = self.word_embeddings.weight[:SPECIAL_WORDS]
            self.special_word_embeddings.weight[: len(words)] = words

    def forward(
        self,
        text_input_ids: Tensor,
        text_token_type_ids: Tensor,
        text_visual_embeddings: Tensor,
        text_mask: Tensor,
        object_vl_embeddings: Tensor,
        object_mask: Tensor,
        read_at: Tensor | None = None,
        raw_inputs: Mapping[str, Tensor | None] | None = None,
        all_layers: bool = False,
        attention: bool = False,
        fixed: bool = False,
    ) -> VLBertOutput:
        """Encode a batch.

        Args:
            text_input_ids, text_token_type_ids, text_mask: (B, T); mask 1 = token, which need
                not be a prefix.
            text_visual_embeddings: (B, T, V).
            object_vl_embeddings: (B, K, V + C): visual, then linguistic embedding.
            object_mask: (B, K), 1 = object.
            read_at: (B,) the one position of the packed sequence that is read.
            raw_inputs: what a published policy reads.
            all_layers, attention: also return every layer, or its attention probabilities.
            fixed: see `pack`.
        """
        packing = pack(text_mask, object_mask, fixed)
        embedding = self.embed(
            packing,
            text_input_ids,
            text_token_type_ids,
            text_visual_embeddings,
            object_vl_embeddings,
        )
        hidden, mask = embedding, packing.mask
        order = None
        if read_at is not None:
            # The layers treat positions as a set, so the one that is read may come first.
            order = front_order(read_at, packing.mask.shape[1])
            hidden, mask = reordered(hidden, order), mask.gather(1, order)
        state: State = {"hidden": hidden, "hidden.mask": additive_mask(mask, hidden.dtype)}
        passed: list[State] = []
        more: dict[str, Any] = {"passed": passed} if all_layers or attention else {}
        last = read_stream(self.encoder.run_layers(state, raw_inputs, **more), "hidden")
        read = None if order is None else last[:, 0]
        probabilities = self.attention(state, passed, order) if attention else []
        narrowed = bool(self.encoder.reads_first)
        layers = [reordered(read_stream(s, "hidden"), order) for s in passed] if all_layers else []
        last = reordered(last, order)
        pooled = self.pooler(last) if self.config.with_pooler and not narrowed else None
        return VLBertOutput(last, packing, embedding, read, pooled, layers, probabilities)

    def embed(
        self,
        packing: Packing,
        text_input_ids: Tensor,
        text_token_type_ids: Tensor,
        text_visual_embeddings: Tensor,
        object_vl_embeddings: Tensor,
    ) -> Tensor:
        """Arguments of `forward` -> the packed embeddings (B, M, C)."""
        visual, linguistic = object_vl_embeddings.split(
            [self.config.visual_size, self.config.hidden_size], -1
        )
        text = self.words(text_input_ids) + self.visual("text", text_visual_embeddings)
        objects = linguistic + self.visual("object", visual)
        positions = packing.positions(self.config.position_padding_idx)
        rows = self.position_embeddings.num_embeddings
        # The objects share the position behind the text, and the end has the next one.
        most = text_input_ids.shape[1] + 2 + self.config.position_padding_idx
        check_positions(positions, packing.mask, rows, most)
        positions = positions.clamp(max=rows - 1)  # of padding, which nothing reads
        x = (
            packing.take(text, objects, self.end_embedding.weight[0])
            + self.position_embeddings(positions)
            + self.token_type_embeddings(packing.types(text_token_type_ids))
        )
        return self.embedding_dropout(self.embedding_LayerNorm(x))

    def words(self, ids: Tensor) -> Tensor:
        """Word embeddings: ids (B, T) -> (B, T, C)."""
        words = self.word_embeddings(ids)
        if not self.config.word_embedding_frozen:
            return words
        special = self.special_word_embeddings(ids.clamp(max=SPECIAL_WORDS - 1))
        return torch.where((ids < SPECIAL_WORDS)[..., None], special, words)

    def visual(self, kind: str, x: Tensor) -> Tensor:
        """Visual embeddings (…, V) of `text` or `object` as they are added, (…, C)."""
        if self.config.visual_size != self.config.hidden_size:
            x = getattr(self, f"visual_1x1_{kind}")(x)
        if self.config.visual_ln:
            return getattr(self, f"visual_ln_{kind}")(x)
        return x * getattr(self, f"visual_scale_{kind}")

    def attention(self, state: State, passed: list[State], order: Tensor | None) -> list[Tensor]:
        """Attention probabilities (B, H, M, M) of every layer, recomputed from its input.

        `order` (B, M) is the one in which the positions of `state` stand.

        Raises:
            ConfigError: the encoder is adaptive, so that there is no one attention.
        """
        self.encoder.check_attention()
        before = [read_stream(s, "hidden") for s in (state, *passed[:-1])]
        mask = state["hidden.mask"]
        assert mask is not None
        found = []
        for layer, hidden in zip(self.encoder.layer, before, strict=True):
            assert isinstance(layer, BertLayer)
            own = layer.attention.self
            q, k = (
                split_heads(linear(hidden), own.num_attention_heads)
                for linear in (own.query, own.key)
            )
            weights = key_weights(q, k, mask, find_weighting(own), passed[-1].get(PAIR))
            if order is not None:
                weights = weights.gather(2, order[:, None, :, None].expand_as(weights))
                weights = weights.gather(3, order[:, None, None].expand_as(weights))
            found.append(weights)
        return found


def reordered(x: Tensor, order: Tensor | None) -> Tensor:
    """Rows of x (B, M, C) in an order (B, M); as they are without one, or if there is one row."""
    if order is None or x.shape[1] == 1:
        return x
    return x.gather(1, order[..., None].expand_as(x))


def front_order(place: Tensor, width: int) -> Tensor:
    """Orders (B, M) of M positions in which `place` (B,) has changed places with the first.

    Every one is its own inverse.
    """
    order = torch.arange(width, device=place.device).repeat(len(place), 1)
    order.scatter_(1, place[:, None], 0)
    order[:, 0] = place
    return order
