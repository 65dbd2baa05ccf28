"""On a GPU: every strategy and executor trains in every precision, and agrees with float64.

    make test-gpu

Layers have heads of 32 channels, so that the fused kernels of attention take them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions
from common.training.runtime import PRECISIONS, make_runtime
from tests.common.tiny_models import ADAPTIVE, BATCH, SingleStream, drift_layers, single_inputs
from tests.common.toy_task import final_state, make_trainer, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
EXECUTORS = {"train": ("dense", "exact", "sampled"), "eval": ("dense", "gathered")}


def model_on_gpu(
    strategy: str, dtype: torch.dtype = torch.float32, drift: float = 0.01, **options: object
) -> nn.Module:
    """A single stream of 96 channels with finetuned weights that have drifted away."""
    torch.manual_seed(3)
    model = SingleStream(channels=96).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(4)
    adapt(model, strategy, "small", options=AdaptiveOptions(**options))
    drift_layers(model, drift * 0.1)
    return model.to("cuda", dtype)


def alike(part: nn.Module) -> dict[str, Tensor]:
    """Decisions (B, D): everybody alike at every site, at some, and one against all others."""
    ones = torch.ones(BATCH, len(part.live), device="cuda")
    alternating, lonely = ones.clone(), ones.clone()
    alternating[:, ::2] = 0
    lonely[0] = 0
    return {"ones": ones, "zeros": 0 * ones, "alternating": alternating, "lonely": lonely}


def forward(model: nn.Module, precision: str = "fp32") -> Tensor:
    inputs = {key: value.cuda() for key, value in single_inputs(BATCH).items()}
    with torch.autocast("cuda", PRECISIONS[precision], enabled=precision != "fp32"):
        return model(**inputs)


def policy_gradient(
    model: nn.Module, decisions: Tensor, precision: str = "fp32"
) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of a loss with respect to the decisions."""
    part = adaptive_part(model)
    asked = decisions.to(next(model.parameters()).dtype).requires_grad_()
    with part.force(asked):
        logits = forward(model, precision)
    logits.double().square().sum().backward()
    return logits.detach().double(), asked.grad.double()


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", EXECUTORS["train"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_trains_where_all_samples_choose_alike(strategy, executor, precision):
    for name in alike(adaptive_part(model_on_gpu(strategy))):
        model = model_on_gpu(strategy, executor=executor).train()
        decisions = alike(adaptive_part(model))[name]
        logits, gradient = policy_gradient(model, decisions, precision)
        assert torch.isfinite(logits).all() and torch.isfinite(gradient).all(), name


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("executor", EXECUTORS["eval"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_evaluates_where_all_samples_choose_alike(strategy, executor, precision):
    model = model_on_gpu(strategy, eval_executor=executor).eval()
    part = adaptive_part(model)
    for name, decisions in alike(part).items():
        with part.force(decisions), torch.no_grad():
            assert torch.isfinite(forward(model, precision)).all(), name


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_executors_agree_in_float64(strategy):
    found = {}
    for executor in EXECUTORS["train"][:2]:
        model = model_on_gpu(strategy, torch.float64, executor=executor).train()
        decisions = alike(adaptive_part(model))["lonely"]
        logits, gradient = policy_gradient(model, decisions)
        weights = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[executor] = weights | {"logits": logits, "decisions": gradient}
    for key, value in found["dense"].items():
        torch.testing.assert_close(found["exact"][key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "SpotTune_Res", "SpotTune"])
@pytest.mark.parametrize("executor", ["dense", "exact"])
def test_policy_gradient_in_bf16_is_that_of_float64(strategy, executor, record_property):
    """With 1 % drift the branches' difference would drown in bf16."""
    options = {"executor": executor}
    wanted, found = (
        policy_gradient(
            model := model_on_gpu(strategy, dtype, **options).train(),
            alike(adaptive_part(model))["lonely"],
            precision,
        )[1]
        for dtype, precision in ((torch.float64, "fp32"), (torch.float32, "bf16"))
    )
    error = float((found - wanted).norm() / wanted.norm())
    record_property("error", error)
    print(f"{strategy} {executor}: policy gradient in bf16 off by {error:.2%}")
    assert error < 0.03


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_resumed_run_is_bit_identical(tmp_path: Path, strategy):
    """In fp32, with deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    try:
        for name, stops in (("whole", (0,)), ("parts", (7, 0))):
            for stop in stops:
                runtime = make_runtime("0")
                trainer = make_trainer(
                    tmp_path / name,
                    stop,
                    strategy=strategy,
                    runtime=runtime,
                    optimizer="adamw",  # the recipe's needs a package that GPU machines lack
                )
                trainer.begin(resume=stop != stops[0], overwrite=False)
                trainer.fit()
        same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_run_in_half_precision_ends(tmp_path: Path, strategy, precision):
    trainer = make_trainer(
        tmp_path / "run", strategy=strategy, runtime=make_runtime("0", precision), optimizer="adamw"
    )
    trainer.begin(resume=False, overwrite=False)
    trainer.fit()
    assert trainer.epoch == 3
