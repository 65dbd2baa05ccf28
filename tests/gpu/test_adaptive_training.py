"""On a GPU: every strategy and executor trains in every precision, and agrees with float64.

    make test-gpu

Layers have heads of 32 channels, so that the fused kernels of attention take them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions
from common.errors import AdaptiveError
from common.training.graphs import RecordedAnswers
from common.training.runtime import PRECISIONS, make_runtime
from common.training.task import TaskBatch
from tests.common.tiny_models import (
    ADAPTIVE,
    BATCH,
    FAMILIES,
    SingleStream,
    adapted,
    drift_layers,
    single_inputs,
)
from tests.common.toy_task import ToyTask, final_state, make_trainer, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")
SKIPPING = ("BlockDrop", "BlockReplace")
EXECUTORS = {
    "train": ("dense", "exact", "grouped", "sampled"),
    "eval": ("dense", "gathered", "grouped"),
}


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


def spoil_free_memory() -> None:
    """What is given out next, in the sizes of these models, holds NaN until it is written."""
    [torch.full((2**n,), torch.nan, device="cuda") for n in range(22) for _ in range(4)]


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
@pytest.mark.parametrize("fast", ["exact", "grouped"])
def test_executors_agree_in_float64(strategy, fast):
    found = {}
    for executor in ("dense", fast):
        model = model_on_gpu(strategy, torch.float64, executor=executor).train()
        decisions = alike(adaptive_part(model))["lonely"]
        logits, gradient = policy_gradient(model, decisions)
        weights = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found[executor] = weights | {"logits": logits, "decisions": gradient}
    for key, value in found["dense"].items():
        torch.testing.assert_close(found[fast][key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_products_by_group_are_as_near_to_float64_as_those_of_dense(strategy):
    """In bf16, where grouped products are computed by kernels of their own."""
    errors = {}
    for executor in ("grouped", "dense"):
        found = []
        for dtype, precision in ((torch.float64, "fp32"), (torch.float32, "bf16")):
            model = model_on_gpu(strategy, dtype, drift=1.0, executor=executor).train()
            policy_gradient(model, alike(adaptive_part(model))["lonely"], precision)
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            found.append(torch.cat([g.double().flatten() for g in grads]))
        errors[executor] = float((found[1] - found[0]).norm() / found[0].norm())
    print(f"{strategy}: gradients in bf16 off by {errors}")
    assert errors["grouped"] < 1.5 * errors["dense"]


@pytest.mark.parametrize("strategy", SKIPPING)
@pytest.mark.parametrize("choice", ["zeros", "ones", "alternating", "lonely"])
def test_what_is_skipped_leaves_nothing_behind_in_bf16(strategy, choice):
    """Its rows are memory that nobody wrote, which is NaN here before every step."""
    errors = {}
    for executor in ("grouped", "dense"):
        found = []
        for dtype, precision in ((torch.float64, "fp32"), (torch.float32, "bf16")):
            model = model_on_gpu(strategy, dtype, drift=1.0, executor=executor).train()
            decisions = alike(adaptive_part(model))[choice]
            for _ in range(2):  # the second time in memory that the first has given back
                model.zero_grad()
                spoil_free_memory()
                logits, policy = policy_gradient(model, decisions, precision)
            layers = {
                name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None
            }
            if choice == "zeros":
                learnt = [g for n, g in layers.items() if n.startswith("encoder.layer.")]
                assert learnt and not any(g.any() for g in learnt)
            found.append(torch.cat([x.flatten() for x in (logits, policy, *layers.values())]))
        errors[executor] = float((found[1] - found[0]).norm() / found[0].norm())
    print(f"{strategy}, {choice}: in bf16 off by {errors}")
    assert errors["grouped"] < 1.5 * errors["dense"] + 1e-6


@pytest.mark.parametrize("strategy", SKIPPING)
def test_evaluation_in_bf16_skips_in_place_and_asks_the_device_nothing(strategy):
    model = model_on_gpu(strategy).eval()
    part = adaptive_part(model)
    decisions = alike(part)["lonely"]
    outputs = {}
    for executor in ("auto", "dense"):
        part.options.eval_executor = executor
        with part.force(decisions), torch.no_grad():
            outputs[executor] = forward(model, "bf16")
    torch.testing.assert_close(outputs["auto"], outputs["dense"], rtol=0.05, atol=0.05)
    part.options.eval_executor = "auto"
    inputs = {key: value.cuda() for key, value in single_inputs(BATCH).items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16), part.force(decisions), torch.no_grad():
            model(**inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("strategy", TWINS)
@pytest.mark.parametrize("executor", ["dense", "exact", "grouped"])
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
                trainer = make_trainer(tmp_path / name, stop, strategy=strategy, runtime=runtime)
                trainer.begin(resume=stop != stops[0], overwrite=False)
                trainer.fit()
        same(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_run_in_half_precision_ends(tmp_path: Path, strategy, precision):
    trainer = make_trainer(
        tmp_path / "run", strategy=strategy, runtime=make_runtime("0", precision)
    )
    trainer.begin(resume=False, overwrite=False)
    trainer.fit()
    assert trainer.epoch == 3


def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(tmp_path: Path):
    trainer = make_trainer(
        tmp_path,
        task=ToyTask(poison=2),  # by its step, which a recording does not see
        runtime=make_runtime("0", graph="off"),
        strategy="SpotTune_Block",
    )
    trainer.begin(resume=False, overwrite=False)
    with pytest.raises(AdaptiveError, match="loss answer is not finite at step 2; the batch"):
        trainer.fit()
    assert (tmp_path / "non_finite_batch.safetensors").exists()
    assert not (tmp_path / "BEST.safetensors").exists()


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_pass_of_grouped_asks_the_device_nothing(strategy):
    model = model_on_gpu(strategy, executor="grouped", full_precision=True).train()
    part = adaptive_part(model)
    decisions = alike(part)["lonely"].float().requires_grad_()
    for _ in range(2):  # the first pass sets libraries up
        with part.force(decisions):
            forward(model, "bf16").sum().backward()
    inputs = {key: value.cuda() for key, value in single_inputs(BATCH).items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16), part.force(decisions):
            model(**inputs).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("family", "precision"),
    [*((family, "fp32") for family in FAMILIES), ("lxmert", "bf16"), ("lxmert", "fp16")],
)
@pytest.mark.parametrize("strategy", ["standard", *TWINS, "BlockDrop"])
def test_a_training_of_cuda_graphs_is_that_which_is_run(
    tmp_path: Path, capsys, family, strategy, precision
):
    """With dropout, whose masks a graph draws as they are drawn without it."""
    for graph in ("on", "off"):
        runtime = make_runtime("0", precision, graph=graph)
        trainer = make_trainer(tmp_path / graph, strategy=strategy, family=family, runtime=runtime)
        if trainer.part is not None:
            trainer.part.options.executor = "grouped"
        trainer.begin(resume=False, overwrite=False)
        trainer.fit()
    assert "not recorded" not in capsys.readouterr().out
    found, wanted = (final_state(tmp_path / graph) for graph in ("on", "off"))
    if family == "vlbert":  # padded further where shapes are static, so masks differ
        assert all(value.isfinite().all() for value in found["model"].values())
    else:
        same(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
def test_answers_of_cuda_graphs_are_those_that_are_run(family, strategy):
    model = adapted(family, strategy, drift=0.3, eval_executor="grouped").eval().cuda()
    part, recorder = adaptive_part(model), make_runtime("0", graph="on").recorder
    said: list[str] = []

    def run(batch: TaskBatch) -> Tensor:
        with torch.no_grad():
            return model(**batch.inputs)

    answers = RecordedAnswers(model, run, recorder, said.append)
    inputs = {name: x.cuda() for name, x in FAMILIES[family].inputs(BATCH).items()}
    for step in range(4):
        order = torch.arange(BATCH).roll(step)
        batch = TaskBatch(order.tolist(), {name: x[order.cuda()] for name, x in inputs.items()})
        found = []
        for run_it in (answers, run):
            if part is not None:
                part.tell(3, -1, batch.samples)
            found.append(run_it(batch).clone())
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert not said


def test_a_resumed_run_in_fp16_goes_on_with_its_scale(tmp_path: Path):
    """Bit for bit, the state of the scaler included."""
    torch.use_deterministic_algorithms(True)
    try:
        for name, stops in (("whole", (0,)), ("parts", (7, 0))):
            for stop in stops:
                runtime = make_runtime("0", "fp16")
                trainer = make_trainer(
                    tmp_path / name, stop, strategy="SpotTune_Block", runtime=runtime
                )
                trainer.begin(resume=stop != stops[0], overwrite=False)
                trainer.fit()
        whole, parts = (final_state(tmp_path / name) for name in ("whole", "parts"))
        assert whole["scaler"]["_growth_tracker"] > 0
        same(whole, parts)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("strategy", ["standard", *ADAPTIVE])
def test_one_process_of_nccl_has_the_gradients_of_none(tmp_path: Path, strategy):
    """Through DistributedDataParallel, and by a message of its own."""
    found = []
    for together in (False, True):
        model = model_on_gpu(strategy, torch.float64, executor="grouped").train()
        asked = model
        if together:
            dist.init_process_group(
                "nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
            )
            asked = DistributedDataParallel(model, device_ids=[torch.cuda.current_device()])
        part = adaptive_part(model)
        part.tell(3, 0, list(range(BATCH)))
        inputs = {key: value.cuda() for key, value in single_inputs(BATCH).items()}
        asked(**inputs).square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        if together:
            for gradient in grads.values():
                dist.all_reduce(gradient)
            dist.destroy_process_group()
        found.append(grads)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9, msg=name)
