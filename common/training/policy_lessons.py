"""What a policy network is taught beside its straight-through gradient.

At the start both branches are equal, and in the first epochs the finetuned one becomes better for
every sample: that common part of the gradient moves all decisions the same way before the policy
has told its inputs apart. A policy is therefore taught from what can be measured, training samples
alone: first to finetune where the pretrained model fails (`start`), then, while it is held, where
the finetuned branch is the better one (`review`). A strategy that skips blocks is taught to keep
those without which the pretrained model is worse. Shape legend: B batch, D decisions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from common.adapt.encoder import Adaptive
from common.adapt.policy import OraclePolicy, RandomPolicy, SharedPolicy
from common.errors import ConfigError
from common.training.batch_loader import BatchLoader
from common.training.batch_order import MicroBatches, Order
from common.training.distributed import peers
from common.training.optim import clip_grad_norm
from common.training.prefetching import prefetched
from common.training.runtime import Runtime
from common.training.task import Task, TaskBatch, as_number

NEW_HEAD = 0.1
# Of the start: with 230 updates policies had not always told samples apart; in 32 passes over 900
# samples they began to know them by heart.
ENOUGH, FEWEST_PASSES, MOST_PASSES = 450, 2, 16
RATE = 2.0  # of lessons, in learning rates of the policy
WEIGHT_DECAY, LARGEST_NORM = 0.01, 1.0
# Where the pretrained model is right, the finetuned branch mostly will be, too: such a sample says
# little about which one is the better.
RIGHT_TEACHES = 0.5
SKIPS_MEASURED = 1024  # samples that are answered once for each block that could be skipped
SAVE_SECONDS = 30.0  # between saves in the start: short passes would cost less than their saves
Scores = dict[int, Tensor]  # by sample: (), or (D,) where every decision has one


@dataclass(frozen=True)
class PolicyTraining:
    """How a policy network is trained beside its gradient.

    Attributes:
        warmup: share of all steps, from the first, in which every sample takes branch 0, so that
            a new head learns its task before what the pretrained model knows is measured; None:
            `NEW_HEAD` where the head is new, else 0.
        start: passes over the training samples in which the policy is taught, after the warm-up,
            where the pretrained model fails; 0: it is not; None: see `passes`.
        hold: share of all steps, from the first, in which the policy gets no gradient.
        review: passes at the end of every held epoch in which it is taught which branch is the
            better one; 0: none.
    """

    warmup: float | None = None
    start: int | None = 0
    hold: float = 0.0
    review: int = 0

    def resolved(self, new_head: bool) -> PolicyTraining:
        """With a warm-up that is known."""
        if self.warmup is not None:
            return self
        return replace(self, warmup=NEW_HEAD if new_head and self.teaches else 0.0)

    @property
    def starts(self) -> bool:
        """Whether the policy is taught before it is used."""
        return self.start != 0

    @property
    def teaches(self) -> bool:
        """Whether there is any lesson."""
        return self.starts or bool(self.review)

    def passes(self, batches: int) -> int:
        """Passes of the start: as given, or as many as make `ENOUGH` updates of `batches` each."""
        if self.start is not None:
            return self.start
        return min(max(-(-ENOUGH // batches), FEWEST_PASSES), MOST_PASSES)


class PolicyLessons:
    """Teaches the policy of a model; everything random is keyed by the seed.

    Attributes:
        frozen: score in [0, 1] of every training sample with all decisions 0, as the pretrained
            model has it; for a strategy that skips, with all decisions 1.
        passes: of the start that are done.
    """

    def __init__(
        self,
        model: nn.Module,
        part: Adaptive,
        task: Task,
        order: Order,
        runtime: Runtime,
        lr: float,
        seed: int,
        progress: bool = True,
    ) -> None:
        """Note whom to teach.

        Args:
            model: on the runtime's device.
            part: its adaptive part.
            task: whose training samples are asked; its steps score every sample.
            order: the batches of epoch 0 are those of all lessons.
            lr: learning rate of the policy.
            seed: of the order of the batches in each pass.
            progress: show a bar.
        """
        self.model, self.part, self.task, self.order = model, part, task, order
        self.runtime, self.world, self.lr, self.seed = runtime, runtime.world, lr, seed
        self.progress = progress
        self.frozen: dict[int, float] = {}
        self.passes = 0
        self._targets: Scores = {}
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def skips(self) -> bool:
        """Whether decision 0 skips a block, so that there is no frozen branch."""
        return self.part.strategy.other == "skip"

    def begin(self) -> None:
        """Measure what the pretrained model knows, before anything is taught."""
        live = len(self.part.live)
        everywhere = torch.full((live,), float(self.skips))
        self.frozen = self._scores(everywhere, "pretrained model")
        if self.skips:
            self._targets = self._worth_of_blocks()
        else:
            self._targets = {key: torch.tensor(1 - score) for key, score in self.frozen.items()}

    def start(self, passes: int, save: Callable[[], None], stopped: Callable[[], bool]) -> float:
        """Teach the policy where to finetune (or what to keep), going on where it was.

        Args:
            passes: over the training samples, in all.
            save: called after the measurement, after the last pass, where it stops, and after a
                pass if the last save is `SAVE_SECONDS` old.
            stopped: whether a signal wants this process to stop, which it does after a pass.

        Returns:
            Mean loss of the last pass, nats.
        """
        loss = 0.0
        if not self.frozen:
            self.begin()
            save()
        weights, saved = self._weights(), time.monotonic()
        while self.passes < passes and not self.world.any(stopped()):
            name = f"policy start {self.passes + 1}"
            loss = self._pass(self._targets, weights, self.passes, name)
            self.passes += 1
            if self.passes == passes:
                self._optimizer, self._targets = None, {}
            late = time.monotonic() - saved >= SAVE_SECONDS
            if self.world.any(late or stopped() or self.passes == passes):
                save()
                saved = time.monotonic()
        return loss

    def _weights(self) -> dict[int, float]:
        """How much a sample teaches in the start."""
        if self.skips:
            return {}
        return {key: 1 - score * (1 - RIGHT_TEACHES) for key, score in self.frozen.items()}

    def review(self, passes: int, epoch: int) -> float:
        """Teach which branch answers better now; samples on which they agree teach nothing.

        Args:
            passes: over the training samples.
            epoch: keys the order.

        Returns:
            Mean loss of the last pass, nats.
        """
        live = len(self.part.live)
        zero = self._scores(torch.zeros(live), "frozen branch")
        one = self._scores(torch.ones(live), "finetuned branch")
        gain = {key: one[key] - zero[key] for key in zero}
        targets = {key: torch.tensor(float(value > 0)) for key, value in gain.items()}
        weights = {key: abs(value) for key, value in gain.items()}
        loss = 0.0
        for number in range(passes):
            loss = self._pass(targets, weights, 1_000 * (epoch + 1) + number, "policy review")
        self._optimizer = None
        return loss

    def _batches(self) -> list[list[int]]:
        return self.order.epoch(0)

    def _read(self, batches: Sequence[list[int]], name: str) -> Iterator[TaskBatch]:
        """This process' part of some batches, on the device."""
        reader = MicroBatches(self.task, 0, self.world, 1)
        with closing(prefetched(BatchLoader(reader, batches, 0), self.runtime)) as ready:
            for _, (batch,) in tqdm(
                ready,
                total=len(batches),
                desc=name,
                unit="batch",
                leave=False,
                disable=not (self.progress and self.world.main),
                dynamic_ncols=True,
            ):
                yield batch

    @torch.no_grad()
    def _scores(
        self, decisions: Tensor, name: str, batches: Sequence[list[int]] | None = None
    ) -> dict[int, float]:
        """The score of every sample with these decisions (D,), in evaluation mode."""
        self.model.eval()
        own: dict[int, float] = {}
        with self.part.force(decisions.to(self.part.live.device)):
            for batch in self._read(self._batches() if batches is None else batches, name):
                with self.runtime.autocast():
                    found = self.task.step(self.model, batch).scores
                assert found is not None  # every task of a finetuning run has them
                rows = found.float().repeat_interleave(len(batch.samples) // len(found))
                own |= zip(batch.samples, rows.tolist(), strict=True)
        return {key: score for part in self.world.gather(own) for key, score in part.items()}

    def _worth_of_blocks(self) -> Scores:
        """(D,) by sample: 1 where it is answered worse without that block alone."""
        batches = self._batches()
        some = batches[: -(-SKIPS_MEASURED // max(1, len(batches[0])))]
        live, names = self.part.live.cpu(), self.part.decision_names
        worth: dict[int, Tensor] = {}
        for place in live.nonzero()[:, 0].tolist():
            without = torch.ones(len(live))
            without[place] = 0.0
            for key, score in self._scores(without, names[place], some).items():
                row = worth.setdefault(key, torch.zeros(len(live)))
                row[place] = float(score < self.frozen[key])
        return worth

    def _pass(self, targets: Scores, weights: Mapping[int, float], key: int, name: str) -> float:
        """One pass over the training samples with the policy network alone."""
        self.model.train()
        policy = self.part.policy
        assert policy is not None
        if self._optimizer is None:
            self._optimizer = self._new_optimizer(policy)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + key) % 2**63)
        batches = self._batches()
        order = torch.randperm(len(batches), generator=generator).tolist()
        lost: Tensor | float = 0.0
        taught = 0.0
        for batch in self._read([batches[i] for i in order], name):
            loss, weight = self._loss(batch, targets, weights)
            total = self.world.sum({"weight": weight})["weight"]
            if not total:
                continue
            self._optimizer.zero_grad()
            (loss / total).backward()
            self.world.sum_gradients(list(policy.parameters()))
            clip_grad_norm(list(policy.parameters()), LARGEST_NORM)
            self._optimizer.step()
            lost, taught = lost + as_number(loss), taught + weight
        policy.zero_grad(set_to_none=True)
        sums = self.world.sum({"loss": float(lost), "weight": taught})
        return sums["loss"] / max(sums["weight"], 1e-9)

    def _new_optimizer(self, policy: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(policy.parameters(), lr=RATE * self.lr, weight_decay=WEIGHT_DECAY)

    def _loss(
        self, batch: TaskBatch, targets: Scores, weights: Mapping[int, float]
    ) -> tuple[Tensor, float]:
        """Weighted sum of the cross entropies of a batch, and the sum of the weights."""
        with self.part.decide_only(), peers(), self.runtime.autocast():
            self.task.step(self.model, batch)
        last, live = self.part.last, self.part.live
        assert last is not None and last.logits is not None
        odds = (last.logits[..., 1] - last.logits[..., 0])[:, live]
        known = [key in targets for key in batch.samples]
        blank = torch.zeros(())
        wanted = torch.stack(
            [targets.get(key, blank).expand(len(live)) for key in batch.samples]
        ).to(odds)[:, live]
        worth = [
            weights.get(key, 1.0) * told for key, told in zip(batch.samples, known, strict=True)
        ]
        losses = F.binary_cross_entropy_with_logits(odds, wanted, reduction="none").mean(1)
        return (losses * odds.new_tensor(worth)).sum(), sum(worth)

    def state_dict(self) -> dict[str, Any]:
        """What a run that was stopped in the start goes on from; tensors and plain values."""
        keys = list(self.frozen)
        targets = list(self._targets.values())
        return {
            "passes": self.passes,
            "samples": torch.tensor(keys, dtype=torch.int64),
            "frozen": torch.tensor([self.frozen[key] for key in keys], dtype=torch.float64),
            "taught": torch.tensor(list(self._targets), dtype=torch.int64),
            "targets": torch.stack(targets) if targets else torch.zeros(0),
            "optimizer": self._optimizer.state_dict()["state"] if self._optimizer else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.passes = state["passes"]
        self.frozen = dict(zip(state["samples"].tolist(), state["frozen"].tolist(), strict=True))
        self._targets = dict(zip(state["taught"].tolist(), state["targets"], strict=True))
        self._optimizer = None
        if state["optimizer"]:
            policy = self.part.policy
            assert policy is not None
            self._optimizer = self._new_optimizer(policy)
            whole = self._optimizer.state_dict()
            self._optimizer.load_state_dict(whole | {"state": dict(state["optimizer"])})


def can_be_taught(part: Adaptive | None) -> bool:
    """Whether a model has a policy network whose decisions choose between known branches."""
    return not _not_taught(part)


def check_teachable(part: Adaptive | None) -> None:
    """Refuse lessons for what cannot be taught, before any training.

    Raises:
        ConfigError: says why.
    """
    if reason := _not_taught(part):
        raise ConfigError(f"--policy-start and --policy-review teach a policy network: {reason}")


def _not_taught(part: Adaptive | None) -> str:
    """Why a policy cannot be taught; empty where it can."""
    policy = None if part is None else part.policy
    if part is None or policy is None:
        return "this strategy decides nothing"
    if isinstance(policy, SharedPolicy):
        return "policy shared decides the same for all samples, whichever the model fails on"
    if isinstance(policy, RandomPolicy):
        return "policy random draws its decisions and learns nothing"
    if isinstance(policy, OraclePolicy):
        return f"policy oracle:{policy.kind} decides by the kind of a sample and learns nothing"
    if part.strategy.other not in ("twin", "skip"):
        return (
            f"the other branch of {part.strategy.name} are linear maps that are not trained yet, "
            "so nothing can be measured that says when to use them"
        )
    return ""
