"""What pretraining has in common for all backbones: the small file of a model, and its log."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.adapt.adapting import parameter_counts
from common.data.tokenizer import Tokenizer
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.loop import Trainer
from common.training.runtime import peak_memory, versions
from common.training.tracking import Tracker


def export_half(
    snapshot: Path,
    path: Path,
    tokenizer: Tokenizer,
    tracker: Tracker,
    leave_out: Collection[str] = (),
) -> None:
    """Write a snapshot's weights in float16, with its metadata, and the vocabulary beside it.

    The metadata also gets `held_out`: what was measured on held-out samples in that epoch.

    Args:
        snapshot: the checkpoint.
        path: of the new file; its folder is made.
        leave_out: names of tensors that are left out.
    """
    state, meta = load_checkpoint(snapshot)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {
        name: x.to(torch.float16) if x.is_floating_point() else x
        for name, x in state["model"].items()
        if name not in leave_out
    }
    progress = state["progress"]
    best = progress["history"][progress["best_epoch"]]
    held_out = {name: value for name, value in best.items() if name.startswith("heldout_")}
    save_checkpoint(path, {"model": weights}, meta | {"held_out": held_out})
    (path.parent / "vocab.txt").write_text(tokenizer.text(), encoding="utf-8")
    tracker.log(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def pretraining_result(
    trainer: Trainer,
    identity: Mapping[str, Any],
    command: str,
    start: float,
    accuracies: Mapping[str, float],
    losses: Mapping[str, float],
    selection: str,
) -> dict[str, Any]:
    """Everything that result.json holds.

    Args:
        trainer: at the end of the run; its metadata has `training`.
        identity: backbone, dataset, size, seed and name.
        command: as it was typed.
        start: when the run began, seconds of `time.perf_counter`.
        accuracies, losses: of the best epoch on what was held out; accuracies in percent, with
            the number of samples as `count`.
        selection: how the best epoch was chosen.
    """
    runtime, history = trainer.runtime, trainer.history
    return {
        **identity,
        "task": "pretraining",
        "strategy": "standard",
        "policy": None,
        "command": command,
        "versions": versions(),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "processes": runtime.world.size,
        "accuracy": {"train": {}, "val": dict(accuracies)},
        "losses": {"train": history[trainer.best_epoch]["train_losses"], "val": dict(losses)},
        "parameters": parameter_counts(trainer.model),
        "decisions": None,
        "time": {
            "train_step_s": statistics.median(e["step_seconds"] for e in history),
            "total_s": trainer.earlier_seconds + time.perf_counter() - start,
        },
        "memory": trainer.peak_memory or peak_memory(),
        "recipe": trainer.meta["training"],
        "selection": selection,
        "best_epoch": trainer.best_epoch,
        "epochs": history,
    }
