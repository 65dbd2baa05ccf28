"""What the reader of a result is warned of."""

from __future__ import annotations

from typing import Any

import pytest

from common.adapt.adapting import adaptive_part
from common.adapt.budget import BudgetOptions
from common.tasks.evaluation import Evaluation
from common.tasks.problems import SAME, find_problems
from common.training.loop import LoopOptions
from common.training.policy_lessons import PolicyTraining
from common.training.task import DecisionCounts
from tests.common.tiny_models import adapted


def problems(
    share: float,
    spread: float = 0.3,
    decider: str = "small",
    strategy: str = "SpotTune",
    **options: Any,
) -> list[str]:
    """Warnings of a run whose first live decision has this share, and all others 1."""
    part = adaptive_part(adapted("lxmert", strategy, policy=decider))
    live = part.live.tolist()
    decisions = {"share": [share] + [1.0] * (len(live) - 1), "live": live}
    spreads = [spread if alive else 1.0 for alive in live]
    epoch = {"policy": {"each": {"spread": spreads}}}
    found = Evaluation({}, {"overall": 80.0}, DecisionCounts(), 0.0)
    how = LoopOptions(1, 1, **options)
    return find_problems(found, decisions, {}, part, how, epoch)


TAUGHT = {
    "policy": PolicyTraining(start=8, hold=1.0),
    "temperature": 1.0,
    "budget": BudgetOptions(target_rate=0.5),
}


def test_a_collapsed_policy_is_told_what_was_not_tried():
    (found,) = problems(1.0)
    assert "the policy has collapsed" in found
    for flag in (
        "--policy-training started",
        "--policy-hold 1",
        "a lower --temperature (1)",
        "--target-rate",
    ):
        assert flag in found
    (found,) = problems(1.0, **TAUGHT)
    assert found.endswith("What to try: another --temperature")
    (found,) = problems(1.0, strategy="BlockReplace")
    assert "--policy-start" not in found and "--policy-hold" not in found
    assert problems(0.5) == []


def test_a_policy_that_hardly_looks_at_its_input_is_warned_of_where_decisions_differ():
    (found,) = problems(0.5, spread=SAME / 2)
    assert "hardly depends on its input" in found and "--policy-training started" in found
    assert problems(0.5, spread=2 * SAME) == []


@pytest.mark.parametrize("policy", ["shared", "random:0.5", "oracle:new"])
def test_controls_are_not_expected_to_look_at_it(policy):
    assert problems(0.5, spread=0.0, decider=policy) == []
    found = problems(1.0, spread=0.0, decider=policy)
    assert len(found) == (policy != "shared") and not any("try" in warning for warning in found)
