"""The moving means that optimisers of Adam's family keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def update_moments(
    optimizer: Optimizer, parameters: Sequence[Tensor], group: Mapping[str, Any]
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Adam's moving means of gradients and their squares, kept in the optimiser's state.

    Args:
        optimizer: whose state it is.
        parameters: those of the group that have a gradient.
        group: says `betas` and `eps`.

    Returns:
        For each parameter the mean, which is the state itself, and the root of the mean of squares
        with eps added; neither is corrected for its start at 0.
    """
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state.update(
                exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
            )
    (beta1, beta2), grads = group["betas"], [p.grad for p in parameters if p.grad is not None]
    states = [optimizer.state[p] for p in parameters]
    mean, square = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq"))
    torch._foreach_mul_(mean, beta1)
    torch._foreach_add_(mean, grads, alpha=1 - beta1)
    torch._foreach_mul_(square, beta2)
    torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
    root = torch._foreach_sqrt(square)
    torch._foreach_add_(root, group["eps"])
    return mean, root
