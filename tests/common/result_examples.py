"""Synthetic results, in the shape that the training loop writes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

BLOCK_STRATEGIES = ("SpotTune_Block", "BlockDrop", "BlockReplace")
STATIC_STRATEGIES = ("standard", "Frozen", "LastK", "FrozenLayers")
Layout = list[tuple[str, str, bool]]


def heads(prefix: str, count: int) -> list[str]:
    """`cross.head.1` … for a prefix `cross.`."""
    return [f"{prefix}head.{number}" for number in range(1, count + 1)]


def stream_components(strategy: str, count: int) -> list[str]:
    """Components of one layer of a single stream with `count` heads."""
    if strategy in BLOCK_STRATEGIES:
        return [""]
    if strategy == "SpotTune_Res":
        return ["attention", "ffn"]
    return [*heads("", count), "attention.output", "intermediate", "output"]


def cross_components(strategy: str, count: int) -> list[str]:
    """Components of one LXMERT cross layer."""
    if strategy in BLOCK_STRATEGIES:
        return [""]
    if strategy == "SpotTune_Res":
        return ["cross", "lang.attention", "vision.attention", "lang.ffn", "vision.ffn"]
    attention = [
        part
        for side in ("cross", "lang", "vision")
        for part in (
            *heads(f"{side}.", count),
            f"{side}.output" if side == "cross" else f"{side}.attention.output",
        )
    ]
    return [*attention, "lang.intermediate", "vision.intermediate", "lang.output", "vision.output"]


def lxmert_layout(
    strategy: str, layers: tuple[int, int, int] = (9, 5, 5), count: int = 12
) -> Layout:
    """(layer, component, live) of every decision; the last cross layer's vision half is dead."""
    found = [
        (f"{stream}.{number}", component, True)
        for stream, depth in zip(("lang", "vision"), layers, strict=False)
        for number in range(1, depth + 1)
        for component in stream_components(strategy, count)
    ]
    for number in range(1, layers[2] + 1):
        for component in cross_components(strategy, count):
            dead = number == layers[2] and component.startswith("vision.")
            found.append((f"cross.{number}", component, not dead))
    return found


def single_stream_layout(strategy: str, depth: int = 12, count: int = 12) -> Layout:
    """The decisions of a single-stream backbone (VL-BERT)."""
    return [
        (f"layer.{number}", component, True)
        for number in range(1, depth + 1)
        for component in stream_components(strategy, count)
    ]


def make_decisions(layout: Layout, rng: random.Random, count: int = 500) -> dict[str, Any]:
    """Decisions with random shares; every other type differs a little from the overall share."""
    share = [round(rng.random(), 3) for _ in layout]
    live = [alive for _, _, alive in layout]
    alive = [value for value, is_live in zip(share, live, strict=True) if is_live]

    def shifted(step: float) -> list[float]:
        return [min(1.0, max(0.0, value + step * rng.random())) for value in share]

    return {
        "names": [".".join(filter(None, (layer, part))) for layer, part, _ in layout],
        "layers": [layer for layer, _, _ in layout],
        "components": [part for _, part, _ in layout],
        "share": share,
        "live": live,
        "count": count,
        "share_by_type": {
            "yes/no": {"count": 300, "share": shifted(0.2)},
            "other": {"count": 200, "share": shifted(-0.3)},
        },
        "mean_live": sum(alive) / len(alive),
    }


def make_epochs(
    decisions: dict[str, Any] | None, count: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Epochs whose loss falls, and whose decisions move from one half to the final share."""
    epochs = []
    for epoch in range(count):
        done = (epoch + 1) / count
        moved = (
            None
            if decisions is None
            else {
                "share": [0.5 + done * (value - 0.5) for value in decisions["share"]],
                "count": 120,
            }
        )
        epochs.append(
            {
                "epoch": epoch,
                "train_loss": 3.0 * (1.1 - done) + 0.1 * rng.random(),
                "train_accuracy": 60 + 25 * done,
                "heldout": {
                    "overall": 58 + 20 * done,
                    "yes/no": 62 + 20 * done,
                    "number": None,
                    "other": 50 + 20 * done,
                    "count": 120,
                },
                "decisions": moved,
                "train_decisions": moved,
                "seconds": 12.5,
                "policy_temperature": None if decisions is None else 5.0 * (1.2 - done),
            }
        )
    return epochs


def make_result(
    strategy: str = "SpotTune_Block",
    *,
    backbone: str = "lxmert",
    seed: int = 9595,
    val: float = 80.0,
    layout: Layout | None = None,
    epochs: int = 4,
    **changes: Any,
) -> dict[str, Any]:
    """A complete result; `changes` replace its top-level keys."""
    rng = random.Random(f"{strategy} {seed}")
    if layout is None and strategy not in STATIC_STRATEGIES:
        make = lxmert_layout if backbone == "lxmert" else single_stream_layout
        layout = make(strategy)
    decisions = make_decisions(layout, rng) if layout else None
    result = {
        "backbone": backbone,
        "task": "vqa",
        "dataset": "easy_vqa",
        "strategy": strategy,
        "policy": "small" if decisions else None,
        "size": "small",
        "seed": seed,
        "name": "v1",
        "command": f"bash run/vqa_finetune.bash 0 v1 --strategy={strategy}",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "device": "cpu",
        "precision": "fp32",
        "accuracy": {
            "train": {
                "overall": val + 5,
                "yes/no": val + 6,
                "number": None,
                "other": val + 2,
                "count": 4000,
            },
            "val": {
                "overall": val,
                "yes/no": val + 3,
                "number": None,
                "other": val - 9,
                "count": 500,
            },
        },
        "generalization_error": 5.0,
        "baselines": {
            "majority": {"overall": 51.0, "yes/no": 64.5, "number": None, "other": 11.5},
            "question_only": {"overall": 55.0, "yes/no": 65.25, "number": None, "other": 22.0},
        },
        "parameters": {
            "trainable": 2_500_000,
            "frozen": 1_250_000,
            "policy": 300_000 if decisions else 0,
        },
        "decisions": decisions,
        "time": {"train_step_s": 0.125, "eval_sample_s": 0.002, "total_s": 140.0},
        "memory": {"peak_rss_bytes": 812_000_000, "peak_cuda_bytes": None},
        "selection": "held-out tenth of train",
        "epochs": make_epochs(decisions, epochs, rng),
        "warnings": [],
    }
    return result | changes


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Write a result as a run does; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    return path
