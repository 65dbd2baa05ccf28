"""ViLBERT (Lu et al. 2019) under the parameter names of the original system: encoder and poolers.

Two streams, text and image, that meet in connection layers. Shape legend: B batch, T tokens, R
regions (the first is the image as a whole), C channels of the text, V channels of the image, F
width of the features, P channels of the connection, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.adapting import freeze_dead
from common.adapt.encoder import PolicyFactory, RoutedEncoder
from common.adapt.heads import split_heads
from common.adapt.policy import PolicyInputs, set_initial_share
from common.adapt.routes import State, read_stream
from common.adapt.sharing import once
from common.adapt.steps import PAIR, HeadsStep, Layer, find_weighting, key_weights
from common.modules.embeddings import TextEmbeddings
from common.modules.layers import LAYER_NORM_EPS, init_bert_weights
from common.modules.masks import additive_mask
from vilbert.layers import ConnectionLayer, connection_steps, image_layer, stream_steps, text_layer
from vilbert.sizes import ViLBertConfig

POLICY_LAYERS = (2, 1, 1)  # text, connection and image layers of the published policy
BOX = 5  # numbers that describe a region's place: x1, y1, x2, y2 and area as shares of the image
STACKS = {"lang": "layer", "vision": "v_layer", "connection": "c_layer"}
BOTH = ("lang", "vision")
Inputs = Mapping[str, Tensor | None]


@dataclass
class BertOutput:
    """What `BertModel` computed.

    Attributes:
        lang: (B, T, C), and vision (B, R, V), after the last layer; (B, 1, ·) where the encoder
            was told that only the first position is read.
        pooled_lang, pooled_vision: (B, P).
        embedded: the streams before the first layer.
        connected: the two streams after every connection layer, if asked for.
        attention: probabilities of every layer by its name, without dropout, if asked for: of a
            stream's own layer (B, H, T, T) under the name of the stream, of a connection
            (B, H, T, R) under `lang` and (B, H, R, T) under `vision`.
    """

    lang: Tensor
    vision: Tensor
    pooled_lang: Tensor
    pooled_vision: Tensor
    embedded: dict[str, Tensor]
    connected: list[dict[str, Tensor]] = field(default_factory=list)
    attention: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class ImageEmbeddings(nn.Module):
    """LayerNorm of the sum of the projections of a region's features and of its place."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        size = config.v_hidden_size
        self.image_embeddings = nn.Linear(config.v_feature_size, size)
        self.image_location_embeddings = nn.Linear(BOX, size)
        self.LayerNorm = nn.LayerNorm(size, eps=LAYER_NORM_EPS)
        # The rate is that of the text, as in the original.
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """features (B, R, F), places (B, R, 5) -> (B, R, V)."""
        x = self.image_embeddings(features) + self.image_location_embeddings(places)
        return self.dropout(self.LayerNorm(x))


class ReluPooler(nn.Module):
    """relu(dense(first position))."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, P)."""
        return torch.relu(self.dense(x[:, 0]))


class ViLBertEncoder(RoutedEncoder):
    """The layers of both streams and the connections between them."""

    def __init__(self, config: ViLBertConfig, policy_factory: PolicyFactory | None = None) -> None:
        super().__init__(policy_factory)
        self.config = config
        self.layer = nn.ModuleList(text_layer(config) for _ in range(config.num_hidden_layers))
        self.v_layer = nn.ModuleList(image_layer(config) for _ in range(config.v_num_hidden_layers))
        self.c_layer = nn.ModuleList(ConnectionLayer(config) for _ in config.v_biattention_id)
        if not config.with_coattention:
            self.c_layer.requires_grad_(False)
        self.layer[: config.fixed_t_layer].requires_grad_(False)
        self.v_layer[: config.fixed_v_layer].requires_grad_(False)
        self.set_reads(BOTH)

    def layers(self) -> list[Layer]:
        config = self.config
        steps = {stream: stream_steps(config, stream) for stream in BOTH}
        steps["connection"] = connection_steps(config)
        channels = {"lang": config.hidden_size, "vision": config.v_hidden_size}
        heads = {
            "lang": config.num_attention_heads,
            "vision": config.v_num_attention_heads,
            "connection": config.bi_num_attention_heads,
        }
        return [
            Layer(
                f"{kind}.{place + 1}",
                f"{STACKS[kind]}.{place}",
                self.get_submodule(f"{STACKS[kind]}.{place}"),
                steps[kind],
                channels if kind == "connection" else {kind: channels[kind]},
                heads[kind],
            )
            for kind, place in config.order()
        ]

    def layers_removed(self, names: Sequence[str]) -> None:
        self.config = self.config.without(names)

    @property
    def meets(self) -> bool:
        """Whether there are connections at all."""
        return bool(self.config.with_coattention and self.config.v_biattention_id)


