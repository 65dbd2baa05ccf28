"""Optimisers by name, each with its learning-rate schedule, so that a run resumes bit-identically.

`make_optimizer("bert", model.parameters(), lr=5e-5, total_steps=8_000)` is the recipe of LXMERT
and ViLBERT: BertAdam, which has no bias correction, decays every tensor, and counts its updates
per tensor from 0, so that the very first update has learning rate 0, as upstream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.errors import CheckpointError, ConfigError
from common.training.bert_adam import BertAdam
from common.training.moments import update_moments

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
SCHEDULES = ("linear", "constant", "steps", "cyclic")
OURS = ("steps", "cyclic")  # schedules that count the updates of all tensors
# Settings of a group that depend on where it is computed, not on what.
OF_THIS_RUN = ("schedule", "fused", "foreach", "capturable")


class DecayAfterAdam(Optimizer):
    """The AdamW of VL-BERT.

    It differs from torch's in two ways: eps is added to the root of the second moment before that
    is corrected for its start at 0, and the decay multiplies the updated parameter.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch: or a function
        """Update every parameter that has a gradient; each counts its own updates."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            (beta1, beta2), lr = group["betas"], group["lr"]
            mean, root = update_moments(self, parameters, group["betas"], group["eps"])
            states = [self.state[p] for p in parameters]
            for state in states:
                state["step"] = state.get("step", 0) + 1
            sizes = [
                -lr * (1 - beta2 ** s["step"]) ** 0.5 / (1 - beta1 ** s["step"]) for s in states
            ]
            torch._foreach_addcdiv_(parameters, mean, root, sizes)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])


Build = Callable[[list[dict[str, Any]], dict[str, Any]], Optimizer]


@dataclass(frozen=True)
class OptimizerKind:
    """How a name becomes an optimiser.

    Attributes:
        build: (groups, options) → optimiser; imports its library when called.
        weight_decay: where the caller names none.
        defaults: further constructor arguments where the caller names none.
    """

    build: Build
    weight_decay: float = 0.0
    defaults: Mapping[str, Any] = field(default_factory=dict)


# The library would divide LAMB's steps by 1 - β1^t after it has brought them to the length of the
# tensor, so that the first one is ten times too long; it calls leaving that out `adam_debias`.
LAMB = {"adam_debias": True}


def _lamb(groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    from pytorch_optimizer import Lamb

    return Lamb(groups, **options)


def _lookahead(base: Callable[..., Optimizer], late: bool) -> Build:
    def build(groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
        from common.training.lookahead import Lookahead

        own = {key: options.pop(key) for key in ("k", "alpha") if key in options}
        return Lookahead(base(groups, options), late=late, **own)

    return build


def _published_lamb(groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    from common.training.lookahead import PublishedLamb

    return PublishedLamb(groups, **options)


def _adamw(groups: list[dict[str, Any]], options: dict[str, Any]) -> Optimizer:
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    optimizer = torch.optim.AdamW(groups, **{"fused": fused} | options)
    # GradScaler then leaves out a step itself after an overflow, as for every other optimiser.
    optimizer._step_supports_amp_scaling = False
    return optimizer


OPTIMIZERS: dict[str, OptimizerKind] = {
    "bert": OptimizerKind(lambda groups, options: BertAdam(groups, **options), 0.01),
    "adamw": OptimizerKind(_adamw, 0.01),
    "adam": OptimizerKind(lambda groups, options: torch.optim.Adam(groups, **options)),
    "adamax": OptimizerKind(lambda groups, options: torch.optim.Adamax(groups, **options)),
    "sgd": OptimizerKind(lambda groups, options: torch.optim.SGD(groups, **options)),
    "rms": OptimizerKind(lambda groups, options: torch.optim.RMSprop(groups, **options)),
    "lamb": OptimizerKind(_lamb, 0.01, LAMB),
    "lookahead_lamb": OptimizerKind(_lookahead(_lamb, late=False), 0.01, LAMB),
    # Those of the adaptive LXMERT, see `common.training.lookahead`.
    "published_lamb": OptimizerKind(_published_lamb, 1.2e-6),
    "published_lookahead_lamb": OptimizerKind(_lookahead(_published_lamb, late=True), 1.2e-6),
    "vlbert_adamw": OptimizerKind(lambda groups, options: DecayAfterAdam(groups, **options), 1e-4),
}


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate: linear warm-up, then linear decay to 0 or constant.

    Attributes:
        kind: of SCHEDULES (`steps` is a StepSchedule, `cyclic` a CyclicSchedule).
        total_steps: updates in the whole run.
        warmup: share of them that warms up, in [0, 1).
        first_step: what the first update counts as. 0: it has factor 0 (BertAdam). 1: it has the
            first step of the warm-up, and the last update has factor 0 (VL-BERT).
    """

    kind: str
    total_steps: int
    warmup: float
    first_step: int

    def factor(self, updates: int) -> float:
        """Factor of the update that follows `updates` earlier ones."""
        progress = (updates + self.first_step) / self.total_steps
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        return max((progress - 1.0) / (self.warmup - 1.0), 0.0)


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """Factor on the learning rate: linear warm-up, then a drop at each milestone.

    Attributes:
        milestones: updates from which on the factor is multiplied by `gamma` once more.
        gamma: below 1.
        warmup_factor: where the warm-up starts.
    """

    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_factor: float = 0.0

    def factor(self, updates: int) -> float:
        """Factor of the update that follows `updates` earlier ones."""
        update = updates + self.first_step
        warm_updates = round(self.warmup * self.total_steps)
        warm = min(update / warm_updates, 1.0) if warm_updates else 1.0
        dropped = self.gamma ** sum(update >= milestone for milestone in self.milestones)
        return (self.warmup_factor * (1 - warm) + warm) * dropped


