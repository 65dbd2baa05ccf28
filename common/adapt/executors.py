"""Executors: how the two branches of a site are computed for a batch of decisions.

A site computes `y = d * one(x) + (1 - d) * zero(x)` with d exactly 0 or 1 for each sample (or for
each sample and attention head). The executors agree in outputs and gradients:

    dense     both branches on every sample, blended. The readable reference.
    exact     training: backward only through the branch that each sample chose, since the
              gradient into the other one is exactly 0; the policy still gets its straight-through
              gradient <dL/dy, one(x) - zero(x)>.
    sampled   training, opt-in: like exact, but the branch that was not chosen is evaluated for a
              random share p of the samples, weighted by 1 / p. Unbiased without dropout; with it
              both branches of those samples draw masks of their own, which are equal to each
              other but not to those of the loss's gradient.
    gathered  evaluation: every sample runs through its own branch only.
    grouped   training and evaluation, on GPUs: both branches in one pass over all samples, see
              `common.adapt.experts`. The gradients are those of exact. A layer that can be skipped
              or replaced is computed in bfloat16 for the samples that keep it, see
              `common.adapt.skipping`, else for all of them. Where there is no such form (a learned
              mechanism of attention), that site runs as with exact or gathered.

Dropout: both branches draw the same masks for the same sample, otherwise the difference that the
policy learns from would drown in mask noise. Shape legend: B batch, D decisions, H heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.adapt.dropout import DropoutReplay, Replay, replay_for
from common.adapt.experts import Chosen, UnknownUse, arrange, by_group
from common.adapt.routes import Branch, Routes, State, Written, take
from common.adapt.row_routing import straight_through
from common.adapt.skipping import FirstSamples, kept_first
from common.adapt.steps import Others
from common.errors import ConfigError

AUTO = "auto"
STATIC = ("dense", "grouped")  # shapes do not depend on decisions, nothing is asked of the device
EXECUTORS = ("dense", "exact", "sampled", "gathered", "grouped")
TRAINING_EXECUTORS = (AUTO, "exact", "grouped", "sampled", "dense")


def chosen_executor(
    name: str, training: bool, device: torch.device, twins: bool, grouping: bool = False
) -> str:
    """What `auto` means; another name stays.

    On the CPU a branch costs what is computed in it, so that rows are taken apart. A GPU waits for
    its launches: there both branches of twins run in one pass, and in training those of other
    strategies side by side. Where layers are skipped, evaluation leaves rows out of its products if
    these are computed by group, else it takes the rows apart, which pays in large batches.

    Args:
        name: of an executor, or auto.
        training: else evaluation.
        device: where the model is.
        twins: whether the other branch is a frozen copy.
        grouping: whether products are computed group by group; of no account in training.
    """
    if name != AUTO:
        return name
    if device.type == "cpu" or not (training or twins or grouping):
        return "exact" if training else "gathered"
    return "grouped"


@dataclass
class Routing:
    """Everything that holds for one forward pass: decisions, routes and executor.

    Attributes:
        decisions: (B, D) of exact 0 / 1, with the policy's graph behind them in training.
        executor: one of `EXECUTORS`.
        sampled_share: p of the `sampled` executor, in (0, 1].
        sampling_noise: (B, sites) uniform numbers for `sampled`, keyed like the policy's noise.
        dropout: whether any dropout is active, so that masks have to be replayed.
        full_precision: evaluate the difference of the branches in float32 under autocast.
    """

    decisions: Tensor
    executor: str
    sampled_share: float = 0.25
    sampling_noise: Tensor | None = None
    dropout: bool = False
    full_precision: bool = True
    _routes: Routes | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ConfigError(f"unknown executor {self.executor!r}; valid: {', '.join(EXECUTORS)}")
        if not 0 < self.sampled_share <= 1:
            raise ConfigError(f"sampled share {self.sampled_share} is not in (0, 1]")

    @property
    def routes(self) -> Routes:
        """The rows of each branch, found out when they are first asked for."""
        if self._routes is None:
            self._routes = Routes(self.decisions, training=self.executor != "gathered")
        return self._routes

    @routes.setter
    def routes(self, routes: Routes) -> None:
        self._routes = routes

    def of_rows(self, rows: Tensor) -> Routing:
        """The same for some rows (n,) of the batch, without gradients."""
        noise = None if self.sampling_noise is None else self.sampling_noise[rows]
        return replace(self, decisions=self.decisions.detach()[rows], sampling_noise=noise)


class RoutedSite:
    """The two branches of one site and how its decisions weigh them.

    `select(inputs, routes, flip, replay)` runs each sample through one branch;
    `branch(value, inputs)` runs all samples through one.
    """

    def __init__(
        self,
        columns: range,
        outputs: Sequence[str],
        inputs: Sequence[str],
        branch: Branch,
        heads: Callable[[State, Routes, bool, Others | None], Written] | None = None,
        parameters: Callable[[int], Sequence[Tensor]] = lambda value: (),
        experts: Callable[[State, Chosen, bool], Written] | None = None,
        static: Callable[[], bool] = lambda: True,
        differ: Callable[[State], Written] | None = None,
    ) -> None:
        """Note how the branches are run.

        Args:
            columns, outputs, inputs: decisions, and slots that are written and read.
            branch: `branch(value, inputs)`.
            heads: `heads(inputs, routes, flip, others)`, where every attention head decides for
                itself; see `HeadsStep.run_routed`.
            parameters: `parameters(value)`, those of a branch.
            experts: `experts(inputs, chosen, flip)`, where the branches differ in parameters only.
            static: `static()`, whether there are forms for it in which rows stay together.
            differ: then `differ(inputs)`, one(x) - zero(x) of twins without cancellation, see
                `common.adapt.differences`; UnknownUse where it cannot.
        """
        self.experts, self.static, self.differ = experts, static, differ
        self.columns = columns
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.branch = branch
        self._heads, self._parameters = heads, parameters

    @property
    def per_head(self) -> bool:
        """Whether every attention head decides for itself."""
        return self._heads is not None

    def select(
        self,
        inputs: State,
        routes: Routes,
        flip: bool,
        replay: Replay,
        others: Others | None = None,
    ) -> Written:
        if self._heads is None:
            return routes.select(
                inputs, self.outputs, self.columns[0], self.branch, flip, replay, self._parameters
            )
        with replay.draw(0):
            out = self._heads(inputs, routes, flip, others)
        return {slot: out[slot] for slot in self.outputs}

    def weigh(self, decisions: Tensor, x: Tensor) -> Tensor:
        """Multiply x (B, T, C) by decisions (B,) or, per head, (B, H)."""
        if self._heads is None:
            return x * decisions[:, 0].to(x.dtype)[:, None, None]
        heads = len(self.columns)
        weights = decisions.to(x.dtype)[:, None, :, None]
        by_head: Tensor = x.unflatten(-1, (heads, -1))
        return (by_head * weights).flatten(-2)


def execute(site: RoutedSite, index: int, state: State, routing: Routing) -> Written:
    """Compute the outputs of a site. `index` is its place in the order of execution."""
    inputs = {slot: state[slot] for slot in site.inputs}
    device = next(x for x in inputs.values() if x is not None).device
    together = routing.executor in STATIC
    replay = replay_for(device, routing.dropout, together)
    decisions = routing.decisions[:, site.columns.start : site.columns.stop]
    if routing.executor == "dense":
        return _dense(site, inputs, decisions, routing, replay)
    if routing.executor == "grouped" and site.static():
        return _as_experts(site, inputs, decisions, routing, replay)
    learning = decisions.requires_grad and torch.is_grad_enabled()
    alone = routing.executor == "gathered" or not learning
    again = not alone and routing.executor != "sampled" and not _precise(site, routing, replay)
    others: Others | None = {} if again else None
    chosen = site.select(inputs, routing.routes, False, replay, others)
    if alone:
        return chosen
    with torch.no_grad():
        if routing.executor != "sampled":
            difference = _difference(site, inputs, chosen, decisions, routing, replay, others)
        else:
            difference = _sampled_difference(
                site, index, inputs, chosen, decisions, routing, replay
            )
    return {slot: straight_through(y, decisions, difference[slot]) for slot, y in chosen.items()}


def _dense(
    site: RoutedSite, inputs: State, decisions: Tensor, routing: Routing, replay: Replay
) -> Written:
    one, zero = _both(site, inputs, replay)
    precise = (
        decisions.requires_grad and torch.is_grad_enabled() and _precise(site, routing, replay)
    )
    weights = decisions.detach() if precise else decisions
    blended = {
        slot: site.weigh(weights, one[slot]) + site.weigh(1 - weights, zero[slot])
        for slot in site.outputs
    }
    if not precise:
        return blended
    # The policy's gradient is a small difference, which drowns in rounding.
    with torch.no_grad():
        difference = _propagated(site, inputs, replay)
        if difference is None:
            with torch.autocast(replay.device.type, enabled=False):
                one, zero = _both(site, _in_float(inputs), replay)
            difference = {slot: one[slot] - zero[slot] for slot in site.outputs}
    return {slot: straight_through(y, decisions, difference[slot]) for slot, y in blended.items()}


def _precise(site: RoutedSite, routing: Routing, replay: Replay) -> bool:
    """Whether the difference of the branches needs more than the precision of the branches.

    That of twins does; a layer and no layer, or a linear map, are far enough apart.
    """
    low = torch.is_autocast_enabled(replay.device.type)
    return routing.full_precision and low and site.experts is not None


def _propagated(
    site: RoutedSite, inputs: State, replay: Replay, routes: Routes | None = None
) -> Written | None:
    """one(x) - zero(x) in low precision; None where that has no form, which is said once.

    Args:
        site, inputs: what is computed of what.
        replay: has the dropout masks that are drawn again.
        routes: where each branch drew masks of its own, the rows of each.
    """
    if site.differ is None or not site.static():
        return None
    try:
        if routes is None:
            with replay.draw(0):
                return site.differ(inputs)
        differ = site.differ
        return routes.select(
            inputs, site.outputs, site.columns[0], lambda _, part: differ(part), False, replay
        )
    except UnknownUse as error:
        warnings.warn(f"the policy's difference is computed in float32: {error}", stacklevel=2)
        return None


def _as_experts(
    site: RoutedSite, inputs: State, decisions: Tensor, routing: Routing, replay: Replay
) -> Written:
    """Both branches in one pass; see `common.adapt.experts`."""
    learning = decisions.requires_grad and torch.is_grad_enabled()
    precise = _precise(site, routing, replay)
    if site.experts is None and by_group(inputs):
        found, difference = _in_place(site, inputs, decisions, learning)
    elif site.experts is None:
        found, difference = _apart(site, inputs, decisions, learning, replay)
    else:
        found, difference = _together(site, inputs, decisions, learning, precise, replay)
    if not learning:
        return found
    return {slot: straight_through(y, decisions, difference[slot]) for slot, y in found.items()}


def _apart(
    site: RoutedSite, inputs: State, decisions: Tensor, learning: bool, replay: Replay
) -> tuple[Written, Written]:
    """What was chosen, and one(x) - zero(x), of branches that share nothing."""
    one, zero = _both(site, inputs, replay)
    mask = decisions[:, 0].bool()[:, None, None]
    found = {slot: torch.where(mask, one[slot], zero[slot]) for slot in site.outputs}
    if not learning:
        return found, {}
    return found, {slot: (one[slot] - zero[slot]).detach() for slot in site.outputs}


def _in_place(
    site: RoutedSite, inputs: State, decisions: Tensor, learning: bool
) -> tuple[Written, Written]:
    """As `_apart`, but the layer is computed for the samples that keep it.

    For a policy that learns, the others pass through the layer too, without gradients. No sample is
    in both passes, so that there are no dropout masks to share.
    """
    kept = decisions.detach()[:, 0].bool()
    mask = kept[:, None, None]

    def layer(samples: Tensor) -> Written:
        """Rows of `outputs` that are not in `samples` (B,) mean nothing, but are finite."""
        arrangement = kept_first(samples)
        with FirstSamples(arrangement.chosen):
            written = site.branch(1, arrangement.arranged(inputs))
        return arrangement.back({slot: written[slot] for slot in site.outputs})

    one, zero = layer(kept), site.branch(0, inputs)
    found = {slot: torch.where(mask, one[slot], zero[slot]) for slot in site.outputs}
    if not learning:
        return found, {}
    with torch.no_grad():
        other = layer(~kept)
        one = {slot: torch.where(mask, one[slot], other[slot]) for slot in site.outputs}
        return found, {slot: one[slot] - zero[slot] for slot in site.outputs}


def _together(
    site: RoutedSite,
    inputs: State,
    decisions: Tensor,
    learning: bool,
    precise: bool,
    replay: Replay,
) -> tuple[Written, Written]:
    """What was chosen, and one(x) - zero(x), of branches that are two experts."""
    arrangement = arrange(decisions, inputs)
    inputs = arrangement.arranged(inputs)

    def run(state: State, flip: bool) -> Written:
        assert site.experts is not None
        with replay.draw(0):
            written = site.experts(state, arrangement.chosen, flip)
        return {slot: written[slot] for slot in site.outputs}

    found = run(inputs, False)
    if not learning:
        return arrangement.back(found), {}
    with torch.no_grad():
        difference = _propagated(site, inputs, replay) if precise else None
    if difference is not None:
        return arrangement.back(found), arrangement.back(difference)
    with torch.no_grad():
        if precise:
            with torch.autocast(replay.device.type, enabled=False):
                inputs = _in_float(inputs)
                taken, other = run(inputs, False), run(inputs, True)
        else:
            taken, other = found, run(inputs, True)
        sign = 2 * decisions.detach() - 1
        difference = arrangement.back({slot: taken[slot] - other[slot] for slot in taken})
        difference = {slot: site.weigh(sign, x) for slot, x in difference.items()}
    return arrangement.back(found), difference


def _both(site: RoutedSite, inputs: State, replay: Replay) -> tuple[Written, Written]:
    """Branch 1 and branch 0 on every sample, with the same dropout masks."""
    with replay.draw(0):
        one = site.branch(1, inputs)
    with replay.draw(0):
        zero = site.branch(0, inputs)
    return one, zero


def _in_float(inputs: State) -> State:
    return {slot: None if x is None else x.float() for slot, x in inputs.items()}


def _difference(
    site: RoutedSite,
    inputs: State,
    chosen: Written,
    decisions: Tensor,
    routing: Routing,
    replay: Replay,
    others: Others | None = None,
) -> Written:
    """one(x) - zero(x), (B, T, C) per slot, from the chosen values and the other branch's."""
    if _precise(site, routing, replay):
        apart = replay.active and not site.per_head
        difference = _propagated(site, inputs, replay, routing.routes if apart else None)
        if difference is not None:
            return difference
        with torch.autocast(replay.device.type, enabled=False):
            inputs = _in_float(inputs)
            chosen = site.select(inputs, routing.routes, False, replay)
            other = site.select(inputs, routing.routes, True, replay)
    else:
        other = site.select(inputs, routing.routes, True, replay, others)
    sign = 2 * decisions.detach() - 1
    return {slot: site.weigh(sign, chosen[slot].detach() - other[slot]) for slot in site.outputs}


