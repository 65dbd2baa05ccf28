"""A layer is a list of named steps over a state of named slots.

A step says what it reads and writes, so residuals and streams are explicit, and it runs on any
module that has the attribute paths it names: a layer of ours, its frozen twin, or a layer of
`transformers`. Shape legend: B batch, T tokens (or regions), H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.head_projections import project_by_head
from common.adapt.heads import join_heads, scaled_scores, split_heads
from common.adapt.routes import Routes, State, Written, read_stream
from common.adapt.row_routing import Rows
from common.adapt.weighted_attention import Seen, Weighting, weighted_attention
from common.modules.losses import precise


class AttentionModule(Protocol):
    """What `HeadsStep` uses of a module, ours or another library's."""

    num_attention_heads: int
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    dropout: nn.Dropout
    training: bool


Weigh = Callable[[Tensor, Tensor | None], Tensor]  # scores (B, H, T, S), mask -> weights
PAIR = "pair"  # slot of what a span policy read from each pair, (B, F), or None
Others = dict[str, tuple[Tensor, ...]]  # by slot the heads' projections by the branch not chosen
WEIGHTING = "weighting"  # name of the submodule that weighs the keys; see common.modules.attention


class DenseModule(Protocol):
    """What `ExpandStep` uses of a module."""

    dense: nn.Linear


@dataclass(frozen=True)
class Step:
    """What all steps have in common.

    `component` names the decision of the `SpotTune` strategy (steps that share weights share it),
    `part` the stretch between two skip connections to which the step belongs (`SpotTune_Res`).

    A step with `first_only` computes the first position of what it writes, because no other is
    read: it narrows those of its inputs (`positionwise`) of which position t of the output needs
    position t only. Which steps these are is the business of `live_steps`.
    """

    streams: ClassVar[slice] = slice(None)
    positionwise: ClassVar[slice] = slice(None)

    component: str
    part: str
    module: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    first_only: bool = False

    @property
    def per_head(self) -> bool:
        return isinstance(self, HeadsStep)

    def run(self, layer: nn.Module, state: State) -> Written:
        """Compute the written slots from the read ones with the weights of `layer`."""
        raise NotImplementedError

    def modules(self, layer: nn.Module) -> list[nn.Module]:
        """The modules of the layer whose parameters the step uses, all of them."""
        return [layer.get_submodule(self.module)]

    def weighs(self, layer: nn.Module) -> bool:
        """Whether a learned mechanism weighs the keys."""
        return False

    def inputs(self, state: State) -> list[Tensor]:
        """The streams that are read, (B, T, C) or, narrowed, (B, 1, C)."""
        values = [read_stream(state, slot) for slot in self.reads[self.streams]]
        if self.first_only:
            values[self.positionwise] = map(first_position, values[self.positionwise])
        return values

    def reads_in_full(self) -> set[str]:
        """Slots of which more than the first position is read."""
        whole = list(self.reads)
        if self.first_only:
            del whole[self.positionwise]
        return set(whole)


