"""The single-stream baseline of the original system: text and regions in one BERT.

No checkpoint of it was ever released; names follow those of the two-stream model. Shape legend:
B batch, T tokens, R regions, C channels, F width of the features, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.adapt.encoder import RoutedEncoder
from common.adapt.routes import State, read_stream
from common.adapt.sharing import once
from common.adapt.steps import Layer, bert_steps
from common.errors import ConfigError
from common.modules.embeddings import TextEmbeddings
from common.modules.heads import Pooler
from common.modules.layers import LAYER_NORM_EPS, find_activation, init_bert_weights
from common.modules.masks import additive_mask
from vilbert.heads import POOLED_DROPOUT, PretrainingHeads, SimpleClassifier
from vilbert.layers import text_layer
from vilbert.modeling import BOX
from vilbert.sizes import ViLBertConfig

IMAGE_TYPE = 1
TWO_STREAMS = ("fixed_v_layer", "fixed_t_layer", "fast_mode", "in_batch_pairs")


class TypedImageEmbeddings(nn.Module):
    """LayerNorm of a region's features, its place and token type 1."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.image_embeddings = nn.Linear(config.v_feature_size, size)
        self.image_location_embeddings = nn.Linear(BOX, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """features (B, R, F), places (B, R, 5) -> (B, R, C)."""
        x = (
            self.image_embeddings(features)
            + self.token_type_embeddings.weight[IMAGE_TYPE]
            + self.image_location_embeddings(places)
        )
        return self.dropout(self.LayerNorm(x))


class SingleStreamEncoder(RoutedEncoder):
    """The layers of one BERT."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(text_layer(config) for _ in range(config.num_hidden_layers))
        self.set_reads(("hidden",))

    def layers(self) -> list[Layer]:
        config = self.config
        steps = bert_steps("hidden", activation=find_activation(config.hidden_act))
        streams = {"hidden": config.hidden_size}
        return [
            Layer(
                f"layer.{n}", f"layer.{n - 1}", module, steps, streams, config.num_attention_heads
            )
            for n, module in enumerate(self.layer, 1)
        ]

    def layers_removed(self, names: object) -> None:
        self.config = replace(self.config, num_hidden_layers=len(self.layer))


@dataclass
class BaselineOutput:
    """lang (B, T, C), vision (B, R, C), pooled (B, C)."""

    lang: Tensor
    vision: Tensor
    pooled: Tensor


class BaselineModel(nn.Module):
    """Embeddings, one encoder, pooler."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.v_embeddings = TypedImageEmbeddings(config)
        self.encoder = SingleStreamEncoder(config)
        self.pooler = Pooler(config.hidden_size)
        init_bert_weights(self.modules(), config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        places: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
    ) -> BaselineOutput:
        """Arguments as in `vilbert.modeling.BertModel.forward`."""
        lang = once("lang", self.embeddings, input_ids, token_type_ids)
        vision = once("vision", self.v_embeddings, features, places)
        parts = ((lang, attention_mask), (vision, image_attention_mask))
        mask = torch.cat(
            [x.new_ones(x.shape[:2]) if m is None else m.to(x.dtype) for x, m in parts], 1
        )
        state: State = {
            "hidden": torch.cat([lang, vision], 1),
            "hidden.mask": additive_mask(mask, lang.dtype),
        }
        hidden = read_stream(self.encoder.run_layers(state), "hidden")
        tokens = input_ids.shape[1]
        return BaselineOutput(hidden[:, :tokens], hidden[:, tokens:], self.pooler(hidden))


def baseline_sizes(config: ViLBertConfig) -> ViLBertConfig:
    """The same sizes, with one stream: all heads read vectors as wide as the text's.

    Raises:
        ConfigError: a key that one stream does not have, or no token type for the image.
    """
    for key in TWO_STREAMS:
        if value := getattr(config, key):
            raise ConfigError(f"key {key}: {value}: the single-stream model has none; leave it out")
    if config.type_vocab_size <= IMAGE_TYPE:
        raise ConfigError(
            f"key type_vocab_size: {config.type_vocab_size}: regions of the single-stream model "
            f"have token type {IMAGE_TYPE}; give {IMAGE_TYPE + 1}"
        )
    return replace(
        config,
        v_hidden_size=config.hidden_size,
        v_num_attention_heads=config.num_attention_heads,
        bi_hidden_size=config.hidden_size,
        bi_num_attention_heads=config.num_attention_heads,
        v_num_hidden_layers=0,
        v_biattention_id=(),
        t_biattention_id=(),
    )


class BaseBertForVLTasks(nn.Module):
    """The single-stream model with the heads of the two-stream one; answers are read."""

    def __init__(self, config: ViLBertConfig) -> None:
        """`config`: see `baseline_sizes`."""
        super().__init__()
        config = baseline_sizes(config)
        self.bert = BaselineModel(config)
        self.cls = PretrainingHeads(config, self.bert.embeddings.word_embeddings)
        width = config.hidden_size
        self.vil_prediction = SimpleClassifier(width, 2 * width, config.num_labels)
        self.vil_logit, self.vision_logit, self.linguisic_logit = (
            nn.Linear(width, 1) for _ in range(3)
        )
        heads = (self.vil_logit, self.vision_logit, self.linguisic_logit)
        init_bert_weights(heads, config.initializer_range)
        self.dropout = nn.Dropout(POOLED_DROPOUT)
        for unread in (*heads, self.cls.bi_seq_relationship, self.cls.imagePredictions):
            unread.requires_grad_(False)
        words = self.cls.predictions
        for parameter in (*words.transform.parameters(), words.bias):
            parameter.requires_grad_(False)
        self.bert.encoder.set_reads(("hidden",), first=("hidden",))

    @property
    def config(self) -> ViLBertConfig:
        return self.bert.encoder.config

    def forward(self, **inputs: Tensor | None) -> Tensor:
        """Inputs of `BaselineModel.forward` (B, …) -> answer logits (B, A)."""
        logits: Tensor = self.vil_prediction(self.dropout(self.bert(**inputs).pooled))
        return logits
