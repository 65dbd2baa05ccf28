"""A layer is a list of named steps over a state of named slots.

A step says what it reads and writes, so residuals and streams are explicit, and it runs on any
module that has the attribute paths it names: a layer of ours, its frozen twin, or a layer of
`transformers`. Shape legend: B batch, T tokens (or regions), H heads, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from common.routing import Routes

State = dict[str, Tensor | None]


@dataclass(frozen=True)
class Step:
    """What all steps have in common.

    `component` names the decision of the `SpotTune` strategy (steps that share weights share it),
    `part` the stretch between two skip connections to which the step belongs (`SpotTune_Res`).
    """

    component: str
    part: str
    module: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def per_head(self) -> bool:
        return isinstance(self, HeadsStep)

    def run(self, layer: nn.Module, state: State) -> State:
        """Compute the written slots from the read ones with the weights of `layer`."""
        raise NotImplementedError


@dataclass(frozen=True)
class HeadsStep(Step):
    """Attention heads up to and without the output projection: reads query, key stream, mask."""

    def run(self, layer: nn.Module, state: State) -> State:
        """query (B, T, C), keys (B, S, C), mask (B, 1, 1, S) or None -> context (B, T, C)."""
        attention = layer.get_submodule(self.module)
        query, keys, mask = (state[slot] for slot in self.reads)
        q, k, v = (split_heads(linear(x), attention.num_attention_heads)
                   for linear, x in ((attention.query, query), (attention.key, keys),
                                     (attention.value, keys)))
        return {self.writes[0]: attend(attention, q, k, v, mask)}

    def run_routed(self, layers: tuple[nn.Module, nn.Module], state: State, routes: Routes,
                   columns: range, flip: bool = False) -> State:
        """As `run`, with head h of sample b taken from layers[decision of (b, h)].

        Only the projections are routed: a head reads its query, key and value from one branch,
        so the attention itself runs once. layers = (frozen, finetuned); `flip` takes the branch
        that was not chosen.
        """
        branches = [layer.get_submodule(self.module) for layer in layers]
        query, keys, mask = (state[slot] for slot in self.reads)
        if self.reads[0] == self.reads[1]:
            q, k, v = routed_projection(query, branches, ("query", "key", "value"),
                                        routes, columns, flip)
        else:
            (q,) = routed_projection(query, branches, ("query",), routes, columns, flip)
            k, v = routed_projection(keys, branches, ("key", "value"), routes, columns, flip)
        return {self.writes[0]: attend(branches[1], q, k, v, mask)}


@dataclass(frozen=True)
class DenseStep(Step):
    """`LayerNorm(residual + dropout(dense(x)))`: reads x and the residual."""

    def run(self, layer: nn.Module, state: State) -> State:
        """x (B, T, C'), residual (B, T, C) -> (B, T, C)."""
        module = layer.get_submodule(self.module)
        x, residual = (state[slot] for slot in self.reads)
        return {self.writes[0]: module(x, residual)}


@dataclass(frozen=True)
class ExpandStep(Step):
    """`gelu(dense(x))`, the erf form."""

    def run(self, layer: nn.Module, state: State) -> State:
        """x (B, T, C) -> (B, T, C')."""
        dense = layer.get_submodule(self.module).dense
        return {self.writes[0]: F.gelu(dense(state[self.reads[0]]))}


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, C / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q (B, H, T, c), k and v (B, H, S, c), additive mask (B, 1, 1, S) -> (B, T, H * c)."""
    dropout = attention.dropout.p if attention.training else 0.0
    if mask is not None:
        mask = mask.to(q.dtype)
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)


def routed_projection(x: Tensor, branches: Sequence[nn.Module], names: Sequence[str],
                      routes: Routes, columns: range, flip: bool) -> list[Tensor]:
    """Project x (B, T, C), each (sample, head) by the branch that its decision names.

    One product per head and branch computes all `names`; returns a (B, H, T, c) tensor for each.
    """
    heads = len(columns)
    weights = [head_weights(branch, names, heads) for branch in branches]
    projected = []
    for head, column in enumerate(columns):
        def branch(value: int, rows: Tensor, head: int = head) -> Tensor:
            weight, bias = weights[value][head]
            return F.linear(rows, weight, bias)
        projected.append(routes.select_one(x, column, branch, flip))
    return list(torch.stack(projected, 1).chunk(len(names), -1))


def head_weights(attention: nn.Module, names: Sequence[str],
                 heads: int) -> list[tuple[Tensor, Tensor]]:
    """Per head the rows of the named projections: [(weight (n * c, C), bias (n * c))] * H."""
    linears = [getattr(attention, name) for name in names]
    weights = torch.cat([linear.weight.unflatten(0, (heads, -1)) for linear in linears], 1)
    biases = torch.cat([linear.bias.unflatten(0, (heads, -1)) for linear in linears], 1)
    return list(zip(weights.unbind(0), biases.unbind(0), strict=True))


def bert_steps(stream: str, prefix: str = "", attention: str = "attention",
               intermediate: str = "intermediate", output: str = "output",
               mask: str | None = None, source: str | None = None) -> tuple[Step, ...]:
    """The four steps of a BERT layer (or of one stream's half of a cross layer).

    Args:
        stream: slot that the layer reads and writes, e.g. `lang`.
        prefix: put before component and part names where a layer has several streams (`lang.`).
        attention, intermediate, output: attribute paths of the modules.
        mask: slot of the additive key mask; default `<stream>.mask`.
        source: slot read instead of `stream` when an earlier step of the layer replaced it.
    """
    source = source or stream
    context, attended, expanded = (f"{stream}.{s}" for s in ("context", "attended", "expanded"))
    self_attention, ffn = f"{prefix}attention", f"{prefix}ffn"
    return (
        HeadsStep(f"{prefix}head", self_attention, f"{attention}.self",
                  (source, source, mask or f"{stream}.mask"), (context,)),
        DenseStep(f"{prefix}attention.output", self_attention, f"{attention}.output",
                  (context, source), (attended,)),
        ExpandStep(f"{prefix}intermediate", ffn, intermediate, (attended,), (expanded,)),
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


def live_steps(layers: Sequence[Layer], reads: Sequence[str],
               skippable: bool = False) -> tuple[list[tuple[Step, ...]], list[tuple[str, ...]]]:
    """Which steps of each layer can reach the slots read at the end, and which streams it hands on.

    Args:
        layers: in execution order.
        reads: slots that are read after the last layer.
        skippable: whether a layer may be bypassed, so that its streams are read before it too.

    Returns:
        Per layer the live steps, and per layer the streams that are needed after it.
    """
    needed = set(reads)
    steps: list[tuple[Step, ...]] = []
    streams: list[tuple[str, ...]] = []
    for layer in reversed(layers):
        after = needed & set(layer.streams)
        streams.append(tuple(s for s in layer.streams if s in after))
        live = []
        for step in reversed(layer.steps):
            if needed & set(step.writes):
                live.append(step)
                needed = (needed - set(step.writes)) | set(step.reads)
        steps.append(tuple(reversed(live)))
        if skippable:
            needed |= after
    return steps[::-1], streams[::-1]
