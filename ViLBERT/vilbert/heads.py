"""ViLBERT with its heads: finetuning on tasks, and pretraining; names of the original system.

Shape legend: B batch, T tokens, R regions, P channels of the connection, A answers, W words, S
classes of a region.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError
from common.modules.heads import HeadTransform, WordPrediction
from common.modules.layers import init_bert_weights
from common.modules.masks import MASKED
from vilbert.modeling import BOTH, POLICY_LAYERS, BertModel, BertOutput, fuse
from vilbert.sizes import ViLBertConfig

CLASSIFIER_DROPOUT = 0.5
POOLED_DROPOUT = 0.1
HEADS = (
    *("vil_prediction", "vil_logit", "vil_binary_prediction", "vision_prediction"),
    *("vision_logit", "linguisic_prediction", "linguisic_logit"),
)
ON_POOLED = HEADS[:3]


class VLOutput(NamedTuple):
    """What the seven heads say, in the original's order; None where a head is not used.

    Attributes:
        vil_prediction: (B, A) answers.
        vil_logit: (B, 1) how well text and image fit.
        vil_binary_prediction: (B, 2); 0 = aligned, 1 = not.
        vision_prediction: (B, R, S) classes of the regions.
        vision_logit: (B, R, 1) which region is meant; padding is at about -10000.
        linguisic_prediction: (B, T, W) words.
        linguisic_logit: (B, T, 1).
    """

    vil_prediction: Tensor | None = None
    vil_logit: Tensor | None = None
    vil_binary_prediction: Tensor | None = None
    vision_prediction: Tensor | None = None
    vision_logit: Tensor | None = None
    linguisic_prediction: Tensor | None = None
    linguisic_logit: Tensor | None = None


class NormedLinear(nn.Module):
    """A linear layer with the weight `g * v / |v|`: torch's `weight_norm` with `dim=None`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Start as torch's linear layers do; the bias is 0."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_g = nn.Parameter(torch.empty(()))
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))
        with torch.no_grad():
            self.weight_g.copy_(self.weight_v.norm())

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm())
        return F.linear(x, weight, self.bias)


