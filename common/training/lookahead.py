"""LAMB and Lookahead where the library `pytorch_optimizer` has no form that fits.

LAMB (You et al. 2020) scales Adam's step of every tensor by the norm of the tensor; Lookahead
(Zhang et al. 2019) pulls the weights, every k updates, back to slow ones. The library's own are
`lamb` and `lookahead_lamb` in `common.training.optim`. The adaptive LXMERT (Bhargava 2020) has
other ones:

- its LAMB adds the decay to the step that is scaled, and scales no step by less than a quarter,
  which its learning rates were chosen with: a pretrained matrix of 768 columns (entries of about
  0.02, steps of 0.1 to 1 before the scale) has a scale of 0.13 to 0.007 by itself. The library has
  no such floor, hence `PublishedLamb`;
- its Lookahead copies the slow weights when it first needs them, after k updates, so that the first
  synchronisation changes nothing; here with `late`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytorch_optimizer
import torch
from torch.optim import Optimizer

from common.training.moments import update_moments

SLOW = "slow_params"  # the library's name of a tensor's slow weights


class PublishedLamb(Optimizer):
    """LAMB as the adaptive LXMERT has it: without bias correction, with a floor of the scale."""

    largest_norm = 10.0  # of a tensor, as far as its scale is concerned

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        min_trust: float = 0.25,
    ) -> None:
        """`min_trust`: the floor of a tensor's scale; 0 is LAMB as it was proposed."""
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "min_trust": min_trust,
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch: or a function
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            mean, root = update_moments(self, parameters, group["betas"], group["eps"])
            steps = torch._foreach_div(mean, root)
            if group["weight_decay"]:
                torch._foreach_add_(steps, parameters, alpha=group["weight_decay"])
            sizes = torch.stack(torch._foreach_norm(parameters)).clamp(max=self.largest_norm)
            lengths = torch.stack(torch._foreach_norm(steps))
            trust = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
            torch._foreach_mul_(steps, trust.clamp(min=group["min_trust"]).unbind())
            torch._foreach_add_(parameters, steps, alpha=-group["lr"])


class Lookahead(pytorch_optimizer.Lookahead):
    """The library's, with a `state_dict` in torch's form: slow weights beside each tensor's state.

    A tensor without a gradient in the update that synchronises stays as it is until the next one.
    """

    def __init__(
        self, optimizer: Optimizer, k: int = 5, alpha: float = 0.8, late: bool = False
    ) -> None:
        """Wrap an optimiser.

        Args:
            optimizer: makes the fast updates.
            k: of them between two synchronisations.
            alpha: share of the way from the slow weights to the fast ones.
            late: copy the slow weights at the first synchronisation, which changes nothing then,
                and not at the start.
        """
        self.late = late
        super().__init__(optimizer, k=k, alpha=alpha)

    def init_group(self, group: dict[str, Any], **kwargs: Any) -> None:
        """Copy the slow weights, unless that is done later."""
        if self.late:
            group.setdefault("counter", 0)
        else:
            super().init_group(group, **kwargs)

    @torch.no_grad()
    def update(self, group: dict[str, Any]) -> None:
        """Synchronise slow and fast weights of a group."""
        for parameter in group["params"] if self.late else ():
            if parameter.grad is not None and SLOW not in self.state[parameter]:
                self.state[parameter][SLOW] = parameter.detach().clone()
        super().update(group)

    @property
    def _numbered(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Groups and, by the number of the parameter, the state of both optimisers."""
        inner = self.optimizer.state_dict()
        state = {
            number: {**inner["state"].get(number, {}), **self.state.get(parameter, {})}
            for number, parameter in enumerate(self._numbered)
        }
        return {
            "state": {number: entry for number, entry in state.items() if entry},
            "param_groups": inner["param_groups"],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        entries = {number: dict(entry) for number, entry in state["state"].items()}
        slow = {number: entry.pop(SLOW) for number, entry in entries.items() if SLOW in entry}
        self.optimizer.load_state_dict(
            {
                "state": {number: entry for number, entry in entries.items() if entry},
                "param_groups": state["param_groups"],
            }
        )
        parameters = self._numbered
        self.state = defaultdict(dict)
        for number, weights in slow.items():
            parameter = parameters[number]
            self.state[parameter][SLOW] = weights.to(parameter).clone()
