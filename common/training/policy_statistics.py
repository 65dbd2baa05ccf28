"""What a policy does in an epoch: its probabilities, what they tell of the inputs, its gradient.

Everything is a sum over samples that stays on the device until the epoch is over, so that it costs
next to nothing and does not depend on how batches are split. Shape legend: B batch, D decisions,
W windows, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.training.task import TaskBatch, added

# The policy moves while it is trained: inputs are compared within windows of an epoch's steps.
WINDOWS = 32
RIGHT = 0.5  # a score above is a right answer
Groups = Mapping[str, Sequence[str | None]]


def groups_of(batch: TaskBatch, frozen: Mapping[int, float]) -> Groups:
    """What the samples of a batch are grouped by: B names each, or none.

    Args:
        batch: of training samples.
        frozen: score of the pretrained model by sample, where it was measured.
    """
    known = [frozen.get(key) for key in batch.samples] if frozen else []
    right = [None if score is None else "right" if score > RIGHT else "wrong" for score in known]
    return {"type": batch.types, "kind": batch.kinds, "pretrained": right}


class PolicyStatistics:
    """Sums over the samples of an epoch.

    Its probability p of decision 1 is that of the logits, before anything is drawn.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # (3, W, D): of p, of its square, of its entropy
        self._counts = [0] * WINDOWS
        self._groups: dict[str, dict[str, int]] = {}  # numbers of samples
        self._rows: dict[tuple[str, str], int] = {}
        self._grouped: Tensor | None = None  # (G, D): of p
        self._pushes: Tensor | None = None  # (2, D): of the gradient and of its size
        self._norms: Tensor | None = None  # (2,): of the norms, and their number

    def add(self, logits: Tensor | None, done: float, groups: Groups) -> None:
        """Count a (micro-)batch.

        Args:
            logits: (B, D, 2) of the policy; None where none was asked.
            done: share of the epoch's steps that came before, in [0, 1).
            groups: see `groups_of`.
        """
        if logits is None:
            return
        with torch.no_grad():
            odds = logits.detach().double()
            odds = odds[..., 1] - odds[..., 0]
            p = odds.sigmoid()
            entropy = F.softplus(odds) - odds * p
            sums = torch.stack([p, p * p, entropy]).sum(1)
            if self._sums is None:
                self._sums = sums.new_zeros(3, WINDOWS, sums.shape[-1])
            self._sums = self._sums.to(p.device)
            window = int(done * WINDOWS)
            self._sums[:, window] += sums
            self._counts[window] += len(p)
            self._group(p, groups)

    def _group(self, p: Tensor, groups: Groups) -> None:
        places = []
        for family, names in groups.items():
            for place, name in enumerate(names):
                if name is not None:
                    row = self._rows.setdefault((family, name), len(self._rows))
                    counts = self._groups.setdefault(family, {})
                    counts[name] = counts.get(name, 0) + 1
                    places.append((row, place))
        if not places:
            return
        members = torch.zeros(len(self._rows), len(p), dtype=p.dtype)
        members[tuple(zip(*places, strict=True))] = 1
        sums = members.to(p.device, non_blocking=True) @ p
        if self._grouped is not None:
            sums[: len(self._grouped)] += self._grouped.to(p.device)
        self._grouped = sums

    def add_gradient(self, gradient: Tensor, unit: Tensor | float) -> None:
        """Count the gradient of the logits of a (micro-)batch.

        Args:
            gradient: (B, D, 2); half the difference is that of the odds.
            unit: what the loss is scaled by.
        """
        push = (gradient[..., 1] - gradient[..., 0]).double() / (2 * unit)
        push = push.nan_to_num(0.0, 0.0, 0.0)  # of an update that loss scaling leaves out
        sums = torch.stack([push.sum(0), push.abs().sum(0)])
        self._pushes = added(self._pushes, sums)

    def add_norm(self, norm: Tensor) -> None:
        """Count the policy's gradient (its norm, 0-d, before clipping) of an update."""
        norm = norm.detach().double()
        counted = torch.stack([norm, torch.ones_like(norm)])
        counted = torch.where(norm.isfinite(), counted, 0.0)
        self._norms = added(self._norms, counted)

    def join(self, state: Mapping[str, Any]) -> None:
        """Add what another process counted (its `state_dict`); norms are those of all anyway."""
        own = self.state_dict()
        for key in ("sums", "pushes"):
            if own[key] is None or state[key] is None:
                own[key] = state[key] if own[key] is None else own[key]
            else:
                own[key] = own[key] + state[key]
        own["counts"] = [a + b for a, b in zip(own["counts"], state["counts"], strict=True)]
        for family, names in state["groups"].items():
            for name, entry in names.items():
                before = own["groups"].setdefault(family, {}).get(name)
                own["groups"][family][name] = entry if before is None else {
                    key: before[key] + entry[key] for key in entry
                }  # fmt: skip
        self.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        def on_cpu(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.cpu().clone()

        grouped = on_cpu(self._grouped)
        groups: dict[str, dict[str, dict[str, Any]]] = {}
        for family, name in self._rows:  # in the order of the rows
            assert grouped is not None
            entry = {
                "count": self._groups[family][name],
                "sum": grouped[self._rows[family, name]].clone(),
            }
            groups.setdefault(family, {})[name] = entry
        return {
            "sums": on_cpu(self._sums),
            "counts": list(self._counts),
            "groups": groups,
            "pushes": on_cpu(self._pushes),
            "norms": on_cpu(self._norms),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; an empty one is that of runs before there were any."""
        state = state or PolicyStatistics().state_dict()
        self._rows, self._groups = {}, {}
        self._sums, self._counts = state["sums"], list(state["counts"])
        self._pushes, self._norms = state["pushes"], state["norms"]
        rows: list[Tensor] = []
        for family, names in state["groups"].items():
            for name, entry in names.items():
                self._rows[family, name] = len(rows)
                self._groups.setdefault(family, {})[name] = entry["count"]
                rows.append(entry["sum"])
        self._grouped = torch.stack(rows) if rows else None

    def record(self, live: Tensor) -> dict[str, Any] | None:
        """For result.json; None where no policy was asked.

        Args:
            live: (D,) bool; means are over these decisions.
        """
        state = self.state_dict()
        if state["sums"] is None:
            return None
        live, counts = live.cpu(), torch.tensor(self._counts, dtype=torch.float64)
        p, squares, entropy = state["sums"]
        count = counts.sum()
        apart = squares - p**2 / counts.clamp(min=1)[:, None]
        spread = (apart.clamp(min=0).sum(0) / (count - (counts > 0).sum()).clamp(min=1)).sqrt()
        each = {"p": p.sum(0) / count, "entropy": entropy.sum(0) / count, "spread": spread}
        return {
            "count": int(count),
            **{name: float(values[live].mean()) for name, values in each.items()},
            "each": {name: values.tolist() for name, values in each.items()},
            "information": {
                family: _information(names, live) for family, names in state["groups"].items()
            },
            "gradient": _gradient(state["pushes"], state["norms"], live),
        }


def _entropy(p: Tensor) -> Tensor:
    """Of a yes/no variable, nats."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


def _information(names: Mapping[str, Mapping[str, Any]], live: Tensor) -> dict[str, Any]:
    """I = H(mean p) - sum_y P(y) H(mean p | y) of every decision and the group y of a sample, nats.

    Args:
        names: by group, the number of its samples and the sum (D,) of p over them.
        live: (D,) bool.
    """
    counts = torch.tensor([entry["count"] for entry in names.values()], dtype=torch.float64)
    sums = torch.stack([entry["sum"] for entry in names.values()])
    share = counts / counts.sum()
    within = (share[:, None] * _entropy(sums / counts[:, None])).sum(0)
    found = (_entropy(sums.sum(0) / counts.sum()) - within).clamp(min=0)
    return {
        "most": float(found[live].max()),
        "mean": float(found[live].mean()),
        "of": float(torch.xlogy(share, share).sum().abs()),
        "each": found.tolist(),
    }


def _gradient(
    pushes: Tensor | None, norms: Tensor | None, live: Tensor
) -> dict[str, float | None] | None:
    """Norm, mean over updates; and how far the samples agree: 1 if all are pushed the same way."""
    if pushes is None or norms is None or not norms[1]:
        return None
    together, apart = pushes[0].abs()[live], pushes[1][live]
    moved = apart > 0
    agreement = float((together[moved] / apart[moved]).mean()) if moved.any() else None
    return {"norm": float(norms[0] / norms[1]), "agreement": agreement}
