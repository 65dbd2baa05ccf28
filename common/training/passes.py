"""One pass of a (micro-)batch through model and losses, forward and backward.

What depends on the batch and the stage of the training alone is here, so that it can be recorded
and repeated (`common.training.graphs`). Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.adapt.attention import LearnedSpans
from common.adapt.budget import BudgetOptions, budget_losses
from common.adapt.encoder import Adaptive, Decided
from common.modules.losses import precise
from common.training.distributed import peers
from common.training.runtime import Runtime
from common.training.task import StepOutput, Task, TaskBatch

SPAN = "span"


@dataclass(frozen=True)
class Stage:
    """What differs between the steps of a training, beside their batches.

    Attributes:
        held: the policy decides, but is not trained.
        warming: every sample takes branch 0 while a new head learns its task.
    """

    held: bool = False
    warming: bool = False


@dataclass
class Computed:
    """What the forward pass gave.

    Attributes:
        losses: 0-d, of the task, of the budget and of the spans.
        of_samples: names of those that are means over things in the batch.
        output: of the task.
        decided: None for a model that decides nothing.
    """

    losses: dict[str, Tensor]
    of_samples: frozenset[str]
    output: StepOutput
    decided: Decided | None

    @property
    def policy_gradient(self) -> Tensor | None:
        """Of the policy's logits, (B, D, 2), after the backward pass; None where it learns nothing.

        It is multiplied by the scale of the loss.
        """
        logits = None if self.decided is None else self.decided.logits
        return logits.grad if logits is not None and logits.requires_grad else None


class Passes:
    """Runs (micro-)batches through a model and its losses."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        part: Adaptive | None,
        spans: LearnedSpans,
        runtime: Runtime,
        budget: BudgetOptions,
        span_loss: float | None,
    ) -> None:
        """Put together what every pass needs.

        Args:
            model: in training mode; where several processes train, the one that averages gradients.
            task: whose losses they are.
            part, spans: of the model.
            runtime: precision, loss scaling, processes.
            budget, span_loss: losses beside the task's, see `LoopOptions`.
        """
        self.model, self.task, self.part, self.spans = model, task, part, spans
        self.runtime, self.budget, self.span_loss = runtime, budget, span_loss

    def forward(self, batch: TaskBatch, stage: Stage) -> Computed:
        """All losses of a batch on the device."""
        part = self.part
        if part is not None:
            part.held = stage.held
        with peers(), self.runtime.autocast(), self._forced(stage):
            output = self.task.step(self.model, batch)
        losses = dict(output.losses)
        of_samples = set(losses)
        decided = None if part is None else part.last
        if decided is not None:
            if decided.logits is not None and decided.logits.requires_grad:
                decided.logits.retain_grad()
            if part is not None and self.budget.active:
                share = self.runtime.world.mean(decided.decisions)
                losses |= budget_losses(share, part.live, self.budget)
        if (span := self.spans.loss(self.span_loss)) is not None:
            losses[SPAN] = span
            of_samples.add(SPAN)
        return Computed(losses, frozenset(of_samples), output, decided)

    def backward(self, computed: Computed, factors: Mapping[str, float | Tensor]) -> None:
        """Gradients of the sum of the losses, each multiplied by its factor."""
        weighted = []
        for name, loss in computed.losses.items():
            loss, factor = precise(loss), factors[name]
            weighted.append(loss * (factor.to(loss) if isinstance(factor, Tensor) else factor))
        with peers():
            self.runtime.scaler.scale(torch.stack(weighted).sum()).backward()

    def _forced(self, stage: Stage) -> AbstractContextManager[None]:
        if self.part is None or not stage.warming:
            return nullcontext()
        return self.part.force(torch.zeros_like(self.part.live, dtype=torch.float32))
