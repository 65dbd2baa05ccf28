"""Sizes of ViLBERT models: the keys of the original's config files, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.errors import ConfigError, named
from common.files import repository_root
from common.modules.layers import ACTIVATIONS
from common.reading import read_json, short

HOME = repository_root() / "ViLBERT"
CONFIGS = HOME / "config"
BASE_CONFIG = CONFIGS / "bert_base_6layer_6conect.json"
SMALL_CONFIG = CONFIGS / "easy_vqa_small.json"
# Keys of published config files that nothing reads, there or here.
DEAD_KEYS = frozenset(
    (
        *("bi_intermediate_size", "bi_attention_type", "pooling_method", "intra_gate"),
        "v_initializer_range",
        *("visual_target", "num_negative", "objective", "model"),  # of the 12-in-1 system
    )
)
# Keys of the 12-in-1 system that would make another network.
OTHER_NETWORK = ("dynamic_attention", "task_specific_tokens")
FUSIONS = ("mul", "sum")
LAYERS = ("num_hidden_layers", "v_num_hidden_layers")
MOST_LAYERS = 1000  # more are a damaged number, which would take all memory
SMALL_WIDTH, LARGE_WIDTH = 256, 1024
MAY_BE_ZERO = (*LAYERS, "fixed_v_layer", "fixed_t_layer")
RATES = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("v_hidden_dropout_prob", "v_attention_probs_dropout_prob"),
)


@dataclass(frozen=True)
class ViLBertConfig:
    """Sizes and dropout rates; the defaults are the 6-layer base model of the original system.

    Attributes:
        vocab_size: word pieces.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: of the
            text stream; the same with `v_` of the image stream.
        bi_hidden_size, bi_num_attention_heads: of the attention in connection layers.
        v_feature_size: width of a region's features.
        v_target_size: classes of a region in pretraining.
        v_biattention_id, t_biattention_id: for every connection layer the image and the text layer
            before which it stands, numbered from 0.
        fixed_v_layer, fixed_t_layer: so many first layers, and the embeddings, get no gradient.
        fusion_method: how the two pooled vectors become one, `mul` or `sum`.
        with_coattention: False leaves the connection layers out.
        predict_feature: pretraining predicts the features of masked regions, not their classes (not
            that of the small model, which has classes).
        fast_mode: one text is read with every image of the batch.
        in_batch_pairs: every text of the batch is read with every image of it.
        num_labels: answers of the classifier.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    v_feature_size: int = 2048
    v_target_size: int = 1601
    v_hidden_size: int = 1024
    v_num_hidden_layers: int = 6
    v_num_attention_heads: int = 8
    v_intermediate_size: int = 1024
    v_hidden_act: str = "gelu"
    v_hidden_dropout_prob: float = 0.1
    v_attention_probs_dropout_prob: float = 0.1
    bi_hidden_size: int = 1024
    bi_num_attention_heads: int = 8
    v_biattention_id: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    t_biattention_id: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    fixed_v_layer: int = 0
    fixed_t_layer: int = 0
    fusion_method: str = "mul"
    with_coattention: bool = True
    predict_feature: bool = False
    fast_mode: bool = False
    in_batch_pairs: bool = False
    num_labels: int = 3129

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                _check_count(field.name, value)
            if field.type == "float" and not (
                isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
            ):
                raise ConfigError(f"key {field.name}: {short(value)}: give a number from 0 to 1")
            if field.type == "bool" and not isinstance(value, bool):
                raise ConfigError(f"key {field.name}: {short(value)}: give true or false")
        for size, heads in (
            ("hidden_size", "num_attention_heads"),
            ("v_hidden_size", "v_num_attention_heads"),
            ("bi_hidden_size", "bi_num_attention_heads"),
        ):
            channels, number = getattr(self, size), getattr(self, heads)
            if channels < 1 or number < 1 or channels % number:
                raise ConfigError(f"key {size}: {channels} is not a multiple of {heads} = {number}")
        for key in ("hidden_act", "v_hidden_act"):
            if getattr(self, key) not in tuple(ACTIVATIONS):
                raise ConfigError(
                    f"key {key}: {short(getattr(self, key))}: valid: {', '.join(ACTIVATIONS)}"
                )
        if self.fusion_method not in FUSIONS:
            raise ConfigError(
                f"key fusion_method: {short(self.fusion_method)}: valid: {', '.join(FUSIONS)}"
            )
        self._check_connections()

    def _check_connections(self) -> None:
        ids = {"v_biattention_id": self.v_biattention_id, "t_biattention_id": self.t_biattention_id}
        counts = {
            "v_biattention_id": self.v_num_hidden_layers,
            "t_biattention_id": self.num_hidden_layers,
        }
        for key, places in ids.items():
            if not all(isinstance(p, int) and not isinstance(p, bool) for p in places):
                raise ConfigError(f"key {key}: {short(list(places))}: give a list of whole numbers")
            if any(a > b for a, b in zip((0, *places), places, strict=False)):
                raise ConfigError(f"key {key}: {list(places)}: must rise, from 0 at least")
            if places and places[-1] > counts[key]:
                raise ConfigError(
                    f"key {key}: {places[-1]}: that stream has {counts[key]} layers, 0 to "
                    f"{counts[key] - 1}"
                )
        if len(self.v_biattention_id) != len(self.t_biattention_id):
            raise ConfigError(
                f"keys v_biattention_id, t_biattention_id: {len(self.v_biattention_id)} and "
                f"{len(self.t_biattention_id)} places: every connection layer has one of each"
            )
        for fixed, key in (
            ("fixed_v_layer", "v_biattention_id"),
            ("fixed_t_layer", "t_biattention_id"),
        ):
            most = ids[key][0] if ids[key] else counts[key]
            if not 0 <= getattr(self, fixed) <= most:
                raise ConfigError(
                    f"key {fixed}: {getattr(self, fixed)}: only layers before the first connection "
                    f"can be fixed, 0 to {most} of them"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViLBertConfig:
        """From a dictionary that may hold other keys as well."""
        known = {f.name for f in fields(cls)}
        found = {k: v for k, v in values.items() if k in known}
        for key in ("v_biattention_id", "t_biattention_id"):
            if key in found:
                if not isinstance(found[key], (list, tuple)):
                    raise ConfigError(f"key {key}: {short(found[key])}: give a list of numbers")
                found[key] = tuple(found[key])
        return cls(**found)

    @classmethod
    def from_upstream(cls, values: Mapping[str, Any]) -> ViLBertConfig:
        """From the content of a config file of the original system.

        Raises:
            ConfigError: an unknown key (names the nearest), or one that makes another network.
        """
        known = {f.name for f in fields(cls)}
        for key, value in values.items():
            if key in OTHER_NETWORK and value:
                raise ConfigError(
                    f"key {key}: {short(value)}: this network of the 12-in-1 system is not "
                    "supported; set it to false, or leave it out"
                )
            if key not in known | DEAD_KEYS and key not in OTHER_NETWORK:
                raise ConfigError(f"key {short(key)} is unknown{nearest(key, known)}")
        # What the original's code has where a file says nothing.
        missing: dict[str, Any] = {
            "v_hidden_size": 768,
            "v_num_hidden_layers": 3,
            "v_num_attention_heads": 12,
            "v_intermediate_size": 3072,
            "bi_num_attention_heads": 16,
            "v_biattention_id": (0, 1),
            "t_biattention_id": (10, 11),
        }
        config = cls.from_dict(missing | dict(values))
        for key, count in (
            ("v_biattention_id", config.v_num_hidden_layers),
            ("t_biattention_id", config.num_hidden_layers),
        ):
            if (places := getattr(config, key)) and places[-1] >= count:
                raise ConfigError(
                    f"key {key}: {places[-1]}: that stream has {count} layers, 0 to {count - 1}"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = asdict(self)
        return values | {k: list(v) for k, v in values.items() if isinstance(v, tuple)}

    def order(self) -> list[tuple[str, int]]:
        """(stream, place from 0) of all layers in the order in which they run."""
        return [
            (stream, place)
            for stream, place in self._all_layers()
            if self.with_coattention or stream != "connection"
        ]

    def _all_layers(self) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        vision = lang = 0
        connections = zip(self.v_biattention_id, self.t_biattention_id, strict=True)
        for number, (v_id, t_id) in enumerate(connections):
            found += [("vision", n) for n in range(vision, v_id)]
            found += [("lang", n) for n in range(lang, t_id)]
            found.append(("connection", number))
            vision, lang = v_id, t_id
        found += [("vision", n) for n in range(vision, self.v_num_hidden_layers)]
        return found + [("lang", n) for n in range(lang, self.num_hidden_layers)]

    def without(self, names: Collection[str]) -> ViLBertConfig:
        """The sizes that are left when layers with such names (`lang.3`) are taken out."""
        counts = {"lang": 0, "vision": 0}
        before: list[tuple[int, int]] = []
        for stream, place in self._all_layers():
            if f"{stream}.{place + 1}" in names:
                continue
            if stream == "connection":
                before.append((counts["vision"], counts["lang"]))
            else:
                counts[stream] += 1
        return replace(
            self,
            num_hidden_layers=counts["lang"],
            v_num_hidden_layers=counts["vision"],
            v_biattention_id=tuple(v for v, _ in before),
            t_biattention_id=tuple(t for _, t in before),
            fixed_v_layer=0,
            fixed_t_layer=0,
        )

    def size_name(self) -> str:
        """`small`, `base` or `large`, by the width of the text stream."""
        if self.hidden_size <= SMALL_WIDTH:
            return "small"
        return "base" if self.hidden_size < LARGE_WIDTH else "large"


def _check_count(key: str, value: Any) -> None:
    least = 0 if key in MAY_BE_ZERO else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"key {key}: {short(value)}: give a whole number from {least} on")
    if key in LAYERS and value > MOST_LAYERS:
        raise ConfigError(f"key {key}: {short(value)}: give at most {MOST_LAYERS}")


def nearest(word: str, known: Collection[str]) -> str:
    """`: did you mean …?` for the nearest known word; nothing where none is near."""
    near = get_close_matches(str(word), known, n=1)
    return f": did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"


def read_config(path: Path | str, connected: bool = True, **changes: Any) -> ViLBertConfig:
    """Read a config file.

    Args:
        path: the file.
        connected: False: without connections, for the single-stream model.
        changes: what vocabulary, features and answers decide.

    Raises:
        ConfigError: an unknown key, or sizes that make no model; with file, key and value.
        DataError: missing, or no JSON.
    """
    hint = f"config files are in {CONFIGS}: {', '.join(sorted(p.name for p in CONFIGS.iterdir()))}"
    values = read_json(path, hint)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {short(values)}: a config is an object with keys")
    if not connected:
        values = values | {"v_biattention_id": [], "t_biattention_id": []}
    with named(path):
        return replace(ViLBertConfig.from_upstream(values), **changes)
