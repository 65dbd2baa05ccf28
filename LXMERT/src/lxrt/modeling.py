"""LXMERT (Tan and Bansal 2019) under the parameter names of the original system.

Two streams: language layers, vision layers, then cross layers in which both streams attend to each
other with one set of weights. Shape legend: B batch, T tokens, R regions, C channels, V vocabulary,
A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, nn

from common.adapt.adapting import freeze_dead
from common.adapt.encoder import PolicyFactory, RoutedEncoder
from common.adapt.policy import PolicyInputs, set_initial_share
from common.adapt.routes import State, read_stream
from common.adapt.sharing import once
from common.adapt.steps import PAIR, DenseStep, HeadsStep, Layer, Step, bert_steps
from common.modules.embeddings import TextEmbeddings
from common.modules.heads import Pooler, WordPrediction
from common.modules.layers import (
    LAYER_NORM_EPS,
    Attention,
    BertLayer,
    DenseResidual,
    Intermediate,
    SelfAttention,
    init_bert_weights,
)
from common.modules.masks import additive_mask
from lxrt.heads import RegionPrediction, answer_head
from lxrt.sizes import LxmertConfig

POLICY_LAYERS = (2, 1, 1)  # language, cross and vision layers of the published policy


@dataclass
class LxmertOutput:
    """lang (B, T, C), pooled (B, C), and vision (B, R, C) where it is read, else None.

    lang is (B, 1, C) where the encoder was told that only its first position is read.
    """

    lang: Tensor
    vision: Tensor | None
    pooled: Tensor


class VisualFeatureEncoder(nn.Module):
    """Mean of the normalised projections of a region's features and of its box."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(config.visual_feat_dim, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.box_fc = nn.Linear(config.visual_pos_dim, config.hidden_size)
        self.box_layer_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """features (B, R, F), boxes (B, R, 4) in 0..1 -> (B, R, C)."""
        x = self.visn_layer_norm(self.visn_fc(features))
        y = self.box_layer_norm(self.box_fc(boxes))
        return self.dropout((x + y) / 2)


class CrossAttention(nn.Module):
    """Attention from one stream to the other; upstream calls the projections `att`."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.att = SelfAttention(
            config.hidden_size, config.num_attention_heads, config.attention_probs_dropout_prob
        )
        self.output = DenseResidual(
            config.hidden_size, config.hidden_size, config.hidden_dropout_prob
        )


class CrossLayer(nn.Module):
    """One cross layer: shared cross attention, then self-attention and FFN of each stream."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        size, expanded = config.hidden_size, config.intermediate_size

        def attention() -> Attention:
            return Attention(
                size,
                config.num_attention_heads,
                config.attention_probs_dropout_prob,
                config.hidden_dropout_prob,
            )

        self.visual_attention = CrossAttention(config)
        self.lang_self_att = attention()
        self.visn_self_att = attention()
        self.lang_inter = Intermediate(size, expanded)
        self.lang_output = DenseResidual(expanded, size, config.hidden_dropout_prob)
        self.visn_inter = Intermediate(size, expanded)
        self.visn_output = DenseResidual(expanded, size, config.hidden_dropout_prob)


def cross_steps() -> tuple[Step, ...]:
    """Steps of a cross layer; both directions of the cross attention read the inputs as they came.

    The order is that of the decisions: cross, language and vision attention, both intermediates,
    both outputs.
    """
    lang = bert_steps(
        "lang", "lang.", "lang_self_att", "lang_inter", "lang_output", source="lang.crossed"
    )
    vision = bert_steps(
        "vision", "vision.", "visn_self_att", "visn_inter", "visn_output", source="vision.crossed"
    )
    attention, output = "visual_attention.att", "visual_attention.output"
    return (
        HeadsStep(
            "cross.head",
            "cross",
            attention,
            ("lang", "vision", "vision.mask", PAIR),
            ("lang.context",),
        ),
        HeadsStep(
            "cross.head",
            "cross",
            attention,
            ("vision", "lang", "lang.mask", PAIR),
            ("vision.context",),
        ),
        DenseStep("cross.output", "cross", output, ("lang.context", "lang"), ("lang.crossed",)),
        DenseStep(
            "cross.output", "cross", output, ("vision.context", "vision"), ("vision.crossed",)
        ),
        *lang[:2],
        *vision[:2],
        lang[2],
        vision[2],
        lang[3],
        vision[3],
    )


class Stacks(Protocol):
    """The layers of an LXMERT encoder, ours or that of `transformers`."""

    layer: nn.ModuleList
    x_layers: nn.ModuleList
    r_layers: nn.ModuleList


