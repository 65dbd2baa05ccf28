"""The layers of ViLBERT's encoder under the names of the original system, and their steps.

Two streams, text (`lang`) and image (`vision`). A connection layer lets each attend to the other,
with weights of its own for each direction; the original numbers the image 1 and the text 2. Shape
legend: B batch, T tokens, R regions, C channels, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from common.adapt.routes import State, Written
from common.adapt.steps import (
    PAIR,
    WEIGHTING,
    AttentionModule,
    DenseStep,
    ExpandStep,
    HeadsStep,
    Step,
    bert_steps,
)
from common.modules.layers import (
    LAYER_NORM_EPS,
    BertLayer,
    DenseResidual,
    Intermediate,
    find_activation,
)
from vilbert.sizes import ViLBertConfig

OTHER = {"lang": "vision", "vision": "lang"}
NUMBER = {"vision": "1", "lang": "2"}
SHORT = {"vision": "v", "lang": "t"}


class BiAttention(nn.Module):
    """Query, key and value of both streams, all as wide as the connection (`bi_hidden_size`)."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        self.num_attention_heads = config.bi_num_attention_heads
        width = config.bi_hidden_size
        for number, channels in (("1", config.v_hidden_size), ("2", config.hidden_size)):
            for name in ("query", "key", "value"):
                self.add_module(f"{name}{number}", nn.Linear(channels, width))
        # Of the probabilities over regions, and of those over tokens.
        self.dropout1 = nn.Dropout(config.v_attention_probs_dropout_prob)
        self.dropout2 = nn.Dropout(config.attention_probs_dropout_prob)


class BiOutput(nn.Module):
    """The output projections of both directions; `q_dense1` and `q_dense2` are in files only."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        width = config.bi_hidden_size
        for number, channels, rate in (
            ("1", config.v_hidden_size, config.v_hidden_dropout_prob),
            ("2", config.hidden_size, config.hidden_dropout_prob),
        ):
            self.add_module(f"dense{number}", nn.Linear(width, channels))
            self.add_module(f"LayerNorm{number}", nn.LayerNorm(channels, eps=LAYER_NORM_EPS))
            self.add_module(f"dropout{number}", nn.Dropout(rate))
            self.add_module(f"q_dense{number}", nn.Linear(width, channels).requires_grad_(False))


class ConnectionLayer(nn.Module):
    """Attention of each stream to the other, then an FFN of each stream."""

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__()
        self.biattention = BiAttention(config)
        self.biOutput = BiOutput(config)
        image, wide = config.v_hidden_size, config.v_intermediate_size
        self.v_intermediate = Intermediate(image, wide)
        self.v_output = DenseResidual(wide, image, config.v_hidden_dropout_prob)
        text, wide = config.hidden_size, config.intermediate_size
        self.t_intermediate = Intermediate(text, wide)
        self.t_output = DenseResidual(wide, text, config.hidden_dropout_prob)


@dataclass
class _OneDirection:
    """One direction of a `BiAttention`: queries of one stream, keys and values of the other."""

    num_attention_heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    dropout: nn.Dropout
    training: bool
    weighting: nn.Module | None


@dataclass(frozen=True)
class ConnectionHeadsStep(HeadsStep):
    """The heads of one direction; `component` and slots say of which stream the queries are."""

    stream: str = ""

    def attention(self, layer: nn.Module) -> AttentionModule:
        """That direction of the layer's attention."""
        both = layer.get_submodule(self.module)
        assert isinstance(both, BiAttention)
        asking, asked = NUMBER[self.stream], NUMBER[OTHER[self.stream]]
        return _OneDirection(
            both.num_attention_heads,
            getattr(both, f"query{asking}"),
            getattr(both, f"key{asked}"),
            getattr(both, f"value{asked}"),
            getattr(both, f"dropout{asked}"),
            both.training,
            getattr(both, self.weighting, None),
        )

    @property
    def weighting(self) -> str:
        """Each direction has its own."""
        return f"{WEIGHTING}{NUMBER[self.stream]}"

    def modules(self, layer: nn.Module) -> list[nn.Module]:
        """The three projections, and what weighs the keys."""
        own = getattr(layer.get_submodule(self.module), self.weighting, None)
        return [*self.projections(layer), *([] if own is None else [own])]


@dataclass(frozen=True)
class ConnectionOutputStep(DenseStep):
    """`LayerNorm(residual + dropout(dense(context)))` of one stream of a connection."""

    stream: str = ""

    def modules(self, layer: nn.Module) -> list[nn.Module]:
        """Projection and normalisation."""
        both, number = layer.get_submodule(self.module), NUMBER[self.stream]
        return [getattr(both, f"dense{number}"), getattr(both, f"LayerNorm{number}")]

    def run(self, layer: nn.Module, state: State) -> Written:
        """Context (B, T, bi_hidden), residual (B, T, C) -> (B, T, C)."""
        dense, normalise = self.modules(layer)
        dropout: nn.Module = getattr(
            layer.get_submodule(self.module), f"dropout{NUMBER[self.stream]}"
        )
        context, residual = self.inputs(state)
        found: Tensor = normalise(residual + dropout(dense(context)))
        return {self.writes[0]: found}


def text_layer(config: ViLBertConfig) -> BertLayer:
    """A layer of the text stream."""
    return BertLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.attention_probs_dropout_prob,
        config.hidden_dropout_prob,
    )


def image_layer(config: ViLBertConfig) -> BertLayer:
    """A layer of the image stream."""
    return BertLayer(
        config.v_hidden_size,
        config.v_num_attention_heads,
        config.v_intermediate_size,
        config.v_attention_probs_dropout_prob,
        config.v_hidden_dropout_prob,
    )


def stream_steps(config: ViLBertConfig, stream: str) -> tuple[Step, ...]:
    """The steps of a layer of one stream, `lang` or `vision`."""
    name = config.hidden_act if stream == "lang" else config.v_hidden_act
    return bert_steps(stream, activation=find_activation(name))


def connection_steps(config: ViLBertConfig) -> tuple[Step, ...]:
    """The steps of a connection layer; both directions read both streams as they came.

    The order is that of the decisions: the heads of text and image, their outputs, both
    intermediates, both outputs of the FFN.
    """
    acts = {"lang": config.hidden_act, "vision": config.v_hidden_act}
    halves = [_half(stream, acts[stream]) for stream in ("lang", "vision")]
    return tuple(step for pair in zip(*halves, strict=True) for step in pair)


def _half(stream: str, activation: str) -> tuple[Step, ...]:
    other, short = OTHER[stream], SHORT[stream]
    attention, ffn = f"{stream}.attention", f"{stream}.ffn"
    context, attended, expanded = (f"{stream}.{s}" for s in ("context", "attended", "expanded"))
    return (
        ConnectionHeadsStep(
            f"{stream}.head",
            attention,
            "biattention",
            (stream, other, f"{other}.mask", PAIR),
            (context,),
            stream=stream,
        ),
        ConnectionOutputStep(
            f"{stream}.attention.output",
            attention,
            "biOutput",
            (context, stream),
            (attended,),
            stream=stream,
        ),
        ExpandStep(
            f"{stream}.intermediate",
            ffn,
            f"{short}_intermediate",
            (attended,),
            (expanded,),
            activation=find_activation(activation),
        ),
        DenseStep(f"{stream}.output", ffn, f"{short}_output", (expanded, attended), (stream,)),
    )
