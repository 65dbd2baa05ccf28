"""How `make bench` measures: interleaved steps, saved activations, peak memory.

Times are taken as `common.training.timing` says. Shape legend: B batch, D decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.adapt.adapting import adapt, adaptive_part, make_policy
from common.adapt.encoder import Adaptive
from common.adapt.families import find_encoder
from common.adapt.layerdrop import LayerDropping
from common.adapt.policy import PolicyInputs
from common.adapt.sharing import same_rows
from common.bench.cases import COMPILE_MODE, Case
from common.bench.images import same_images
from common.bench.mechanisms import give_mechanism
from common.modules.packing import packed_weights
from common.modules.shapes import static_shapes
from common.runs.backbones import BenchModel, BenchSettings
from common.training.optim import make_optimizer
from common.training.recording import Recorder
from common.training.runtime import PRECISIONS
from common.training.timing import Clock, interleaved, summarise

LEARNING_RATE = 1e-5
STEER = 20.0
Step = Callable[[], None]
MakeContext = Callable[[], AbstractContextManager]


class SteeredPolicy(nn.Module):
    """A policy network that runs, and learns, as ever, but whose decisions come out as wanted."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.wanted: Tensor | None = None

    def forward(self, inputs: PolicyInputs) -> Tensor:
        """-> logits (B, D, 2), shifted by more than any Gumbel noise (`wanted`: (B, D))."""
        if self.wanted is None:
            raise RuntimeError("a steered policy needs the decisions that are wanted")
        towards = STEER * (2 * self.wanted - 1)
        return self.policy(inputs) + torch.stack([-towards, towards], -1)


