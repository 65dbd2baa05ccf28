"""Batch, optimisers and schedules of a config.

LR is per sample: the learning rate of an update is LR times the samples that it is made of
(processes × BATCH_IMAGES × GRAD_ACCUMULATE_STEPS).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.adapt.attention import without_attention
from common.errors import ConfigError
from common.training.optim import OptimizerWithSchedule, make_optimizer
from vlbert.config import Config

OPTIMIZERS = {"AdamW": "vlbert_adamw", "Adam": "adam", "SGD": "sgd"}


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        steps: updates in an epoch.
        epochs: of this run.
        planned_steps, planned_epochs: of the config without what shortens this run (fewer
            questions, fewer epochs): WARMUP_STEPS is part of them.
    """

    steps: int
    epochs: int
    planned_steps: int
    planned_epochs: int

    @property
    def total(self) -> int:
        return self.steps * self.epochs

    def warmup(self, config: Config, section: str) -> float:
        """Share of the updates that warms up; the same for a run that was shortened.

        Raises:
            ConfigError: the whole run would warm up.
        """
        part = config.values[section]
        planned = self.planned_steps * self.planned_epochs
        if not part.WARMUP:
            return 0.0
        if part.WARMUP_SHARE:
            return part.WARMUP_SHARE
        if not 0 <= part.WARMUP_STEPS < planned:
            raise ConfigError(
                f"{config.path}: key {section}.WARMUP_STEPS: {part.WARMUP_STEPS}: the training "
                f"set gives {planned} updates in all ({self.planned_epochs} epochs of "
                f"{self.planned_steps}); set fewer steps, or {section}.WARMUP to false"
            )
        return part.WARMUP_STEPS / planned


def make_main_optimizer(
    config: Config, named: Iterable[tuple[str, nn.Parameter]], length: Length, processes: int
) -> OptimizerWithSchedule:
    """The optimiser of the model.

    Args:
        config: its section TRAIN.
        named: trainable parameters with their names, which LR_MULT looks at.
        length: of the run.
        processes: that train together.

    Raises:
        ConfigError: a schedule that is not supported, or numbers that make no sense.
    """
    lr = config.effective_lr(processes)
    rest, of_attention = without_attention(named, config.values["ATTENTION"].LR)
    groups = multiplied(rest, config.TRAIN.LR_MULT, lr, config)
    return _optimizer(config, "TRAIN", [*groups, *of_attention], lr, length)


def make_policy_optimizer(
    config: Config, parameters: Sequence[nn.Parameter], length: Length, processes: int
) -> OptimizerWithSchedule:
    """The optimiser of the policy network: the section POLICY, with a schedule of its own."""
    lr = config.effective_lr(processes, "POLICY")
    return _optimizer(config, "POLICY", parameters, lr, length)


def multiplied(
    named: Sequence[tuple[str, nn.Parameter]],
    factors: Sequence[tuple[str, float]],
    lr: float,
    config: Config,
) -> list[dict[str, Any]]:
    """Parameter groups: those with a part of a name take its factor, the first that fits.

    Raises:
        ConfigError: a part that no parameter has in its name.
    """
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr * factor} for _, factor in factors]
    rest: list[nn.Parameter] = []
    for name, parameter in named:
        fits = [group for (part, _), group in zip(factors, groups, strict=True) if part in name]
        (fits[0]["params"] if fits else rest).append(parameter)
    for (part, _), group in zip(factors, groups, strict=True):
        if not group["params"]:
            raise ConfigError(
                f"{config.path}: key TRAIN.LR_MULT: {part!r} is in no name of a "
                "trainable parameter, or an earlier part takes them all"
            )
    return [{"params": rest, "lr": lr}, *groups] if rest else groups


def _optimizer(
    config: Config, section: str, parameters: Sequence[Any], lr: float, length: Length
) -> OptimizerWithSchedule:
    part, train = config.values[section], config.TRAIN
    if part.LR_SCHEDULE == "plateau":
        raise ConfigError(
            f"{config.path}: key {section}.LR_SCHEDULE: plateau: not supported (the "
            "original's does not run on this torch either); use triangle or step"
        )
    momentum = {"momentum": part.MOMENTUM} if part.OPTIMIZER == "SGD" else {}
    warmup = length.warmup(config, section)
    if part.LR_SCHEDULE == "triangle":
        schedule: dict[str, Any] = {"schedule": "linear"}
    else:
        if part.WARMUP and part.WARMUP_METHOD != "linear":
            raise ConfigError(
                f"{config.path}: key {section}.WARMUP_METHOD: {part.WARMUP_METHOD}: "
                "only linear is supported"
            )
        milestones = tuple(int(epoch * length.steps) for epoch in train.LR_STEP)
        schedule = {
            "schedule": "steps",
            "milestones": milestones,
            "gamma": train.LR_FACTOR,
            "warmup_factor": part.WARMUP_FACTOR,
        }
    return make_optimizer(
        OPTIMIZERS[part.OPTIMIZER],
        parameters,
        lr,
        length.total,
        warmup=warmup,
        weight_decay=part.WD,
        **schedule,
        **momentum,
    )
