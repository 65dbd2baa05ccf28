"""What an epoch's record says of the policy: as a record, as curves, and as a line of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from common.adapt.drifting import drift
from common.adapt.encoder import Adaptive
from common.training.policy_statistics import PolicyStatistics

FAMILIES = {"kind": "kind", "type": "answer type", "pretrained": "where the pretrained is right"}


def policy_record(
    statistics: PolicyStatistics, model: nn.Module, part: Adaptive
) -> dict[str, Any] | None:
    """The entry `policy` of an epoch's record; None where no policy was asked.

    Args:
        statistics: of the epoch.
        model: after it, with its adaptive part.
        part: the adaptive part.
    """
    found = statistics.record(part.live)
    return None if found is None else found | {"drift": drift(model)}


def policy_scalars(policy: Mapping[str, Any] | None) -> dict[str, float | None]:
    """Curves of the entry."""
    if policy is None:
        return {}
    gradient, moved = policy["gradient"] or {}, policy["drift"] or {}
    return {
        **{f"policy/{name}": policy[name] for name in ("p", "entropy", "spread")},
        **{f"policy/tells_{name}": told["most"] for name, told in policy["information"].items()},
        "policy/gradient_norm": gradient.get("norm"),
        "policy/agreement": gradient.get("agreement"),
        "policy/drift": moved.get("overall"),
    }


def policy_line(policy: Mapping[str, Any]) -> str:
    """The entry in a line."""
    words = [
        f"policy: p {policy['p']:.2f} ± {policy['spread']:.2f} over inputs",
        f"entropy {policy['entropy']:.2f}",
    ]
    told = [
        f"{title} {policy['information'][name]['most']:.2f} of "
        f"{policy['information'][name]['of']:.2f}"
        for name, title in FAMILIES.items()
        if policy["information"].get(name, {}).get("of")  # one group: nothing to tell
    ]
    if told:
        words.append(f"one decision tells at most: {', '.join(told)} nats")
    if gradient := policy["gradient"]:
        agreement = gradient["agreement"]
        shown = "–" if agreement is None else f"{agreement:.2f}"
        words.append(f"gradient {gradient['norm']:.2g}, agreement of inputs {shown}")
    else:
        words.append("no gradient")
    if policy["drift"]:
        words.append(f"finetuned weights moved by {100 * policy['drift']['overall']:.2g} %")
    return "; ".join([", ".join(words[:2]), *words[2:]])