@dataclass(frozen=True)
class HeadsStep(Step):
    """Attention heads up to and without the output projection.

    Reads query, key stream, mask, and what was read from the pair.
    """

    streams: ClassVar[slice] = slice(2)
    positionwise: ClassVar[slice] = slice(1)

    def run(self, layer: nn.Module, state: State) -> Written:
        """query (B, T, C), keys (B, S, C), mask (B, 1, 1, S) or None -> context (B, T, C)."""
        attention = self.attention(layer)
        query, keys = self.inputs(state)
        weighting, seen = find_weighting(attention), self._seen(layer)
        if weighting is not None:
            context = weighted_attention(
                attention,
                query,
                keys,
                self.mask(state),
                weighting,
                state.get(PAIR),
                dropout_of(attention),
                cut=not attention.training,
                seen=seen,
            )
            return {self.writes[0]: context}
        q, k, v = (
            split_heads(linear(x), attention.num_attention_heads)
            for linear, x in (
                (attention.query, query),
                (attention.key, keys),
                (attention.value, keys),
            )
        )
        return {self.writes[0]: attend(attention, q, k, v, self.mask(state), seen=seen)}

    def run_routed(
        self,
        layers: tuple[nn.Module, nn.Module],
        state: State,
        routes: Routes,
        columns: range,
        flip: bool = False,
        others: Others | None = None,
    ) -> Written:
        """As `run`, with head h of sample b taken from layers[decision of (b, h)].

        Only the projections are routed: a head reads its query, key and value from one branch,
        so the attention itself runs once.

        Args:
            layers: (frozen, finetuned).
            state: slots (B, …).
            routes, columns: of the heads' decisions.
            flip: take the branch that was not chosen.
            others: where both will be run on the same state: the first run leaves the projections
                of the other branch there, without gradients, and the flipped one takes them.
        """
        branches = [self.attention(layer) for layer in layers]
        kept = others.pop(self.writes[0], None) if flip and others is not None else None
        if kept is None:
            both = others is not None and not flip
            found = self._routed_projections(branches, state, routes, columns, flip, both)
            kept = found[:3]
            if others is not None and both:
                others[self.writes[0]] = found[3:]
        q, k, v = kept
        weigh = routed_weighting(branches, routes, columns, flip, state.get(PAIR))
        seen = self._seen(layers[1])
        return {self.writes[0]: attend(branches[1], q, k, v, self.mask(state), weigh, seen)}

    def _routed_projections(
        self,
        branches: Sequence[AttentionModule],
        state: State,
        routes: Routes,
        columns: range,
        flip: bool,
        both: bool,
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, H, T, c); with `both` those of the other branch as well."""
        query, keys = self.inputs(state)
        project = partial(
            routed_projection,
            branches=branches,
            routes=routes,
            columns=columns,
            flip=flip,
            both=both,
        )
        if query is keys:
            return project(query, names=("query", "key", "value"))
        queries = project(query, names=("query",))
        rest = project(keys, names=("key", "value"))
        return queries[:1] + rest[:2] + queries[1:] + rest[2:]

    def _seen(self, layer: nn.Module) -> Seen | None:
        watchers = present_watchers()
        if not watchers:
            return None

        def seen(weights: Tensor, values: Tensor, context: Tensor) -> None:
            for watcher in watchers:
                watcher.attended(self, layer, weights, values, context)

        return seen

    def attention(self, layer: nn.Module) -> AttentionModule:
        """The layer's module that holds the heads' projections."""
        return cast(AttentionModule, layer.get_submodule(self.module))

    def weighs(self, layer: nn.Module) -> bool:
        """Whether a learned mechanism weighs the keys."""
        return find_weighting(self.attention(layer)) is not None

    @property
    def weighting(self) -> str:
        """Name of the submodule of `module` that weighs the keys, where there is one."""
        return WEIGHTING

    def projections(self, layer: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """Query, key and value of the layer: what is split by head."""
        attention = self.attention(layer)
        return attention.query, attention.key, attention.value

    def mask(self, state: State) -> Tensor | None:
        """The additive mask of the keys, (B, 1, 1, S), or None."""
        return state[self.reads[2]]


class Watcher(Protocol):
    """What looks at attention while a model runs; see `common.adapt.attention_capture`."""

    def started(self, encoder: nn.Module, state: State) -> None:
        """Called before the first layer with the streams and masks."""

    def attended(
        self, step: HeadsStep, layer: nn.Module, weights: Tensor, values: Tensor, context: Tensor
    ) -> None:
        """Called after a step: weights (B, H, T, S), values (B, H, S, c), context (B, T, H * c)."""


WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


def present_watchers() -> tuple[Watcher, ...]:
    """Who looks on now; nobody in what torch.compile makes, which reads no context variables."""
    return () if torch.compiler.is_compiling() else WATCHERS.get()


@dataclass(frozen=True)
class DenseStep(Step):
    """`LayerNorm(residual + dropout(dense(x)))`: reads x and the residual."""

    def run(self, layer: nn.Module, state: State) -> Written:
        """x (B, T, C'), residual (B, T, C) -> (B, T, C)."""
        module = layer.get_submodule(self.module)
        x, residual = self.inputs(state)
        return {self.writes[0]: module(x, residual)}


@dataclass(frozen=True)
class ExpandStep(Step):
    """`activation(dense(x))`; gelu is the erf form."""

    activation: Callable[[Tensor], Tensor] = F.gelu

    def run(self, layer: nn.Module, state: State) -> Written:
        """x (B, T, C) -> (B, T, C')."""
        dense = cast(DenseModule, layer.get_submodule(self.module)).dense
        (x,) = self.inputs(state)
        return {self.writes[0]: self.activation(dense(x))}


def first_position(x: Tensor) -> Tensor:
    """(B, T, C) -> (B, 1, C)."""
    return x[:, :1]


def dropout_of(attention: AttentionModule) -> float:
    """Probability that a weight of attention is dropped now."""
    return attention.dropout.p if attention.training else 0.0


def attend(
    attention: AttentionModule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    weigh: Weigh | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Attention of all heads.

    Args:
        attention: whose dropout it has.
        q, k, v: (B, H, T, c), and (B, H, S, c) twice.
        mask: additive (B, 1, 1, S), or None.
        weigh: what makes weights of scores and mask; None: softmax.
        seen: is handed the weights, without dropout; where torch's own function does not say them,
            they are computed beside it.

    Returns:
        (B, T, H * c).
    """
    dropout = dropout_of(attention)
    if weigh is None:
        if mask is not None:
            mask = mask.to(q.dtype)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        weights = None if seen is None else key_weights(q, k, mask)
    else:
        weights = weigh(scaled_scores(q, k), mask)
        context = F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v
    context = join_heads(context)
    if seen is not None and weights is not None:
        seen(weights, v, context)
    return context


def key_weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    weighting: Weighting | None = None,
    pair: Tensor | None = None,
) -> Tensor:
    """Weights (B, H, T, S) of the keys, by `weighting` or else softmax.

    Args:
        q, k: (B, H, T, c) and (B, H, S, c).
        mask: additive (B, 1, 1, S), or None.
        weighting: what weighs the keys; None: softmax.
        pair: (B, F) for a span policy, or None.
    """
    scores = scaled_scores(q, k)
    if weighting is not None:
        return weighting(scores, mask, weighting.shares(pair))
    scores = precise(scores)
    return (scores if mask is None else scores + mask).softmax(-1)


def find_weighting(attention: AttentionModule) -> Weighting | None:
    """What weighs the keys of a module; None: softmax."""
    found: Weighting | None = getattr(attention, WEIGHTING, None)
    return found


def routed_weighting(
    branches: Sequence[AttentionModule],
    routes: Routes,
    columns: range,
    flip: bool,
    pair: Tensor | None,
) -> Weigh | None:
    """What weighs the keys where each head of each sample takes its branch's mechanism.

    Twins are copies, so that both branches have one or none. `pair` (B, F) is for a span policy.
    """
    zero, one = (find_weighting(branch) for branch in branches)
    if zero is None or one is None:
        assert zero is one, "one branch has a mechanism of attention, the other has none"
        return None
    rows = [routes.both(column, flip) for column in columns]
    chosen = torch.stack([_taken(both, routes.batch) for both in rows], 1)[:, :, None, None]

    def weigh(scores: Tensor, mask: Tensor | None) -> Tensor:
        return torch.where(
            chosen, one(scores, mask, one.shares(pair)), zero(scores, mask, zero.shares(pair))
        )

    return weigh


def _taken(rows: Rows, batch: int) -> Tensor:
    """(B,) bool: the samples that take branch 1."""
    chosen = torch.zeros(batch, dtype=torch.bool, device=rows[1].device)
    return chosen.index_fill(0, rows[1], True)


def routed_projection(
    x: Tensor,
    branches: Sequence[AttentionModule],
    names: Sequence[str],
    routes: Routes,
    columns: range,
    flip: bool,
    both: bool = False,
) -> tuple[Tensor, ...]:
    """Project x (B, T, C), each (sample, head) by the branch that its decision names.

    Returns a (B, H, T, c) tensor for each of `names`; with `both` another one for each, by the
    other branch and without gradients.
    """
    linears: list[nn.Linear] = [getattr(branch, name) for branch in branches for name in names]
    rows = [routes.both(column, flip) for column in columns]
    return project_by_head(
        x, rows, [linear.weight for linear in linears], [linear.bias for linear in linears], both
    )


def bert_steps(
    stream: str,
    prefix: str = "",
    attention: str = "attention",
    intermediate: str = "intermediate",
    output: str = "output",
    mask: str | None = None,
    source: str | None = None,
    activation: Callable[[Tensor], Tensor] = F.gelu,
) -> tuple[Step, ...]:
    """The four steps of a BERT layer (or of one stream's half of a cross layer).

    Args:
        stream: slot that the layer reads and writes, e.g. `lang`.
        prefix: put before component and part names where a layer has several streams (`lang.`).
        attention, intermediate, output: attribute paths of the modules.
        mask: slot of the additive key mask; default `<stream>.mask`.
        source: slot read instead of `stream` when an earlier step of the layer replaced it.
        activation: of the intermediate step.
    """
    source = source or stream
    context, attended, expanded = (f"{stream}.{s}" for s in ("context", "attended", "expanded"))
    self_attention, ffn = f"{prefix}attention", f"{prefix}ffn"
    return (
        HeadsStep(
            f"{prefix}head",
            self_attention,
            f"{attention}.self",
            (source, source, mask or f"{stream}.mask", PAIR),
            (context,),
        ),
        DenseStep(
            f"{prefix}attention.output",
            self_attention,
            f"{attention}.output",
            (context, source),
            (attended,),
        ),
        ExpandStep(
            f"{prefix}intermediate",
            ffn,
            intermediate,
            (attended,),
            (expanded,),
            activation=activation,
        ),
        DenseStep(f"{prefix}output", ffn, output, (expanded, attended), (stream,)),
    )


@dataclass(frozen=True)
class Layer:
    """A layer of an encoder as the core sees it: name, path, module, steps and streams.

    `path` is where the encoder keeps the module. A pass through the encoder looks it up there, so
    that copies and replicas of the encoder use their own.

    `streams` are the slots that the layer hands on, with their numbers of channels; names follow
    the order of execution (`lang.3`). Slots within a layer have a dot in their names; all but the
    masks are forgotten after it.
    """

    name: str
    path: str
    module: nn.Module = field(repr=False)
    steps: tuple[Step, ...]
    streams: dict[str, int]
    heads: int


def live_steps(
    layers: Sequence[Layer],
    reads: Sequence[str],
    skippable: bool = False,
    first: Sequence[str] = (),
) -> tuple[list[tuple[Step, ...]], list[tuple[str, ...]]]:
    """Which steps of each layer can reach the slots read at the end, and which streams it hands on.

    Args:
        layers: in execution order.
        reads: slots that are read after the last layer.
        skippable: whether a layer may be bypassed, so that its streams are read before it too.
        first: those of `reads` of which only the first position is read; steps that reach nothing
            else are `first_only`.

    Returns:
        Per layer the live steps, and per layer the streams that are needed after it.
    """
    needed = set(reads)
    whole = needed - set(first)
    steps: list[tuple[Step, ...]] = []
    streams: list[tuple[str, ...]] = []
    for layer in reversed(layers):
        after, whole_after = needed & set(layer.streams), whole & set(layer.streams)
        streams.append(tuple(s for s in layer.streams if s in after))
        live = []
        for step in reversed(layer.steps):
            written = set(step.writes)
            if needed & written:
                if not whole & written:
                    step = replace(step, first_only=True)
                live.append(step)
                needed = (needed - written) | set(step.reads)
                whole = (whole - written) | step.reads_in_full()
        steps.append(tuple(reversed(live)))
        if skippable:
            needed |= after
            whole |= whole_after
    return steps[::-1], streams[::-1]
