"""BertAdam (the optimiser of BERT, LXMERT and ViLBERT) in a few launches for all tensors.

Its update is that of `pytorch_pretrained_bert`, which goes through the tensors one by one: there is
no correction for the start at 0, every tensor is decayed, and every tensor counts its own updates
from 0. Its state has the same names, so that runs which that package began go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.training.moments import update_moments

# Elements that are updated together: what is computed on the way needs twice their memory.
TOGETHER = 2**25
TINY = 1e-6  # beside a norm that is divided by


class Factors(Protocol):
    """A schedule of learning rates."""

    def factor(self, updates: int) -> float:
        """On the learning rate, of the update that follows so many."""
        ...


class BertAdam(Optimizer):
    """Adam without bias correction, with decoupled weight decay; see the module."""

    def __init__(
        self,
        params: Any,
        lr: float,
        schedule: Factors | None = None,
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = -1.0,
    ) -> None:
        """Note what to optimise.

        Args:
            params: parameters or groups.
            lr: highest learning rate.
            schedule: its factor depends on the updates of each tensor; None: always 1.
            b1, b2, e: decays of the moving means in [0, 1), and what is added to the root.
            weight_decay: of every tensor.
            max_grad_norm: largest norm of the gradient of each tensor; not above 0: any.

        Raises:
            ValueError: a number outside its limits.
        """
        for name, value in (("b1", b1), ("b2", b2)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} {value}: give a number of at least 0 and below 1")
        if e < 0.0:
            raise ValueError(f"e {e}: give a number of at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "schedule": schedule,
                "b1": b1,
                "b2": b2,
                "e": e,
                "weight_decay": weight_decay,
                "max_grad_norm": max_grad_norm,
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch: or a function
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            schedule: Factors | None = group["schedule"]
            for updates, parameters in self._alike(group["params"]):
                rate = group["lr"] * (1.0 if schedule is None else schedule.factor(updates))
                self._update(parameters, group, rate)
                for parameter in parameters:
                    self.state[parameter]["step"] = updates + 1

    def _alike(self, parameters: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """Parameters with a gradient that were updated as often, on one device, some at a time."""
        alike: dict[tuple[int, torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                updates = self.state[parameter].get("step", 0)
                key = updates, parameter.device, parameter.dtype
                alike.setdefault(key, []).append(parameter)
        for (updates, _, _), found in alike.items():
            for some in _portions(found):
                yield updates, some

    def _update(self, parameters: list[Tensor], group: dict[str, Any], rate: float) -> None:
        if group["max_grad_norm"] > 0:
            _clip_each([p.grad for p in parameters if p.grad is not None], group["max_grad_norm"])
        mean, root = update_moments(
            self, parameters, (group["b1"], group["b2"]), group["e"], ("next_m", "next_v")
        )
        change = torch._foreach_div(mean, root)
        if group["weight_decay"] > 0.0:
            torch._foreach_add_(change, parameters, alpha=group["weight_decay"])
        torch._foreach_add_(parameters, change, alpha=-rate)


def _portions(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive parameters of at most `TOGETHER` elements, or one that is larger."""
    portion: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if portion and size + parameter.numel() > TOGETHER:
            yield portion
            portion, size = [], 0
        portion.append(parameter)
        size += parameter.numel()
    if portion:
        yield portion


def _clip_each(gradients: list[Tensor], largest: float) -> None:
    """Scale every gradient whose norm is above `largest` down to it."""
    norms = torch.stack(torch._foreach_norm(gradients))
    scales = (largest / (norms + TINY)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(scales.to(gradients[0].dtype).unbind()))