class SimpleClassifier(nn.Module):
    """Normed linear, ReLU, dropout, normed linear; its parts are items of `main`."""

    def __init__(self, channels: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            NormedLinear(channels, hidden),
            nn.ReLU(),
            nn.Dropout(CLASSIFIER_DROPOUT),
            NormedLinear(hidden, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, P) -> (B, A)."""
        found: Tensor = self.main(x)
        return found


class RegionPrediction(nn.Module):
    """Classes of the regions: `transform`, `decoder`."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        # The activation is that of the text, as in the original.
        self.transform = HeadTransform(config.v_hidden_size, config.hidden_act)
        self.decoder = nn.Linear(config.v_hidden_size, config.v_target_size)

    def forward(self, vision: Tensor) -> Tensor:
        """(…, V) -> (…, S)."""
        found: Tensor = self.decoder(self.transform(vision))
        return found


class PretrainingHeads(nn.Module):
    """Words, alignment, regions: the original's `cls`."""

    def __init__(self, config: ViLBertConfig, words: nn.Embedding) -> None:
        super().__init__()
        std = config.initializer_range
        self.predictions = WordPrediction(words, config.hidden_act, std)
        self.bi_seq_relationship = nn.Linear(config.bi_hidden_size, 2)
        self.imagePredictions = RegionPrediction(config)
        self.dropout = nn.Dropout(POOLED_DROPOUT)
        init_bert_weights([self.bi_seq_relationship, *self.imagePredictions.modules()], std)


class VILBertForVLTasks(nn.Module):
    """ViLBERT with all heads that tasks are finetuned with.

    Attributes:
        used: names of the heads that `forward` computes; see `use`.
    """

    def __init__(
        self, config: ViLBertConfig, policy_layers: tuple[int, int, int] = POLICY_LAYERS
    ) -> None:
        """Random weights; see `BertModel` for `policy_layers`."""
        super().__init__()
        self.bert = BertModel(config, policy_layers)
        self.cls = PretrainingHeads(config, self.bert.embeddings.word_embeddings)
        width = config.bi_hidden_size
        self.vil_prediction = SimpleClassifier(width, 2 * width, config.num_labels)
        self.vil_logit = nn.Linear(width, 1)
        self.vision_logit = nn.Linear(config.v_hidden_size, 1)
        self.linguisic_logit = nn.Linear(config.hidden_size, 1)
        self.dropout = nn.Dropout(POOLED_DROPOUT)
        init_bert_weights(
            [self.vil_logit, self.vision_logit, self.linguisic_logit], config.initializer_range
        )
        self.used: tuple[str, ...] = HEADS
        self.use(HEADS)

    @property
    def config(self) -> ViLBertConfig:
        return self.bert.config

    def use(self, heads: Collection[str]) -> None:
        """Compute these heads only, and what they read; the others get no gradient.

        Before the model is adapted.
        """
        if unknown := set(heads) - set(HEADS):
            raise ConfigError(f"unknown heads {sorted(unknown)}; there are {', '.join(HEADS)}")
        self.used = tuple(head for head in HEADS if head in heads)
        parts = {
            "vil_prediction": self.vil_prediction,
            "vil_logit": self.vil_logit,
            "vil_binary_prediction": self.cls.bi_seq_relationship,
            "vision_prediction": self.cls.imagePredictions,
            "vision_logit": self.vision_logit,
            "linguisic_logit": self.linguisic_logit,
        }
        for name, part in parts.items():
            part.requires_grad_(name in self.used)
        words = self.cls.predictions
        for parameter in (*words.transform.parameters(), words.bias):  # the decoder is shared
            parameter.requires_grad_("linguisic_prediction" in self.used)
        if self.config.fixed_t_layer:
            words.decoder.weight.requires_grad_("linguisic_prediction" in self.used)
        pooled = bool(set(self.used) & set(ON_POOLED))
        self.bert.t_pooler.requires_grad_(pooled)
        self.bert.v_pooler.requires_grad_(pooled)
        whole = {
            "vision": {"vision_prediction", "vision_logit"},
            "lang": {"linguisic_prediction", "linguisic_logit"},
        }
        reads = [s for s in BOTH if pooled or whole[s] & set(self.used)]
        self.bert.encoder.set_reads(reads, [s for s in reads if not whole[s] & set(self.used)])

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        places: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        heads: Collection[str] | None = None,
    ) -> VLOutput:
        """Inputs of `BertModel.forward` (B, …) -> the heads that are used, or some of them.

        Raises:
            ConfigError: with `in_batch_pairs`, where the mask of the regions is not that of pairs.
        """
        if self.config.in_batch_pairs and "vision_logit" in self.used:
            raise ConfigError(
                "in_batch_pairs: vision_logit needs the mask of each pair's regions; use other "
                "heads, or BertForMultiModalPreTraining"
            )
        found = self.bert(
            input_ids, features, places, token_type_ids, attention_mask, image_attention_mask
        )
        return VLOutput(
            **{
                name: self.head(name, found, image_attention_mask)
                for name in self.used
                if heads is None or name in heads
            }
        )

    def head(self, name: str, found: BertOutput, mask: Tensor | None) -> Tensor:
        """What one head says of the encoder's output; `mask` (B, R), 1 = region."""
        if name in ON_POOLED:
            pooled = fuse(self.config, found)
            if name == "vil_binary_prediction":
                return self.cls.bi_seq_relationship(self.cls.dropout(pooled))
            return getattr(self, name)(self.dropout(pooled))
        if name == "vision_prediction":
            return self.cls.imagePredictions(found.vision)
        if name == "linguisic_prediction":
            return self.cls.predictions(found.lang)
        if name == "linguisic_logit":
            return self.linguisic_logit(self.dropout(found.lang))
        logits: Tensor = self.vision_logit(self.dropout(found.vision))
        if mask is None:
            return logits
        return logits + ((1.0 - mask.to(logits.dtype)) * MASKED)[..., None]


class VILBertForVQA(VILBertForVLTasks):
    """The same model where only answers are read."""

    def __init__(
        self, config: ViLBertConfig, policy_layers: tuple[int, int, int] = POLICY_LAYERS
    ) -> None:
        super().__init__(config, policy_layers)
        self.use(("vil_prediction",))

    def forward(self, **inputs: Tensor | None) -> Tensor:  # type: ignore[override]
        """Inputs of `BertModel.forward` (B, …) -> answer logits (B, A)."""
        logits = super().forward(**inputs).vil_prediction  # type: ignore[arg-type]
        assert logits is not None
        return logits


class BertForMultiModalPreTraining(nn.Module):
    """ViLBERT with its pretraining heads; what the released `pytorch_model_9.bin` holds."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config)
        self.cls = PretrainingHeads(config, self.bert.embeddings.word_embeddings)
        # The decoder of words learns also where the text's embeddings are fixed.
        self.cls.predictions.decoder.weight.requires_grad_(True)

    @property
    def config(self) -> ViLBertConfig:
        return self.bert.config

    def forward(
        self, word_places: Tensor | None = None, **inputs: Tensor | None
    ) -> dict[str, Tensor]:
        """Inputs of `BertModel.forward` (B, …) -> logits of the heads.

        words (B, T, W), regions (B, R, S), aligned (B, 2); with word_places (B, T) bool the words
        of those places only, (N, W).
        """
        found = self.bert(**inputs)
        places = found.lang if word_places is None else found.lang[word_places]
        pooled = self.cls.dropout(fuse(self.config, found))
        return {
            "words": self.cls.predictions(places),
            "regions": self.cls.imagePredictions(found.vision),
            "aligned": self.cls.bi_seq_relationship(pooled),
        }


def output_of(found: VLOutput) -> Mapping[str, Tensor]:
    """The heads that were used, by name."""
    return {name: x for name, x in found._asdict().items() if x is not None}
