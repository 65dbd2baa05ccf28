"""The parts of `make bench DEVICE=cuda`, each a few minutes at most, and their cases.

Everything is compared with the standard model's step (or evaluation) as a graph, in the same
precision, at the same batch and with the same optimiser. Decisions are given to the small policy
network, which runs and learns; half of them are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from common.adapt.executors import AUTO, STATIC, chosen_executor
from common.adapt.strategies import STRATEGIES
from common.bench.cases import MIDDLE, Case
from common.errors import ConfigError
from common.runs.backbones import BenchSettings

PRECISIONS = ("fp32", "tf32", "bf16")
LOW = "bf16"
LARGER = 8  # the larger batch is so many times the smaller one
GPU = torch.device("cuda")
ADAPTIVE = {
    "block": "SpotTune_Block",
    "res": "SpotTune_Res",
    "heads": "SpotTune",
    "blockdrop": "BlockDrop",
}
LOOP_BATCHES = (64, 32)


@dataclass(frozen=True)
class LoopCase:
    """Steps of the real training loop, with the recipe's optimiser."""

    strategy: str
    batch: int
    precision: str = LOW

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.precision}/loop/{self.strategy}/batch {self.batch}"


@dataclass(frozen=True)
class Part:
    """Cases that are measured by one name.

    Attributes:
        name: on the command line.
        about: one line.
        seconds, quick_seconds: expected on an H100, the start of the process left out; 0: it has
            no short version.
        timed: cases whose steps are timed, in full and quick.
        memory: cases whose peak memory is measured in a process of their own.
        loop: cases of the training loop.
        reference: whether the backbone has to have a model of another library.
    """

    name: str
    about: str
    seconds: int
    quick_seconds: int
    timed: Callable[[BenchSettings, bool], Iterator[Case]] = lambda settings, quick: iter(())
    memory: Callable[[BenchSettings, bool], Iterator[Case]] = lambda settings, quick: iter(())
    loop: Callable[[BenchSettings, bool], Iterator[LoopCase]] = lambda settings, quick: iter(())
    reference: bool = False

    def expected(self, quick: bool) -> int:
        """Seconds."""
        return self.quick_seconds if quick else self.seconds


def batches(settings: BenchSettings) -> tuple[int, int]:
    """The smaller and the larger batch."""
    return settings.batch, LARGER * settings.batch


def precisions(settings: BenchSettings, quick: bool) -> list[str]:
    """Those that are wanted; the last one alone, if quick."""
    wanted = [name for name in PRECISIONS if name in settings.precisions]
    return wanted[-1:] if quick else wanted


def twins(strategy: str) -> bool:
    """Whether the other branch is a frozen copy."""
    return STRATEGIES[strategy].other == "twin"


def usual(training: bool, strategy: str, precision: str) -> str:
    """The executor that `auto` means on a GPU by its rule."""
    return chosen_executor(AUTO, training, GPU, twins(strategy), grouping=precision == LOW)


