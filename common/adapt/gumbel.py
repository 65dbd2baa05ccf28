"""Hard decisions from logits: Gumbel-softmax with a straight-through gradient, and keyed noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.modules.losses import precise

_MASK_64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hard_gumbel(logits: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
    """Draw hard decisions with the gradient of the soft ones (straight-through).

    Args:
        logits: (B, D, 2); channel 1 stands for decision 1.
        noise: (B, D, 2) uniform in (0, 1).
        temperature: of the softmax, > 0; it does not change the draw, only the gradient. A tensor
            (0-d) is not looked at.

    Returns:
        (B, D) of exactly 0 or 1.

    Source: Jang et al. 2017, eq. 2; SpotTune (Guo et al. 2019) section 3.2.
    """
    if not isinstance(temperature, Tensor) and temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive")
    logits = precise(logits)
    noisy = logits - torch.log(-torch.log(noise.to(logits.dtype)))
    soft = torch.softmax(noisy / temperature, dim=-1)[..., 1]
    hard = (noisy[..., 1] > noisy[..., 0]).to(soft.dtype)
    return hard + (soft - soft.detach())


def keyed_uniform(
    seed: int,
    step: int,
    samples: Sequence[int] | Tensor,
    count: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform numbers that depend on (seed, step, sample, place) and on nothing else.

    How a batch is split over processes or micro-batches therefore does not change them.

    Args:
        seed, step: integers.
        samples: B integers, e.g. question ids.
        count: numbers per sample.

    Returns:
        (B, count) float32 in the open interval (0, 1).

    Source: the splitmix64 finaliser (Steele et al. 2014), applied to a counter.
    """
    samples = torch.as_tensor(samples, dtype=torch.int64, device=device)
    key = _mix_int(_mix_int(seed + _GOLDEN) ^ _mix_int(step + 2 * _GOLDEN))
    rows = _mix(samples * _signed(_GOLDEN) + _signed(key))
    places = torch.arange(1, count + 1, device=device, dtype=torch.int64) * _signed(_GOLDEN)
    bits = _mix(rows[:, None] + places[None, :])
    return ((_shift(bits, 41).double() + 0.5) / 2**23).float()


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the signed integer that torch stores."""
    value &= _MASK_64
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[1])
    return x ^ _shift(x, 31)


def _mix_int(x: int) -> int:
    x &= _MASK_64
    x = ((x ^ (x >> 30)) * _MIX[0]) & _MASK_64
    x = ((x ^ (x >> 27)) * _MIX[1]) & _MASK_64
    return x ^ (x >> 31)