def encoder_layers(encoder: Stacks, channels: int, heads: int) -> list[Layer]:
    """The table of layers of an LXMERT encoder."""
    layers = []
    for stream, stack, modules in (
        ("lang", "layer", encoder.layer),
        ("vision", "r_layers", encoder.r_layers),
    ):
        layers += [
            Layer(
                f"{stream}.{n}",
                f"{stack}.{n - 1}",
                module,
                bert_steps(stream),
                {stream: channels},
                heads,
            )
            for n, module in enumerate(modules, 1)
        ]
    streams = {"lang": channels, "vision": channels}
    layers += [
        Layer(f"cross.{n}", f"x_layers.{n - 1}", module, cross_steps(), streams, heads)
        for n, module in enumerate(encoder.x_layers, 1)
    ]
    return layers


class LXRTEncoder(RoutedEncoder):
    """Language, vision and cross layers behind the visual feature encoder."""

    def __init__(self, config: LxmertConfig, policy_factory: PolicyFactory | None = None) -> None:
        super().__init__(policy_factory)
        self.config = config

        def bert_layer() -> BertLayer:
            return BertLayer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.attention_probs_dropout_prob,
                config.hidden_dropout_prob,
            )

        self.visn_fc = VisualFeatureEncoder(config)
        self.layer = nn.ModuleList(bert_layer() for _ in range(config.l_layers))
        self.x_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(bert_layer() for _ in range(config.r_layers))
        self.reads = ("lang", "vision")

    def layers(self) -> list[Layer]:
        return encoder_layers(self, self.config.hidden_size, self.config.num_attention_heads)

    def layers_removed(self, names: Sequence[str]) -> None:
        self.config = replace(
            self.config,
            l_layers=len(self.layer),
            x_layers=len(self.x_layers),
            r_layers=len(self.r_layers),
        )


class LXRTModel(nn.Module):
    """Embeddings, encoder and pooler: upstream's `bert`."""

    def __init__(
        self, config: LxmertConfig, policy_layers: tuple[int, int, int] = POLICY_LAYERS
    ) -> None:
        """`policy_layers`: language, cross and vision layers of a published policy made for it."""
        super().__init__()
        self.embeddings = TextEmbeddings(config, padded=True)
        self.encoder = LXRTEncoder(config, self._published_policy)
        self.pooler = Pooler(config.hidden_size)
        self._policy_layers = policy_layers
        init_bert_weights(self.modules())

    @property
    def config(self) -> LxmertConfig:
        return self.encoder.config

    def forward(
        self,
        input_ids: Tensor,
        input_mask: Tensor,
        features: Tensor,
        boxes: Tensor,
        segment_ids: Tensor | None = None,
        region_mask: Tensor | None = None,
    ) -> LxmertOutput:
        """Encode a batch of pairs.

        Args:
            input_ids, input_mask, segment_ids: (B, T); mask 1 = token, 0 = padding.
            features: (B, R, F); boxes: (B, R, 4) corners in 0..1.
            region_mask: (B, R), 1 = region, 0 = padding; None when all are regions.
        """
        raw = {
            "input_ids": input_ids,
            "input_mask": input_mask,
            "features": features,
            "boxes": boxes,
            "segment_ids": segment_ids,
            "region_mask": region_mask,
        }
        lang = self.embeddings(input_ids, segment_ids)
        state: State = {
            "lang": lang,
            "vision": once("vision", self.encoder.visn_fc, features, boxes),
            "lang.mask": additive_mask(input_mask, lang.dtype),
            "vision.mask": None if region_mask is None else additive_mask(region_mask, lang.dtype),
        }
        state = self.encoder.run_layers(state, raw)
        vision = state["vision"] if "vision" in self.encoder.reads else None
        lang = read_stream(state, "lang")
        return LxmertOutput(lang, vision, self.pooler(lang))

    def _published_policy(self, decisions: int, initial_share: float) -> nn.Module:
        return PublishedPolicy(self, decisions, initial_share, self._policy_layers)