def plain_cases(settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """The standard model, as a graph and launched from Python, with both optimisers."""
    for precision in precisions(settings, quick):
        for batch in batches(settings):
            case = partial(
                Case, strategy="standard", precision=precision, batch=batch, against="graph"
            )
            for graph in (True, False):
                yield case("train", graph=graph)
                yield case("eval", graph=graph)
                yield case("train", graph=graph, optimizer="bert")


def step_cases(strategy: str, settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """Training steps of one strategy, by executor, precision of its difference and optimiser."""
    for precision in precisions(settings, quick):
        for batch in batches(settings):
            case = partial(
                Case,
                "train",
                strategy,
                share=MIDDLE,
                policy="small",
                precision=precision,
                batch=batch,
                against="graph",
            )
            matters = precision == LOW and twins(strategy)
            differences = ("low", "high") if matters else ("high",)
            executor = usual(True, strategy, precision)
            as_graph = executor in STATIC  # shapes do not depend on decisions
            for difference in differences:
                yield case(executor=executor, graph=as_graph, policy_precision=difference)
                if precision == "tf32":
                    continue
                if not quick or not twins(strategy):
                    yield case(executor="exact", policy_precision=difference)
                if not quick:
                    yield case(executor="dense", graph=True, policy_precision=difference)
            if precision == LOW and not quick:
                first = differences[0]
                yield case(executor=executor, policy_precision=first)
                yield case(
                    executor=executor, graph=as_graph, optimizer="bert", policy_precision=first
                )


def evaluation_cases(settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """Evaluation of every strategy by executor."""
    for precision in precisions(settings, quick):
        for batch in batches(settings):
            for strategy in ADAPTIVE.values():
                case = partial(
                    Case,
                    "eval",
                    strategy,
                    share=MIDDLE,
                    policy="small",
                    precision=precision,
                    batch=batch,
                    against="graph",
                )
                executor = usual(False, strategy, precision)
                yield case(executor=executor, graph=executor in STATIC)
                if not quick and precision != "tf32":
                    yield case(executor="gathered")
                    yield case(executor="grouped", graph=True)
                    yield case(executor="dense", graph=True)


def reference_cases(settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """The same model of the other library, launched from Python."""
    small, large = batches(settings)
    for mode in ("train", "eval"):
        for precision in precisions(settings, quick):
            if precision != "tf32":
                yield Case(mode, "reference", precision=precision, batch=small, against="graph")
        if not quick and LOW in settings.precisions:
            yield Case(mode, "reference", precision=LOW, batch=large, against="graph")


def compiled_cases(settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """The same compiled, in low precision."""
    if LOW in settings.precisions and not quick:
        for mode in ("train", "eval"):
            yield Case(
                mode,
                "reference",
                precision=LOW,
                batch=settings.batch,
                against="graph",
                compiled=True,
            )


def loop_cases(settings: BenchSettings, quick: bool) -> Iterator[LoopCase]:
    """The training loop on samples in memory."""
    precision = precisions(settings, True)[0]
    for batch in LOOP_BATCHES[:1] if quick else LOOP_BATCHES:
        yield LoopCase("standard", batch, precision)
    if not quick:
        yield LoopCase("SpotTune_Block", LOOP_BATCHES[0], precision)


def memory_cases(settings: BenchSettings, quick: bool) -> Iterator[Case]:
    """Steps at the smaller batch, launched from Python."""
    if quick:
        return
    precision = precisions(settings, True)[0]
    yield Case("train", "standard", precision=precision)
    for strategy in ADAPTIVE.values():
        executor = usual(True, strategy, precision)
        yield Case("train", strategy, executor, MIDDLE, "small", precision, policy_precision="low")


def _of_strategy(name: str, seconds: int, quick_seconds: int) -> Part:
    strategy = ADAPTIVE[name]
    return Part(
        name,
        f"steps of {strategy}: executors, precisions, batches, optimisers",
        seconds,
        quick_seconds,
        partial(step_cases, strategy),
    )


PARTS = {
    part.name: part
    for part in (
        Part("plain", "the standard model, on which all ratios stand", 110, 20, plain_cases),
        _of_strategy("block", 150, 25),
        _of_strategy("res", 150, 25),
        _of_strategy("heads", 210, 30),
        _of_strategy("blockdrop", 120, 20),
        Part("evaluation", "evaluation of all strategies", 200, 25, evaluation_cases),
        Part("reference", "the other library's model", 90, 15, reference_cases, reference=True),
        Part("loop", "samples a second of the training loop", 60, 15, loop=loop_cases),
        Part("memory", "peak memory, each in its own process", 120, 0, memory=memory_cases),
        Part(
            "compiled",
            "the other library's model, compiled",
            230,
            0,
            compiled_cases,
            reference=True,
        ),
    )
}


def find_parts(names: Sequence[str] | None, quick: bool) -> list[Part]:
    """The parts of these names, in the order of `PARTS`; None: all.

    Raises:
        ConfigError: there is no such part, or no short version of it.
    """
    unknown = [name for name in names or () if name not in PARTS]
    if unknown:
        raise ConfigError(f"unknown part {', '.join(unknown)}; valid: {', '.join(PARTS)}")
    if names and quick and (long := [n for n in names if not PARTS[n].quick_seconds]):
        raise ConfigError(f"part {', '.join(long)} has no short version: leave --quick out")
    return [
        part
        for part in PARTS.values()
        if part.expected(quick) and (not names or part.name in names)
    ]
