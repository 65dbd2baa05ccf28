"""What a `result.json` holds, as far as tables, plots and reports read it."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

Figures = dict[str, float | None]


class ShareOfType(TypedDict):
    """Shares of decisions among the questions of one type."""

    share: list[float]
    count: NotRequired[int | None]


class Decisions(TypedDict):
    """Shares of D decisions that were 1, with their names."""

    names: list[str]
    layers: list[str]
    components: list[str]
    share: list[float]
    live: list[bool]
    count: NotRequired[int | None]
    share_by_type: NotRequired[dict[str, ShareOfType] | None]
    mean_live: NotRequired[float | None]


class Told(TypedDict):
    """Mutual information between a decision and a group of samples, nats."""

    most: float
    mean: float
    of: float
    each: list[float]


class PolicyGradient(TypedDict):
    """Norm before clipping; how far the samples agree on its direction, 0 to 1."""

    norm: float
    agreement: float | None


class Drift(TypedDict):
    """Distance of finetuned from frozen weights, as a share of their size."""

    overall: float
    layers: dict[str, float]


class PolicyOfEpoch(TypedDict):
    """What a policy did in an epoch; means over the live decisions, and each of all D."""

    count: int
    p: float
    entropy: float
    spread: float
    each: dict[str, list[float]]
    information: dict[str, Told]
    gradient: PolicyGradient | None
    drift: Drift | None


class Epoch(TypedDict):
    """A finished epoch."""

    epoch: int
    lr: NotRequired[float | None]
    train_loss: NotRequired[float | None]
    train_losses: NotRequired[Figures | None]
    train_accuracy: NotRequired[float | None]
    heldout_score: NotRequired[float | None]
    heldout_losses: NotRequired[Figures | None]
    best_score: NotRequired[float | None]
    seconds: NotRequired[float | None]
    step_seconds: NotRequired[float | None]
    policy_temperature: NotRequired[float | None]
    decisions: NotRequired[ShareOfType | None]
    train_decisions: NotRequired[ShareOfType | None]
    attention: NotRequired[dict[str, dict[str, list[float]]] | None]
    policy: NotRequired[PolicyOfEpoch | None]


class Flops(TypedDict):
    """Floating-point operations in evaluation mode: the mean of so many samples."""

    per_sample: float
    samples: int


class Accuracy(TypedDict):
    """Percent, and the number of questions, per part."""

    val: Figures
    train: NotRequired[Figures | None]
    val_permuted: NotRequired[Figures | None]


class ResultFile(TypedDict):
    """A whole result."""

    backbone: str
    dataset: str
    strategy: str
    accuracy: Accuracy
    parameters: Figures
    task: NotRequired[str | None]
    policy: NotRequired[str | None]
    size: NotRequired[str | None]
    seed: NotRequired[int | None]
    name: NotRequired[str | None]
    variant: NotRequired[str | None]
    command: NotRequired[str | None]
    selection: NotRequired[str | None]
    policy_eval: NotRequired[str | None]
    precision: NotRequired[str | None]
    device: NotRequired[str | None]
    processes: NotRequired[int | None]
    generalization_error: NotRequired[float | None]
    best_epoch: NotRequired[int | None]
    baselines: NotRequired[dict[str, Figures] | None]
    decisions: NotRequired[Decisions | None]
    flops: NotRequired[Flops | None]
    attention_zero_share: NotRequired[float | None]
    time: NotRequired[Figures | None]
    memory: NotRequired[Figures | None]
    versions: NotRequired[dict[str, str | None] | None]
    recipe: NotRequired[dict[str, object] | None]
    epochs: NotRequired[list[Epoch] | None]
    warnings: NotRequired[list[str] | None]
