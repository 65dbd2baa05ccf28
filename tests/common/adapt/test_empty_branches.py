"""Batches in which all samples choose alike: no attention on no rows, gradients of exactly 0.

The fused attention kernels of a GPU refuse a batch without rows; here a stand-in refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt.adapting import adaptive_part
from common.adapt.encoder import Adaptive
from tests.common.tiny_models import ADAPTIVE, BATCH, FAMILIES, adapted, gradients, run, shared

TRAINING = ("dense", "exact", "sampled", "grouped")
PRECISIONS = {"fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def refuses_no_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Attention that raises on a batch without rows; the batches that it was asked for."""
    attend, asked = F.scaled_dot_product_attention, []

    def fused(q: Tensor, k: Tensor, v: Tensor, **more: object) -> Tensor:
        asked.append(len(q))
        if not len(q) or not q.shape[-2] or not k.shape[-2]:
            raise RuntimeError("a fused kernel does not take a batch without rows")
        return attend(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", fused)
    yield asked
    assert asked, "nothing attended: nothing was tested"


def choices(part: Adaptive) -> dict[str, Tensor]:
    """Decisions (B, D): everybody alike at every site, at some, and one against all others."""
    ones = torch.ones(BATCH, len(part.live), dtype=torch.float64)
    alternating, lonely = ones.clone(), ones.clone()
    alternating[:, ::2] = 0
    lonely[0] = 0
    return {"ones": ones, "zeros": 0 * ones, "alternating": alternating, "lonely": lonely}


def backward(model: nn.Module, family: str, decisions: Tensor, dtype: torch.dtype) -> Tensor:
    """A training step's gradients with given decisions that the policy is to learn from."""
    part = adaptive_part(model)
    asked = decisions.to(next(model.parameters()).dtype).requires_grad_()
    with part.force(asked), torch.autocast("cpu", dtype, enabled=dtype != torch.float64):
        logits = run(model, family)
    logits.double().square().sum().backward()
    return asked.grad


@cache
def all_gradients(family: str, strategy: str, executor: str) -> dict[str, dict[str, Tensor | None]]:
    """Of the model and of the decisions, for each of the `choices`."""
    model = shared(family, strategy, executor, sampled_share=1.0).train()
    found = {}
    for name, decisions in choices(adaptive_part(model)).items():
        model.zero_grad()
        given = backward(model, family, decisions, torch.float64)
        found[name] = gradients(model) | {"decisions": given}
    return found


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", ["exact", "sampled", "grouped"])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_gradients_are_those_of_dense_and_none_is_missing(family, executor, strategy):
    found = all_gradients(family, strategy, executor)
    for name, wanted in all_gradients(family, strategy, "dense").items():
        for key, value in wanted.items():
            assert (value is None) == (found[name][key] is None), f"{name}: {key}"
            if value is not None:
                torch.testing.assert_close(found[name][key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", TRAINING)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_attention_runs_on_no_rows_in_training(strategy, executor, precision):
    model = adapted("single", strategy, dropout=0.1, executor=executor).train()
    if precision != "fp64":
        model = model.float()
    for name, decisions in choices(adaptive_part(model)).items():
        model.zero_grad()
        backward(model, "single", decisions, PRECISIONS[precision])
        assert all(p.grad is not None for p in trained(model)), name


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The layers' own parameters and the linear maps, in so far as they are trained."""
    part = adaptive_part(model)
    owned = [p for layer in model.encoder.layers() for p in layer.module.parameters()]
    return [p for p in [*owned, *part.linears.parameters()] if p.requires_grad]


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", ["dense", "gathered", "grouped"])
def test_no_attention_runs_on_no_rows_in_evaluation(strategy, executor):
    model = adapted("single", strategy, eval_executor=executor).eval()
    part = adaptive_part(model)
    for decisions in choices(part).values():
        with part.force(decisions), torch.no_grad():
            assert torch.isfinite(run(model, "single")).all()
