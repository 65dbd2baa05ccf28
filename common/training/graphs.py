"""Passes recorded once and repeated: no Python, and one launch instead of thousands.

On a GPU a step of these models is bound by its launches. A recorded pass (a CUDA graph) repeats
them on the memory that it was recorded on: batch, noise, temperature and weights of losses are
copied there first, gradients are left where every recorded pass leaves them. What a recording
cannot hold - a question to the device, shapes that a batch decides - is found out in a first pass,
and then the passes are run as they are, which is said in one line. The update of the parameters is
not part of a recording: it is a few launches. Shape legend: B batch.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.adapt.adapting import adaptive_part
from common.adapt.encoder import Adaptive, Drawn
from common.adapt.families import find_encoder
from common.adapt.policy import OraclePolicy
from common.modules.shapes import AsksDevice, static_shapes
from common.reading import short
from common.training.checkpoint import rng_state, set_rng_state
from common.training.passes import Computed, Passes, Stage
from common.training.recording import Recorder
from common.training.runtime import Runtime, map_tensors
from common.training.task import TaskBatch

MOST = 8  # recordings; each keeps the memory of its batch, and results
# Functions whose result or shape depends on what a tensor holds.
_QUESTIONS = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "equal", "bincount"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
    )
)
_INDEXING = frozenset(f"aten::{name}" for name in ("index", "index_put", "index_put_"))


class _Questions(TorchDispatchMode):
    """Within it nothing is asked of the device, and nothing is moved to it or from it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name, given = func._schema.name, kwargs or {}
        asks = name in _QUESTIONS or (name in _INDEXING and any(map(_is_mask, args[1])))
        found = None if asks else func(*args, **given)
        moved = isinstance(found, Tensor) and any(
            isinstance(x, Tensor) and x.device != found.device and (x.dim() or x.is_cuda)
            for x in args
        )
        if asks or moved:
            what = "moves between host and device" if moved else "depends on what a tensor holds"
            raise AsksDevice(f"{name.removeprefix('aten::')} {what} ({_place()})")
        return found


def _place() -> str:
    """File and line, outside torch, of what is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if "torch" not in path.parts and path != Path(__file__):
            return f"{path.name}, line {frame.lineno}"
    return "in torch"


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@dataclass
class _Slots:
    """The memory that a recorded pass reads."""

    batch: TaskBatch
    drawn: Drawn | None

    def fill(self, batch: TaskBatch, drawn: Drawn | None) -> None:
        for own, given in zip(_tensors(self), _tensors(_Slots(batch, drawn)), strict=True):
            own.copy_(given, non_blocking=True)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        found.append(x)
        return x

    map_tensors(value, note)
    return found


def _draw(part: Adaptive | None, batch: TaskBatch) -> Drawn | None:
    """What the decisions of a pass are drawn with, as tensors on the device."""
    if part is None:
        return None
    noise, temperature = part.draw_told(len(batch.samples))
    return noise, torch.as_tensor(temperature, device=noise.device)


def _shapes(batch: TaskBatch) -> tuple[Any, ...]:
    """What batches that repeat one recording have in common."""
    return batch.task, *(
        (name, None if x is None else (x.shape, x.dtype))
        for named in (batch.inputs, batch.labels)
        for name, x in named.items()
    )


@contextmanager
def _drawn(part: Adaptive | None, drawn: Drawn | None) -> Iterator[None]:
    """Within it decisions are drawn with what is given, and nobody is told of them."""
    if part is None:
        yield
        return
    observer, part.observer, part.drawn = part.observer, None, drawn
    try:
        yield
    finally:
        part.observer, part.drawn = observer, None


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """What is drawn within the context does not count."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def unrecordable(model: nn.Module, part: Adaptive | None, training: bool) -> str:
    """Why passes of a model are not recorded; empty where nothing speaks against it."""
    encoder = find_encoder(model)
    if training and any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()
    ):
        return "it keeps statistics of its batches"
    if not training and encoder.span_policy is not None:
        return "spans are noted for every sample"
    if part is not None and isinstance(part.policy, OraclePolicy):
        return "an oracle decides by names"
    return ""


