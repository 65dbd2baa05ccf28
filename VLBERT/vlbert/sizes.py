"""Sizes and options of VL-BERT models, and how the keys of the original configs become them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from common.errors import ConfigError
from common.files import repository_root
from common.modules.layers import find_activation

HOME = repository_root() / "VLBERT"
CLASSIFIERS = ("mlm", "1fc", "2fc")
DEPTHS = (18, 34, 50, 101, 152)


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder; the defaults are VL-BERT-base of the released models.

    Attributes:
        vocab_size: word pieces.
        hidden_size, num_attention_heads, intermediate_size: of every layer.
        visual_size: width of the visual embeddings that text tokens and objects carry.
        hidden_act: gelu (the erf form), relu or swish.
        max_position_embeddings: at least tokens + objects + 1, and more with an offset.
        type_vocab_size: rows of the token types; objects and the end have type 2.
        initializer_range: standard deviation of fresh weights.
        visual_ln: normalise visual embeddings (with a gain); otherwise scale them by one number.
        visual_scale_text_init, visual_scale_object_init: those gains or scales at the start.
        word_embedding_frozen: freeze the word table but for a copy of its first 1000 rows.
        pos_embedding_frozen: freeze the position table.
        with_pooler: tanh of a dense layer on the first token, which the relationship head reads.
        position_padding_idx: positions start one after it (RoBERTa: 1).
        visual_region_classes: classes of masked regions in pretraining.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    visual_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 3
    initializer_range: float = 0.02
    visual_ln: bool = True
    visual_scale_text_init: float = 0.0
    visual_scale_object_init: float = 0.0
    word_embedding_frozen: bool = False
    pos_embedding_frozen: bool = False
    with_pooler: bool = False
    position_padding_idx: int = -1
    visual_region_classes: int = 1601

    def __post_init__(self) -> None:
        find_activation(self.hidden_act)
        if self.num_hidden_layers < 1:
            raise ConfigError(f"num_hidden_layers {self.num_hidden_layers}: needs at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not divide into "
                f"{self.num_attention_heads} attention heads"
            )
        if self.type_vocab_size < 3:
            raise ConfigError(
                f"type_vocab_size {self.type_vocab_size}: objects have type 2, so "
                "at least 3 are needed"
            )

    @classmethod
    def from_upstream(cls, keys: Mapping[str, Any]) -> EncoderConfig:
        """From the keys of `NETWORK.VLBERT`; keys without a meaning here are left out.

        Raises:
            ConfigError: an option that the original system does not support either.
        """
        if not keys.get("obj_pos_id_relative", True):
            raise ConfigError(
                "NETWORK.VLBERT.obj_pos_id_relative false is not supported: objects "
                "share the position after the text"
            )
        if keys.get("object_word_embed_mode", 2) != 2:
            raise ConfigError(
                f"NETWORK.VLBERT.object_word_embed_mode "
                f"{keys['object_word_embed_mode']} is not supported, only 2 (one "
                "linguistic embedding for all objects)"
            )
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in keys.items() if key in known})


@dataclass(frozen=True)
class ImageConfig:
    """The image side: region features from a file, or a ResNet on the image.

    Attributes:
        precomputed: region features come with the boxes; no ResNet exists.
        feature_size: their width. A ResNet has its own, see `region_size`.
        final_dim: width of the visual embeddings; must be the encoder's `visual_size`.
        waves: sines (and as many cosines) for each of the four coordinates of a box.
        depth: layers of the ResNet, one of DEPTHS.
        channels: of its first layer (64 in every published ResNet).
        dilated: the last stage keeps the resolution (14 x 14) and is dilated; otherwise it halves.
        stride_in_1x1: a stage halves in its first 1x1 convolution (Caffe), not in its 3x3.
        frozen_stages: 1 = first convolution, 2..4 = layer1..3, 5 = the last stage.
        frozen_bn: no batch normalisation learns, all use their stored statistics.
        dropout: on what the visual embedding is computed from.
    """

    precomputed: bool = True
    feature_size: int = 2048
    final_dim: int = 768
    waves: int = 256
    depth: int = 101
    channels: int = 64
    dilated: bool = True
    stride_in_1x1: bool = True
    frozen_stages: tuple[int, ...] = (1, 2)
    frozen_bn: bool = True
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "frozen_stages", tuple(self.frozen_stages))
        if self.depth not in DEPTHS:
            raise ConfigError(
                f"ResNet with {self.depth} layers (IMAGE_NUM_LAYERS) is not known; "
                f"valid: {', '.join(map(str, DEPTHS))}"
            )
        wrong = set(self.frozen_stages) - {1, 2, 3, 4, 5}
        if wrong:
            raise ConfigError(f"IMAGE_FROZEN_BACKBONE_STAGES {sorted(wrong)}: stages are 1 to 5")

    @property
    def region_size(self) -> int:
        """Width of a region's features."""
        if self.precomputed:
            return self.feature_size
        return self.channels * 8 * (4 if self.depth >= 50 else 1)

    @classmethod
    def from_upstream(cls, network: Mapping[str, Any], feature_size: int = 2048) -> ImageConfig:
        """From the keys of `NETWORK`.

        Raises:
            ConfigError: an option that VQA has no data for, or that is defective upstream.
        """
        precomputed = bool(network.get("IMAGE_FEAT_PRECOMPUTED", True))
        for key in ("IMAGE_SEMANTIC", "OUTPUT_CONV5", "BLIND", "ENABLE_CNN_REG_LOSS"):
            if network.get(key) and not (precomputed and key == "ENABLE_CNN_REG_LOSS"):
                raise ConfigError(f"NETWORK.{key} true is not supported; set it to false")
        names = {
            "IMAGE_FINAL_DIM": "final_dim",
            "IMAGE_NUM_LAYERS": "depth",
            "IMAGE_C5_DILATED": "dilated",
            "IMAGE_STRIDE_IN_1x1": "stride_in_1x1",
            "IMAGE_FROZEN_BACKBONE_STAGES": "frozen_stages",
            "IMAGE_FROZEN_BN": "frozen_bn",
            "IMAGE_DROPOUT": "dropout",
        }
        given = {ours: network[theirs] for theirs, ours in names.items() if theirs in network}
        return cls(precomputed=precomputed, feature_size=feature_size, **given)