def _sampled_difference(
    site: RoutedSite,
    index: int,
    inputs: State,
    chosen: Written,
    decisions: Tensor,
    routing: Routing,
    replay: Replay,
) -> Written:
    """An unbiased estimate of the difference: exact / p on a random share p of rows, else 0."""
    if routing.sampling_noise is None:
        raise ConfigError("the sampled executor needs sampling noise (B, sites)")
    mask = routing.sampling_noise[:, index] < routing.sampled_share
    zeros = {slot: torch.zeros_like(chosen[slot]) for slot in site.outputs}
    if not mask.any():
        return zeros
    rows, routes = routing.routes.restricted(mask, routing.decisions)
    fresh = DropoutReplay(replay.device, active=routing.dropout)
    part = Routing(
        routing.decisions.detach()[rows],
        "gathered",
        full_precision=routing.full_precision,
        dropout=routing.dropout,
    )
    part.routes = routes
    inputs = take(inputs, rows)
    # With dropout the chosen values are drawn anew, so that both branches share their masks.
    subset = (
        site.select(inputs, routes, False, fresh)
        if routing.dropout
        else {slot: chosen[slot].detach().index_select(0, rows) for slot in site.outputs}
    )
    found = _difference(site, inputs, subset, decisions.detach()[rows], part, fresh)
    return {
        slot: zeros[slot].index_copy(
            0, rows, (found[slot] / routing.sampled_share).to(zeros[slot].dtype)
        )
        for slot in site.outputs
    }
