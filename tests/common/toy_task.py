"""A task small enough to train in a test, on the tiny models of `tiny_models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common.adapt.adapting import parameter_groups
from common.adapt.budget import BudgetOptions
from common.modules.attention import AttentionOptions
from common.training.batch_order import BatchOrder
from common.training.checkpoint import load_checkpoint
from common.training.loop import LoopOptions, Trainer
from common.training.optim import make_optimizer
from common.training.runtime import Runtime, make_runtime, seed_everything
from common.training.task import StepOutput, TaskBatch, Validation
from common.training.tracking import Tracker
from tests.common.tiny_models import FAMILIES, adapted

SAMPLES = 22


class ToyTask:
    """Classify token sequences by their first token; reads are deterministic.

    The loss `marked` is a mean over the samples of classes 1 … 4 only, as that of masked words is
    one over the words that are masked: parts of a batch have different numbers of them.
    """

    def __init__(
        self, scores: list[float] | None = None, poison: int | None = None, family: str = "single"
    ) -> None:
        self.inputs = FAMILIES[family].inputs(SAMPLES)
        words = self.inputs["question" if family == "vlbert" else "input_ids"]
        self.labels = words[:, 0] % 5
        self.scores, self.poison, self.steps = scores, poison, 0

    def __len__(self) -> int:
        return SAMPLES

    def read(self, indices, epoch):
        labels = self.labels[indices]
        return TaskBatch(
            list(indices),
            {k: x[indices] for k, x in self.inputs.items()},
            {"label": labels},
            ["even" if i % 2 else "odd" for i in indices],
            {"marked": float((labels > 0).sum())},
        )

    def step(self, model, batch):
        logits, labels = model(**batch.inputs), batch.labels["label"]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        marked = labels > 0
        other = (logits.square().sum(1) * marked).sum() / marked.sum().clamp(min=1)
        if self.steps == self.poison:
            loss = loss * float("nan")
        self.steps += 1
        right = (logits.argmax(1) == labels).double()
        losses = {"answer": loss, "marked": 0.01 * other}
        return StepOutput(losses, right.sum(), len(labels), right)

    def validate(self, model):
        model.eval()
        with torch.no_grad():
            device = next(model.parameters()).device
            logits = model(**{name: x.to(device) for name, x in self.inputs.items()}).cpu()
        score = 100 * (logits.argmax(1) == self.labels).float().mean().item()
        return Validation(self.scores.pop(0) if self.scores else score, {"heldout": score})


def make_trainer(
    folder: Path,
    max_steps: int = 0,
    task: ToyTask | None = None,
    strategy: str = "SpotTune",
    family: str = "single",
    double: bool = False,
    dropout: float = 0.2,
    runtime: Runtime | None = None,
    optimizer: str = "bert",
    attention: AttentionOptions | None = None,
    decider: str = "small",
    **options,
) -> Trainer:
    """A trainer of 3 epochs of 5 steps; float32 unless `double`."""
    seed_everything(1)
    model = adapted(family, strategy, dropout=dropout, policy=decider, attention=attention)
    model = model if double else model.float()
    settings = {
        "epochs": 3,
        "batch_size": 4,
        "seed": 5,
        "max_steps": max_steps,
        "progress": False,
        "temperature": 5.0,
        "temperature_end": 1.0,
        "budget": BudgetOptions(target_rate=0.5),
    } | options
    task = task or ToyTask(family=family)
    steps = BatchOrder(SAMPLES, settings["batch_size"], 0).steps * settings["epochs"]
    runtime = runtime or make_runtime("cpu")
    model.to(runtime.device)
    groups = parameter_groups(model)
    main = make_optimizer(optimizer, groups["trainable"], 1e-2, steps)
    policy = make_optimizer("adamw", groups["policy"], 1e-2, steps) if groups["policy"] else None
    if runtime.world.size > 1:
        seed_everything(1 + runtime.world.rank)
    return Trainer(
        model,
        task,
        main,
        policy,
        runtime,
        LoopOptions(**settings),
        folder,
        Tracker(folder, tensorboard=False, enabled=runtime.world.main),
        {"strategy": strategy},
    )


def flat(value: Any, name: str = "") -> dict[str, float]:
    """All numbers in dictionaries and lists, by path."""
    if isinstance(value, dict):
        value = list(value.items())
    elif isinstance(value, list):
        value = list(enumerate(value))
    else:
        return {} if value is None else {name: value}
    return {k: x for key, item in value for k, x in flat(item, f"{name}.{key}").items()}


def final_state(folder: Path) -> dict:
    """What LAST in a folder holds."""
    state, _ = load_checkpoint(folder / "LAST.safetensors")
    return state


def same(a: Any, b: Any, path: str = "") -> None:
    """Equal bit for bit; wall-clock times left out."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in ("seconds", "step_seconds", "lr"):
                same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}[{i}]")
    elif hasattr(a, "shape"):
        assert (a == b).all(), path
    else:
        assert a == b, path
