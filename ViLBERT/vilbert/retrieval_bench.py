"""How many pairs of a text and an image are scored in a second: what bench_retrieval.py runs.

ViLBERT-base with random weights. Every way of scoring takes the same captions and images, one after
the other in every round, so that noise of the machine hits all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.adapt.adapting import adapt, deciding_part
from common.bench.command import processor
from common.errors import ConfigError
from common.files import write_bytes, write_json
from common.training.flops import FlopCounter
from common.training.runtime import make_runtime
from common.voice import spoken
from vilbert.bench import bench_config, bench_inputs
from vilbert.heads import VILBertForVLTasks
from vilbert.retrieval import PairScorer

OUT = Path("../results/bench/vilbert")
SHARE = 0.5
PUBLISHED = (5000, 1000)  # captions and images of Flickr30k's test part
LOOP = "one caption after the other"


@dataclass(frozen=True)
class Way:
    """A way of scoring all captions with all images.

    Attributes:
        title: for the table.
        scorer: makes the scorer.
        captions: that are scored together; None: all.
    """

    title: str
    scorer: Callable[[], PairScorer]
    captions: int | None


def ways(config: Any, device: torch.device) -> list[Way]:
    """The straightforward loop first."""

    def plain(reuse: bool) -> PairScorer:
        return PairScorer(VILBertForVLTasks(config).to(device).eval(), reuse=reuse)

    def deciding(strategy: str) -> PairScorer:
        model = VILBertForVLTasks(config)
        model.use(("vil_logit",))
        adapt(model, strategy, "small")
        return PairScorer(model.to(device).eval())

    return [
        Way(LOOP, lambda: plain(False), 1),
        Way("every pair, in blocks", lambda: plain(False), None),
        Way("layers before the first connection once", lambda: plain(True), None),
        Way("SpotTune_Block, decided for every pair", lambda: deciding("SpotTune_Block"), None),
        Way("BlockDrop, decided for every pair", lambda: deciding("BlockDrop"), None),
    ]


def score_all(way: Way, scorer: PairScorer, inputs: dict[str, Tensor], images: int) -> Tensor:
    """(T, I): the first I rows of the inputs as images, all of them as captions."""
    count = len(inputs["input_ids"])
    shown = {name: x[:images] for name, x in inputs.items()}
    alone = scorer.images(shown)
    part = scorer.model.bert.encoder.adaptive
    rows = []
    for start in range(0, count, way.captions or count):
        block = {n: x[start : start + (way.captions or count)] for n, x in inputs.items()}
        texts = scorer.texts(block)
        if part is None:
            rows.append(scorer.scores(texts, alone))
            continue
        draws = torch.rand(texts.size * images, len(part.live), device=part.live.device)
        with deciding_part(scorer.model).force((draws < SHARE).float()):
            rows.append(scorer.scores(texts, alone))
    return torch.cat(rows)


def measure(
    layers: int | None, captions: int, images: int, rounds: int, device: torch.device, seed: int
) -> dict[str, Any]:
    """Pairs in a second of every way, as the median of the rounds, and their operations."""
    torch.manual_seed(seed)
    config = bench_config(layers)
    inputs = {n: x.to(device) for n, x in bench_inputs(config, max(captions, images), seed).items()}
    captioned = {n: x[:captions] if x.shape[0] >= captions else x for n, x in inputs.items()}
    found = ways(config, device)
    scorers = [way.scorer() for way in found]
    seconds: list[list[float]] = [[] for _ in found]
    for number in range(rounds + 1):
        for place, (way, scorer) in enumerate(zip(found, scorers, strict=True)):
            _wait(device)
            start = time.perf_counter()
            score_all(way, scorer, captioned | _images(inputs, images), images)
            _wait(device)
            if number:  # the first round only warms up
                seconds[place].append(time.perf_counter() - start)
    pairs = captions * images
    rows = []
    for way, scorer, taken in zip(found, scorers, seconds, strict=True):
        with FlopCounter() as counter:
            score_all(way, scorer, captioned | _images(inputs, images), images)
        ratios = sorted(a / b for a, b in zip(seconds[0], taken, strict=True))
        rows.append(
            {
                "way": way.title,
                "pairs_per_second": pairs / statistics.median(taken),
                "against_loop": statistics.median(ratios),
                "lowest": ratios[0],
                "highest": ratios[-1],
                "gflop_per_pair": counter.total / pairs / 1e9,
            }
        )
    return {
        "layers": layers,
        "captions": captions,
        "images": images,
        "rounds": rounds,
        "device": _device_name(device),
        "rows": rows,
    }


def _images(inputs: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    names = ("features", "places", "image_attention_mask")
    return {name: inputs[name][:images] for name in names}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread"


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    layers = "" if found["layers"] is None else f" with {found['layers']} layers in every stack"
    lines = [
        f"ViLBERT-base{layers}, {found['captions']} captions of 8–14 word pieces × "
        f"{found['images']} images of 36 regions, fp32, {found['device']}, median of "
        f"{found['rounds']} rounds (lowest–highest)",
        "",
        "| way | pairs per second | against the loop | GFLOP per pair |",
        "| :-- | --: | --: | --: |",
    ]
    for row in found["rows"]:
        spread = f"{row['lowest']:.2f}–{row['highest']:.2f}"
        lines.append(
            f"| {row['way'].replace('_', chr(92) + '_')} | {row['pairs_per_second']:.1f} | "
            f"{row['against_loop']:.2f} ({spread}) | {row['gflop_per_pair']:.2f} |"
        )
    texts, images = PUBLISHED
    once = next(row for row in found["rows"] if "once" in row["way"])
    hours = texts * images / once["pairs_per_second"] / 3600
    peta = texts * images * once["gflop_per_pair"] / 1e6
    lines += [
        "",
        f"{texts:,} captions × {images:,} images are {texts * images / 1e6:g} million pairs: "
        f"{hours:,.1f} hours at that speed, {peta:.0f} PFLOP.",
    ]
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python bench_retrieval.py",
        description="Measure how many pairs of a caption and an image ViLBERT-base scores in a "
        "second, in several ways, as ratios to one caption after the other.",
    )
    add = parser.add_argument
    add("--layers", type=int, help="at most so many layers in every stack (default: all)")
    add("--captions", type=int, default=8, help="default 8")
    add("--images", type=int, default=8, help="default 8")
    add("--rounds", type=int, default=3, help="default 3")
    add("--gpus", help="a GPU's number, or cpu (default: a GPU if there is one)")
    add("--quick", action="store_true", help="two layers, one round")
    add("--out", type=Path, default=OUT, metavar="FOLDER", help=f"default {OUT}")
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = make_parser().parse_args(arguments)
    for name in ("captions", "images", "rounds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: give 1 at least")
    device = make_runtime(args.gpus).device
    if device.type == "cpu":
        torch.set_num_threads(1)
    layers, rounds = (2, 1) if args.quick else (args.layers, args.rounds)
    found = measure(layers, args.captions, args.images, rounds, device, seed=9595)
    name = f"retrieval_{device.type}{'_quick' if args.quick else ''}"
    write_json(args.out / f"{name}.json", found, indent=1)
    write_bytes(args.out / f"{name}.md", table(found).encode())
    print(table(found))
    return 0
