"""The table of `make bench DEVICE=cuda`, and its figures beside their targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from common.adapt.executors import STATIC
from common.bench.cases import COMPILE_MODE, MIDDLE, Case
from common.bench.parts import LARGER, LOW, PARTS, LoopCase, Part, memory_cases, twins, usual
from common.bench.report import NONE, Verdict, verdict_words
from common.bench.results import BenchFile
from common.runs.backbones import BenchSettings

SAMPLES_A_SECOND = 2500  # of the base recipe in the training loop, batch 32 to 64
STEP = {"SpotTune_Block": 1.30, "SpotTune_Res": 1.35, "SpotTune": 1.60, "BlockDrop": 0.85}
HIGH = {"SpotTune_Block": 1.90}
EVALUATION = {"SpotTune_Block": 1.10, "SpotTune_Res": 1.15, "SpotTune": 1.35, "BlockDrop": 0.65}
REFERENCE = {False: 0.25, True: 0.90}  # plain step / that of the other library, compiled or not


@dataclass(frozen=True)
class GpuTarget:
    """A figure to be reached: a case's ratio, or (`inverse`) 1 / ratio, is at most `value`."""

    quantity: str
    case: Case
    value: float
    inverse: bool = False


def gpu_targets(batch: int, reference: str) -> Iterator[GpuTarget]:
    """All targets, in bf16; `batch` is the smaller one."""
    case = partial(Case, precision=LOW, against="graph")
    for compiled, value in REFERENCE.items():
        name = f"{reference} compiled ({COMPILE_MODE})" if compiled else f"{reference} eager"
        slow = case("train", "reference", batch=batch, compiled=compiled)
        yield GpuTarget(f"step, standard / {name}, batch {batch}", slow, value, inverse=True)
    for strategy, value in STEP.items():
        executor = usual(True, strategy, LOW)
        adaptive = case(
            "train",
            strategy,
            executor,
            MIDDLE,
            "small",
            graph=executor in STATIC,
            policy_precision="low" if twins(strategy) else "high",
        )
        for size in (batch, LARGER * batch) if twins(strategy) else (LARGER * batch,):
            sized = replace(adaptive, batch=size)
            yield GpuTarget(f"step, {strategy}, batch {size}", sized, value)
            if strategy in HIGH:
                yield GpuTarget(
                    f"step, {strategy}, policy precision high, batch {size}",
                    replace(sized, policy_precision="high"),
                    HIGH[strategy],
                )
    for strategy, value in EVALUATION.items():
        size = LARGER * batch
        executor = usual(False, strategy, LOW)
        graph = executor in STATIC
        wanted = case("eval", strategy, executor, MIDDLE, "small", batch=size, graph=graph)
        yield GpuTarget(f"evaluation, {strategy}, batch {size}", wanted, value)


def gpu_verdicts(file: BenchFile) -> list[Verdict]:
    """Every target; those without a figure say so."""
    found = []
    for target in gpu_targets(file.settings["batch"], file.reference):
        record = file.get(target.case)
        measured = failed = NONE
        if record is None:
            words = "failed" if target.case.key in file.cases else "not measured"
            found.append(Verdict(target.quantity, f"≤ {target.value:.2f}", failed, words))
            continue
        ratio, low, high = record["ratio"], record["low"], record["high"]
        if target.inverse:
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        measured = f"{ratio:.2f} ({low:.2f}–{high:.2f})"
        words = verdict_words(round(ratio - target.value, 2))
        found.append(Verdict(target.quantity, f"≤ {target.value:.2f}", measured, words))
    return found + list(_loop_verdicts(file))


def _loop_verdicts(file: BenchFile) -> Iterator[Verdict]:
    for batch in (64, 32):
        record = file.loop.get(LoopCase("standard", batch).key)
        name = f"training loop, standard, batch {batch}: samples a second"
        wanted = f"≥ {SAMPLES_A_SECOND:,}"
        if record is None:
            yield Verdict(name, wanted, NONE, "not measured")
            continue
        rate = record["samples_per_second"]
        words = "reached" if rate >= SAMPLES_A_SECOND else f"missed: {rate / SAMPLES_A_SECOND:.2f}"
        yield Verdict(name, wanted, f"{rate:,.0f}", words)


