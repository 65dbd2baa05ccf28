"""Sums over the steps of an epoch: losses, score, decisions, the policy, seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from common.training.policy_statistics import PolicyStatistics
from common.training.task import DecisionCounts, StepOutput, as_floats, as_number


class RunningTotals:
    """Sums over the steps of an epoch; on a GPU they stay there until they are asked for."""

    def __init__(self) -> None:
        self._losses: dict[str, Tensor | float] = {}
        self.steps_of: dict[str, int] = {}
        self._score: Tensor | float = 0.0
        self._count: Tensor | float = 0
        self.steps = 0
        self.step_seconds: list[float] = []
        self.decisions = DecisionCounts()
        self.policy = PolicyStatistics()

    @property
    def losses(self) -> dict[str, float]:
        """Sums of each loss."""
        return as_floats(self._losses)

    @property
    def score(self) -> float:
        """Sum of the scores."""
        return float(self._score)

    @property
    def count(self) -> int:
        """What it is a sum over."""
        return int(self._count)

    @classmethod
    def joined(cls, states: Sequence[Mapping[str, Any]]) -> RunningTotals:
        """The totals of several processes (their `state_dict`s) together."""
        totals = cls()
        totals.load_state_dict(states[0])
        for state in states[1:]:
            for name, loss in state["losses"].items():
                totals._losses[name] = totals._losses.get(name, 0.0) + loss
            totals._score += state["score"]
            totals._count += state["count"]
            totals.decisions.join(state["decisions"])
            if state.get("policy"):
                totals.policy.join(state["policy"])
        return totals

    def add(self, losses: Mapping[str, Tensor | float]) -> None:
        """Count a step with this process' part of its losses."""
        for name, loss in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + loss
            self.steps_of[name] = self.steps_of.get(name, 0) + 1
        self.steps += 1

    def count_scores(self, output: StepOutput) -> None:
        """Add the score of a (micro-)batch."""
        self._score = self._score + as_number(output.score_sum)
        self._count = self._count + as_number(output.count)

    def summary(self, processes: int) -> dict[str, str]:
        """For the progress bar, as this process sees it."""
        own = as_floats(self._losses | {"": self._score, " ": self._count})
        score, count = own.pop(""), own.pop(" ")
        loss = processes * sum(own.values()) / max(1, self.steps)
        return {"loss": f"{loss:.3f}", "score": f"{100 * score / max(1, count):.1f}"}

    def record(self) -> dict[str, Any]:
        """For result.json: mean losses, running accuracy in percent, shares, seconds."""
        steps = max(1, self.steps)
        share = self.decisions.share
        return {
            "train_loss": sum(self.losses.values()) / steps,
            "train_losses": {k: v / self.steps_of[k] for k, v in self.losses.items()},
            "train_accuracy": 100 * self.score / max(1, self.count),
            "train_decisions": None
            if share is None
            else {"share": share, "count": self.decisions.count},
            "seconds": sum(self.step_seconds),
            "step_seconds": statistics.median(self.step_seconds or [0.0]),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "steps_of": dict(self.steps_of),
            "score": self.score,
            "count": self.count,
            "steps": self.steps,
            "step_seconds": list(self.step_seconds),
            "decisions": self.decisions.state_dict(),
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses = dict(state["losses"])
        # Earlier runs had every loss in every step.
        self.steps_of = dict(state.get("steps_of") or dict.fromkeys(self._losses, state["steps"]))
        self._score, self._count = state["score"], state["count"]
        self.steps, self.step_seconds = state["steps"], list(state["step_seconds"])
        self.decisions.load_state_dict(state["decisions"])
        self.policy.load_state_dict(state.get("policy") or {})  # earlier runs had none