@dataclass(frozen=True)
class CyclicSchedule(Schedule):
    """Factor on the learning rate: up from `lowest` to 1 and down again, over and over (triangular,
    Smith 2017); the first update has the lowest.

    Attributes:
        up, down: updates from one end to the other.
        lowest: factor, 0..1.
    """

    up: int = 2000
    down: int = 2000
    lowest: float = 0.2

    def factor(self, updates: int) -> float:
        """Factor of the update that follows `updates` earlier ones."""
        place = (updates + self.first_step) % (self.up + self.down)
        height = place / self.up if place <= self.up else (self.up + self.down - place) / self.down
        return self.lowest + (1 - self.lowest) * height


class OptimizerWithSchedule:
    """An optimiser that sets its own learning rate.

    Parameters without a gradient are skipped. `state_dict` holds tensors and plain values only.

    Attributes:
        optimizer: the torch optimiser, for GradScaler and inspection.
        schedule: its schedule; the optimiser `bert` follows it per tensor, but for those of OURS.
        updates: number of updates done.
    """

    def __init__(self, name: str, optimizer: Optimizer, schedule: Schedule) -> None:
        self.name, self.optimizer, self.schedule, self.updates = name, optimizer, schedule, 0
        self._base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.updates += 1

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups."""
        return self.optimizer.param_groups

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def base_lr(self) -> float:
        """Learning rate before the schedule, first group."""
        return self._base_lrs[0]

    @property
    def lr(self) -> float:
        """Learning rate of the next update, first group.

        With `bert`, of a tensor that had a gradient in every update so far.
        """
        return self._base_lrs[0] * self.schedule.factor(self.updates)

    def step(self, scaler: torch.amp.GradScaler | None = None) -> bool:
        """Update the parameters once, at the learning rate of the schedule.

        Args:
            scaler: loss scaling (fp16). The caller calls its `update()`, once after all
                optimisers have stepped.

        Returns:
            False if the scaler left the update out because of an overflow; the schedule then
            does not advance.
        """
        before = self.updates
        if self.name != "bert" or self.schedule.kind in OURS:
            factor = self.schedule.factor(self.updates)
            for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=False):
                group["lr"] = base * factor
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
        return self.updates > before

    def pass_over(self, updates: int) -> None:
        """Go on in the schedule as if so many updates had been done (not with `bert`'s own)."""
        self.updates += updates

    def zero_grad(self) -> None:
        """Drop all gradients (None, not zeros)."""
        self.optimizer.zero_grad(set_to_none=True)

    def clip(self, max_norm: float | None, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Scale the gradients down to a total L2 norm.

        Args:
            max_norm: of all gradients of this optimiser together; None or 0 only measures.
            scaler: loss scaling; its factor is taken out first.

        Returns:
            The norm before clipping, 0-d, on the device of the parameters.
        """
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        return clip_grad_norm(self.parameters, max_norm)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to continue, for `save_checkpoint`."""
        inner = self.optimizer.state_dict()
        groups = [
            {key: value for key, value in group.items() if key != "schedule"}
            for group in inner["param_groups"]
        ]
        return {
            "name": self.name,
            "updates": self.updates,
            "schedule": vars(self.schedule).copy(),
            "base_lrs": list(self._base_lrs),
            "optimizer": {"state": inner["state"], "param_groups": groups},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` of the same optimiser over the same parameters.

        Raises:
            CheckpointError: other name, schedule, or number of parameters.
        """
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        saved = [len(group["params"]) for group in state["optimizer"]["param_groups"]]
        here = {"optimizer": self.name, "parameters per group": sizes} | vars(self.schedule)
        there = {"optimizer": state["name"], "parameters per group": saved} | state["schedule"]
        differences = [
            f"{key} is {there.get(key)!r} in the checkpoint, this run has {value!r}"
            for key, value in here.items()
            if there.get(key) != value
        ]
        if differences:
            raise CheckpointError(
                f"the optimiser cannot continue: {'; '.join(differences)}. Resume with the same "
                "settings, or start a new run from the weights with --load"
            )
        groups = [
            {**saved_group, **{k: own[k] for k in OF_THIS_RUN if k in own}}
            for saved_group, own in zip(
                state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=False
            )
        ]
        self.optimizer.load_state_dict(
            {"state": state["optimizer"]["state"], "param_groups": groups}
        )
        self.updates, self._base_lrs = state["updates"], list(state["base_lrs"])


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """Total L2 norm of the gradients, 0-d; they are scaled down to `max_norm` unless it is 0."""
    if max_norm:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    # Not clipped to infinity: an infinite norm times 0 would make NaN of finite gradients.
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_key(name: str) -> str:
    """The key of OPTIMIZERS that a name means.

    Raises:
        ConfigError: unknown name.
    """
    key = name.lower()
    if key not in OPTIMIZERS and "bert" in key:
        return "bert"
    if key not in OPTIMIZERS:
        raise ConfigError(f"unknown optimiser {name!r}; valid: {', '.join(OPTIMIZERS)}")
    return key


def make_optimizer(
    name: str,
    params: Parameters,
    lr: float,
    total_steps: int,
    warmup: float = 0.1,
    weight_decay: float | None = None,
    schedule: str = "linear",
    first_step: int | None = None,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup_factor: float = 0.0,
    cycle_up: int = 2000,
    cycle_down: int | None = None,
    lowest_lr: float | None = None,
    **options: Any,
) -> OptimizerWithSchedule:
    """An optimiser with its schedule.

    Args:
        name: a key of OPTIMIZERS; any other name with `bert` in it means `bert` (as upstream).
        params: parameters, or groups (dicts with `params` and, if wanted, `lr`, `weight_decay`).
        lr: highest learning rate.
        total_steps: updates in the whole run (all epochs), also if this process does fewer.
        warmup: share of them that warms up, in [0, 1).
        weight_decay: on every tensor, biases and LayerNorm too. None: 0.01 for bert, adamw, lamb
            and lookahead_lamb, 1e-4 for vlbert_adamw (which decay the weight itself), 1.2e-6 for
            the published LAMB (part of the step that it scales), 0 for the others (which add it to
            the gradient).
        schedule: `linear`, `constant` or `steps`, after the warm-up; or `cyclic`, without one.
        first_step: see `Schedule`; None: 0 for bert and `cyclic`, 1 for the others.
        milestones, gamma, warmup_factor: of `steps`, see `StepSchedule`.
        cycle_up, cycle_down: of `cyclic`: updates from the lowest to the highest learning rate, and
            back (None: as many).
        lowest_lr: of `cyclic`; None: a fifth of `lr`. Groups with a rate of their own keep the
            ratio.
        options: further arguments of the optimiser's class, such as `betas`, `eps`, `momentum`.

    Raises:
        ConfigError: unknown name or option, or a value that makes no sense.
    """
    key = optimizer_key(name)
    if first_step is None:
        first_step = 0 if key == "bert" or schedule == "cyclic" else 1
    plan = Schedule(schedule, total_steps, warmup, first_step)
    if schedule == "steps":
        plan = StepSchedule(
            schedule, total_steps, warmup, first_step, tuple(milestones), gamma, warmup_factor
        )
    elif schedule == "cyclic":
        lowest = _lowest_factor(lowest_lr, lr)
        down = cycle_up if cycle_down is None else cycle_down
        plan = CyclicSchedule(schedule, total_steps, warmup, first_step, cycle_up, down, lowest)
    _check_schedule(plan, key, lr)
    kind, groups = OPTIMIZERS[key], _groups(params)
    decay = kind.weight_decay if weight_decay is None else weight_decay
    arguments = {**kind.defaults, "lr": lr, "weight_decay": decay, **options}
    if key == "bert" and schedule not in OURS:
        arguments["schedule"] = plan  # of each tensor; elsewhere that of all sets the rate
    try:
        optimizer = kind.build(groups, arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimiser {key}: {error}") from error
    return OptimizerWithSchedule(key, optimizer, plan)


def _lowest_factor(lowest: float | None, highest: float) -> float:
    if lowest is None:
        return 0.2
    if not 0 <= lowest <= highest or not highest:
        raise ConfigError(
            f"lowest learning rate {lowest:g}: give a number from 0 to the highest, {highest:g}"
        )
    return lowest / highest


def _check_schedule(plan: Schedule, name: str, lr: float) -> None:
    if plan.kind not in SCHEDULES:
        raise ConfigError(f"unknown schedule {plan.kind!r}; valid: {', '.join(SCHEDULES)}")
    if plan.total_steps < 1:
        raise ConfigError(
            f"total_steps {plan.total_steps}: there must be at least one update; is "
            "the batch larger than the data set?"
        )
    if not 0.0 <= plan.warmup < 1.0:
        raise ConfigError(f"warmup {plan.warmup}: give a share of the steps, 0 ≤ warmup < 1")
    if isinstance(plan, CyclicSchedule) and plan.warmup:
        raise ConfigError(f"warmup {plan.warmup}: a cyclic learning rate has none; give warmup 0")
    if isinstance(plan, CyclicSchedule) and min(plan.up, plan.down) < 1:
        raise ConfigError(
            f"a cycle of {plan.up} updates up and {plan.down} down: give at least 1 of each"
        )
    if name == "bert" and plan.first_step != 0:
        raise ConfigError("the optimiser bert counts its updates from 0; first_step is for others")
    if not 0.0 <= lr < float("inf"):
        raise ConfigError(f"learning rate {lr}: give a finite number ≥ 0")


def _groups(params: Parameters) -> list[dict[str, Any]]:
    entries = list(params)
    if entries and isinstance(entries[0], dict):
        groups = [
            {**group, "params": list(group["params"])}
            for group in cast(list[dict[str, Any]], entries)
        ]
    else:
        groups = [{"params": entries}]
    if not any(group["params"] for group in groups):
        raise ConfigError("no parameters to optimise: everything is frozen")
    return groups