def format_gpu_report(file: BenchFile) -> str:
    """All tables as Markdown."""
    parts = [_heading(file), _target_table(file)]
    given: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in file.settings.items()
    }
    settings = BenchSettings(**given)
    parts += [_timed_table(part, settings, file) for part in PARTS.values()]
    parts += [_loop_table(file), _memory_table(settings, file)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(file: BenchFile) -> str:
    machine, settings = file.machine, file.settings
    rates = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in file.rates.items())
    dropout = "" if settings.get("dropout", True) else " Every dropout is 0 here."
    clock = machine["clock"]
    return (
        f"{file.description}. {machine['device']}, torch {machine['versions']['torch']}. "
        f"{clock[:1].upper()}{clock[1:]}: medians of {settings['rounds']} rounds (quartiles), "
        "interleaved. A step is forward, backward and optimiser. 1 is the standard model's step, "
        "or evaluation, as a graph, in the same precision, at the same batch, with the same "
        "optimiser. Half of the decisions are 1, and the small policy network runs. Memory: by how "
        "much a step grows it, launched from Python. Limit: the operations of a step (products and "
        f"attention) at the rate of a large product here (10¹² a second: {rates})."
        f"{dropout}"
    )


def _target_table(file: BenchFile) -> str:
    rows = [f"| {v.quantity} | {v.target} | {v.measured} | {v.words} |" for v in gpu_verdicts(file)]
    head = ["| targets (bf16; policy precision low) | target | measured | |"]
    return "\n".join([*head, "| :-- | --: | --: | :-- |", *rows])


def _timed_table(part: Part, settings: BenchSettings, file: BenchFile) -> str:
    cases = sorted(
        dict.fromkeys([*part.timed(settings, False), *part.timed(settings, True)]),
        key=lambda c: (c.mode != "train", c.precision, c.batch or 0),
    )
    rows = [_row(case, file) for case in cases if case.key in file.cases]
    if not rows:
        return ""
    heads = "ratio | ms | kernels | memory, GB | limit, ms | of limit"
    return "\n".join(
        [
            f"| {part.name}: {part.about} | precision | batch | {heads} |",
            "| :-- | :-- | --: |" + " --: |" * 6,
            *rows,
        ]
    )


def _row(case: Case, file: BenchFile) -> str:
    record = file.cases[case.key]
    words = [
        "evaluation" if case.mode == "eval" else "step",
        file.reference if case.strategy == "reference" else case.strategy,
        case.executor,
        "compiled" if case.compiled else "graph" if case.graph else "",
        "BertAdam" if case.optimizer == "bert" else "",
        f"policy precision {case.policy_precision}"
        if case.precision == LOW and case.mode == "train" and case.executor and twins(case.strategy)
        else "",
    ]
    name = ", ".join(word for word in words if word)
    start = f"| {name} | {case.precision} | {case.batch} |"
    if "error" in record:
        return f"{start} failed: {record['error'].replace('|', '/')} | | | | | |"
    limit = record["limit_seconds"]
    cells = [
        f"{record['ratio']:.2f} ({record['low']:.2f}–{record['high']:.2f})",
        f"{record['seconds'] * 1e3:.2f}",
        _number(record["kernels"], "{:,}"),
        _number(record["step_bytes"], "{:.2f}", 1e9),
        _number(limit, "{:.2f}", 1e-3),
        NONE if limit is None else f"{record['seconds'] / limit:.1f}",
    ]
    return f"{start} {' | '.join(cells)} |"


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return NONE if value is None else form.format(value if unit == 1 else value / unit)


def _loop_table(file: BenchFile) -> str:
    rows = [
        f"| {key.split('/', 2)[2].replace('/', ', ')} | {key.split('/')[0]} | "
        f"{record['samples_per_second']:,.0f} | {record['seconds'] * 1e3:.1f} | "
        f"{_number(record['peak_cuda_bytes'], '{:.2f}', 1e9)} | {record['graph']} |"
        for key, record in file.loop.items()
    ]
    if not rows:
        return ""
    head = "| loop: the training loop, BertAdam | precision | samples a second | ms a step | "
    return "\n".join(
        [f"{head}peak memory, GB | graph |", "| :-- | :-- | --: | --: | --: | :-- |", *rows]
    ) + (
        "\n\nloop: reading from memory, copies to the device, clipping, losses and scores "
        "included, checkpoints left out."
    )


def _memory_table(settings: BenchSettings, file: BenchFile) -> str:
    rows = []
    standard: dict[str, Any] | None = None
    for case in memory_cases(settings, quick=False):
        record = file.memory.get(case.key)
        if record is None:
            continue
        peak = record["peak_cuda_bytes"] or record["peak_rss_bytes"]
        if case.strategy == "standard":
            standard = {"peak": peak}
        ratio = NONE if standard is None else f"{peak / standard['peak']:.2f}"
        rows.append(f"| {case.strategy} | {case.precision} | {peak / 1e9:.2f} | {ratio} |")
    if not rows:
        return ""
    head = f"| memory: of a process that takes steps of batch {settings.batch} only | precision | "
    return "\n".join([f"{head}peak, GB | standard = 1 |", "| :-- | :-- | --: | --: |", *rows])
