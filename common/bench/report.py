"""The table of `make bench`, and its figures beside their targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from common.bench.cases import ADAPTIVE, DEFAULT_EXECUTOR, MIDDLE, Case
from common.bench.dropping import dropping, format_dropping, summary_of_dropping
from common.bench.images import format_images
from common.bench.mechanisms import format_mechanisms
from common.bench.results import BenchFile
from common.runs.backbones import QUESTIONS

NONE = "–"
NOISE = 0.05
LINE = 0.03  # of plain finetuning's time, above the straight line of `common.bench.dropping`
TWINS = ("SpotTune_Block", "SpotTune_Res", "SpotTune")
SHARES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Target:
    """A figure to be reached: `field` of a case's record is at most `value`."""

    quantity: str
    case: Case
    value: float
    field: str = "ratio"


@dataclass(frozen=True)
class FeatureTarget:
    """The same of a figure of the region features, in units of `unit`; None: there is no target."""

    quantity: str
    field: str
    value: float | None
    unit: float = 1.0
    at_least: bool = True


FEATURE_TARGETS = (
    FeatureTarget(
        "region features (float16, cached): images read in a second", "read_per_s", 20_000
    ),
    FeatureTarget("region features: images of a TSV imported in a second", "import_per_s", 1_000),
    FeatureTarget(
        "region features: growth of the reading process, MB",
        "anonymous_bytes",
        50,
        1e6,
        at_least=False,
    ),
    FeatureTarget(
        "region detector: folded, channels last / plain, CPU time, %",
        "detector_share",
        80,
        0.01,
        at_least=False,
    ),
    FeatureTarget(
        "region detector: peak memory, MB", "detector_peak_bytes", 1_100, 1e6, at_least=False
    ),
    FeatureTarget(
        "region detector: pictures in a second of one process", "detector_pictures_per_s", None
    ),
    FeatureTarget("region detector: bf16 / fp32, CPU time, %", "detector_bf16_share", None, 0.01),
    FeatureTarget(
        "region detector: mean deviation of features in bf16 (same boxes, random weights), %",
        "detector_bf16_deviation",
        None,
        0.01,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured."""

    quantity: str
    target: str
    measured: str
    words: str


def _targets() -> Iterator[Target]:
    """From prototypes on two cores of a CPU (fp32, 12 layers, without policy network)."""
    train = {
        "SpotTune_Block": (1.10, 1.20, 1.36),
        "SpotTune_Res": (1.12, 1.22, 1.36),
        "SpotTune": (1.20, 1.32, 1.45),
    }
    for strategy, values in train.items():
        for share, value in zip(SHARES, values, strict=True):
            yield Target(
                f"step, {strategy} exact, {share:.0%} finetuned",
                Case("train", strategy, "exact", share),
                value,
            )
    yield Target("step, BlockDrop exact, 50% kept", Case("train", "BlockDrop", "exact", 0.5), 0.70)
    for strategy, value in zip(TWINS, (0.90, 0.95, 1.15), strict=True):
        yield Target(
            f"activations, {strategy} exact, 50% finetuned",
            Case("train", strategy, "exact", 0.5),
            value,
            "activation_ratio",
        )
    for strategy, value in zip(TWINS, (1.03, 1.03, 1.10), strict=True):
        yield Target(
            f"evaluation, {strategy} gathered, 50% finetuned",
            Case("eval", strategy, "gathered", 0.5),
            value,
        )
    yield Target(
        "evaluation, BlockDrop gathered, 50% kept", Case("eval", "BlockDrop", "gathered", 0.5), 0.52
    )


def _reference_targets(name: str) -> Iterator[Target]:
    """Against the other library's model in fp32, plain finetuning."""
    case = partial(Case, against="reference")
    yield Target(f"evaluation, standard / {name}", case("eval", "standard"), 0.70)
    yield Target(f"step, standard / {name}", case("train", "standard"), 0.85)
    yield Target(
        f"evaluation, standard, {QUESTIONS} questions per image / {name}",
        case("eval", "standard", questions=QUESTIONS),
        0.55,
    )
    yield Target(
        f"step, SpotTune_Block exact with small policy, 50% finetuned / {name}",
        case("train", "SpotTune_Block", "exact", 0.5, "small"),
        1.00,
    )
    low = partial(case, precision="bf16")
    yield Target(f"evaluation, standard bf16 / {name} fp32", low("eval", "standard"), 0.42)
    yield Target(f"step, standard bf16 / {name} fp32", low("train", "standard"), 0.49)


def targets(reference: str) -> list[Target]:
    """All targets; `reference` is the name of the other library."""
    return [*_targets(), *_reference_targets(reference)]


def verdicts(file: BenchFile) -> list[Verdict]:
    """Every target whose figure was measured."""
    found = []
    for target in targets(file.reference):
        record = file.get(target.case)
        if record is None:
            continue
        value = record[target.field]
        over = round(value - target.value, 2)
        timed = target.field == "ratio"
        measured = _cell(record) if timed else f"{value:.2f}"
        words = verdict_words(over, NOISE if timed else 0.0)
        found.append(Verdict(target.quantity, f"{target.value:.2f}", measured, words))
    return found + _dropping_verdicts(file) + _feature_verdicts(file)


def verdict_words(over: float, noise: float = NOISE) -> str:
    """How far a figure is over its target; counted things, such as bytes, have no noise."""
    if over <= 0:
        return "reached"
    return f"reached within {noise}" if over <= noise else f"missed by {over:.2f}"


def _dropping_verdicts(file: BenchFile) -> list[Verdict]:
    found = dropping(file, "fp32")
    if found is None:
        return []
    value = round(found.distance(), 2)
    return [
        Verdict(
            "evaluation, BlockDrop: farthest above the straight line of the blocks kept",
            f"{LINE:.2f}",
            f"{value:.2f}",
            verdict_words(round(value - LINE, 2)),
        )
    ]


def _feature_verdicts(file: BenchFile) -> list[Verdict]:
    found = []
    for target in FEATURE_TARGETS:
        if target.field not in file.features:
            continue
        value = file.features[target.field] / target.unit
        if target.value is None:
            found.append(Verdict(target.quantity, "–", f"{value:.3g}", ""))
            continue
        good = value >= target.value if target.at_least else value <= target.value
        words = "reached" if good else f"missed: {value / target.value:.2f} of it"
        sign = "≥" if target.at_least else "≤"
        found.append(
            Verdict(target.quantity, f"{sign} {target.value:,.0f}", f"{value:,.0f}", words)
        )
    return found


def _cell(record: dict | None) -> str:
    """`median (quartile–quartile)`."""
    if record is None:
        return NONE
    return f"{record['ratio']:.2f} ({record['low']:.2f}–{record['high']:.2f})"


def format_report(file: BenchFile) -> str:
    """All tables as Markdown."""
    parts = [_heading(file)]
    precisions = file.settings["precisions"]
    for precision in precisions:
        parts += [_strategies(file, precision)]
        if file.reference:
            parts += [_reference(file, precision)]
        parts.append(format_mechanisms(file, precision, _cell))
        parts.append(format_dropping(file, precision, _cell))
        parts.append(format_images(file, precision, _cell))
    rows = [f"| {v.quantity} | {v.target} | {v.measured} | {v.words} |" for v in verdicts(file)]
    if rows:
        parts.append(
            "\n".join(
                [
                    "| targets (fp32, no policy network unless named) | target | measured | |",
                    "| :-- | --: | --: | :-- |",
                    *rows,
                ]
            )
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(file: BenchFile) -> str:
    machine, settings = file.machine, file.settings
    loads = [r["load"] for r in file.cases.values() if r["load"] is not None]
    busy = (
        f" The machine had other work (load up to {max(loads):.0f})."
        if loads and max(loads) > (machine["cores"] or 1)
        else ""
    )
    return (
        f"{file.description}. {machine['device']}, {machine['cores']} cores, "
        f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
        f"torch {machine['versions']['torch']}. Ratios of {machine['clock']}: median of "
        f"{settings['rounds']} rounds (quartiles), every case and its baseline once in each "
        f"round, in one process. A step is forward, backward and AdamW.{busy}"
    )


def _strategies(file: BenchFile, precision: str) -> str:
    """One row for every strategy, pair of executors and policy."""
    shares = file.settings["shares"]
    heads = [f"{what}, share {share:g}" for what in ("step", "evaluation") for share in shares]
    title = f"standard in {precision} = 1"
    lines = [
        f"| {title} | policy | {' | '.join(heads)} | activations | peak memory |",
        "| :-- | :-- |" + " --: |" * (len(heads) + 2),
    ]
    middle = min(shares, key=lambda share: abs(share - MIDDLE))
    for strategy in ADAPTIVE:
        for train, evaluate in (("exact", "gathered"), ("sampled", ""), ("dense", "dense")):
            for policy in ("none", "small", "published"):

                def record(
                    mode: str,
                    executor: str,
                    share: float,
                    strategy: str = strategy,
                    policy: str = policy,
                ) -> dict | None:
                    return file.get(Case(mode, strategy, executor, share, policy, precision))

                cells = [_cell(record("train", train, share)) for share in shares]
                cells += [_cell(record("eval", evaluate, share)) for share in shares]
                if set(cells) == {NONE}:
                    continue
                step = record("train", train, middle)
                cells.append(f"{step['activation_ratio']:.2f}" if step else NONE)
                peak = file.memory_ratio(Case("train", strategy, train, MIDDLE, policy, precision))
                cells.append(NONE if peak is None else f"{peak:.2f}")
                name = f"{strategy}, {train}{f' / {evaluate}' if evaluate else ''}"
                lines.append(f"| {name} | {policy} | {' | '.join(cells)} |")
    if len(lines) == 2:
        return ""
    standard = file.memory.get(Case("train", "standard").key)
    note = ""
    if standard:
        peak = standard["peak_cuda_bytes"] or standard["peak_rss_bytes"]
        note = (
            f"; peak memory: of a process that takes steps of one case only "
            f"(standard {peak / 1e9:.2f} GB, with weights and optimiser), share {MIDDLE:g}"
        )
    return "\n".join(lines) + (
        f"\n\nactivations: bytes that the forward pass keeps for the "
        f"backward pass, share {middle:g}{note}."
    )


def _reference(file: BenchFile, precision: str) -> str:
    """The standard model and SpotTune_Block against the other library."""
    lines = [
        f"| {file.reference} in fp32 = 1; ours in {precision} | step | evaluation |",
        "| :-- | --: | --: |",
    ]
    rows = [("standard", "standard", "", None, "none")]
    if precision != "fp32":
        rows.insert(0, (f"{file.reference} in {precision}", "reference", "", None, "none"))
    for executor, policy in (("default", "small"), ("sampled", "small"), ("default", "published")):
        rows += [
            (
                f"SpotTune_Block, {'' if executor == 'default' else executor + ', '}"
                f"{policy} policy, share {share:g}",
                "SpotTune_Block",
                executor,
                share,
                policy,
            )
            for share in file.settings["shares"]
        ]
    for name, strategy, executor, share, policy in rows:
        cells = [
            _cell(
                file.get(
                    Case(
                        mode,
                        strategy,
                        DEFAULT_EXECUTOR[mode] if executor == "default" else executor,
                        share,
                        policy,
                        precision,
                        "reference",
                    )
                )
            )
            for mode in ("train", "eval")
        ]
        if set(cells) != {NONE}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if len(lines) == 2:
        return ""
    return "\n".join(lines) + f"\n\nHere: {file.reference_description}."


def format_summary(file: BenchFile) -> str:
    """What a newcomer wants to know: the default executors with the small policy network."""
    shares = file.settings["shares"]
    middle = min(shares, key=lambda share: abs(share - MIDDLE))
    heads = [f"step, share {share:g}" for share in shares] + [
        f"evaluation, share {middle:g}",
        "activations",
    ]
    lines = [f"| plain finetuning = 1 | {' | '.join(heads)} |", "| :-- |" + " --: |" * len(heads)]
    for strategy in ADAPTIVE:
        steps = [file.get(Case("train", strategy, "exact", share, "small")) for share in shares]
        rest = file.get(Case("eval", strategy, "gathered", middle, "small"))
        kept = file.get(Case("train", strategy, "exact", middle, "small"))
        cells = [NONE if r is None else f"{r['ratio']:.2f}" for r in (*steps, rest)]
        cells.append(NONE if kept is None else f"{kept['activation_ratio']:.2f}")
        if set(cells) != {NONE}:
            lines.append(f"| {strategy} | {' | '.join(cells)} |")
    table = "\n".join(lines) if len(lines) > 2 else ""
    parts = (table, _against_reference(file), summary_of_dropping(file))
    return "\n\n".join(part for part in parts if part) + "\n"


def _against_reference(file: BenchFile) -> str:
    """One sentence on the comparison with the other library."""
    case = partial(Case, against="reference")
    named = (
        ("plain finetuning", case("train", "standard")),
        (
            "SpotTune_Block at share 0.5 with its policy network",
            case("train", "SpotTune_Block", "exact", 0.5, "small"),
        ),
        ("evaluation", case("eval", "standard")),
    )
    records = ((name, file.get(wanted)) for name, wanted in named)
    found = [f"{name} {record['ratio']:.2f}" for name, record in records if record]
    return f"The same model of `{file.reference}` = 1: {', '.join(found)}." if found else ""
