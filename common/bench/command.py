"""`make bench`: what the strategies and executors cost, as ratios to plain finetuning.

    python -m common.bench [--backbone NAME,…] [--quick] [--overwrite]
    python -m common.bench --device cuda [--list] [--part NAME,…] [--quick] [--minutes M]

Measures training steps (forward, backward, optimiser) and evaluation of every strategy and
executor at several shares of decisions, with and without a policy network; the activations that a
step keeps and the peak memory of its process; the standard model against `transformers`; what
evaluation with dropped blocks takes, by the number of blocks kept; what several questions about one
image share; what mechanisms of attention and LayerDrop cost; how fast region features are imported
and read, and what their detector costs.
Cases run interleaved with their baseline in one process; medians of ratios and their quartiles are
written as JSON, table and chart. What is measured already is kept: the same command goes on where
it stopped.
On a GPU the whole model is measured in named parts of a few minutes (`--list` shows them): steps
captured as graphs and launched from Python, by executor, precision, batch and optimiser, with their
kernels, memory and arithmetic; and the training loop. Written as JSON and table.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.bench.cases import Case, all_cases, memory_cases
from common.bench.detector import measure_detector
from common.bench.features import measure_features
from common.bench.gpu import Work, cases_of, missing, run_parts
from common.bench.gpu_report import format_gpu_report, gpu_verdicts
from common.bench.measure import Bench, measure_group
from common.bench.memory import measure_memory
from common.bench.parts import PRECISIONS
from common.bench.plot import plot_bench
from common.bench.report import Verdict, format_report, format_summary, verdicts
from common.bench.results import BenchFile
from common.errors import ConfigError
from common.files import repository_root, write_bytes
from common.runs.backbones import BenchModel, BenchSettings, backbones, find_backbone
from common.training.runtime import versions
from common.training.timing import find_clock
from common.voice import spoken

MEMORY_COST = 40
FEATURES = {"quick": (100, 50), "full": (600, 500)}  # images, batches
DETECTOR = {"quick": (2, 60, (400, 533)), "full": (3, 300, (800, 1067))}  # rounds, regions, image
GPU_FLAGS = {
    "--part": "parts",
    "--list": "list",
    "--minutes": "minutes",
    "--retry": "retry",
    "--no-dropout": "no_dropout",
}
WHOLE = ("reference", "whole")  # what is compared with it has `reference_layers`


Supply = Callable[[BenchSettings], BenchModel]


def run_bench(
    settings: BenchSettings,
    path: Path,
    quick: bool = False,
    overwrite: bool = False,
    only: str = "",
    quiet: bool = False,
    supply: Supply | None = None,
    features: bool = True,
) -> BenchFile:
    """Measure what is missing in the results file; write JSON, table and chart beside each other.

    Args:
        settings: of all cases.
        path: of the JSON file; table and chart have its name with another ending.
        quick: fewer cases.
        overwrite: forget what was measured before.
        only: measure only cases whose name contains this.
        quiet: without progress bar.
        supply: makes models and inputs; default: what the backbone's package offers.
        features: also measure the reading of region features, and the detector that makes them.
    """
    supply = supply or find_supply(settings.backbone)
    torch.set_num_threads(settings.threads)
    supplied = supply(settings)
    whole = supplied.reference or supplied.kept or supplied.questions
    compared = supply(settings.of_reference()) if whole else supplied
    file = BenchFile.open(
        path, settings, supplied, compared.description, describe_machine(settings), overwrite
    )
    cases = [
        case
        for case in all_cases(
            settings, quick, supplied.reference is not None, supplied.kept, supplied.questions
        )
        if only in case.key and case.key not in file.cases
    ]
    memory = [
        case
        for case in memory_cases(settings, quick)
        if only in case.key and case.key not in file.memory
    ]
    extent = "quick" if quick else "full"
    # What belongs to no backbone: its first figure, and what measures it.
    others: dict[str, tuple[str, Callable[[], dict[str, float]]]] = {
        "features": ("read_per_s", lambda: measure_features(*FEATURES[extent])),
        "detector": ("detector_share", lambda: measure_detector(*DETECTOR[extent])),
    }
    wanted = [
        name
        for name, (figure, _) in others.items()
        if features and only in name and figure not in file.features
    ]
    groups = [
        list(group)
        for _, group in groupby(sorted(cases, key=lambda c: c.group), key=lambda c: c.group)
    ]
    total = sum(_cost(group, settings) for group in groups) + MEMORY_COST * (
        len(memory) + len(wanted)
    )
    with tqdm(
        total=total,
        disable=quiet,
        bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}",
    ) as bar:
        for case in memory:  # first: tables of a run that is stopped have it too
            bar.set_description(f"memory {case.strategy} {case.executor}")
            file.add_memory(case, measure_memory(supply, settings, case))
            file.write()
            bar.update(MEMORY_COST)
        for group in groups:
            bar.set_description(" ".join(part for part in group[0].group if part))
            chosen = (
                (compared, settings.of_reference())
                if group[0].against in WHOLE
                else (supplied, settings)
            )
            for case, record in _measure(group, *chosen, bar).items():
                file.add_case(case, record)
            file.write()
        for name in wanted:
            bar.set_description(name)
            file.add_features(others[name][1]())
            file.write()
            bar.update(MEMORY_COST)
    write_reports(file)
    return file


def _cost(group: Sequence[Case], settings: BenchSettings) -> int:
    everything = {*group, *(case.baseline() for case in group)}
    return sum(case.cost for case in everything) * (settings.rounds + 1)


def _measure(
    group: Sequence[Case], supplied: BenchModel, settings: BenchSettings, bar: tqdm
) -> dict[Case, dict[str, Any]]:
    bench, clock = Bench(supplied, settings, group), find_clock(settings.device)
    records = measure_group(
        bench, group, clock, settings.rounds, lambda case: bar.update(case.cost)
    )
    del bench
    gc.collect()  # the next group's models come before these would go by themselves
    return records


def measurable() -> list[str]:
    """The installed backbones that have something to measure."""
    return sorted(name for name, backbone in backbones().items() if backbone.bench is not None)


def find_supply(backbone: str) -> Supply:
    """What the backbone's package offers to be measured.

    Raises:
        ConfigError: it offers nothing.
    """
    found = find_backbone(backbone).bench
    if found is None:
        raise ConfigError(f"backbone {backbone} has nothing to measure")
    return found


def describe_machine(settings: BenchSettings) -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine itself."""
    cuda = settings.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": find_clock(settings.device).unit,
        "versions": {k: v for k, v in versions().items() if k != "commit"},
    }


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_reports(file: BenchFile) -> None:
    """Tables (.md, and a short one) and chart (.png) beside the JSON file."""
    write_bytes(file.path.with_suffix(".md"), format_report(file).encode())
    write_bytes(file.path.with_suffix(".summary.md"), format_summary(file).encode())
    plot_bench(file, file.path.with_suffix(".png"))


