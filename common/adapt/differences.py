"""The difference of a site's branches in low precision, without cancellation.

The policy learns from one(x) - zero(x). While weights have hardly moved that is far smaller than
either branch, so that it drowns in rounding where both are computed in bfloat16 and subtracted.
Here the frozen branch is run once and beside every value goes its difference to the finetuned one,
through every function: of a product, delta_out = delta_in W_ft + x (W_ft - W_fr), whose rounding is
relative to the difference itself. What works element by element is computed in float32.

Attention draws its own dropout masks, the same for value and difference. Shape legend: B batch, T
queries, S keys, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.experts import LOOKS, TwoBranches, UnknownUse

# The same is done to a value and to its difference.
_LINEAR = frozenset(
    ("unflatten", "flatten", "transpose", "movedim", "reshape", "view", "contiguous", "__getitem__")
)
# Element by element; the difference is that of two values in float32.
_ELEMENTWISE = frozenset(("gelu", "relu", "silu", "tanh"))
_CASTS = frozenset(("to", "float", "type_as"))
_SUMS = frozenset(("add", "__add__", "__radd__"))


class Differences(TwoBranches):
    """Within it a module stands for its frozen twin; `of` gives the difference of a result."""

    def __init__(self, module: nn.Module, twin: nn.Module) -> None:
        """See `TwoBranches`."""
        super().__init__(module, twin)
        # By the identity of a value, which is kept so that its identity is not given away.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, value: Tensor) -> Tensor:
        """The difference that goes with a value, in float32, of the same shape."""
        found = self._of(value)
        return torch.zeros_like(value, dtype=torch.float32) if found is None else found

    def _of(self, value: Any) -> Tensor | None:
        known = self._known.get(id(value))
        return None if known is None else known[1]

    def _keep(self, value: Tensor, difference: Tensor | None) -> Tensor:
        if difference is not None:
            self._known[id(value)] = value, difference
        return value

    def call(
        self, func: Callable[..., Any], name: str, args: Sequence[Any], given: dict[str, Any]
    ) -> Any:
        form = _FORMS.get(name)
        if form is not None:
            return form(self, *args, **given)
        tensors = [x for x in (*args, *given.values()) if isinstance(x, Tensor)]
        different = [x for x in tensors if self._of(x) is not None]
        if not different and not any(id(x) in self.pairs for x in tensors):
            return func(*args, **given)
        if name in LOOKS:
            return func(*args, **given)
        if name in _LINEAR and len(different) == 1 and different[0] is args[0]:
            changed = func(self._of(args[0]), *args[1:], **given)
            return self._keep(func(*args, **given), changed)
        if name in _CASTS and different and different[0] is args[0]:
            value = func(*args, **given)
            return value if value is args[0] else self._keep(value, self._of(args[0]))
        if name in _ELEMENTWISE and different:
            return self._elementwise(func, args, given)
        raise UnknownUse(
            f"{name} has no form in which the difference of two branches goes through it"
        )

    def _elementwise(
        self, func: Callable[..., Tensor], args: Sequence[Any], given: dict[str, Any]
    ) -> Tensor:
        x, *rest = args
        difference = self._of(x)
        assert difference is not None
        base = x.float()
        changed = func(base + difference, *rest, **given) - func(base, *rest, **given)
        return self._keep(func(x, *rest, **given), changed)

    def _add(self, x: Any, y: Any) -> Tensor:
        value: Tensor = x + y
        parts = [part for part in (self._of(x), self._of(y)) if part is not None]
        return self._keep(value, sum(parts) if parts else None)  # type: ignore[arg-type]

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        difference = self._of(x)
        pair = self.pair(weight)
        zero, one = (weight, weight) if pair is None else pair
        changed = None if difference is None else _scaled(F.linear, difference, one)
        if pair is not None:
            moved = _scaled(lambda small, x: F.linear(x, small), one.float() - zero.float(), x)
            changed = moved if changed is None else changed + moved
        frozen = bias
        if (biases := self.pair(bias)) is not None:
            frozen = biases[0]
            shift = biases[1].float() - frozen.float()
            assert changed is not None, "a bias without its weight's twin"
            changed = changed + shift
        return self._keep(F.linear(x, zero, frozen), changed)

    def _layer_norm(
        self,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        gains, shifts = (self.pair(p) for p in (weight, bias))
        zero = weight if gains is None else gains[0]
        frozen = bias if shifts is None else shifts[0]
        value = F.layer_norm(x, list(shape), zero, frozen, eps)
        difference = self._of(x)
        if difference is None and gains is None and shifts is None:
            return value
        if len(shape) != 1:
            raise UnknownUse("layer_norm over several dimensions")
        base = x.float()
        moved = torch.zeros_like(base) if difference is None else difference
        # With centred c, variance v and r = 1 / sqrt(v + eps): y = c r g, and every difference is
        # written so that nothing large is subtracted.
        centred = base - base.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True) + eps
        dc = moved - moved.mean(-1, keepdim=True)
        dv = (2 * centred * dc + dc.square()).mean(-1, keepdim=True)
        r, r_one = variance.rsqrt(), (variance + dv).rsqrt()
        dr = -dv * r * r_one / (variance.sqrt() + (variance + dv).sqrt())
        changed = dc * r_one + centred * dr
        if gains is not None:
            changed = changed * gains[1].float() + centred * r * (
                gains[1].float() - gains[0].float()
            )
        elif zero is not None:
            changed = changed * zero.float()
        if shifts is not None:
            changed = changed + (shifts[1].float() - shifts[0].float())
        return self._keep(value, changed)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        difference = self._of(x)
        if not training or p == 0 or difference is None:
            return self._keep(F.dropout(x, p, training), difference)
        # The numbers that are drawn are those for x itself.
        kept = F.dropout(torch.ones_like(x), p, training)
        return self._keep(x * kept, difference * kept)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """q (B, H, T, c), k and v (B, H, S, c) -> (B, H, T, c)."""
        if is_causal:
            raise UnknownUse("causal attention")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = (q @ k.mT).float() * scale
        if attn_mask is not None:
            scores = scores + attn_mask
        p = scores.softmax(-1)
        dq, dk, dv = (self._of(x) for x in (q, k, v))
        ds: Tensor | float = 0.0
        if dq is not None:
            ds = ds + _scaled(torch.matmul, dq, k.mT) * scale
        if dk is not None:
            q_one = q.float() if dq is None else q.float() + dq
            ds = ds + _scaled(lambda small, x: x @ small, dk.mT, q_one) * scale
        kept = None
        if dropout_p:
            kept = F.dropout(torch.ones_like(p), dropout_p, training=True)
        changed: Tensor | None = None
        p_one = p
        if isinstance(ds, Tensor):
            grown = torch.expm1(ds)
            total = (p * grown).sum(-1, keepdim=True)
            dp = p * (grown - total) / (1 + total)
            p_one = p + dp
            dp = dp if kept is None else dp * kept
            changed = _scaled(torch.matmul, dp, v)
        if dv is not None:
            p_one = p_one if kept is None else p_one * kept
            moved = _scaled(lambda small, x: x @ small, dv, p_one)
            changed = moved if changed is None else changed + moved
        p = p if kept is None else p * kept
        return self._keep(p.to(v.dtype) @ v, changed)


def _scaled(product: Callable[[Tensor, Tensor], Tensor], small: Tensor, other: Tensor) -> Tensor:
    """A product with a small factor, in float32.

    float16 has no small numbers: the factor is brought to about 1 by a power of two.
    """
    device = small.device.type
    other = other.to(torch.promote_types(other.dtype, small.dtype))  # autocast lowers both
    if not torch.is_autocast_enabled(device):
        return product(small, other).float()
    if torch.get_autocast_dtype(device) != torch.float16:
        return product(small, other).float()
    exponent = -torch.frexp(small.abs().amax().clamp(min=1e-30)).exponent
    return torch.ldexp(product(torch.ldexp(small, exponent), other).float(), -exponent)


_FORMS: dict[str, Callable[..., Tensor]] = {
    "linear": Differences._linear,
    "layer_norm": Differences._layer_norm,
    "dropout": Differences._dropout,
    "scaled_dot_product_attention": Differences._attention,
    **dict.fromkeys(_SUMS, Differences._add),
}
