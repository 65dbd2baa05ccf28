"""What a step asks of the device: operations, kernels, memory; and what that can do at best."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from common.bench.cases import Case
from common.bench.measure import Bench, Step, shorter_products
from common.training.flops import FlopCounter
from common.training.runtime import PRECISIONS
from common.training.timing import Clock

SIDE = 8192  # of the matrices whose product says what the device can do
PRODUCTS = 7
COPIES = ("Memcpy", "Memset")


def matrix_rate(device: torch.device, precision: str, clock: Clock, side: int = SIDE) -> float:
    """Operations in a second of a large product of matrices, two for a multiplication and addition.

    Args:
        device: where.
        precision: fp32, tf32 or bf16.
        clock: of the device.
        side: of the square matrices.
    """
    dtype = PRECISIONS.get(precision, torch.float32)
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with shorter_products(precision == "tf32"):
        for _ in range(2):
            first @ second
        times = [clock.measure(lambda: first @ second)["seconds"] for _ in range(PRODUCTS)]
    return 2 * side**3 / statistics.median(times)


def count_kernels(call: Step, device: torch.device) -> int | None:
    """Kernels that a call runs on a GPU, copies left out; None where the profiler sees none."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    seen = (e for e in found.key_averages() if e.device_type == DeviceType.CUDA)
    return sum(e.count for e in seen if not e.key.startswith(COPIES)) or None


def demands(bench: Bench, case: Case) -> dict[str, Any]:
    """What one step of a case asks for; makes it ready to be timed, its graph included.

    Returns:
        `flops` (None where the model is compiled: its operators cannot be counted), `kernels` and
        `step_bytes`, by how much memory on a GPU grows within a step that is launched from Python
        (both None on a CPU).
    """
    found: dict[str, Any] = {"flops": None}
    step = bench.step(case)
    if not case.compiled:
        with FlopCounter() as counter:
            step()
        found["flops"] = counter.total
    step()
    found["step_bytes"] = _growth(step, bench.device)
    call = bench.run(case)
    call()
    return found | {"kernels": count_kernels(call, bench.device)}


def _growth(step: Step, device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