class Bench:
    """The models of one group, with one optimiser, and how to run a case on them.

    The standard model and the adapted ones share their parameters, so that a group needs the
    memory of one model and its optimiser (the twins and the reference model come on top).
    """

    def __init__(
        self,
        supplied: BenchModel,
        settings: BenchSettings,
        cases: Sequence[Case],
        baselines: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        """Build the models of `cases` and, unless told otherwise, of their baselines.

        Args:
            supplied: makes them.
            settings: of all cases.
            cases: that will be run.
            baselines: whether what they are compared with will be run too.
            recorder: records steps, where cases repeat them.
        """
        self.supplied, self.recorder = supplied, recorder
        self.settings = settings
        self.device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self._policies: dict[tuple[str, str], nn.Module] = {}
        self._models: dict[str, nn.Module] = {}
        self._dropping: dict[str, LayerDropping] = {}
        self._graphs: dict[Case, tuple[Step, Step]] = {}
        self._inputs: dict[bool, dict[str, Tensor | None]] = {}
        self._steps = 0
        cases = [*(case.baseline() for case in cases if baselines), *cases]
        plain_first = sorted(cases, key=lambda case: case.model != "standard")
        for model, case in {case.model: case for case in plain_first}.items():
            if case.strategy != "reference":
                policies = {other.policy for other in cases if other.model == model}
                self._models[model] = self._make(case, policies)
        if any(case.strategy == "reference" for case in cases):
            if supplied.reference is None:
                raise ValueError("the backbone supplies no reference model")
            self._make_reference(any(case.compiled for case in cases))
        if not settings.dropout:
            without_dropout(self._models.values())
        modules = [*self._models.values(), *self._policies.values()]
        self.parameters = list({id(p): p for m in modules for p in m.parameters()}.values())
        self._trainable = [p for p in self.parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trainable, lr=LEARNING_RATE, fused=True, capturable=self.device.type == "cuda"
        )
        self._optimizers: dict[str, Optimizer] = {"adamw": self.optimizer}
        ours = [model for name, model in self._models.items() if not name.startswith("reference")]
        self._packed = packed_weights(nn.ModuleList(ours))  # as in an evaluation of many batches
        self._generator = torch.Generator().manual_seed(settings.seed)

    def _make(self, case: Case, policies: set[str]) -> nn.Module:
        """The adapted model, on the parameters of the first one, with its steered policies."""
        with self.device:
            model = self.supplied.build().to(self.device)
        if "standard" in self._models:
            shared = self._models["standard"].state_dict(keep_vars=True)
            model.load_state_dict(shared, assign=True)
        dropping = give_mechanism(model, case.mechanism)
        if dropping is not None:
            self._dropping[case.model] = dropping
        encoder = find_encoder(adapt(model, case.strategy, "random:0.5"))
        if encoder.adaptive is not None:
            count = len(encoder.adaptive.live)
            for name in sorted(policies - {"none"}):
                network = make_policy(name, encoder, encoder.layers(), count, 0.5)
                self._policies[case.strategy, name] = SteeredPolicy(network).to(self.device)
        return model

    def _make_reference(self, compiled: bool) -> None:
        assert self.supplied.reference is not None
        with self.device:
            model = self.supplied.reference().to(self.device)
        self._models["reference"] = model
        if compiled:
            self._models["reference compiled"] = cast(
                nn.Module, torch.compile(model, mode=COMPILE_MODE)
            )

    def optimizer_of(self, name: str) -> Optimizer:
        """One for all parameters: adamw, or bert (at a constant learning rate)."""
        if name not in self._optimizers:
            self._optimizers[name] = make_optimizer(
                name, self._trainable, LEARNING_RATE, 1, warmup=0.0, schedule="constant"
            ).optimizer
        return self._optimizers[name]

    def decisions(self, part: Adaptive, share: float, decided: str = "sample") -> Tensor:
        """(B, D) of 0 / 1 of which `share` are 1, spread evenly over the columns.

        Decided `global`, all samples have the same row.
        """
        count = len(part.live)
        batch = 1 if decided == "global" else self.settings.batch
        order = torch.rand(batch, count, generator=self._generator).argsort(0).argsort(0)
        ends = (torch.arange(count + 1, dtype=torch.float64) * share * batch).round()
        chosen = (order < ends.diff()).float().to(self.device)
        return chosen.expand(self.settings.batch, -1).contiguous()

    def decision_count(self, case: Case) -> int:
        """D of the case's model; 0 where nothing is decided."""
        part = adaptive_part(self._models[case.model])
        return 0 if part is None else len(part.live)

    def run(self, case: Case) -> Step:
        """The call to be measured: one training step, or one evaluation of the batch.

        The first call of `run` records a case that is repeated.

        Raises:
            AsksDevice: the step cannot be recorded.
        """
        if not case.graph:
            return self.step(case)
        if case not in self._graphs:
            if self.recorder is None:
                raise ValueError(f"{case.key}: nothing here records steps")
            step = partial(_afresh, adaptive_part(self._models[case.model]), self.step(case))
            with static_shapes():
                # What the step holds is read again by every repetition.
                self._graphs[case] = step, self.recorder.record(step)
        return self._graphs[case][1]

    def step(self, case: Case) -> Step:
        """The same, launched from Python; it can be called several times."""
        model = self._models[case.model].train(case.mode == "train")
        if case.model in self._dropping:
            self._steps += 1
            self._dropping[case.model].draw(self.settings.seed, self._steps)
        inputs = self._inputs_of(case)
        part = adaptive_part(model)
        given: MakeContext = nullcontext if part is None else self._decide(part, case)
        sharing: MakeContext = nullcontext
        if case.questions is not None:
            same = same_images(self.settings.batch, case.questions, self.device)
            sharing = partial(same_rows, vision=same)
        products = partial(shorter_products, case.precision == "tf32")
        low = PRECISIONS.get(case.precision, torch.float32)
        autocast = torch.autocast(
            self.device.type, dtype=low, enabled=case.precision not in ("fp32", "tf32")
        )
        optimizer = self.optimizer_of(case.optimizer)

        def train() -> None:
            with products():
                self.optimizer.zero_grad(set_to_none=True)
                self.forward(model, inputs, given, autocast).backward()
                optimizer.step()

        packed = nullcontext() if case.strategy == "reference" else self._packed

        def evaluate() -> None:
            with torch.no_grad(), products(), sharing(), packed:
                self.forward(model, inputs, given, autocast)

        step = train if case.mode == "train" else evaluate
        return partial(_marked, step) if case.compiled else step

    def _inputs_of(self, case: Case) -> dict[str, Tensor | None]:
        """On the device."""
        reference = case.strategy == "reference"
        if reference not in self._inputs:
            given = self.supplied.reference_inputs if reference else self.supplied.inputs
            assert given is not None
            self._inputs[reference] = {
                k: None if x is None else x.to(self.device) for k, x in given.items()
            }
        return self._inputs[reference]

    def forward(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor | None],
        given: MakeContext,
        autocast: AbstractContextManager,
    ) -> Tensor:
        """The loss of the batch, a scalar."""
        with given(), autocast:
            return self.supplied.loss(model(**inputs).float())

    def _decide(self, part: Adaptive, case: Case) -> MakeContext:
        """What makes the model decide as the case wants it, within."""
        options = part.options
        options.executor = case.executor if case.mode == "train" else options.executor
        options.eval_executor = case.executor if case.mode == "eval" else options.eval_executor
        options.full_precision = case.policy_precision == "high"
        assert case.share is not None
        wanted = self.decisions(part, case.share, case.decided)
        if case.policy == "none":
            return partial(part.force, wanted.requires_grad_(case.mode == "train"))
        steered = self._policies[case.strategy, case.policy]
        steered.wanted = wanted
        part.policy = steered
        return partial(nullcontext, wanted)


