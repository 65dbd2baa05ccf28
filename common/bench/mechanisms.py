"""What mechanisms of attention and LayerDrop cost: models, and the table."""

from __future__ import annotations

from typing import Any

from torch import nn

from common.adapt.attention import set_attention
from common.adapt.layerdrop import LayerDrop, LayerDropping
from common.bench.cases import LAYERDROP, MECHANISMS, Case
from common.bench.results import BenchFile

RATE = 0.2  # of LayerDrop


def give_mechanism(model: nn.Module, mechanism: str) -> LayerDropping | None:
    """Put a mechanism into a plain model; returns what leaves out layers, if it is LayerDrop."""
    if mechanism == LAYERDROP:
        return LayerDropping(model, LayerDrop(RATE))
    if mechanism:
        set_attention(model, MECHANISMS[mechanism])
    return None


def format_mechanisms(file: BenchFile, precision: str, cell: Any) -> str:
    """The table in Markdown, or nothing; `cell` writes a record."""
    rows = []
    for name in (*MECHANISMS, LAYERDROP):
        step, evaluation = (
            file.get(Case(mode, "standard", precision=precision, mechanism=name))
            for mode in ("train", "eval")
        )
        if step or evaluation:
            kept = f"{step['activation_ratio']:.2f}" if step else "–"
            rows.append(f"| {name} | {cell(step)} | {cell(evaluation)} | {kept} |")
    if not rows:
        return ""
    head = f"| softmax over all keys in {precision} = 1 | step | evaluation | activations |"
    return "\n".join([head, "| :-- | --: | --: | --: |", *rows]) + (
        f"\n\nSpans as wide as all keys. LayerDrop leaves out each layer with probability {RATE:g} "
        "in a step, others in every round; evaluation has all layers."
    )