class BertModel(nn.Module):
    """Embeddings, encoder and poolers: the original's `bert`."""

    def __init__(
        self, config: ViLBertConfig, policy_layers: tuple[int, int, int] = POLICY_LAYERS
    ) -> None:
        """`policy_layers`: text, connection and image layers of a published policy made for it."""
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.v_embeddings = ImageEmbeddings(config)
        self.encoder = ViLBertEncoder(config, self._published_policy)
        self.t_pooler = ReluPooler(config.hidden_size, config.bi_hidden_size)
        self.v_pooler = ReluPooler(config.v_hidden_size, config.bi_hidden_size)
        self._policy_layers = policy_layers
        init_bert_weights(self.modules(), config.initializer_range)
        # What stands before fixed layers is fixed too.
        self.embeddings.requires_grad_(not config.fixed_t_layer)
        self.v_embeddings.requires_grad_(not config.fixed_v_layer)

    @property
    def config(self) -> ViLBertConfig:
        return self.encoder.config

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        places: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        connected: bool = False,
        attention: bool = False,
    ) -> BertOutput:
        """Encode a batch of pairs.

        Args:
            input_ids, token_type_ids, attention_mask: (B, T); mask 1 = token; None: all are. With
                `fast_mode` they may be one text, (1, T), for all images.
            features, places, image_attention_mask: (B, R, F), (B, R, 5), (B, R); likewise.
            connected: also return the streams after every connection.
            attention: also return attention probabilities.

        Returns:
            With `in_batch_pairs` of B * B pairs: text i with image j at i * B + j.

        Raises:
            ConfigError: attention probabilities of an adapted model, which has two branches.
        """
        raw: dict[str, Tensor | None] = {
            "input_ids": input_ids,
            "features": features,
            "places": places,
            "token_type_ids": token_type_ids,
            "attention_mask": attention_mask,
            "image_attention_mask": image_attention_mask,
        }
        state = self.embed(raw)
        embedded = {slot: read_stream(state, slot) for slot in BOTH}
        passed: list[State] = []
        wanted = connected or attention
        first, last = self._run(state, raw, passed if wanted else None)
        names = [layer.name for layer in self.encoder.layers()] if wanted else []
        lang, vision = read_stream(last, "lang"), read_stream(last, "vision")
        return BertOutput(
            lang,
            vision,
            self.t_pooler(lang),
            self.v_pooler(vision),
            embedded,
            [
                {slot: read_stream(s, slot) for slot in BOTH}
                for name, s in zip(names, passed, strict=False)
                if name.startswith("connection")
            ]
            if connected
            else [],
            self.attention([first, *passed[:-1]], last) if attention else {},
        )

    def embed(self, raw: Inputs) -> State:
        """Inputs of `forward` by name -> the streams before the first layer, and their masks."""
        return {**self.embed_texts(raw), **self.embed_images(raw)}

    def embed_texts(self, raw: Inputs) -> State:
        """The text's half of `embed`."""
        ids, mask = raw["input_ids"], raw.get("attention_mask")
        assert ids is not None
        lang = once("lang", self.embeddings, ids, raw.get("token_type_ids"))
        return {
            # No gradient is computed for the embeddings before fixed layers.
            "lang": lang.detach() if self.config.fixed_t_layer else lang,
            "lang.mask": None if mask is None else additive_mask(mask, lang.dtype),
        }

    def embed_images(self, raw: Inputs) -> State:
        """The image's half of `embed`."""
        features, places = raw["features"], raw["places"]
        mask = raw.get("image_attention_mask")
        assert features is not None and places is not None
        vision = once("vision", self.v_embeddings, features, places)
        return {
            "vision": vision.detach() if self.config.fixed_v_layer else vision,
            "vision.mask": None if mask is None else additive_mask(mask, vision.dtype),
        }

    def _run(self, state: State, raw: Inputs, passed: list[State] | None) -> tuple[State, State]:
        """Run the layers; returns the streams before the first and after the last of them.

        Pairs are made just before the first connection, since layers before it read one stream
        alone; where decisions or spans are made per pair, before the first layer.
        """
        encoder = self.encoder
        if not (self.config.fast_mode or self.config.in_batch_pairs):
            # Who watches the layers from outside gets the call of the other backbones.
            more: dict[str, Any] = {} if passed is None else {"passed": passed}
            return state, encoder.run_layers(state, raw, **more)
        if not encoder.runs_in_parts:
            state, pairs = self._paired(state), self._paired(dict(raw))
            return state, encoder.run_layers(state, pairs, passed)
        border = encoder.before_meeting()
        met = self._paired(encoder.run_layers(state, raw, passed, slice(border)))
        return state, encoder.run_layers(met, raw, passed, slice(border, None))

    def _paired(self, values: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
        """Slots or inputs of texts and of images, made as many as there are pairs."""
        of_images = ("vision", "vision.mask", "features", "places", "image_attention_mask")
        images = next(len(x) for n in ("vision", "features") if (x := values.get(n)) is not None)
        if not self.config.in_batch_pairs:
            return {
                name: x if x is None or name in of_images else x.expand(images, *x.shape[1:])
                for name, x in values.items()
            }
        return {
            name: x
            if x is None
            else (x.repeat(images, *[1] * (x.ndim - 1)) if name in of_images else _each(x, images))
            for name, x in values.items()
        }

    def attention(self, before: Sequence[State], last: State) -> dict[str, dict[str, Tensor]]:
        """Attention probabilities of every layer, recomputed from the streams `before` it.

        Raises:
            ConfigError: the encoder is adapted, so that there is no one attention.
        """
        self.encoder.check_attention()
        found: dict[str, dict[str, Tensor]] = {}
        for layer, state in zip(self.encoder.layers(), before, strict=True):
            if len(read_stream(state, "lang")) < len(read_stream(last, "lang")):
                state = self._paired(state)
            state = {**state, PAIR: last.get(PAIR)}
            module = self.encoder.get_submodule(layer.path)
            steps = [step for step in layer.steps if isinstance(step, HeadsStep)]
            found[layer.name] = {s.reads[0]: probabilities(s, module, state) for s in steps}
        return found

    def _published_policy(self, decisions: int, initial_share: float) -> nn.Module:
        return PublishedPolicy(self, decisions, initial_share, self._policy_layers)


def probabilities(step: HeadsStep, layer: nn.Module, state: State) -> Tensor:
    """Attention probabilities (B, H, T, S) of a step, without dropout."""
    heads, (query, key, _) = step.attention(layer).num_attention_heads, step.projections(layer)
    asking, asked = step.inputs(state)
    q, k = split_heads(query(asking), heads), split_heads(key(asked), heads)
    weighting = find_weighting(step.attention(layer))
    return key_weights(q, k, step.mask(state), weighting, state.get(PAIR))


def _each(x: Tensor, times: int) -> Tensor:
    """Every row so many times, one behind the other."""
    return x.repeat_interleave(times, 0)


class PublishedPolicy(nn.Module):
    """A policy network of the backbone's own family: a small ViLBERT (2-1-1 layers).

    The original system has no adaptive finetuning; this is to it what the policies of VL-BERT and
    LXMERT are to them. Everything starts from the backbone's pretrained weights.
    """

    def __init__(
        self,
        backbone: BertModel,
        decisions: int,
        initial_share: float,
        layers: tuple[int, int, int] = POLICY_LAYERS,
    ) -> None:
        """`layers`: text, connection and image layers, at most as many as the backbone has."""
        super().__init__()
        full = backbone.config
        text, connections, image = layers
        text = min(text, full.num_hidden_layers)
        image = min(image, full.v_num_hidden_layers)
        connections = min(connections, len(full.v_biattention_id))
        config = replace(
            full,
            num_hidden_layers=text,
            v_num_hidden_layers=image,
            # All but the last layer of the text before the connections, those of the image after.
            t_biattention_id=(max(0, text - 1),) * connections,
            v_biattention_id=(0,) * connections,
            fixed_v_layer=0,
            fixed_t_layer=0,
            fast_mode=False,
            in_batch_pairs=False,
        )
        self.bert = BertModel(config).to(next(backbone.parameters()).dtype)
        weights = backbone.state_dict()
        self.bert.load_state_dict({name: weights[name] for name in self.bert.state_dict()})
        self.bert.encoder.set_reads(BOTH, first=BOTH)
        freeze_dead(self.bert.encoder.layers(), BOTH)
        width = config.bi_hidden_size
        last = nn.Linear(2 * width, 2 * decisions)
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), last)
        init_bert_weights(self.head)
        set_initial_share(last, initial_share)

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """The backbone's raw inputs (B, …) -> logits (B, D, 2)."""
        found = self.bert(**inputs.raw)
        logits: Tensor = self.head(fuse(self.bert.config, found)).unflatten(-1, (-1, 2))
        return logits


def fuse(config: ViLBertConfig, found: BertOutput) -> Tensor:
    """The two pooled vectors as one, (B, P)."""
    if config.fusion_method == "sum":
        return found.pooled_lang + found.pooled_vision
    return found.pooled_lang * found.pooled_vision
