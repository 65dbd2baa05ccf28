"""What the reader of a result should be warned of, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.adapt.encoder import Adaptive
from common.adapt.policy import ControlPolicy, SharedPolicy
from common.tasks.evaluation import Evaluation
from common.training.loop import LoopOptions
from common.training.policy_lessons import can_be_taught

SAME = 0.01  # p that is spread less than this over the inputs does not depend on them


def find_problems(
    val: Evaluation,
    decisions: Mapping[str, Any] | None,
    baselines: Mapping[str, Mapping[str, float | None]],
    part: Adaptive | None,
    options: LoopOptions,
    epoch: Mapping[str, Any],
) -> list[str]:
    """A policy that does not look at its input, accuracy below the majority answer.

    Args:
        val: the evaluation that is reported.
        decisions: the entry of result.json.
        baselines: those of the task.
        part: the adaptive part of the model.
        options: how it was trained.
        epoch: the record of the epoch that is kept.
    """
    found = []
    if decisions is not None and part is not None and _by_input(part):
        live = [s for s, alive in zip(decisions["share"], decisions["live"], strict=True) if alive]
        if all(s in (0.0, 1.0) for s in live):
            found.append(
                f"the policy has collapsed: every one of {len(live)} live decisions is "
                f"the same for all samples{_advice(part, options)}"
            )
        elif _same_for_all(part, epoch):
            found.append(
                f"the policy hardly depends on its input: over the training samples, the "
                f"probability of no decision varies by {SAME:g}, though some decisions "
                f"differ{_advice(part, options)}"
            )
    for name, what in (("majority", "always answering the majority answer"), ("chance", "chance")):
        level = baselines.get(name, {}).get("overall")
        if level is not None and val.overall < level:
            found.append(
                f"accuracy {val.overall:.2f} is below {what} ({level:.2f}): something is wrong, or "
                "training too short"
            )
    return found


def _by_input(part: Adaptive) -> bool:
    """Whether decisions could differ: with `global` and one policy for all they are not to."""
    return part.options.policy_eval != "global" and not isinstance(part.policy, SharedPolicy)


def _same_for_all(part: Adaptive, epoch: Mapping[str, Any]) -> bool:
    policy = epoch.get("policy")
    if not policy or isinstance(part.policy, ControlPolicy):
        return False
    live = part.live.tolist()
    return all(
        spread < SAME for spread, alive in zip(policy["each"]["spread"], live, strict=True) if alive
    )


def _advice(part: Adaptive, options: LoopOptions) -> str:
    """What to try that was not tried; nothing for a control, which learns nothing."""
    if isinstance(part.policy, ControlPolicy):
        return ""
    tries = []
    if can_be_taught(part) and not options.policy.starts:
        tries.append("teach it first (--policy-training started)")
    if can_be_taught(part) and options.policy.hold < 1:
        tries.append("hold it meanwhile, or for good (--policy-hold 1)")
    low = options.temperature <= 1
    tries.append(f"{'another' if low else 'a lower'} --temperature{'' if low else ' (1)'}")
    if options.budget.target_rate is None and options.budget.constrain_k is None:
        tries.append("a budget (--target-rate 0.5)")
    return f". What to try: {', '.join(tries)}"
