"""The VQA network: question, [MASK] and regions in, one logit per answer out.

Shape legend: B batch, Q question pieces, T = Q + 4 tokens, K boxes, M packed positions, C channels,
V width of the visual embeddings, A answers, D decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.adapt.policy import PolicyInputs, set_initial_share
from common.adapt.sharing import once
from common.errors import ConfigError
from common.training.weights import mark_read
from vlbert.fast_rcnn import FastRCNN, Regions
from vlbert.heads import classifier, last_linear
from vlbert.modeling import VisualLinguisticBert, VLBertOutput
from vlbert.sizes import EncoderConfig, NetworkConfig

POLICY_LAYERS, POLICY_INTERMEDIATE = 2, 512


@dataclass
class AssembledText:
    """[CLS] question [SEP] [MASK] [SEP]: ids, types and mask (B, T), place of [MASK] (B,)."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    answer: Tensor


@dataclass
class VQAOutput:
    """Everything between the inputs and the logits (B, A)."""

    regions: Regions
    text: AssembledText
    text_visual: Tensor
    object_vl: Tensor
    encoded: VLBertOutput
    logits: Tensor


class ResNetVLBERT(nn.Module):
    """VL-BERT for VQA; state-dict names of the original's finetuned models."""

    def __init__(self, config: NetworkConfig, policy_encoder: EncoderConfig | None = None) -> None:
        """Random weights.

        Args:
            config: sizes.
            policy_encoder: sizes of the published policy network; default:
                `policy_encoder_config` of its own.
        """
        super().__init__()
        self._policy_encoder = policy_encoder
        self._config = config
        self.image_feature_extractor = FastRCNN(config.image)
        self.object_linguistic_embeddings = nn.Embedding(1, config.encoder.hidden_size)
        nn.init.normal_(self.object_linguistic_embeddings.weight, std=0.02)
        self.vlbert = VisualLinguisticBert(config.encoder, self._published_policy)
        self.final_mlp = classifier(config)
        self.vlbert.encoder.set_reads(("hidden",), first=("hidden",))

    @property
    def config(self) -> NetworkConfig:
        """Its sizes; with as many layers as are left (`common.adapt.merging` may take some out)."""
        return replace(self._config, encoder=self.vlbert.config)

    def forward(
        self,
        boxes: Tensor,
        im_info: Tensor,
        question: Tensor,
        image: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Arguments of `run` -> logits (B, A)."""
        return self.run(boxes, im_info, question, image, present).logits

    def run(
        self,
        boxes: Tensor,
        im_info: Tensor,
        question: Tensor,
        image: Tensor | None = None,
        present: Tensor | None = None,
    ) -> VQAOutput:
        """Answer a batch.

        Args:
            boxes: (B, K, 4 + F) with precomputed features, else (B, K, 4); padding is -2. The
                first box is the whole image.
            im_info: (B, 2 or more), width and height first.
            question: (B, Q) word pieces, padding is 0.
            image: (B, 3, H, W), without precomputed features.
            present: (B, K) bool, which boxes there are, of a batch of fixed lengths: M is T + K + 1
                then; None: as long as the longest sample needs.
        """
        embed = self.image_feature_extractor
        regions = once(
            "vision",
            lambda boxes, info, image, present: embed(boxes, info, image, present=present),
            *(boxes, im_info, image, present),
        )
        text = self.assemble(question)
        text_visual = regions.embedding[:, :1].expand(-1, text.ids.shape[1], -1)
        if self._config.no_grounding:
            text_visual = torch.zeros_like(text_visual)
        linguistic = self.object_linguistic_embeddings.weight.expand(*regions.mask.shape, -1).to(
            regions.embedding.dtype
        )
        object_vl = torch.cat([regions.embedding, linguistic], -1)
        raw = {
            "boxes": torch.cat([regions.boxes, regions.features.detach()], -1),
            "im_info": im_info,
            "question": question,
            "present": present,
        }
        encoded = self.vlbert(
            text.ids,
            text.types,
            text_visual,
            text.mask,
            object_vl,
            regions.mask,
            read_at=text.answer,
            raw_inputs=raw,
            fixed=present is not None,
        )
        return VQAOutput(
            regions, text, text_visual, object_vl, encoded, self.final_mlp(encoded.read)
        )

    def assemble(self, question: Tensor) -> AssembledText:
        """question (B, Q) -> the text that the encoder reads."""
        tokens = self._config.tokens
        lengths = (question > 0).sum(1, keepdim=True)
        index = torch.arange(question.shape[1] + 4, device=question.device)
        shifted = torch.cat(
            [torch.zeros_like(question[:, :1]), question, question.new_zeros(len(question), 3)], 1
        )
        ids = torch.where(index <= lengths, shifted, 0)
        ids = ids.masked_fill(index == 0, tokens.cls)
        ids = ids.masked_fill((index == lengths + 1) | (index == lengths + 3), tokens.sep)
        ids = ids.masked_fill(index == lengths + 2, tokens.mask)
        types = ((index == lengths + 2) | (index == lengths + 3)).to(question.dtype)
        return AssembledText(ids, types, index <= lengths + 3, lengths.squeeze(1) + 2)

    def _published_policy(self, decisions: int, initial_share: float) -> nn.Module:
        return PublishedPolicy(self.config, self._policy_encoder, decisions, initial_share)


class PublishedPolicy(nn.Module):
    """The policy network of the original system: a small VL-BERT of its own (two layers).

    It reads the backbone's region features and starts at random values, as published; but its
    visual gains start at 1 (published: 0, which hides the image until they have been learned).
    """

    def __init__(
        self,
        backbone: NetworkConfig,
        encoder: EncoderConfig | None,
        decisions: int,
        initial_share: float,
    ) -> None:
        super().__init__()
        encoder = encoder or policy_encoder_config(backbone.encoder)
        image = replace(
            backbone.image,
            precomputed=True,
            feature_size=backbone.image.region_size,
            final_dim=encoder.visual_size,
        )
        self.network = ResNetVLBERT(
            replace(backbone, encoder=encoder, image=image, num_answers=2 * decisions)
        )
        set_initial_share(last_linear(self.network.final_mlp), initial_share)

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """The backbone's raw inputs (B, …) -> logits (B, D, 2)."""
        return self.network(**inputs.raw).unflatten(-1, (-1, 2))


def policy_encoder_config(backbone: EncoderConfig) -> EncoderConfig:
    """Sizes of the published policy network: as wide as its backbone, two shallow layers."""
    return replace(
        backbone,
        num_hidden_layers=min(POLICY_LAYERS, backbone.num_hidden_layers),
        intermediate_size=min(POLICY_INTERMEDIATE, backbone.intermediate_size),
        with_pooler=False,
        visual_scale_text_init=1.0,
        visual_scale_object_init=1.0,
    )


def set_classifier_rows(network: ResNetVLBERT, rows: Tensor) -> None:
    """Start the last linear layer from rows (A, C), see `vlbert.loading.classifier_rows`.

    Raises:
        ConfigError: the layer does not read the encoder's width.
    """
    last = last_linear(network.final_mlp)
    weight = last.weight
    if weight.shape != rows.shape:
        raise ConfigError(
            f"answer rows {tuple(rows.shape)} do not fit the last layer of the "
            f"{network.config.classifier} classifier, {tuple(weight.shape)}: "
            "CLASSIFIER_PRETRAINED needs one that reads the encoder's width (mlm or "
            "1fc)"
        )
    with torch.no_grad():
        weight.copy_(rows)
    mark_read(last.parameters())  # a bias of 0 belongs to them