@dataclass
class _Recorded:
    """A recorded pass of training.

    Attributes:
        slots: what it reads.
        factors: (losses,) float64, in the order of the losses.
        found: what it writes.
        repeat: repeats it.
        used: the parameters that get gradients.
        given: the factors that are there.
    """

    slots: _Slots
    factors: Tensor
    found: list[Computed]
    repeat: Callable[[], None]
    used: list[nn.Parameter]
    given: tuple[float, ...] = ()

    @property
    def computed(self) -> Computed:
        return self.found[0]

    def set_factors(self, factors: Mapping[str, float]) -> None:
        given = tuple(factors[name] for name in self.computed.losses)
        if given != self.given:
            self.factors.copy_(torch.tensor(given, dtype=self.factors.dtype))
            self.given = given


@dataclass
class _Failures:
    """Which passes are not recorded, and what was said of it."""

    say: Callable[[str], None]
    said: set[str]
    keys: set[Any] = field(default_factory=set)

    def add(self, key: Any, why: str) -> None:
        self.keys.add(key)
        self.tell(why)

    def tell(self, why: str) -> None:
        if why not in self.said:
            self.said.add(why)
            self.say(not_recorded(why))


def not_recorded(why: str) -> str:
    """A line for the log."""
    return f"not recorded as a CUDA graph, so slower: {why} (--graph off says nothing)"