@dataclass(frozen=True)
class SpecialTokens:
    """Numbers of the word pieces that assemble a text (those of BERT-base-uncased)."""

    cls: int = 101
    sep: int = 102
    mask: int = 103


@dataclass(frozen=True)
class NetworkConfig:
    """A VQA network.

    Attributes:
        encoder, image: its two halves.
        num_answers: of the classifier.
        classifier: mlm (as BERT's word prediction), 1fc or 2fc.
        classifier_hidden_size: of 2fc.
        classifier_dropout: in the classifier.
        no_grounding: text tokens carry no visual embedding.
        tokens: the special word pieces of the vocabulary.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    num_answers: int = 3129
    classifier: str = "mlm"
    classifier_hidden_size: int = 1024
    classifier_dropout: float = 0.1
    no_grounding: bool = False
    tokens: SpecialTokens = SpecialTokens()

    def __post_init__(self) -> None:
        if self.classifier not in CLASSIFIERS:
            raise ConfigError(
                f"unknown classifier {self.classifier!r} (NETWORK.CLASSIFIER_TYPE); "
                f"valid: {', '.join(CLASSIFIERS)}"
            )
        check_widths(self.encoder, self.image)

    @classmethod
    def from_upstream(
        cls,
        network: Mapping[str, Any],
        num_answers: int,
        tokens: SpecialTokens | None = None,
        feature_size: int = 2048,
    ) -> NetworkConfig:
        """From the keys of `NETWORK` in an original config.

        Args:
            network: the keys; those that are missing keep the values of the released model.
            num_answers: `DATASET.ANSWER_VOCAB_SIZE`.
            tokens: of the vocabulary; None: those of BERT-base-uncased.
            feature_size: width of the precomputed features.
        """
        names = {
            "CLASSIFIER_TYPE": "classifier",
            "CLASSIFIER_DROPOUT": "classifier_dropout",
            "CLASSIFIER_HIDDEN_SIZE": "classifier_hidden_size",
            "NO_GROUNDING": "no_grounding",
        }
        given = {ours: network[theirs] for theirs, ours in names.items() if theirs in network}
        return cls(
            EncoderConfig.from_upstream(network.get("VLBERT", {})),
            ImageConfig.from_upstream(network, feature_size),
            num_answers,
            tokens=tokens or SpecialTokens(),
            **given,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Back from `to_dict`."""
        return cls(
            **{
                **values,
                "encoder": EncoderConfig(**values["encoder"]),
                "image": ImageConfig(**values["image"]),
                "tokens": SpecialTokens(**values["tokens"]),
            }
        )

    def without_dropout(self) -> NetworkConfig:
        return replace(
            self,
            classifier_dropout=0.0,
            image=replace(self.image, dropout=0.0),
            encoder=replace(
                self.encoder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
            ),
        )


