"""Models under torch.compile on the CPU: outputs and gradients are those of the model as it is."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest
import torch

from common.adapt.adapting import adaptive_part
from tests.common.tiny_models import adapted, gradients, random_decisions, run

INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on the CPU"),
    ],
)


def passed(model, through, decisions):
    """Output and all gradients of a pass with these decisions, the decisions' own among them."""
    part = adaptive_part(model)
    model.zero_grad()
    if decisions is not None:
        decisions.grad = None
    with nullcontext() if part is None else part.force(decisions):
        y = run(through, "lxmert")
    y.square().sum().backward()
    found = {name: x.clone() for name, x in gradients(model).items() if x is not None}
    return y.detach(), found if decisions is None else found | {"decisions": decisions.grad.clone()}


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_a_compiled_model_has_the_outputs_and_gradients_of_the_model(strategy, backend):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = adapted("lxmert", strategy, executor="exact").train()
    decisions = None
    if adaptive_part(model) is not None:
        decisions = random_decisions(model).requires_grad_()
    y, expected = passed(model, model, decisions)
    compiled_y, found = passed(model, torch.compile(model, backend=backend), decisions)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    if strategy == "standard":
        assert not torch._dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(compiled_y, y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_a_plain_model_is_one_graph_in_evaluation_too():
    torch._dynamo.reset()
    model = adapted("lxmert", "standard").eval()
    expected = run(model, "lxmert")
    found = run(torch.compile(model, backend="aot_eager", fullgraph=True), "lxmert")
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
