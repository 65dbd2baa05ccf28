"""The two branches of a site as two experts: one pass over all samples, no splitting of rows.

Attention has no weights of its own, so that a site whose branches are a layer and its frozen twin
differs from the layer alone in its parameters only: every product takes, for each sample, the
matrix of the branch that the sample chose, and every vector of gains or biases is looked up. Shapes
do not depend on the decisions and nothing is asked from the device, so that a step can be captured
as a graph; the number of launches is about that of the layer.

Products with a matrix are computed with both matrices, of which one result is taken (`where`), or,
where rows are sorted by expert, group by group (`grouped_mm`, which computes each row once). Shape
legend: B batch, T tokens, C channels, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from common.adapt.routes import State, Written, take
from common.errors import AdaptiveError

# What is asked of a tensor without computing with it; `__get__` is of an attribute.
LOOKS = frozenset(("__get__", "__len__", "size", "dim", "numel", "stride", "is_floating_point"))
GROUPED_DTYPE = torch.bfloat16  # of the products that the kernels of torch group
CAPABILITY = (8, 0)


class UnknownUse(AdaptiveError):
    """A parameter with two values is used in a way for which there is no form."""


@dataclass(frozen=True)
class Chosen:
    """Which expert every sample takes.

    Attributes:
        one: (B,) bool, true where it is the finetuned one; (B, H) where heads choose.
        ends: int32 on the device, where the rows are sorted: how many samples there are before the
            end of each group, (2,) with the frozen ones first, (1,) where the others skip the layer
            (`common.adapt.skipping`); None: they are not sorted.
    """

    one: Tensor
    ends: Tensor | None = None

    def flipped(self) -> Chosen:
        """The other expert for every sample; sorted rows stay where they are."""
        return Chosen(~self.one, self.ends)

    @property
    def per_head(self) -> bool:
        return self.one.dim() == 2


class TwoBranches(TorchFunctionMode, ABC):
    """Within it, functions are told where a parameter of a module has a frozen twin.

    Attributes:
        pairs: (frozen, finetuned) of every parameter, by the identity of the finetuned one.
    """

    def __init__(self, module: nn.Module, twin: nn.Module) -> None:
        """`module` and `twin` are of the same class; steps are run on `module`."""
        super().__init__()
        both = zip(module.parameters(), twin.parameters(), strict=True)
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {id(one): (zero, one) for one, zero in both}

    @abstractmethod
    def call(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        """What a function of torch with this name gives for these arguments."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.call(func, getattr(func, "__name__", str(func)), args, dict(kwargs or {}))

    def pair(self, parameter: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(frozen, finetuned), or None for what has no twin."""
        return None if parameter is None else self.pairs.get(id(parameter))


class Experts(TwoBranches):
    """Within it, parameters of a module stand for those of the module or of its twin."""

    def __init__(self, module: nn.Module, twin: nn.Module, chosen: Chosen, flip: bool) -> None:
        """Note the pairs.

        Args:
            module, twin: of the same class; the steps are run on `module`.
            chosen: by sample.
            flip: take the expert that was not chosen.
        """
        super().__init__(module, twin)
        self.chosen = chosen.flipped() if flip else chosen
        self.first = int(flip)  # expert of the first group of sorted rows

    def call(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        if func is F.linear:
            return self._linear(*args, **given)
        if func is F.layer_norm:
            return self._layer_norm(*args, **given)
        if any(id(x) in self.pairs for x in (*args, *given.values()) if isinstance(x, Tensor)):
            if name in LOOKS:
                return func(*args, **given)
            raise UnknownUse(
                f"{name} is used with a parameter that differs between "
                "the branches: the executor grouped knows linear and layer_norm; use --executor "
                "exact"
            )
        return func(*args, **given)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, T, C) or (B, C)."""
        weights, biases = self.pair(weight), self.pair(bias)
        if weights is None:
            return F.linear(x, weight, bias)
        assert bias is None or biases is not None, "a bias without its weight's twin"
        zero, one = (
            (w, None if biases is None else biases[value]) for value, w in enumerate(weights)
        )
        if self.chosen.ends is not None and groups_product(x, weight):
            experts = (one, zero) if self.first else (zero, one)
            return grouped_linear(x, experts, self.chosen.ends)
        return self._of_head_or_sample(F.linear(x, *zero), F.linear(x, *one))

    def _of_head_or_sample(self, zero: Tensor, one: Tensor) -> Tensor:
        """(B, …, C), of the expert that a sample, or each of H equal parts of C, takes."""
        mask = self.chosen.one
        if not self.chosen.per_head:
            return torch.where(_beside(mask, one), one, zero)
        heads = mask.shape[1]
        mask = mask[:, None, :, None]
        return torch.where(
            mask, one.unflatten(-1, (heads, -1)), zero.unflatten(-1, (heads, -1))
        ).flatten(-2)

    def _layer_norm(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        weights, biases = self.pair(weight), self.pair(bias)
        if weights is None and biases is None:
            return F.layer_norm(x, list(shape), weight, bias, eps)
        plain = F.layer_norm(x, list(shape), eps=eps)
        if weights is not None:
            plain = plain * self._looked_up(weights, plain)
        return plain if biases is None else plain + self._looked_up(biases, plain)

    def _looked_up(self, pair: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
        """A vector (C,) by expert -> (B, 1, …, C)."""
        zero, one = pair
        return torch.where(_beside(self.chosen.one, like), one, zero)


def _beside(mask: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …), as many dimensions as `like`."""
    return mask.view(-1, *[1] * (like.dim() - 1))


def product_dtype(x: Tensor) -> torch.dtype:
    """What products with x are computed in."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def groups(x: Tensor) -> bool:
    """Whether products with x are computed group by group here."""
    return (
        x.is_cuda
        and product_dtype(x) == GROUPED_DTYPE
        and torch.cuda.get_device_capability(x.device) >= CAPABILITY
    )


def groups_product(x: Tensor, weight: Tensor) -> bool:
    """Whether that product of x (…, C) with weight (C', C) is: kernels read 16 bytes at a time."""
    if not groups(x):
        return False
    size = torch.empty((), dtype=product_dtype(x)).itemsize
    return all(length * size % 16 == 0 for length in weight.shape)


def by_group(inputs: State) -> bool:
    """Whether products with any of these slots are computed group by group."""
    return any(groups(x) for x in inputs.values() if x is not None)


def grouped_linear(
    x: Tensor, experts: Sequence[tuple[Tensor, Tensor | None]], ends: Tensor
) -> Tensor:
    """A linear map of sorted rows, each group with its own weights.

    Args:
        x: (B, …, C).
        experts: weight (C', C) and bias (C',) or None, in the order of the groups.
        ends: (2,) int32, see `Chosen`.

    Returns:
        (B, …, C').
    """
    dtype = product_dtype(x)
    rows = x.numel() // (len(x) * x.shape[-1])  # of a sample
    weights = torch.stack([weight.to(dtype).t() for weight, _ in experts])
    flat = F.grouped_mm(x.to(dtype).flatten(0, -2), weights, offs=ends * rows)
    flat = _ContiguousGradient.apply(flat)  # type: ignore[no-untyped-call]
    y: Tensor = flat.unflatten(0, x.shape[:-1])
    first, second = (bias for _, bias in experts)
    if first is None or second is None:
        return y
    early = torch.arange(len(x), device=x.device) < ends[0]
    return y + torch.where(_beside(early, x), first, second).to(dtype)


class _ContiguousGradient(torch.autograd.Function):
    """The kernels of grouped products take no other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x (…) as it is."""
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


@dataclass(frozen=True)
class Arrangement:
    """The order of the samples in a pass.

    Attributes:
        chosen: in that order.
        order, undone: (B,) indices of the samples in it, and of it in the batch's; None: it is that
            of the batch.
    """

    chosen: Chosen
    order: Tensor | None = None
    undone: Tensor | None = None

    def arranged(self, state: State) -> State:
        """Slots (B, …) in this order; those that are None stay None."""
        return state if self.order is None else take(state, self.order)

    def back(self, written: Written) -> Written:
        """Slots (B, …) in the order of the batch again."""
        undone = self.undone
        if undone is None:
            return written
        return {slot: x.index_select(0, undone) for slot, x in written.items()}


def arrange(decisions: Tensor, inputs: State) -> Arrangement:
    """How a site runs its samples: sorted by expert where products are computed by group.

    Args:
        decisions: (B, 1) or, where heads decide, (B, H), exactly 0 or 1.
        inputs: what the site reads.
    """
    one = decisions.detach().bool()
    if one.shape[1] > 1:
        return Arrangement(Chosen(one))
    one = one[:, 0]
    if not by_group(inputs):
        return Arrangement(Chosen(one))
    order = torch.argsort(one.to(torch.uint8), stable=True)
    frozen = len(one) - one.sum()
    ends = torch.stack([frozen, torch.full_like(frozen, len(one))]).to(torch.int32)
    return Arrangement(Chosen(one[order], ends), order, torch.argsort(order))
