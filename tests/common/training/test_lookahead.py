"""LAMB, Lookahead and the cyclic schedule: the adaptive LXMERT's trajectories, the library's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR

from common.errors import CheckpointError, ConfigError
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.optim import OptimizerWithSchedule, make_optimizer

GOLDEN = load_file(Path(__file__).parents[2] / "goldens" / "adaptive" / "optim.safetensors")
NAMES = ("W", "b", "big")
STEPS = 12
PUBLISHED = {"weight_decay": 1.2e-6, "eps": 1e-6}


def optimizer_of(
    name: str, lr: float = 1e-2, **settings: Any
) -> tuple[list[nn.Parameter], OptimizerWithSchedule]:
    parameters = [nn.Parameter(GOLDEN[f"init.{key}"].clone()) for key in NAMES]
    plain = {"schedule": "constant", "warmup": 0.0}
    return parameters, make_optimizer(name, parameters, lr, STEPS, **plain | PUBLISHED | settings)


def trajectory(name: str, steps: int = STEPS, **settings: Any) -> dict[str, Tensor]:
    """The parameters after each of the golden gradients."""
    parameters, optimizer = optimizer_of(name, **settings)
    found: dict[str, list[Tensor]] = {key: [] for key in NAMES}
    for step in range(steps):
        for key, parameter in zip(NAMES, parameters, strict=True):
            parameter.grad = GOLDEN[f"grads.{key}"][step].clone()
        optimizer.step()
        for key, parameter in zip(NAMES, parameters, strict=True):
            found[key].append(parameter.detach().clone())
    return {key: torch.stack(values) for key, values in found.items()}


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("case", "name", "settings"),
    [
        ("lamb", "published_lamb", {}),
        ("lamb_wd", "published_lamb", {"weight_decay": 0.1}),
        ("lookahead", "published_lookahead_lamb", {}),
        (
            "cyclic",
            "published_lookahead_lamb",
            {"lr": 5e-5, "lowest_lr": 1e-5, "schedule": "cyclic", "cycle_up": 4},
        ),
    ],
)
def test_the_published_optimisers_follow_the_original(
    case: str, name: str, settings: dict[str, Any]
) -> None:
    found = trajectory(name, **settings)
    for key in NAMES:
        assert close(found[key], GOLDEN[f"{case}.{key}"]), key
        moved = GOLDEN[f"{case}.{key}"][-1] - GOLDEN[f"init.{key}"]
        error = found[key][-1] - GOLDEN[f"{case}.{key}"][-1]
        assert error.norm() < 1e-3 * moved.norm(), key


def test_the_library_s_lamb_differs_by_the_floor_alone() -> None:
    """Two of the three tensors have scales above it in every step. (Left to itself, the library
    also corrects the mean for its start at 0, after the length of the step has been set.)"""
    found = trajectory("lamb", weight_decouple=False)
    trust = GOLDEN["lamb.trust"]
    floored = [key for key, column in zip(NAMES, trust.T, strict=True) if column.min() <= 0.25]
    assert len(floored) == 1
    for key in NAMES:
        # It adds 1e-6 to the norm of the step.
        same = torch.allclose(found[key], GOLDEN[f"lamb.{key}"], rtol=1e-5, atol=1e-6)
        assert same == (key not in floored), key
    first = trajectory("lamb", weight_decouple=False, adam_debias=False)["W"][0]
    step = found["W"][0] - GOLDEN["init.W"]
    torch.testing.assert_close(first - GOLDEN["init.W"], 10 * step)  # what the library would do
    without_floor = trajectory("published_lamb", min_trust=0.0)
    for key in NAMES:
        torch.testing.assert_close(found[key], without_floor[key], rtol=1e-5, atol=1e-6)


def test_the_library_s_lookahead_synchronises_at_the_fifth_step_the_published_at_the_tenth() -> (
    None
):
    fast, late = trajectory("published_lamb"), trajectory("published_lookahead_lamb")
    early, base = trajectory("lookahead_lamb"), trajectory("lamb")
    for key in NAMES:
        assert torch.equal(late[key][:9], fast[key][:9])
        assert not torch.equal(late[key][9], fast[key][9])
        assert torch.equal(early[key][:4], base[key][:4])
        start = GOLDEN[f"init.{key}"]
        torch.testing.assert_close(early[key][4], start + 0.8 * (base[key][4] - start))


def test_the_number_of_updates_and_the_share_can_be_chosen() -> None:
    found, base = trajectory("lookahead_lamb", steps=2, k=2, alpha=0.5), trajectory("lamb", steps=2)
    start = GOLDEN["init.W"]
    torch.testing.assert_close(found["W"][1], (start + base["W"][1]) / 2)


@pytest.mark.parametrize("down", [None, 3])
def test_the_cyclic_rate_is_torch_s(down: int | None) -> None:
    theirs = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    cycle = CyclicLR(theirs, 1e-5, 5e-5, step_size_up=4, step_size_down=down, cycle_momentum=False)
    parameter = nn.Parameter(torch.ones(1))
    parameter.grad = torch.ones(1)
    settings = {"schedule": "cyclic", "cycle_up": 4, "cycle_down": down, "lowest_lr": 1e-5}
    ours = make_optimizer("sgd", [parameter], 5e-5, STEPS, warmup=0.0, **settings)
    for step in range(20):
        wanted = theirs.param_groups[0]["lr"]
        assert ours.lr == pytest.approx(wanted, rel=1e-9), step
        if down is None and step < STEPS:
            assert wanted == pytest.approx(float(GOLDEN["cyclic.lr"][step]), rel=1e-6)
        ours.step()
        assert ours.param_groups[0]["lr"] == pytest.approx(wanted, rel=1e-9)
        theirs.step()
        cycle.step()


@pytest.mark.parametrize("name", ["lookahead_lamb", "published_lookahead_lamb"])
@pytest.mark.parametrize("stopped", [3, 7])
def test_a_cyclic_run_goes_on_bit_for_bit_between_two_synchronisations(
    name: str, stopped: int, tmp_path: Path
) -> None:
    settings = {"schedule": "cyclic", "cycle_up": 4, "cycle_down": 3}

    def steps(
        parameters: list[nn.Parameter], optimizer: OptimizerWithSchedule, which: range
    ) -> None:
        for step in which:
            for key, parameter in zip(NAMES, parameters, strict=True):
                late = key == "b" and step < 5  # joins when the others have been synchronised
                parameter.grad = None if late else GOLDEN[f"grads.{key}"][step].clone()
            optimizer.step()

    whole, optimizer = optimizer_of(name, **settings)
    steps(whole, optimizer, range(STEPS))
    parameters, first = optimizer_of(name, **settings)
    steps(parameters, first, range(stopped))
    model = {key: parameter.detach() for key, parameter in zip(NAMES, parameters, strict=True)}
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"model": model, "optimizer": first.state_dict()}, {})
    state, _ = load_checkpoint(path)
    resumed, second = optimizer_of(name, **settings)
    for key, parameter in zip(NAMES, resumed, strict=True):
        parameter.data.copy_(state["model"][key])
    second.load_state_dict(state["optimizer"])
    steps(resumed, second, range(stopped, STEPS))
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)
    other = optimizer_of(name, **settings | {"cycle_up": 5})[1]
    with pytest.raises(CheckpointError, match="up is 4 in the checkpoint, this run has 5"):
        other.load_state_dict(state["optimizer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lowest_lr": 0.2}, "lowest learning rate 0.2: give a number from 0 to the highest, 0.1"),
        ({"cycle_up": 0}, "a cycle of 0 updates up and 0 down"),
        ({"warmup": 0.1}, "a cyclic learning rate has none"),
    ],
)
def test_senseless_cycles_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optimizer_of("lamb", lr=0.1, **{"schedule": "cyclic"} | change)