@dataclass(frozen=True)
class PretrainingConfig:
    """A pretraining network; the defaults are those of the released models (multitask).

    Attributes:
        encoder, image: its two halves.
        relationship, words, regions: which heads and losses there are.
        multitask: batches also hold text without an image.
        words_by_sample, regions_by_sample: average a loss over each sample first
            (`MLM_LOSS_NORM_IN_BATCH_FIRST`, `MVRC_LOSS_NORM_IN_BATCH_FIRST`).
        mask_raw_pixels: masked regions are already black in the images; otherwise, and always
            with precomputed features, their features are replaced by a learned vector.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    relationship: bool = False
    words: bool = True
    regions: bool = True
    multitask: bool = True
    words_by_sample: bool = False
    regions_by_sample: bool = False
    mask_raw_pixels: bool = True

    def __post_init__(self) -> None:
        check_widths(self.encoder, self.image)
        if self.relationship and not self.encoder.with_pooler:
            raise ConfigError(
                "the relationship loss (WITH_REL_LOSS) reads the pooled output: set "
                "NETWORK.VLBERT.with_pooler to true"
            )

    @classmethod
    def from_upstream(
        cls, network: Mapping[str, Any], multitask: bool, feature_size: int = 2048
    ) -> PretrainingConfig:
        """From the keys of `NETWORK`; `multitask` is decided by the name of the module."""
        names = {
            "WITH_REL_LOSS": "relationship",
            "WITH_MLM_LOSS": "words",
            "WITH_MVRC_LOSS": "regions",
            "MASK_RAW_PIXELS": "mask_raw_pixels",
            "MLM_LOSS_NORM_IN_BATCH_FIRST": "words_by_sample",
            "MVRC_LOSS_NORM_IN_BATCH_FIRST": "regions_by_sample",
        }
        given = {ours: network[theirs] for theirs, ours in names.items() if theirs in network}
        return cls(
            EncoderConfig.from_upstream(network.get("VLBERT", {})),
            ImageConfig.from_upstream(network, feature_size),
            multitask=multitask,
            **given,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PretrainingConfig:
        """Back from `to_dict`."""
        return cls(
            **{
                **values,
                "encoder": EncoderConfig(**values["encoder"]),
                "image": ImageConfig(**values["image"]),
            }
        )


def check_widths(encoder: EncoderConfig, image: ImageConfig) -> None:
    """The image side must deliver what the encoder reads."""
    if encoder.visual_size != image.final_dim:
        raise ConfigError(
            f"NETWORK.IMAGE_FINAL_DIM {image.final_dim} and NETWORK.VLBERT."
            f"visual_size {encoder.visual_size} must be equal"
        )


ENCODER_SIZES: dict[str, EncoderConfig] = {
    "base": EncoderConfig(),
    "large": EncoderConfig(
        hidden_size=1024,
        visual_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
    ),
    "small": EncoderConfig(
        hidden_size=128,
        visual_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
}


def size_config(size: str) -> tuple[EncoderConfig, ImageConfig]:
    """Encoder and image side of a named size, for precomputed features of width 2048."""
    if size not in ENCODER_SIZES:
        raise ConfigError(f"unknown size {size!r}; valid: {', '.join(ENCODER_SIZES)}")
    encoder = ENCODER_SIZES[size]
    dropout = encoder.hidden_dropout_prob
    return encoder, ImageConfig(final_dim=encoder.visual_size, dropout=dropout)
