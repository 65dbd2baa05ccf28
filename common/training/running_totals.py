"""Sums over the steps of an epoch: losses, score, decisions, the policy, seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from common.training.policy_statistics import PolicyStatistics
from common.training.task import DecisionCounts, StepOutput


class RunningTotals:
    """Sums over the steps of an epoch."""

    def __init__(self) -> None:
        self.losses: dict[str, float] = {}
        self.steps_of: dict[str, int] = {}
        self.score = 0.0
        self.count = self.steps = 0
        self.step_seconds: list[float] = []
        self.decisions = DecisionCounts()
        self.policy = PolicyStatistics()

    @classmethod
    def joined(cls, states: Sequence[Mapping[str, Any]]) -> RunningTotals:
        """The totals of several processes (their `state_dict`s) together."""
        totals = cls()
        totals.load_state_dict(states[0])
        for state in states[1:]:
            for name, loss in state["losses"].items():
                totals.losses[name] = totals.losses.get(name, 0.0) + loss
            totals.score += state["score"]
            totals.count += state["count"]
            totals.decisions.join(state["decisions"])
            if state.get("policy"):
                totals.policy.join(state["policy"])
        return totals

    def add(self, losses: Mapping[str, float]) -> None:
        """Count a step with this process' part of its losses."""
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss
            self.steps_of[name] = self.steps_of.get(name, 0) + 1
        self.steps += 1

    def count_scores(self, output: StepOutput) -> None:
        """Add the score of a (micro-)batch."""
        self.score += output.score_sum
        self.count += output.count

    def summary(self, processes: int) -> dict[str, str]:
        """For the progress bar, as this process sees it."""
        loss = processes * sum(self.losses.values()) / max(1, self.steps)
        return {"loss": f"{loss:.3f}", "score": f"{100 * self.score / max(1, self.count):.1f}"}

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
            "losses": dict(self.losses),
            "steps_of": dict(self.steps_of),
            "score": self.score,
            "count": self.count,
            "steps": self.steps,
            "step_seconds": list(self.step_seconds),
            "decisions": self.decisions.state_dict(),
            "policy": self.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.losses = dict(state["losses"])
        # Earlier runs had every loss in every step.
        self.steps_of = dict(state.get("steps_of") or dict.fromkeys(self.losses, state["steps"]))
        self.score, self.count = state["score"], state["count"]
        self.steps, self.step_seconds = state["steps"], list(state["step_seconds"])
        self.decisions.load_state_dict(state["decisions"])
        self.policy.load_state_dict(state.get("policy") or {})  # earlier runs had none
