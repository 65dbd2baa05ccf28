"""Does it matter which sample has which decisions? An evaluation in which they are exchanged.

Every sample gets the decisions of another one, so that each decision keeps its share: what is lost
is what the policy earns by telling samples apart. Shape legend: D decisions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.adapt.assigning import assign_decisions, note_decisions, permuted
from common.adapt.encoder import Adaptive
from common.adapt.policy import ControlPolicy
from common.tasks.evaluation import Evaluation, FinetuneTask

Noted = dict[int, Tensor]


@contextmanager
def noting(model: nn.Module) -> Iterator[Noted | None]:
    """Within the context, take down what a policy network decides for every sample (D,).

    None where there is none that decides by argmax. Each process takes down its own samples.
    """
    part = adaptive_part(model)
    if part is None or not _decides_by_input(part):
        yield None
        return
    with note_decisions(part) as noted:
        yield noted


def _decides_by_input(part: Adaptive) -> bool:
    return part.options.policy_eval == "argmax" and not isinstance(part.policy, ControlPolicy)


def permuted_evaluation(
    model: nn.Module, task: FinetuneTask, data: Any, seed: int, noted: Noted | None = None
) -> Evaluation | None:
    """Evaluate with the decisions permuted among all samples.

    Args:
        model: adapted, on the task's device.
        task: evaluates it.
        data: samples of the task.
        seed: keys the permutation.
        noted: what `noting` took down in an evaluation of the same samples; None: find it out,
            with the policy network alone.

    Returns:
        None where nothing would change: no policy network that decides by argmax, or the same
        decisions for all samples.
    """
    part = adaptive_part(model)
    if part is None or not _decides_by_input(part):
        return None
    if noted is None:
        with noting(model) as noted, part.decide_only():
            task.evaluate(model, data, "decisions")
    assert noted is not None
    rows = torch.stack(
        [torch.empty_like(part.live, dtype=torch.uint8, device="cpu"), *noted.values()]
    )
    parts = task.runtime.world.gather((list(noted), rows[1:].clone()))
    every = {key: row for keys, own in parts for key, row in zip(keys, own, strict=True)}
    used = torch.cat([own for _, own in parts])[:, part.live.cpu()]
    if bool((used == used[:1]).all()):
        return None
    with assign_decisions(part, permuted(every, seed)):
        return task.evaluate(model, data, "decisions permuted")