class PublishedPolicy(nn.Module):
    """The policy network of the original system: a small LXMERT of its own (2-1-1 layers).

    Everything it shares with the backbone starts from the backbone's pretrained weights; upstream
    left its vision layers, cross layers and visual encoder at random values.
    """

    def __init__(
        self,
        backbone: LXRTModel,
        decisions: int,
        initial_share: float,
        layers: tuple[int, int, int] = POLICY_LAYERS,
    ) -> None:
        """`layers`: language, cross and vision layers, at most as many as the backbone has."""
        super().__init__()
        full = backbone.config
        l_layers, x_layers, r_layers = layers
        config = replace(
            full,
            l_layers=min(l_layers, full.l_layers),
            x_layers=min(x_layers, full.x_layers),
            r_layers=min(r_layers, full.r_layers),
        )
        self.bert = LXRTModel(config).to(next(backbone.parameters()).dtype)
        weights = backbone.state_dict()
        self.bert.load_state_dict({name: weights[name] for name in self.bert.state_dict()})
        self.bert.encoder.set_reads(("lang",), first=("lang",))
        freeze_dead(self.bert.encoder.layers(), ("lang",))
        self.logit_fc = answer_head(config.hidden_size, 2 * decisions)
        last = self.logit_fc[-1]
        assert isinstance(last, nn.Linear)
        set_initial_share(last, initial_share)

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """The backbone's raw inputs (B, …) -> logits (B, D, 2)."""
        return self.logit_fc(self.bert(**inputs.raw).pooled).unflatten(-1, (-1, 2))


class _Holder(nn.Module):
    """A module that only holds others under upstream's names."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


class _Model(_Holder):
    bert: LXRTModel


class _Encoder(_Holder):
    model: _Model


class _Heads(_Holder):
    predictions: WordPrediction
    seq_relationship: nn.Linear


class _AnswerHead(_Holder):
    logit_fc: nn.Sequential


class VQAModel(nn.Module):
    """LXMERT with an answer head on the pooled output; state-dict names of upstream's snapshots."""

    def __init__(
        self, config: LxmertConfig, policy_layers: tuple[int, int, int] = POLICY_LAYERS
    ) -> None:
        """Random weights; see `LXRTModel` for `policy_layers`."""
        super().__init__()
        self.lxrt_encoder = _Encoder(model=_Model(bert=LXRTModel(config, policy_layers)))
        self.logit_fc = answer_head(config.hidden_size, config.num_answers)
        self.bert.encoder.set_reads(("lang",), first=("lang",))

    @property
    def bert(self) -> LXRTModel:
        return self.lxrt_encoder.model.bert

    @property
    def config(self) -> LxmertConfig:
        return self.bert.config

    def forward(self, **inputs: Tensor | None) -> Tensor:
        """Inputs of `LXRTModel.forward` (B, …) -> answer logits (B, A)."""
        return self.logit_fc(self.bert(**inputs).pooled)


class PretrainingModel(nn.Module):
    """LXMERT with its pretraining heads: words and matching, regions, question answering.

    Attributes:
        outputs: those that `forward` computes; see `lxrt.pretraining_objectives.train_outputs`.
    """

    def __init__(
        self,
        config: LxmertConfig,
        visual_losses: tuple[str, ...] = ("obj", "attr", "feat"),
        qa: bool = True,
    ) -> None:
        """Build it with random weights; heads that are not wanted do not exist, as upstream."""
        super().__init__()
        self.bert = LXRTModel(config)
        self.cls = _Heads(
            predictions=WordPrediction(self.bert.embeddings.word_embeddings),
            seq_relationship=nn.Linear(config.hidden_size, 2),
        )
        self.obj_predict_head = RegionPrediction(config, visual_losses) if visual_losses else None
        self.answer_head = None
        if qa:
            self.answer_head = _AnswerHead(
                logit_fc=answer_head(config.hidden_size, config.num_answers)
            )
        self.outputs = ("words", "matched", *(("answers",) if qa else ()), *visual_losses)
        init_bert_weights([self.cls.seq_relationship])

    @property
    def config(self) -> LxmertConfig:
        return self.bert.config

    def forward(
        self, word_places: Tensor | None = None, **inputs: Tensor | None
    ) -> dict[str, Tensor]:
        """Inputs of `LXRTModel.forward` (B, …) -> logits of the heads, as far as in `outputs`.

        words (B, T, V), matched (B, 2), answers (B, A), and obj, attr, feat (B, R, ·); with
        word_places (B, T) bool the logits of the W words there only, (W, V).
        """
        out = self.bert(**inputs)
        found: dict[str, Tensor] = {}
        if "words" in self.outputs:
            found["words"] = self.cls.predictions(
                out.lang if word_places is None else out.lang[word_places]
            )
        if "matched" in self.outputs:
            found["matched"] = self.cls.seq_relationship(out.pooled)
        if "answers" in self.outputs:
            assert self.answer_head is not None
            found["answers"] = self.answer_head.logit_fc(out.pooled)
        if self.obj_predict_head is not None and out.vision is not None:
            found |= self.obj_predict_head(out.vision, self.outputs)
        return found