def _afresh(part: Adaptive | None, step: Step) -> None:
    """A step without what the one before left: nodes of autograd that belong to another stream."""
    if part is not None:
        part.last = None
    step()


def _marked(step: Step) -> None:
    """A step of a compiled model, whose own graphs are told where it begins."""
    torch.compiler.cudagraph_mark_step_begin()
    step()


@contextmanager
def shorter_products(wanted: bool) -> Iterator[None]:
    """Within it, products of float32 may be computed in TF32, if that is wanted."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def without_dropout(models: Iterable[nn.Module]) -> None:
    """Set every rate to 0."""
    for module in (m for model in models for m in model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def measure_group(
    bench: Bench,
    cases: Sequence[Case],
    clock: Clock,
    rounds: int,
    done: Callable[[Case], object] = lambda case: None,
) -> dict[Case, dict[str, Any]]:
    """Time every case against its baseline, `rounds` times, interleaved.

    Args:
        bench: with the models of these cases.
        cases: of one group.
        clock: of the device.
        rounds: after a first one that is not counted.
        done: called after every single run.

    Returns:
        Per case the record of `summarise` and its number of `decisions`, with `activation_bytes`
        and `activation_ratio` where it trains.
    """
    everything = list(dict.fromkeys([c.baseline() for c in cases] + list(cases)))
    saved = {case: warm_up(bench, case, done) for case in everything}
    times = interleaved(everything, bench.run, clock, rounds, bench.settings.seed, done)
    records = {}
    for case in cases:
        records[case] = summarise(times[case], times[case.baseline()])
        records[case]["decisions"] = bench.decision_count(case)
        if case.mode == "train":
            records[case] |= {
                "activation_bytes": saved[case],
                "activation_ratio": saved[case] / saved[case.baseline()],
            }
    return records


def warm_up(bench: Bench, case: Case, done: Callable[[Case], object] = lambda case: None) -> int:
    """Run a case once, untimed; returns the bytes that its forward pass keeps for backward."""
    counter = ActivationBytes(bench.parameters)
    with counter:
        bench.run(case)()
    done(case)
    return counter.total


class ActivationBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of the storages that autograd keeps within the context, each one once.

    Parameters are no activations: their storages do not count.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in parameters}
        # The storages are held: a freed one's address could be given to another one.
        self._seen: dict[int, torch.UntypedStorage] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def __enter__(self) -> ActivationBytes:  # type: ignore[override]  # torch's gives None
        super().__enter__()
        return self

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._seen[storage.data_ptr()] = storage
        return tensor

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._seen.values())
