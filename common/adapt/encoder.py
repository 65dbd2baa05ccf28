"""The adaptive part of an encoder: twins, policy, decisions, and the pass through routed sites.

An encoder derives from `RoutedEncoder` and says what its layers are; `Adaptive` is a submodule of
it (state-dict names `adaptive.*` beside the upstream ones). Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from common.adapt.differences import Differences
from common.adapt.executors import AUTO, STATIC, RoutedSite, Routing, chosen_executor, execute
from common.adapt.experts import Chosen, Experts, groups
from common.adapt.gumbel import hard_gumbel
from common.adapt.policy import ControlPolicy, PolicyInputs, uniform_noise
from common.adapt.routes import Routes, State, Written, read_stream
from common.adapt.row_routing import with_zero_gradients
from common.adapt.sharing import SharedStreams, streams_alone
from common.adapt.steps import (
    PAIR,
    HeadsStep,
    Layer,
    Others,
    Step,
    first_position,
    live_steps,
    present_watchers,
)
from common.adapt.strategies import Site, Strategy, plan_sites
from common.errors import ConfigError
from common.modules.shapes import AsksDevice, shapes_are_static

PolicyFactory = Callable[[int, float], nn.Module]
Forced = Tensor | Callable[[Sequence[int]], Tensor]
Drawn = tuple[Tensor, float | Tensor]  # noise (B, 2 D) in (0, 1), temperature
HALF = (torch.bfloat16, torch.float16)
POLICY_EVALUATIONS = ("argmax", "sample", "global")


@dataclass
class Decided:
    """What was decided in the last forward pass.

    Attributes:
        decisions: (B, D), exactly 0 or 1; carries the policy's gradient in training.
        logits: (B, D, 2), or None where no policy was asked.
    """

    decisions: Tensor
    logits: Tensor | None = None


@dataclass
class AdaptiveOptions:
    """How an adapted encoder runs; see `common.adapt.executors` for the executors.

    Attributes:
        executor: while training: auto, or one of those for training.
        eval_executor: in evaluation mode; auto or any executor.
        sampled_share: p of `sampled`.
        policy_eval: argmax, sample or global, in evaluation mode.
        temperature: of the Gumbel-softmax while training.
        full_precision: under autocast, form the difference of the branches in float32.
    """

    executor: str = AUTO
    eval_executor: str = AUTO
    sampled_share: float = 0.25
    policy_eval: str = "argmax"
    temperature: float = 5.0
    full_precision: bool = True


class Adaptive(nn.Module):
    """Twins (or linear maps), policy network and decision vector of one encoder.

    Attributes:
        held: the policy decides, but learns nothing: its gradients are 0, and no branch is
            computed for them.
        observer: told the samples and the decisions (B, D) of every pass, see `note_decisions`.
        drawn: what decisions are drawn with, where that is not left to `draw`.
    """

    live: Tensor
    global_decisions: Tensor

    def __init__(
        self,
        layers: Sequence[Layer],
        reads: Sequence[str],
        strategy: Strategy,
        policy: nn.Module | None,
        options: AdaptiveOptions,
        reads_first: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.options = options
        self._layers = tuple(layers)
        self._plan = plan_sites(layers, strategy, reads, reads_first)
        self._alone = streams_alone(layers)
        self._columns = [
            [column for site in sites if site.live for column in site.columns]
            for sites in self._plan
        ]
        self.policy = policy
        self.twins = nn.ModuleDict()
        self.linears = nn.ModuleDict()
        if strategy.other == "twin":
            self.twins.update({_key(layer.name): frozen_copy(layer.module) for layer in layers})
        if strategy.other == "linear":
            self.linears.update(
                {
                    _key(layer.name): _linear_maps(layer, sites[0].outputs)
                    for layer, sites in zip(layers, self._plan, strict=True)
                }
            )
        self.register_buffer(
            "live",
            torch.tensor([site.live for site in self.sites for _ in site.columns]),
            persistent=False,
        )
        self.register_buffer("global_decisions", torch.full((len(self.live),), -1.0))
        self.last: Decided | None = None
        self.raw_inputs: Mapping[str, Tensor | None] = {}
        self._noise_key: tuple[int, int, Sequence[int]] | None = None
        self._kinds: Sequence[str | None] = ()
        self._sampling_key: tuple[int, int, Sequence[int]] | None = None
        self._forced: Forced | None = None
        self.observer: Callable[[Sequence[int], Tensor], None] | None = None
        self._decide_only = False
        self.held = False
        self.drawn: Drawn | None = None

    @property
    def sites(self) -> list[Site]:
        """All sites, dead ones included, in the order of their decisions."""
        return [site for sites in self._plan for site in sites]

    @property
    def decision_layers(self) -> list[str]:
        """The layer of each decision, D names."""
        return [site.layer for site in self.sites for _ in site.columns]

    @property
    def decision_components(self) -> list[str]:
        """The component of each decision within its layer, D names (empty for a whole layer)."""
        return [name for site in self.sites for name in site.decision_names()]

    @property
    def decision_names(self) -> list[str]:
        """`layer.component` of each decision, D names."""
        pairs = zip(self.decision_layers, self.decision_components, strict=True)
        return [f"{layer}.{component}".rstrip(".") for layer, component in pairs]

    def twin(self, layer: str) -> nn.Module | None:
        """The frozen copy of a layer; None where the other branch is none."""
        return self.twins[_key(layer)] if self.twins else None

    def tell(
        self, seed: int, step: int, samples: Sequence[int], kinds: Sequence[str | None] = ()
    ) -> None:
        """Say which samples the next forward pass is about.

        Args:
            seed, step, samples: key the noise of its decisions, by (seed, step, sample).
            kinds: of the B samples, for a policy that decides by them; empty: not known.
        """
        self._noise_key, self._kinds = (seed, step, samples), kinds

    def forget(self) -> None:
        """Nothing is said of the samples of the next forward pass."""
        self._noise_key, self._kinds = None, ()

    @contextmanager
    def force(self, decisions: Forced) -> Iterator[None]:
        """Within the context use these decisions, (D,) or (B, D) of 0 / 1, not the policy's.

        A function gives those of the samples that `tell` names.
        """
        if isinstance(decisions, Tensor) and decisions.shape[-1] != len(self.live):
            raise ValueError(f"{decisions.shape[-1]} decisions given, {len(self.live)} needed")
        self._forced = decisions
        try:
            yield
        finally:
            self._forced = None

    @contextmanager
    def decide_only(self) -> Iterator[None]:
        """Within the context only the policy network runs: layers hand on what they are given."""
        self._decide_only = True
        try:
            yield
        finally:
            self._decide_only = False

    def decide(self, state: State) -> Tensor:
        """Decisions (B, D) for the samples whose embeddings are in `state`."""
        first = next(x for x in state.values() if x is not None)
        batch, device = len(first), first.device
        key, kinds = self._noise_key, self._kinds
        if self.drawn is None:
            self.forget()
        if self._forced is not None:
            forced = self._forced if isinstance(self._forced, Tensor) else self._forced(_told(key))
            self.last = Decided(forced.to(device).expand(batch, -1))
        elif not self.training and self.options.policy_eval == "global":
            self.last = Decided(self._global(batch))
        else:
            learning = not self.held or self._decide_only
            with nullcontext() if learning else torch.no_grad():
                logits = self._logits(state, kinds)
            drawn = (self.training and not self.held) or self.options.policy_eval == "sample"
            if isinstance(self.policy, ControlPolicy):
                drawn = self.policy.drawn
            if drawn:
                noise, temperature = self.drawn or self.draw(key, batch, device)
                decisions = hard_gumbel(logits, noise.view_as(logits), temperature)
            else:
                decisions = (logits[..., 1] > logits[..., 0]).to(logits.dtype)
            self.last = Decided(decisions, logits)
        self._sampling_key = key
        if self.observer is not None:
            self.observer(_told(key), self.last.decisions)
        return self.last.decisions

    def show(self, decided: Decided | None, samples: Sequence[int]) -> None:
        """Take over what a repeated pass decided about these samples."""
        self.last = decided
        if self.observer is not None and decided is not None:
            self.observer(samples, decided.decisions.clone())

    def draw_told(self, batch: int) -> Drawn:
        """What the decisions of the next pass would be drawn with; B samples."""
        return self.draw(self._noise_key, batch, self.live.device)

    def draw(
        self, key: tuple[int, int, Sequence[int]] | None, batch: int, device: torch.device
    ) -> Drawn:
        """What the decisions of a pass are drawn with, on the device.

        Args:
            key: seed, step and samples, see `tell`; None: noise of torch's generator.
            batch: B.
            device: where it is used.
        """
        given = self.options.temperature
        # Where a number is divided by, it is not divided as by a tensor.
        temperature = given if device.type == "cpu" else torch.full((), given, device=device)
        return uniform_noise(key, batch, 2 * len(self.live), device), temperature

    def _global(self, batch: int) -> Tensor:
        if (self.global_decisions < 0).any():
            raise ConfigError(
                "policy evaluation 'global' needs global decisions: none were "
                "computed or loaded (only BEST of a finished run has them; use "
                "--policy-eval argmax for other checkpoints)"
            )
        return self.global_decisions.expand(batch, -1)

    def _logits(self, state: State, kinds: Sequence[str | None]) -> Tensor:
        if self.policy is None:
            raise ConfigError(f"strategy {self.strategy.name} needs a policy network")
        first = next(iter(state))
        raw, self.raw_inputs = self.raw_inputs, {}
        own = next(self.policy.parameters(), read_stream(state, first)).dtype
        own = own if own == torch.float64 or own in HALF else torch.float32

        def as_own(values: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
            return {
                k: x if x is None or not x.is_floating_point() else x.to(own)
                for k, x in values.items()
            }

        with torch.autocast(read_stream(state, first).device.type, enabled=False):
            logits: Tensor = self.policy(PolicyInputs(as_own(state), as_own(raw), kinds))
            return logits if own == torch.float64 else logits.float()

    def run(self, state: State, encoder: RoutedEncoder, passed: list[State] | None = None) -> State:
        """Run all layers of the encoder with the policy's decisions.

        Args:
            state: slots (B, …) before the first layer.
            encoder: whose adaptive part this is.
            passed: if given, receives the slots after every layer.

        Raises:
            AsksDevice: shapes are static, and the executor's are not.
        """
        decisions = self.decide(state)
        if self._decide_only:
            return state
        if self.training and self.policy is not None and not decisions.requires_grad:
            # All processes have the same gradients, also where the policy learns nothing.
            first = next(iter(state))
            idle = list(self.policy.parameters())
            state = {**state, first: with_zero_gradients(read_stream(state, first), idle)}
        options = self.options
        executor = self.executor(read_stream(state, next(iter(state))))
        if executor not in STATIC and shapes_are_static():
            raise AsksDevice(f"--executor {executor} takes samples apart by their decisions")
        noise = None
        if executor == "sampled":
            key = self._sampling_key
            # The complement of the seed keeps this stream apart from the Gumbel noise.
            key = None if key is None else (~key[0], key[1], key[2])
            noise = uniform_noise(key, len(decisions), len(self.sites), decisions.device)
        routing = Routing(
            decisions,
            executor,
            options.sampled_share,
            noise,
            self.training and self._drops(),
            options.full_precision,
        )
        index = 0
        dropped = encoder.dropped if self.training else frozenset()
        shared, whole, rows = SharedStreams(state, encoder.shares(passed)), routing, None
        columns = iter(self._columns)
        for layer, sites, alone in zip(self._layers, self._plan, self._alone, strict=True):
            module = encoder.get_submodule(layer.path)
            if layer.name in dropped:
                state = without_layer(state, module, layer.streams)
            before = rows
            state, rows = shared.before(state, alone, decisions, next(columns))
            if rows is not before:
                routing = whole if rows is None else whole.of_rows(rows.first)
            for site in sites:
                if site.live and layer.name not in dropped:
                    routed = self._routed(layer.name, module, site)
                    state = {**state, **execute(routed, index, state, routing)}
                index += 1
            state = between_layers(state)
            if passed is not None:
                passed.append(state)
        return shared.spread(state)

    def executor(self, x: Tensor) -> str:
        """The executor of a pass, in the present mode and under the present autocast.

        Args:
            x: a stream, or another tensor on its device and in its precision.
        """
        name = self.options.executor if self.training else self.options.eval_executor
        device = x.device
        if name == AUTO and present_watchers():  # which look at samples in their order
            device = torch.device("cpu")
        twins = self.strategy.other == "twin"
        return chosen_executor(name, self.training, device, twins, groups(x))

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last forward pass left behind, so that a model can be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"last": None, "raw_inputs": {}, "observer": None}

    def _drops(self) -> bool:
        return any(
            isinstance(m, nn.Dropout) and m.p > 0
            for layer in self._layers
            for m in layer.module.modules()
        )

    def _routed(self, name: str, module: nn.Module, site: Site) -> RoutedSite:
        twin = self.twin(name)

        def branch(value: int, inputs: State) -> Written:
            if value == 1:
                return run_steps(site.steps, module, inputs)
            if twin is not None:
                return run_steps(site.steps, twin, inputs)
            passed = {slot: read_stream(inputs, slot) for slot in site.outputs}
            passed |= {slot: first_position(passed[slot]) for slot in site.narrowed}
            if self.linears:
                maps = cast(nn.ModuleDict, self.linears[_key(name)])
                return {slot: maps[slot](x) for slot, x in passed.items()}
            return passed

        heads = None
        if site.per_head:

            def heads(inputs: State, routes: Routes, flip: bool, others: Others | None) -> Written:
                assert twin is not None
                out: Written = {}
                for step in site.steps:
                    assert isinstance(step, HeadsStep)
                    pair = twin, module
                    out |= step.run_routed(pair, inputs, routes, site.columns, flip, others)
                return out

        def parameters(value: int) -> list[nn.Parameter]:
            if value == 1:
                modules = [m for step in site.steps for m in step.modules(module)]
            else:
                modules = [self.linears[_key(name)]] if self.linears else []
            return list({id(p): p for m in modules for p in m.parameters()}.values())

        def experts(inputs: State, chosen: Chosen, flip: bool) -> Written:
            assert twin is not None
            with Experts(module, twin, chosen, flip):
                return run_steps(site.steps, module, inputs)

        def static() -> bool:
            return not any(step.weighs(module) for step in site.steps)

        def differ(inputs: State) -> Written:
            assert twin is not None
            with Differences(module, twin) as differences:
                written = run_steps(site.steps, module, inputs)
            return {slot: differences.of(written[slot]) for slot in site.outputs}

        return RoutedSite(
            site.columns,
            site.outputs,
            site.inputs,
            branch,
            heads,
            parameters,
            None if twin is None else experts,
            static=static,
            differ=None if twin is None else differ,
        )


class RoutedEncoder(nn.Module):
    """Base class of encoders whose layers are lists of steps.

    Attributes:
        reads: slots that are read after the last layer; the rest is dead and is not computed.
        reads_first: those of `reads` of which only the first position is read; the last layer
            that writes them hands on (B, 1, C).
        policy_factory: `policy_factory(D, initial share)` makes the policy network of the original
            system; None where it has none.
        adaptive: set by `common.adapt.adapting`; None runs every live step as it is.
        dropped: names of layers that are left out in training mode; see `common.adapt.layerdrop`.
        span_policy: reads from a pair what the spans of attention depend on, see
            `common.adapt.attention`; None: they are the same for all samples.
        pair: (B, F), what it read of the last batch in training, for the loss.
        by_place: what is computed of a sample depends on its place in the batch.
    """

    def __init__(self, policy_factory: PolicyFactory | None = None) -> None:
        """Start without a strategy; `policy_factory` makes the published policy network."""
        super().__init__()
        self.policy_factory = policy_factory
        self.adaptive: Adaptive | None = None
        self.reads: tuple[str, ...] = ()
        self.reads_first: tuple[str, ...] = ()
        self.dropped: frozenset[str] = frozenset()
        self.span_policy: nn.Module | None = None
        self.pair: Tensor | None = None
        self.by_place = False
        self._plain: tuple[tuple[Layer, tuple[Step, ...], str | None], ...] | None = None

    def layers(self) -> list[Layer]:
        """All layers in execution order."""
        raise NotImplementedError

    def layers_removed(self, names: Sequence[str]) -> None:
        """Called after the layers of these names were taken out (`common.adapt.merging`)."""

    def attending(self) -> Iterator[tuple[Layer, nn.Module, HeadsStep]]:
        """The steps with attention heads that reach what is read, with their layer and its module,
        in order of execution."""
        layers = self.layers()
        for layer, steps in zip(layers, live_steps(layers, self.reads)[0], strict=True):
            module = self.get_submodule(layer.path)
            yield from ((layer, module, step) for step in steps if isinstance(step, HeadsStep))

    def set_reads(self, reads: Sequence[str], first: Sequence[str] = ()) -> None:
        """Say which slots are read after the last layer (before `adapt`).

        Args:
            reads: the slots.
            first: those of them of which only the first position is read.
        """
        if self.adaptive is not None:
            raise ConfigError("what is read from an encoder is set before it is adapted")
        if not set(first) <= set(reads):
            raise ConfigError(
                f"only the first position of {', '.join(first)} is read, but the "
                f"slots that are read are {', '.join(reads)}"
            )
        self.reads, self.reads_first = tuple(reads), tuple(first)
        self._plain = None

    def check_attention(self) -> None:
        """Raise ConfigError if it is adapted, so that there is no one attention."""
        if self.adaptive is not None:
            raise ConfigError(
                "attention probabilities are those of a plain model; an adapted one "
                "has two branches (common.adapt.attention_capture says what each sample ran; or "
                "export it, or build it with strategy standard)"
            )

    @property
    def runs_in_parts(self) -> bool:
        """Nothing in it depends on the pair as a whole before the streams meet."""
        return self.adaptive is None and self.span_policy is None

    def before_meeting(self) -> int:
        """So many layers run before the first in which streams meet: each reads one stream
        alone."""
        streams = streams_alone(self.layers())
        return streams.index(None) if None in streams else len(streams)

    def alone(self, stream: str) -> slice:
        """The places of the layers that read a stream alone.

        Raises:
            ValueError: they do not stand one behind the other.
        """
        places = [n for n, name in enumerate(streams_alone(self.layers())) if name == stream]
        if not places:
            return slice(0)
        if places[-1] - places[0] >= len(places):
            raise ValueError(f"layers of {stream} alone stand between those of another stream")
        return slice(places[0], places[-1] + 1)

    def shares(self, passed: object) -> bool:
        """Whether rows that are the same may be computed once: in evaluation, unless the slots
        between layers are wanted, or places in the batch matter."""
        return not (self.training or self.by_place) and passed is None

    def _read_pair(self, state: State) -> Tensor | None:
        """(B, F), or None where nothing is read."""
        if self.span_policy is None:
            return None
        first = read_stream(state, next(iter(state)))
        with torch.autocast(first.device.type, enabled=False):
            found: Tensor = self.span_policy(state)
        if self.training and torch.is_grad_enabled():
            self.pair = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last forward pass left behind, so that a model can be copied."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return state | {"pair": None}

    def run_layers(
        self,
        state: State,
        raw_inputs: Mapping[str, Tensor | None] | None = None,
        passed: list[State] | None = None,
        part: slice = slice(None),
    ) -> State:
        """Run all layers on the slots (B, …) of `state`; returns the slots after them.

        Args:
            state: streams and masks before the first layer.
            raw_inputs: the backbone's own inputs, for a published policy.
            passed: if given, receives the slots after every layer.
            part: of the layers, in execution order; of a plain encoder only.
        """
        for watcher in present_watchers():
            watcher.started(self, state)
        if part != slice(None) and not self.runs_in_parts:
            raise ConfigError("an encoder that looks at pairs runs all its layers at once")
        state = {**state, PAIR: self._read_pair(state)}
        if self.adaptive is not None:
            self.adaptive.raw_inputs = raw_inputs or {}
            run = self.adaptive.run
            if torch.compiler.is_compiling():  # routes depend on what decisions are
                run = torch.compiler.disable(run)
            return run(state, self, passed)
        if self._plain is None:
            layers = self.layers()
            live, _ = live_steps(layers, self.reads, first=self.reads_first)
            self._plain = tuple(zip(layers, live, streams_alone(layers), strict=True))
        dropped = self.dropped if self.training else frozenset()
        shared = SharedStreams(state, self.shares(passed))
        for layer, steps, alone in self._plain[part]:
            module = self.get_submodule(layer.path)
            state, _ = shared.before(state, alone)
            if layer.name in dropped:
                state = without_layer(state, module, layer.streams)
            else:
                state = between_layers({**state, **run_steps(steps, module, state)})
            if passed is not None:
                passed.append(state)
        return shared.spread(state)


def run_steps(steps: Sequence[Step], module: nn.Module, state: State) -> Written:
    """Run steps one after the other on one branch's weights; returns what they wrote."""
    written: Written = {}
    for step in steps:
        written |= step.run(module, {**state, **written})
    return written


