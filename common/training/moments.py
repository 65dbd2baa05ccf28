"""The moving means that optimisers of Adam's family keep."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer


def update_moments(
    optimizer: Optimizer,
    parameters: Sequence[Tensor],
    betas: tuple[float, float],
    eps: float,
    names: tuple[str, str] = ("exp_avg", "exp_avg_sq"),
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Adam's moving means of gradients and their squares, kept in the optimiser's state.

    Args:
        optimizer: whose state it is.
        parameters: some that have a gradient.
        betas: decays of the two means, in [0, 1).
        eps: added to the root.
        names: of the means in the state.

    Returns:
        For each parameter the mean, which is the state itself, and the root of the mean of squares
        with eps added; neither is corrected for its start at 0.
    """
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state.update({name: torch.zeros_like(parameter) for name in names})
    (beta1, beta2), grads = betas, [p.grad for p in parameters if p.grad is not None]
    states = [optimizer.state[p] for p in parameters]
    mean, square = ([s[name] for s in states] for name in names)
    torch._foreach_mul_(mean, beta1)
    torch._foreach_add_(mean, grads, alpha=1 - beta1)
    torch._foreach_mul_(square, beta2)
    torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
    root = torch._foreach_sqrt(square)
    torch._foreach_add_(root, eps)
    return mean, root
