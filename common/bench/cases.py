"""What `make bench` measures: settings, cases, and what a backbone supplies.

A case is one way to run a training step or an evaluation. Cases of one group run in one process on
the same weights and the same batch, one after the other in every round, so that noise of the
machine hits all of them and their baseline alike; see `common.bench.measure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from common.adapt.policy import POLICIES
from common.adapt.strategies import STRATEGIES
from common.modules.attention import AttentionOptions
from common.runs.backbones import BenchSettings

ADAPTIVE = tuple(name for name, row in STRATEGIES.items() if row.adaptive)
TRAIN_EXECUTORS = ("dense", "exact", "sampled")
EVAL_EXECUTORS = ("dense", "gathered")
DEFAULT_EXECUTOR = {"train": "exact", "eval": "gathered"}
MIDDLE = 0.5
# Spans start as wide as all keys, so that nothing is cut: what the mechanism itself costs.
MECHANISMS = {
    "entmax": AttentionOptions("entmax"),
    "entmax15": AttentionOptions("entmax15"),
    "sparsemax": AttentionOptions("sparsemax"),
    "span": AttentionOptions(span="keys"),
    "span + entmax": AttentionOptions("entmax", span="keys"),
}
LAYERDROP = "LayerDrop"
COMPILE_MODE = "reduce-overhead"


@dataclass(frozen=True)
class Case:
    """One way to run a step.

    Attributes:
        mode: train (forward, backward, optimiser) or eval (forward).
        strategy: of `common.adapt.strategies`, or `reference` for the other library's model.
        executor: empty where nothing is decided.
        share: of decisions that are 1; None where it does not matter.
        policy: `none` (decisions are given, and have a gradient in training), small or published.
        precision: fp32, tf32 (fp32 with products in the GPU's shorter format) or bf16 (autocast).
        against: what it is compared with: standard, the standard model with `reference_layers`
            (whole), reference, or, on a GPU, the standard model's step as a graph (graph).
        decided: for every sample by itself, or once for all (global).
        mechanism: of attention, a key of `MECHANISMS`, or `LAYERDROP`;
            empty: softmax over all keys in all layers.
        batch: pairs in a step where that is not the same for all cases.
        graph: the step is recorded once and repeated, see `common.training.recording`.
        compiled: by torch.compile, see `COMPILE_MODE`.
        optimizer: adamw (fused), or bert, that of the recipe.
        policy_precision: of the branches' difference under autocast, as the flag has it.
        questions: so many are about one image on average, and share what depends on it alone; None:
            nothing is shared.
    """

    mode: str
    strategy: str
    executor: str = ""
    share: float | None = None
    policy: str = "none"
    precision: str = "fp32"
    against: str = "standard"
    decided: str = "sample"
    mechanism: str = ""
    batch: int | None = None
    graph: bool = False
    compiled: bool = False
    optimizer: str = "adamw"
    policy_precision: str = "high"
    questions: float | None = None

    @property
    def key(self) -> str:
        """The case's name in the file of results."""
        parts = [
            self.precision,
            self.mode,
            self.strategy,
            self.executor,
            "" if self.share is None else f"{self.share:g}",
            "" if self.policy == "none" else self.policy,
            "" if self.decided == "sample" else self.decided,
            self.mechanism,
            "" if self.batch is None else f"batch {self.batch}",
            "graph" if self.graph else "",
            "compiled" if self.compiled else "",
            "" if self.optimizer == "adamw" else self.optimizer,
            "" if self.policy_precision == "high" else self.policy_precision,
            "" if self.questions is None else f"{self.questions:g} questions",
        ]
        return "/".join(part for part in parts if part) + f" : {self.against}"

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Cases that are measured together."""
        return (
            self.precision,
            self.mode,
            self.against,
            "mechanisms"
            if self.mechanism
            else ""
            if self.against == "reference"
            else self.strategy,
        )

    @property
    def model(self) -> str:
        """Cases with the same run on one model."""
        return self.mechanism or (f"{self.strategy} compiled" if self.compiled else self.strategy)

    @property
    def cost(self) -> int:
        """Roughly what it costs, in tenths of a training step of `standard`."""
        return 12 if self.mode == "train" else 4

    def baseline(self) -> Case:
        """What it is compared with; the reference is always in fp32."""
        if self.against == "graph":
            return Case(
                self.mode,
                "standard",
                precision=self.precision,
                against="graph",
                batch=self.batch,
                graph=True,
                optimizer=self.optimizer,
            )
        precision = "fp32" if self.against == "reference" else self.precision
        strategy = "reference" if self.against == "reference" else "standard"
        return Case(self.mode, strategy, precision=precision, against=self.against)


def all_cases(
    settings: BenchSettings,
    quick: bool,
    reference: bool,
    kept: Sequence[float] = (),
    questions: float | None = None,
) -> list[Case]:
    """Every case of a run, group after group.

    Args:
        settings: shares and precisions.
        quick: without the executors that are no defaults and the published policy.
        reference: whether the backbone has a model of another library to compare with.
        kept: shares of blocks at which the whole model is evaluated.
        questions: about one image, of which evaluation is measured; None: it is not.
    """
    cases: list[Case] = []
    for precision in settings.precisions:
        for mode in ("train", "eval"):
            if reference:
                cases += _reference_cases(settings, mode, precision, quick)
            for strategy in ADAPTIVE:
                cases += _strategy_cases(settings, mode, strategy, precision, quick)
        cases += mechanism_cases(precision)
        for share in kept[::2] if quick else kept:
            cases += dropping_cases(share, precision, quick)
        if questions is not None:
            cases += image_cases(questions, precision, reference)
    return list(dict.fromkeys(cases))


def _strategy_cases(
    settings: BenchSettings, mode: str, strategy: str, precision: str, quick: bool
) -> Iterator[Case]:
    default = DEFAULT_EXECUTOR[mode]
    others = [e for e in (TRAIN_EXECUTORS if mode == "train" else EVAL_EXECUTORS) if e != default]
    policies = POLICIES[:1] if quick else POLICIES
    middle = min(settings.shares, key=lambda share: abs(share - MIDDLE))
    for share in settings.shares:
        yield Case(mode, strategy, default, share, precision=precision)
        yield Case(mode, strategy, default, share, "small", precision)
    for policy in policies:
        yield Case(mode, strategy, default, middle, policy, precision)
    for executor in others:
        if executor == "dense":  # both branches for every sample: the share does not matter
            yield Case(mode, strategy, executor, middle, precision=precision)
        else:
            shares = (middle,) if quick else settings.shares
            yield from (Case(mode, strategy, executor, s, precision=precision) for s in shares)


def _reference_cases(
    settings: BenchSettings, mode: str, precision: str, quick: bool
) -> Iterator[Case]:
    """The standard model, and the cheapest adaptive one with its policy, against the reference."""
    case = partial(Case, mode, precision=precision, against="reference")
    yield case("standard")
    if precision != "fp32":
        yield case("reference")
    for share in settings.shares:
        yield case("SpotTune_Block", DEFAULT_EXECUTOR[mode], share, "small")
    if mode == "train":
        yield case("SpotTune_Block", "sampled", MIDDLE, "small")
    if not quick:
        yield case("SpotTune_Block", DEFAULT_EXECUTOR[mode], MIDDLE, "published")


def dropping_cases(share: float, precision: str, quick: bool = False) -> list[Case]:
    """Evaluation of the whole model with a share of its blocks kept, the rest skipped.

    Decisions for every sample by itself, the same with the policy network that makes them, and one
    decision for all samples, which needs no policy network.
    """
    case = Case("eval", "BlockDrop", "gathered", share, precision=precision, against="whole")
    return [
        case,
        *([] if quick else [replace(case, policy="small")]),
        replace(case, decided="global"),
    ]


def image_cases(questions: float, precision: str, reference: bool) -> list[Case]:
    """Evaluation of so many questions about one image, which share what depends on it alone.

    The plain model, small and whole, and the whole one with decisions of every question by itself,
    which differ at random, and with one for all.
    """
    case = partial(Case, "eval", precision=precision, questions=questions)
    routed = case("SpotTune_Block", "gathered", MIDDLE, against="whole")
    return [
        case("standard"),
        case("standard", against="whole"),
        routed,
        replace(routed, decided="global"),
        *([case("standard", against="reference")] if reference else []),
    ]


def mechanism_cases(precision: str) -> Iterator[Case]:
    """The standard model with each mechanism, and a step with LayerDrop."""
    for name in MECHANISMS:
        for mode in ("train", "eval"):
            yield Case(mode, "standard", precision=precision, mechanism=name)
    yield Case("train", "standard", precision=precision, mechanism=LAYERDROP)


def memory_cases(settings: BenchSettings, quick: bool) -> list[Case]:
    """Cases whose peak memory is measured in a process of their own."""
    executors = ("exact",) if quick else ("dense", "exact")
    return [
        Case("train", "standard"),
        *(
            Case("train", strategy, executor, MIDDLE, precision=settings.precisions[0])
            for strategy in ADAPTIVE
            for executor in executors
        ),
    ]