def make_settings(options: argparse.Namespace, backbone: str) -> BenchSettings:
    """Defaults by backbone, device and size, changed by what the command line names."""
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here")
    own = find_backbone(backbone).bench_sizes
    values: dict[str, Any] = {"backbone": backbone, "device": options.device, "layers": own.layers}
    if cuda:
        values |= {
            "layers": None,
            "batch": 32,
            "rounds": 7 if options.quick else 20,
            "precisions": PRECISIONS,
            "dropout": not options.no_dropout,
        }
    elif options.quick:
        values |= {
            "layers": own.quick_layers,
            "batch": own.quick_batch,
            "shares": (0.5,),
            "rounds": 3,
            "reference_layers": own.quick_reference_layers,
        }
    for name in (
        "layers",
        "reference_layers",
        "batch",
        "rounds",
        "threads",
        "shares",
        "precisions",
    ):
        value = getattr(options, name)
        if value is not None:
            values[name] = None if value == 0 and "layers" in name else value
    return BenchSettings(**values)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _precisions(text: str) -> tuple[str, ...]:
    found = tuple(text.split(","))
    if not set(found) <= set(PRECISIONS):
        raise argparse.ArgumentTypeError(f"{text}: {', '.join(PRECISIONS)} with commas between")
    return found


def bench_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backbone",
        type=_names,
        metavar="NAME,…",
        help="default: all that have something to measure, one after the other; on a GPU the first",
    )
    add(
        "--quick",
        action="store_true",
        help="one layer in every stack (two of a single stream), share 0.5, 3 rounds, fewer "
        "executors: about 5 minutes; on a GPU the whole model, 7 rounds, the cases that have "
        "targets: about 3 minutes",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default cpu")
    add(
        "--precision",
        dest="precisions",
        type=_precisions,
        metavar="P,…",
        help="fp32, bf16 (autocast), on a GPU tf32 too; default fp32, on a GPU all",
    )
    add(
        "--layers",
        type=int,
        metavar="N",
        help="layers in every stack at most, 0 = all (default 2, of a single stream 4, on a GPU "
        "all)",
    )
    add(
        "--reference-layers",
        type=int,
        metavar="N",
        help="the same for the comparison with transformers and for dropped blocks (default all)",
    )
    add(
        "--batch",
        type=int,
        help="pairs in a step (default 16, on a GPU 32 and eight times as many; of a single stream "
        "with --quick 8)",
    )
    add(
        "--shares",
        type=_floats,
        metavar="S,…",
        help="shares of decisions that are 1 (default 0.1,0.5,0.9)",
    )
    add("--rounds", type=int, help="runs of every case (default 5, on a GPU 20)")
    add("--threads", type=int, help="threads on the CPU (default 1)")
    add("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    add(
        "--out",
        type=Path,
        help="JSON file; table and chart beside it; one backbone (default "
        "cpu.json or cuda.json in results/bench/ or the backbone's folder there, with --quick in "
        "results/quick/bench/)",
    )
    add("--overwrite", action="store_true", help="measure everything anew")
    add("--report", action="store_true", help="measure nothing, write table and chart again")
    add("--quiet", action="store_true", help="no progress bar")
    gpu = parser.add_argument_group("with --device cuda")
    gpu.add_argument(
        "--part", dest="parts", type=_names, metavar="NAME,…", help="only these parts (default all)"
    )
    gpu.add_argument("--list", action="store_true", help="show the parts and what they lack")
    gpu.add_argument(
        "--minutes", type=float, metavar="M", help="begin nothing new after so many minutes"
    )
    gpu.add_argument("--retry", action="store_true", help="measure again what failed")
    gpu.add_argument(
        "--no-dropout", action="store_true", help="every dropout 0 (figures of their own: --out)"
    )
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def results_path(options: argparse.Namespace, backbone: str) -> Path:
    """Where a backbone's figures go."""
    folder = repository_root() / "results" / ("quick/bench" if options.quick else "bench")
    own = find_backbone(backbone).bench_sizes.folder
    return options.out or folder / (backbone if own is None else own) / f"{options.device}.json"


def _lines(found: Sequence[Verdict]) -> Iterator[str]:
    for verdict in found:
        yield (
            f"  {verdict.quantity:<76} {verdict.measured:<18} target {verdict.target:>8}  "
            f"{verdict.words}"
        )


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    options = bench_parser().parse_args(arguments)
    on_gpu = options.device == "cuda"
    if not on_gpu and (
        wanted := [flag for flag, name in GPU_FLAGS.items() if getattr(options, name)]
    ):
        raise ConfigError(f"{', '.join(wanted)}: only with --device cuda")
    names = options.backbone or (measurable()[:1] if on_gpu else measurable())
    if options.out and len(names) > 1:
        raise ConfigError(
            f"--out names one file, but {', '.join(names)} are measured: name one with --backbone"
        )
    for name in names:
        (_bench_gpu if on_gpu else _bench)(options, name, results_path(options, name))
    return 0


def _bench(options: argparse.Namespace, backbone: str, path: Path) -> None:
    """Measure one backbone, or write its tables again, and print its verdicts."""
    if options.report:
        file = BenchFile.read(path)
        write_reports(file)
    else:
        # Region features are the same for all backbones, so they belong to the first.
        features = backbone == measurable()[0]
        file = run_bench(
            make_settings(options, backbone),
            path,
            options.quick,
            options.overwrite,
            options.only,
            options.quiet,
            features=features,
        )
    print(f"{file.description}:")
    print("\n".join(_lines(verdicts(file))))
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(
        f"\nresults: {shown}, table: {shown.with_suffix('.md')}, "
        f"chart: {shown.with_suffix('.png')}\n"
    )


def _bench_gpu(options: argparse.Namespace, backbone: str, path: Path) -> None:
    """Measure parts of one backbone on a GPU, or write its table again, and print its verdicts."""
    if options.report:
        write_gpu_report(BenchFile.read(path))
    else:
        settings = make_settings(options, backbone)
        deadline = None if options.minutes is None else time.time() + 60 * options.minutes
        work = Work(
            find_supply(backbone),
            settings,
            path,
            tuple(options.parts or ()) or None,
            options.quick,
            options.only,
            deadline,
        )
        file = open_for(work, options.overwrite, options.retry)
        if options.list:
            print("\n".join(list_parts(work, file)))
            return
        file.write()
        run_parts(work)
    file = BenchFile.read(path)
    write_gpu_report(file)
    print(f"{file.description}:")
    print("\n".join(_lines(gpu_verdicts(file))))
    print(f"\nresults: {path}, table: {path.with_suffix('.md')}\n")


def open_for(work: Work, overwrite: bool, retry: bool) -> BenchFile:
    """The file that parts are written to; `retry`: without the cases that failed."""
    supplied = work.supply(work.settings)
    file = BenchFile.open(
        work.path,
        work.settings,
        supplied,
        supplied.description,
        describe_machine(work.settings),
        overwrite,
    )
    if retry:
        file.forget_failures()
    return file


def list_parts(work: Work, file: BenchFile) -> Iterator[str]:
    """A line for each part: cases, how many are missing, expected seconds, what it is."""
    for part in work.find_parts():
        count, left = len(cases_of(part, work)), len(missing(part, work, file))
        yield (
            f"{part.name:<11} {count:>3} cases, {left:>3} missing, about "
            f"{part.expected(work.quick):>3} s: {part.about}"
        )


def write_gpu_report(file: BenchFile) -> None:
    """The table (.md) beside the JSON file."""
    write_bytes(file.path.with_suffix(".md"), format_gpu_report(file).encode())
