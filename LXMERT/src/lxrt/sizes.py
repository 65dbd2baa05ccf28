"""Sizes of LXMERT models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.errors import ConfigError
from common.files import repository_root

HOME = repository_root() / "LXMERT"
SMALL_PRETRAINED = HOME / "pretrained" / "easy_vqa_small" / "model"


@dataclass(frozen=True)
class LxmertConfig:
    """Sizes and dropout rates; the defaults are LXMERT-base 9-5-5 of the original system.

    Attributes:
        vocab_size: word pieces.
        hidden_size, num_attention_heads, intermediate_size: of every layer.
        l_layers, x_layers, r_layers: language, cross and vision layers.
        visual_feat_dim, visual_pos_dim: width of a region's features and of its box.
        num_answers: of the answer head.
        obj_id_num, attr_id_num: object and attribute classes of pretraining.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    l_layers: int = 9
    x_layers: int = 5
    r_layers: int = 5
    visual_feat_dim: int = 2048
    visual_pos_dim: int = 4
    num_answers: int = 3129
    obj_id_num: int = 1600
    attr_id_num: int = 400
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        layers = {name: getattr(self, name) for name in ("l_layers", "x_layers", "r_layers")}
        if min(layers.values()) < 0 or not any(layers.values()):
            raise ConfigError(f"layers {layers}: none may be negative, and not all of them 0")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LxmertConfig:
        """From a dictionary that may hold other keys as well."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def without_dropout(self) -> LxmertConfig:
        return replace(self, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


SIZES: dict[str, LxmertConfig] = {
    "base": LxmertConfig(),
    "small": LxmertConfig(
        hidden_size=128,
        num_attention_heads=4,
        intermediate_size=512,
        l_layers=2,
        x_layers=2,
        r_layers=2,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
}


def size_config(size: str, **changes: Any) -> LxmertConfig:
    """The configuration of a named size with some values changed (None keeps the default)."""
    if size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; valid: {', '.join(SIZES)}")
    return replace(SIZES[size], **{k: v for k, v in changes.items() if v is not None})


def nearest_size(config: LxmertConfig) -> str:
    """The widest named size that is not wider than a model: whose recipe suits it best."""
    fitting = [name for name in SIZES if SIZES[name].hidden_size <= config.hidden_size]
    return max(fitting or ["small"], key=lambda name: SIZES[name].hidden_size)
