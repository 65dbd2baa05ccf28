"""Layers that samples skip: products of those that keep them ≡ products of all, and a choice.

The CPU has grouped products in float32 and bfloat16; in float64 a stand-in takes their place. Both
leave NaN wherever the kernels of a GPU write nothing.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.adapt import encoder, experts
from common.adapt.adapting import adapt, adaptive_part
from common.adapt.encoder import AdaptiveOptions
from common.adapt.executors import chosen_executor
from common.adapt.layerdrop import prune
from common.adapt.skipping import FirstSamples, kept_first
from common.modules.attention import AttentionOptions
from tests.common.tiny_models import (
    BATCH,
    FAMILIES,
    SingleStream,
    adapted,
    drift_layers,
    gradients,
    random_decisions,
    run,
)

SKIPPING = ("BlockDrop", "BlockReplace")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_strategy = pytest.mark.parametrize("strategy", SKIPPING)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Products are computed group by group; how many rows of how many each of them computed.

    Products that make the gradient of a matrix are not in the list.
    """
    found: list[tuple[int, int]] = []
    grouped_mm = F.grouped_mm

    def first_rows(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        (end,) = offs.tolist()
        if b.dim() == 2:
            double = a.dtype == torch.float64
            y = (a[:, :end] @ b[:end])[None] if double else grouped_mm(a, b, offs=offs)
            return y if end else torch.full_like(y, torch.nan)
        found.append((end, len(a)))
        y = torch.full((len(a), b.shape[2]), torch.nan, dtype=a.dtype)
        y[:end] = a[:end] @ b[0] if a.dtype == torch.float64 else grouped_mm(a, b, offs=offs)[:end]
        return y

    monkeypatch.setattr(F, "grouped_mm", first_rows)
    monkeypatch.setattr(experts, "groups", lambda x: True)
    return found


def choices(model: nn.Module) -> dict[str, Tensor | None]:
    """Decisions (B, D); None: the policy's own."""
    some = random_decisions(model)
    lonely = torch.zeros_like(some)
    lonely[2] = 1
    return {
        "some": some,
        "lonely": lonely,
        "all": torch.ones_like(some),
        "none": torch.zeros_like(some),
        "policy": None,
    }


def step(model: nn.Module, family: str, decisions: Tensor | None) -> dict[str, Tensor | None]:
    """Logits, gradients, and the gradient of the decisions, of a training step."""
    part = adaptive_part(model)
    model.train().zero_grad()
    part.tell(1, 2, list(range(BATCH)))
    leaf = None if decisions is None else decisions.clone().requires_grad_()
    with nullcontext() if leaf is None else part.force(leaf):
        logits = run(model, family)
    logits.square().sum().backward()
    found = gradients(model) | {"logits": logits.detach()}
    return found if leaf is None else found | {"decisions": leaf.grad}


def assert_same(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (value is None) == (found[name] is None), name
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@every_family
@every_strategy
@pytest.mark.parametrize("narrowed", [True, False])
def test_training_is_dense_in_outputs_and_all_gradients(ends, family, strategy, narrowed):
    model = adapted(family, strategy, executor="grouped", narrowed=narrowed)
    dense = adapted(family, strategy, executor="dense", narrowed=narrowed)
    for name, decisions in choices(model).items():
        del ends[:]
        found = step(model, family, decisions)
        assert ends, f"{name}: nothing was computed by group"
        del ends[:]
        wanted = step(dense, family, decisions)
        assert not ends
        assert_same(found, wanted)


@every_family
@every_strategy
def test_evaluation_is_dense_and_computes_the_rows_that_are_kept(ends, family, strategy):
    model = adapted(family, strategy).eval()
    part = adaptive_part(model)
    for decisions in (*choices(model).values(), torch.ones(BATCH, len(part.live)).tril()):
        outputs = []
        for executor in ("dense", "grouped"):
            del ends[:]
            part.options.eval_executor = executor
            with torch.no_grad(), nullcontext() if decisions is None else part.force(decisions):
                outputs.append(run(model, family))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-12)
        kept = part.last.decisions.sum(0)[part.live].tolist()
        shares = {end * BATCH / rows for end, rows in ends}
        assert shares == set(kept)


@every_strategy
def test_a_training_step_computes_every_sample_once(ends, strategy):
    """Those that keep a layer with gradients, the others without, for the policy."""
    model = adapted("single", strategy, executor="grouped").train()
    decisions = torch.ones(BATCH, 3, dtype=torch.float64)
    decisions[:2, 1] = 0
    step(model, "single", decisions)
    layer = [end * BATCH // rows for end, rows in ends if end * BATCH // rows not in (0, BATCH)]
    # 6 matrices: forward, and (reached by what learns) backward; the others forward only.
    assert layer.count(4) == 12 and layer.count(2) == 6 and len(layer) == 18


def test_a_held_policy_costs_no_second_pass(ends):
    model = adapted("single", "BlockDrop", executor="grouped").train()
    adaptive_part(model).held = True
    step(model, "single", None)
    decisions = adaptive_part(model).last.decisions
    wanted = {int(n) for n in decisions.sum(0).tolist()}
    assert {end * BATCH // rows for end, rows in ends} == wanted
    policy = adaptive_part(model).policy.parameters()
    assert all(p.grad is not None and not p.grad.any() for p in policy)


@every_strategy
def test_without_a_layer_it_is_the_smaller_model(ends, strategy):
    """LayerDrop beside decisions."""
    model = adapted("single", strategy, executor="grouped").train()
    model.encoder.dropped = frozenset(["layer.2"])
    decisions = random_decisions(model)
    found = step(model, "single", decisions)
    dense = adapted("single", strategy, executor="dense").train()
    dense.encoder.dropped = model.encoder.dropped
    assert_same(found, step(dense, "single", decisions))
    assert not found["decisions"][:, 1].any()
    ones = step(model, "single", torch.ones_like(decisions))["logits"]
    smaller = SingleStream().double()
    smaller.load_state_dict(model.state_dict(), strict=False)
    prune(smaller, "layer.1,layer.3")
    torch.testing.assert_close(ones, run(smaller, "single"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
def test_a_learned_mechanism_of_attention_takes_rows_apart(ends, training):
    options = AttentionOptions(normaliser="entmax")
    name = "executor" if training else "eval_executor"
    found = []
    for executor in ("grouped", "dense"):
        model = adapted("single", "BlockDrop", attention=options, **{name: executor})
        with adaptive_part(model).force(random_decisions(model)):
            found.append(run(model.train(training), "single"))
    assert not ends
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@every_strategy
def test_in_bfloat16_it_is_as_near_to_float32_as_dense(ends, strategy):
    """By torch's own grouped products."""

    def gradient(executor: str, autocast: bool) -> Tensor:
        torch.manual_seed(3)
        model = SingleStream(channels=32, heads=4).double()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        adapt(model, strategy, "small", options=AdaptiveOptions(executor=executor))
        drift_layers(model, 0.1)
        model.float().train()
        decisions = random_decisions(model).float().requires_grad_()
        with (
            adaptive_part(model).force(decisions),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            logits = run(model, "single")
        logits.float().square().sum().backward()
        grads = [decisions.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
        return torch.cat([logits.detach().float().flatten(), *(g.flatten() for g in grads)])

    exact = gradient("dense", False)
    assert not ends
    torch.testing.assert_close(gradient("grouped", False), exact, rtol=1e-3, atol=1e-3)
    grouped = gradient("grouped", True)
    assert ends
    error, dense = ((x - exact).norm() for x in (grouped, gradient("dense", True)))
    assert error < 1.5 * dense, (error, dense)


def test_with_dropout_what_is_kept_learns_from_the_masks_of_its_output(ends):
    """Of one layer: the difference of a sample that keeps it is its output without its input."""
    found = {}
    for executor in ("grouped", "dense"):
        torch.manual_seed(3)
        model = SingleStream(layers=1, dropout=0.3).double()
        adapt(model, "BlockDrop", "small", options=AdaptiveOptions(executor=executor))
        torch.manual_seed(5)
        found[executor] = step(model, "single", torch.ones(BATCH, 1, dtype=torch.float64))
    assert_same(found["grouped"], found["dense"])
    assert found["dense"]["decisions"].abs().max() > 1e-3


@pytest.mark.slow
def test_with_dropout_gradients_are_those_of_exact_in_the_mean(ends):
    """Over many draws of masks, of two layers."""
    draws = {}
    for executor in ("grouped", "exact"):
        torch.manual_seed(3)
        model = SingleStream(layers=2, dropout=0.2).double()
        adapt(model, "BlockDrop", "small", options=AdaptiveOptions(executor=executor))
        torch.manual_seed(11)
        decisions = random_decisions(model)[:, [1, 0]].bernoulli(0.5)
        torch.manual_seed({"grouped": 1, "exact": 2}[executor])
        found = (step(model, "single", decisions) for _ in range(200))
        draws[executor] = torch.stack(
            [torch.cat([s["decisions"].flatten(), s["embed.weight"].flatten()]) for s in found]
        )
    mean, other = (d.mean(0) for d in draws.values())
    error = sum(d.var(0) / len(d) for d in draws.values()).sqrt()
    assert error.max() > 0
    assert ((mean - other).abs() <= 4.5 * error + 1e-12).all()


def test_samples_that_keep_a_layer_come_first_and_go_back():
    found = kept_first(torch.tensor([False, True, False, True, True]))
    x = torch.arange(5.0)[:, None, None]
    assert found.chosen.ends.tolist() == [3] and found.chosen.ends.dtype == torch.int32
    arranged = found.arranged({"x": x, "mask": None})
    assert arranged["x"].flatten().tolist() == [1, 3, 4, 0, 2] and arranged["mask"] is None
    assert found.back({"x": arranged["x"]})["x"].equal(x)


def test_what_is_of_no_sample_or_does_not_fit_the_kernels_is_computed_as_a_whole(ends):
    found = kept_first(torch.tensor([True, False, False, True]))
    fits, odd = nn.Linear(4, 4), nn.Linear(3, 4)  # float32 rows of 16 and 12 bytes
    with FirstSamples(found.chosen):
        first = fits(torch.ones(4, 2, 4))
        others = fits(torch.ones(5, 2, 4)), fits(torch.ones(4)), odd(torch.ones(4, 2, 3))
    assert ends == [(4, 8)]
    assert first[:2].equal(fits(torch.ones(2, 2, 4))) and not first[2:].any()
    assert others[0].all() and others[1].all() and others[2].all()


@pytest.mark.parametrize("end", [0, 2, 4])
def test_gradients_of_a_product_are_those_of_its_rows(ends, end):
    """Whatever comes back at the others."""
    generator = torch.Generator().manual_seed(1)
    module, reference = (nn.Linear(4, 8).double() for _ in range(2))
    reference.load_state_dict(module.state_dict())
    x, gradient = (torch.randn(4, 3, c, generator=generator).double() for c in (4, 8))
    x, y = x.requires_grad_(), x.detach()[:end].requires_grad_()
    with FirstSamples(kept_first(torch.arange(4) < end).chosen):
        found = module(x)
    wanted = reference(y)
    found.backward(gradient)
    wanted.backward(gradient[:end])
    torch.testing.assert_close(found, torch.cat([wanted, torch.zeros(4 - end, 3, 8).double()]))
    torch.testing.assert_close(x.grad, torch.cat([y.grad, torch.zeros(4 - end, 3, 4).double()]))
    for ours, theirs in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_evaluation_asks_whether_products_are_grouped_here(monkeypatch):
    part = adaptive_part(adapted("single", "BlockDrop")).eval()
    x = torch.empty(2, 3, 12, device="meta")
    assert part.executor(x) == "gathered"
    monkeypatch.setattr(encoder, "groups", lambda x: True)
    assert part.executor(x) == "grouped"
    assert part.executor(torch.empty(2, 3, 12)) == "gathered"


@pytest.mark.parametrize(
    ("training", "twins", "grouping", "executor"),
    [
        (True, True, False, "grouped"),
        (True, False, False, "grouped"),
        (False, True, False, "grouped"),
        (False, False, True, "grouped"),
        (False, False, False, "gathered"),
    ],
)
def test_auto_on_a_gpu_skips_in_place_where_its_products_can(training, twins, grouping, executor):
    assert chosen_executor("auto", training, torch.device("cuda"), twins, grouping) == executor
    cpu = "exact" if training else "gathered"
    assert chosen_executor("auto", training, torch.device("cpu"), twins, grouping) == cpu
    assert chosen_executor("dense", training, torch.device("cuda"), twins, grouping) == "dense"
