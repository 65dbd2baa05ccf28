"""The pretraining network: masked words with visual clues, masked regions, optional relationship.

Shape legend: B captions with an image, A texts without one, T tokens, K boxes, C channels, V words,
S region classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConfigError
from common.modules.heads import WordPrediction
from common.modules.layers import find_activation, init_bert_weights
from vlbert.fast_rcnn import FastRCNN, Regions
from vlbert.modeling import VisualLinguisticBert
from vlbert.sizes import EncoderConfig, PretrainingConfig


class RegionPrediction(nn.Module):
    """Logits of a region's class: `transform.dense`, activation, `region_cls_pred`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.transform = nn.ModuleDict({"dense": nn.Linear(size, size)})
        self.region_cls_pred = nn.Linear(size, config.visual_region_classes)
        self._activation = find_activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, C) -> (B, K, S)."""
        return self.region_cls_pred(self._activation(self.transform["dense"](x)))


class VisualLinguisticBertForPretraining(VisualLinguisticBert):
    """The encoder with those pretraining heads that are wanted.

    `relationsip_head` is spelt as in the released files.
    """

    def __init__(
        self,
        config: EncoderConfig,
        relationship: bool = True,
        words: bool = True,
        regions: bool = True,
    ) -> None:
        super().__init__(config)
        std = config.initializer_range
        if relationship:
            self.relationsip_head = nn.ModuleDict(
                {"caption_image_relationship": nn.Linear(config.hidden_size, 2)}
            )
            init_bert_weights(self.relationsip_head.modules(), std)
        if words:
            self.mlm_head = nn.ModuleDict(
                {"predictions": WordPrediction(self.word_embeddings, config.hidden_act, std)}
            )
        if regions:
            self.mvrc_head = RegionPrediction(config)
            init_bert_weights(self.mvrc_head.modules(), std)


class ResNetVLBERTForPretraining(nn.Module):
    """VL-BERT with its pretraining heads; state-dict names of the released models.

    Attributes:
        hides_features: masked regions have their features replaced, not their pixels.
    """

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config
        encoder = config.encoder
        self.image_feature_extractor = FastRCNN(config.image)
        self.object_linguistic_embeddings = nn.Embedding(1, encoder.hidden_size)
        self.hides_features = config.image.precomputed or not config.mask_raw_pixels
        if self.hides_features:
            self.object_mask_visual_embedding = nn.Embedding(1, config.image.region_size)
        if config.regions:
            self.object_mask_word_embedding = nn.Embedding(1, encoder.hidden_size)
        if config.multitask:
            self.aux_text_visual_embedding = nn.Embedding(1, encoder.visual_size)
        for module in self.children():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=encoder.initializer_range)
        if self.hides_features:
            nn.init.zeros_(self.object_mask_visual_embedding.weight)
        self.vlbert = VisualLinguisticBertForPretraining(
            encoder, config.relationship, config.words, config.regions
        )

    def forward(
        self,
        boxes: Tensor,
        im_info: Tensor,
        text: Tensor,
        masked: Tensor,
        aux_text: Tensor | None = None,
        image: Tensor | None = None,
        word_places: Tensor | None = None,
        text_types: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict what was masked.

        Args:
            boxes, im_info, image: as in `ResNetVLBERT.run`.
            text: (B, T) pieces with [CLS] and [SEP], padding is 0.
            masked: (B, K) bool, regions whose features are hidden from the network.
            aux_text: (A, T') texts without an image.
            word_places: (B + A, max(T, T')) bool, the places whose words are wanted.
            text_types: (B, T) token types; None: all are 0, as published.

        Returns:
            Those heads that exist: relationship (B, 2), regions (B, K, S), words (B, T'', V) and
            aux_words (A, T'', V) with T'' <= max(T, T'); with word_places words is (W, V) for the
            W places, captions first, and there is no aux_words.
        """
        config, captions = self.config, len(text)
        regions, text_visual, object_vl = self.embed_regions(
            boxes, im_info, masked, image, text.shape[1]
        )
        mask = regions.mask
        if aux_text is not None:
            text, text_visual, object_vl, mask = self.with_texts(
                text, aux_text, text_visual, object_vl, mask
            )
        types = torch.zeros_like(text)
        if text_types is not None:
            types[:captions, : text_types.shape[1]] = text_types
        encoded = self.vlbert(text, types, text_visual, text > 0, object_vl, mask)
        found: dict[str, Tensor] = {}
        if config.relationship:
            head = self.vlbert.relationsip_head["caption_image_relationship"]
            found["relationship"] = head(encoded.pooled[:captions])
        if config.words:
            head, states = self.vlbert.mlm_head["predictions"], encoded.text(text.shape[1])
            if word_places is not None:
                found["words"] = head(states[word_places[:, : states.shape[1]]])
            else:
                words = head(states)
                found["words"] = words[:captions]
                if aux_text is not None:
                    found["aux_words"] = words[captions:]
        if config.regions:
            found["regions"] = self.vlbert.mvrc_head(encoded.objects()[:captions])
        return found

    def embed_regions(
        self, boxes: Tensor, im_info: Tensor, masked: Tensor, image: Tensor | None, tokens: int
    ) -> tuple[Regions, Tensor, Tensor]:
        """Regions, visual embeddings of the text (B, T, ·) and object embeddings (B, K, ·)."""
        config = self.config
        hidden = self.object_mask_visual_embedding.weight[0] if self.hides_features else None
        regions = self.image_feature_extractor(boxes, im_info, image, masked, hidden)
        masked = masked[:, : regions.mask.shape[1], None]
        linguistic = self.object_linguistic_embeddings.weight[0].expand(*regions.mask.shape, -1)
        if config.regions:
            linguistic = torch.where(masked, self.object_mask_word_embedding.weight[0], linguistic)
        object_vl = torch.cat([regions.embedding, linguistic.to(regions.embedding.dtype)], -1)
        return regions, regions.embedding[:, :1].expand(-1, tokens, -1), object_vl

    def with_texts(
        self, text: Tensor, aux_text: Tensor, text_visual: Tensor, object_vl: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put texts without an image behind the captions: no objects, one visual embedding.

        Raises:
            ConfigError: the network has no embedding for them.
        """
        if not self.config.multitask:
            raise ConfigError(
                "texts without an image need a multitask network "
                "(MODULE ResNetVLBERTForPretrainingMultitask)"
            )
        tokens, texts = max(text.shape[1], aux_text.shape[1]), len(aux_text)
        short = tokens - text.shape[1]
        both = torch.cat(
            [F.pad(text, (0, short)), F.pad(aux_text, (0, tokens - aux_text.shape[1]))]
        )
        alone = self.aux_text_visual_embedding.weight[0].to(text_visual.dtype)
        visual = torch.cat([F.pad(text_visual, (0, 0, 0, short)), alone.expand(texts, tokens, -1)])
        objects = torch.cat([object_vl, object_vl.new_zeros(texts, *object_vl.shape[1:])])
        return both, visual, objects, torch.cat([mask, mask.new_zeros(texts, mask.shape[1])])