def without_layer(state: State, module: nn.Module, streams: Iterable[str]) -> State:
    """The slots (B, …) after a layer that is left out: as before it.

    Its parameters get gradients of 0, so that all processes have the same gradients.
    """
    stream = next(iter(streams))
    handed_on = with_zero_gradients(read_stream(state, stream), list(module.parameters()))
    return {**state, stream: handed_on}


def between_layers(state: State) -> State:
    """Forget the slots (B, …) within a layer; streams and masks stay."""
    return {k: x for k, x in state.items() if "." not in k or k.endswith(".mask")}


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters never change."""
    return deepcopy(module).requires_grad_(False)


def _linear_maps(layer: Layer, streams: Sequence[str]) -> nn.ModuleDict:
    """One linear map for each stream that the layer hands on, started as the identity."""
    maps = nn.ModuleDict()
    for stream in streams:
        linear = nn.Linear(layer.streams[stream], layer.streams[stream])
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        maps[stream] = linear
    return maps


def _told(key: tuple[int, int, Sequence[int]] | None) -> Sequence[int]:
    """The samples that a pass is about, which has to be known where decisions are theirs."""
    if key is None:
        raise ValueError("whose decisions are these? Say it with Adaptive.tell before the pass")
    return key[2]


def _key(layer_name: str) -> str:
    """A module name for a layer name (module names cannot hold dots)."""
    return layer_name.replace(".", "_")