class RecordedPasses:
    """Passes of training, recorded by the shapes of their batches and the stage of training."""

    def __init__(
        self,
        passes: Passes,
        parameters: Iterable[nn.Parameter],
        recorder: Recorder,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is recorded yet.

        Args:
            passes: how a batch is run.
            parameters: all that are trained.
            recorder: of the device.
            say: is told once why something is not recorded.
        """
        self.passes, self.recorder = passes, recorder
        self.parameters = list(parameters)
        self._recorded: dict[Any, _Recorded] = {}
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._failures = _Failures(say, recorder.said)

    def run(
        self, batch: TaskBatch, stage: Stage, factors: Callable[[Computed], dict[str, float]]
    ) -> Computed | None:
        """Repeat the pass of such a batch; the first time it is recorded.

        Args:
            batch: on the device; its model was told of it (`Adaptive.tell`).
            stage: of the training.
            factors: of the losses, by name.

        Returns:
            What was computed, which holds until the next pass; gradients are added to those that
            the parameters have. None where such a pass cannot be recorded: then it is to be run.
        """
        key = (_shapes(batch), stage)
        if key in self._failures.keys:
            return None
        part = self.passes.part
        drawn = _draw(part, batch)
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                self._failures.tell(f"there are {MOST} recordings, and batches of other shapes")
                return None
            made = self._record(key, _Slots(batch, drawn), stage)
            if made is None:
                return None
            self._recorded[key] = made
        recorded = self._recorded[key]
        recorded.slots.fill(batch, drawn)
        recorded.set_factors(factors(recorded.computed))
        self._take_gradients(recorded.used)
        recorded.repeat()
        if part is not None:
            part.forget()
            part.held, part.last = stage.held, recorded.computed.decided
        return recorded.computed

    def _take_gradients(self, used: Sequence[nn.Parameter]) -> None:
        """Parameters without a gradient get one of 0, in the memory that recordings write to."""
        fresh = []
        for parameter in used:
            own = self._gradients[parameter]
            if parameter.grad is None:
                fresh.append(own)
            elif parameter.grad is not own:
                own.copy_(parameter.grad)
            parameter.grad = own
        if fresh:
            torch._foreach_zero_(fresh)

    def _record(self, key: Any, like: _Slots, stage: Stage) -> _Recorded | None:
        # Copies: what they have may lie in the memory that recordings write to.
        before = [(p, None if p.grad is None else p.grad.clone()) for p in self.parameters]
        try:
            with random_numbers_kept(), static_shapes():
                return self._recording(map_tensors(like, Tensor.clone), stage)
        except AsksDevice as error:
            self._failures.add(key, str(error))
        except RuntimeError as error:  # CUDA's own reasons
            self._failures.add(key, short(str(error)))
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient
        return None

    def _recording(self, slots: _Slots, stage: Stage) -> _Recorded:
        part, encoder = self.passes.part, find_encoder(self.passes.model)
        if why := unrecordable(self.passes.model, part, training=True):
            raise AsksDevice(why)
        found: list[Computed] = []
        factors: dict[str, Tensor] = {}

        def work() -> None:
            # What earlier passes left would bring nodes of theirs, of another stream, into it.
            found.clear()
            encoder.pair = None
            if part is not None:
                part.last = None
            with _drawn(part, slots.drawn):
                computed = self.passes.forward(slots.batch, stage)
            self.passes.backward(computed, factors or dict.fromkeys(computed.losses, 1.0))
            found.append(computed)

        self._drop_gradients()
        with _Questions():  # type: ignore[no-untyped-call]
            work()
        used = [p for p in self.parameters if p.grad is not None]
        self._drop_gradients()
        for parameter in used:
            if parameter not in self._gradients:
                self._gradients[parameter] = torch.zeros_like(parameter)
        self._take_gradients(used)
        names = list(found[0].losses)
        vector = torch.ones(len(names), dtype=torch.float64, device=used[0].device)
        factors.update(zip(names, vector.unbind(), strict=True))
        return _Recorded(slots, vector, found, self.recorder.record(work), used)

    def _drop_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def recorded_passes(
    passes: Passes,
    parameters: Iterable[nn.Parameter],
    runtime: Runtime,
    why_not: str,
    say: Callable[[str], None],
) -> RecordedPasses | None:
    """Passes that are recorded, where there is something that records.

    Args:
        passes, parameters, say: see `RecordedPasses`.
        runtime: of the training.
        why_not: why they are not recorded, which is said; empty: they are.
    """
    if runtime.recorder is None:
        return None
    if why_not:
        say(not_recorded(why_not))
        return None
    return RecordedPasses(passes, parameters, runtime.recorder, say)


class RecordedAnswers:
    """Forward passes in evaluation, recorded where a shape comes again."""

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[TaskBatch], Tensor],
        recorder: Recorder | None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Nothing is recorded yet.

        Args:
            model: in evaluation mode; its weights may change between passes.
            run: gives the model's logits for a batch on the device.
            recorder: of the device; None: nothing is recorded.
            say: is told once why something is not recorded.
        """
        self.model, self.run, self.recorder = model, run, recorder
        self.part = adaptive_part(model)
        self._seen: set[Any] = set()
        self._recorded: dict[Any, tuple[_Slots, list[Tensor], list[Any], Callable[[], None]]] = {}
        self._failures = _Failures(say, recorder.said if recorder else set())

    def __call__(self, batch: TaskBatch) -> Tensor:
        """Logits of a batch, of which the model was told; they hold until the next pass."""
        key = _shapes(batch)
        if self.recorder is None or key in self._failures.keys or self._new(key):
            return self.run(batch)
        own = TaskBatch(batch.samples, batch.inputs, kinds=batch.kinds)
        drawn = _draw(self.part, batch)
        if key not in self._recorded and not self._record(key, _Slots(own, drawn)):
            return self.run(batch)
        slots, found, decided, repeat = self._recorded[key]
        slots.fill(own, drawn)
        repeat()
        if self.part is not None:
            self.part.forget()
            self.part.show(decided[0], batch.samples)
        return found[0]

    def _new(self, key: Any) -> bool:
        new = key not in self._seen
        self._seen.add(key)
        return new or (key not in self._recorded and len(self._recorded) == MOST)

    def _record(self, key: Any, like: _Slots) -> bool:
        assert self.recorder is not None
        try:
            if why := unrecordable(self.model, self.part, training=False):
                raise AsksDevice(why)
            slots: _Slots = map_tensors(like, Tensor.clone)
            found: list[Tensor] = []
            decided: list[Any] = []

            def work() -> None:
                with _drawn(self.part, slots.drawn):
                    found[:] = [self.run(slots.batch)]
                decided[:] = [None if self.part is None else self.part.last]

            with random_numbers_kept(), static_shapes():
                with _Questions():  # type: ignore[no-untyped-call]
                    work()
                self._recorded[key] = slots, found, decided, self.recorder.record(work)
            return True
        except AsksDevice as error:
            self._failures.add(key, str(error))
        except RuntimeError as error:  # CUDA's own reasons
            self._failures.add(key, short(str(error)))
        return False
