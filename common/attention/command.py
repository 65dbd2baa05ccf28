"""Show what the attention of a finished run looks at: density and entropy, or one example.

python -m common.attention --run LXMERT/snap/vqa/v1
python -m common.attention --run LXMERT/snap/vqa/v1 --image-id ID --question "What shape is it?"
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.adapt.encoder import POLICY_EVALUATIONS
from common.ask.answerer import Answerer, AnswererOptions
from common.ask.answering import Answered
from common.ask.attention import (
    PREFERRED,
    Choice,
    PairAttention,
    attention_json,
    attention_lines,
    default_layer,
    parse_choice,
)
from common.ask.attention_picture import plot_attention
from common.ask.image import AskedImage, check_store
from common.ask.report import title
from common.attention.measures import MEASURES, Measured, measure
from common.attention.plots import plot_measure
from common.data.datasets import load_split, open_features
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError
from common.files import file_stem, write_bytes, write_json
from common.projects import vqa_data
from common.results.page import html_figure, html_page, html_section, html_table
from common.results.table import NONE
from common.runs.attention_blocks import Block, Kinds, arrow, attention_of, check_places
from common.runs.backbones import OpenedRun, find_backbone
from common.tasks.evaluation import tell_evaluation
from common.training.options import add_detector_option
from common.voice import spoken

PROGRAM = "python -m common.attention"
FOLDER = "attention"
BATCH = 32
DIRECTIONS = {"-".join(kinds): kinds for kinds in PREFERRED}


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m common.attention`."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Show what the attention of a finished run looks at, as its model computes it: "
        "softmax or entmax,\nwith spans, and of an adaptive model the branch that each sample "
        "ran.\n\nWithout --question: density and entropy over validation samples, for each layer, "
        "head and pair of\nmodalities (text → text, region → region, text → region, region → "
        "text), as pictures, one HTML\npage and JSON. With --question: one example, its table of "
        "weights and the regions on the image.",
        epilog="Special tokens count as text, the image as a whole as a region; padding counts "
        "nowhere. In a model\nwith one stream a query attends to words and regions at once: "
        "'mass' says how much goes where,\nand the entropy is that within each. Of a layer that "
        "a sample skips nothing is counted. Spans and α\nover the epochs are in the run's own "
        "report. Exit status: 0 done, 2 an error.",
    )
    made.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, with BEST.safetensors",
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder to write to (default: RUN/{FOLDER})"
    )
    made.add_argument(
        "--data", type=Path, metavar="DIR", help=f"folder of VQA v2's files (default {vqa_data()})"
    )
    add_detector_option(made)
    made.add_argument(
        "--policy-eval",
        choices=POLICY_EVALUATIONS,
        help="how an adaptive model decides (default: as in the run)",
    )
    made.add_argument("--seed", type=int, default=0, help="of drawn decisions (default 0)")
    many = made.add_argument_group("over many samples")
    many.add_argument(
        "--samples",
        type=int,
        default=200,
        metavar="N",
        help="validation samples, spread evenly over all of them (default 200)",
    )
    many.add_argument(
        "--threshold",
        type=float,
        default=0.05,
        help="a key with at least this weight counts as looked at (default 0.05)",
    )
    one = made.add_argument_group("one example")
    one.add_argument("--question", metavar="TEXT", help="about the image")
    one.add_argument("--image", type=Path, metavar="FILE", help="a picture")
    one.add_argument("--image-id", metavar="ID", help="take the features of this image")
    one.add_argument(
        "--features",
        type=Path,
        metavar="STORE",
        help="where --image-id is looked up (default: the run's data set)",
    )
    one.add_argument(
        "--detector",
        metavar="FOLDER|pixels",
        help="what finds the regions of --image (default: the pixel regions of easy-VQA)",
    )
    one.add_argument(
        "--layer",
        metavar="LAYER[:HEAD]",
        help="which layer, and which head from 1 (default: the last layer that goes from several "
        "words to regions; the mean of all heads)",
    )
    one.add_argument(
        "--direction",
        choices=DIRECTIONS,
        help="from what to what (default: the first of these that the layer has)",
    )
    one.add_argument(
        "--word",
        metavar="WORD",
        help="shade the regions by what this word looks at (default: the mean of all)",
    )
    return made


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_args(arguments)
    check(args)
    options = AnswererOptions(
        detector=args.detector,
        any_detector=args.any_detector,
        data_root=args.data,
        policy_eval=args.policy_eval,
    )
    answerer = Answerer.open(args.run, options)
    check_places(answerer.run)
    folder = args.out or args.run / FOLDER
    if args.question is None:
        show_measures(answerer, args, folder)
    else:
        show_example(answerer, args, folder)
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        ConfigError: no samples, a threshold that is no weight, or half an example.
    """
    if args.samples < 1:
        raise ConfigError(f"--samples {args.samples}: give a number of at least 1")
    if not 0 < args.threshold <= 1:
        raise ConfigError(f"--threshold {args.threshold}: give a weight above 0, to 1")
    if args.question is not None:
        if not args.question.strip():
            raise ConfigError(f"--question {args.question!r} is empty: give some words")
        return
    names = ("image", "image_id", "features", "detector", "layer", "direction", "word")
    given = [name for name in names if getattr(args, name) is not None]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise ConfigError(
            f"{flag} {getattr(args, given[0])} is about one example: give its --question too"
        )
    if args.out is not None and args.out.is_file():
        raise ConfigError(f"--out {args.out} is a file: give a folder")


def show_measures(answerer: Answerer, args: argparse.Namespace, folder: Path) -> None:
    """Density and entropy over validation samples."""
    run = answerer.run
    data, split = validation(run, args.data, args.any_detector)
    count = min(args.samples, len(data))
    found = measure(sample_blocks(run, data, count, args.seed), args.threshold)
    if not found:
        raise ConfigError(
            f"{run.folder}: in none of {count} samples any layer attended: its strategy "
            f"{run.strategy.name} skipped them all"
        )
    heading = f"{title(run)}; {count} of {len(data)} samples of {split}"
    names = [name for name in MEASURES if worth_showing(found, name)]
    for name in names:
        plot_measure(found, name, heading, folder / f"{name}.png")
    content = {
        "run": str(run.folder),
        "split": split,
        "samples": count,
        "threshold": args.threshold,
        "measures": {name: MEASURES[name].format(threshold=args.threshold) for name in MEASURES},
        "attention": [one.as_json() for one in found],
    }
    write_json(folder / "attention.json", content, indent=1)
    page = folder / "attention.html"
    write_bytes(page, measures_page(found, names, heading))
    print(f"{heading}\n")
    for one in found:
        print(line_of(one))
    print(f"\npictures  {folder}: {', '.join(f'{name}.png' for name in names)}")
    print(f"page      {page}")


def validation(
    run: OpenedRun, data_root: Path | None, any_detector: bool
) -> tuple[VQADataset, str]:
    """The validation questions of a run's data set, and the name of their split.

    Raises:
        DataError: they are not there, or have features of another detector.
    """
    with redirect_stdout(sys.stderr):
        dataset = find_backbone(run.meta["backbone"]).dataset(run, data_root)
        split = dataset.kind.valid
        features = open_features(dataset, split)
        for store in features.stores:
            for note in check_store(run, store, any_detector):
                print(note)
        return VQADataset(load_split(dataset, split), features, dataset.vocabulary()), split


def sample_blocks(run: OpenedRun, data: VQADataset, count: int, seed: int) -> Iterator[Block]:
    """Attention of so many samples, spread evenly over the data."""
    chosen = np.linspace(0, len(data) - 1, count).round().astype(int).tolist()
    with tqdm(total=count, desc="attention", unit="sample", file=sys.stderr) as bar:
        for start in range(0, count, BATCH):
            indices = chosen[start : start + BATCH]
            batch = data.read(indices)
            tell_evaluation(run.model, seed, indices, batch.kinds)
            yield from attention_of(run, batch)
            bar.update(len(indices))


def worth_showing(found: Sequence[Measured], name: str) -> bool:
    """`mass` is 1 everywhere where a stream has words or regions alone."""
    values = [v for one in found for v in one.mean(name) if v is not None]
    return bool(values) and (name != "mass" or min(values) < 0.995)


def line_of(one: Measured) -> str:
    """`cross.1   text → region   zeros 0.12   above 3.10   entropy 0.61   mass 1.00`."""
    figures = "   ".join(f"{name} {_number(one.over_heads(name)):>5}" for name in MEASURES)
    return f"{one.layer:14}{arrow(one.kinds):18}{figures}"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def measures_page(found: Sequence[Measured], names: Sequence[str], heading: str) -> bytes:
    """Everything as one HTML file."""
    rows = [
        ([m.layer, arrow(m.kinds), *(_number(m.over_heads(name)) for name in MEASURES)], False)
        for m in found
    ]
    headings = [("layer",), ("from → to",), *((name,) for name in MEASURES)]
    threshold = found[0].threshold
    said = [f"{name}: {text.format(threshold=threshold)}." for name, text in MEASURES.items()]
    body = [
        *html_section("Means over the heads", html_table(headings, rows)),
        *(f"<p class='legend'>{line}</p>" for line in said),
    ]
    for name in names:

        def plot(data: Any, path: Any, name: str = name) -> None:
            plot_measure(data, name, heading, path)

        caption = MEASURES[name].format(threshold=threshold)
        body += html_section(name.capitalize(), html_figure(plot, found, caption))
    return html_page("Attention", heading, body)


def show_example(answerer: Answerer, args: argparse.Namespace, folder: Path) -> None:
    """The attention of one layer and head for one image and question."""
    run = answerer.run
    kinds: Kinds | None = None if args.direction is None else DIRECTIONS[args.direction]
    choice = None
    if args.layer is not None:
        choice = parse_choice(run, args.layer, kinds, args.word)
    image = answerer.find(args.image, args.image_id, args.features)
    if choice is None:
        choice = _default(answerer, image, args.question, kinds, args.word)
    answered = answerer.ask(image, args.question, seed=args.seed, attention=choice)
    found = answered.attention
    assert found is not None
    head = "mean" if choice.head is None else str(choice.head)
    words = file_stem(f"{Path(image.name).stem} {args.question}")
    stem = f"{choice.layer}-{head}-{words}"
    picture = folder / f"{stem}.png"
    heading = f"{title(run)}\n{Path(image.name).name}: {args.question}"
    plot_attention(image, found, heading, picture)
    write_json(folder / f"{stem}.json", attention_json(found), indent=1)
    page = folder / f"{stem}.html"
    write_bytes(page, example_page(image, answered, found, heading))
    print("\n".join([heading, f"answer    {answered.answers[0].text}", *attention_lines(found)]))
    print("\n".join([*(f"note: {note}" for note in found.notes), f"picture   {picture}"]))
    print(f"page      {page}")


def _default(
    answerer: Answerer, image: AskedImage, question: str, kinds: Kinds | None, word: str | None
) -> Choice:
    run, blocks = answerer.run, answerer.attended(image, question)
    layer = default_layer(blocks, kinds)
    if layer is None:
        raise ConfigError(
            f"{run.folder}: for this pair no layer attends from {kinds[0]} to {kinds[1]}"
            if kinds is not None and blocks
            else f"{run.folder}: for this pair all layers were skipped, so nothing attended"
        )
    return Choice(layer, None, kinds, word)


def example_page(
    image: AskedImage, answered: Answered, found: PairAttention, heading: str
) -> bytes:
    """Answers, picture and weights of one example as one HTML file."""
    answers = [([a.text, f"{a.probability:.3f}"], False) for a in answered.answers]

    def plot(data: PairAttention, path: Any) -> None:
        plot_attention(image, data, heading, path)

    body = [
        *html_section(found.title, html_figure(plot, found, found.title)),
        *html_section("Answers", html_table([("answer",), ("probability",)], answers)),
    ]
    if found.weights is not None:
        rows = [
            ([place.name, *(f"{weight:.3f}" for weight in row)], False)
            for place, row in zip(found.queries, found.weights.tolist(), strict=True)
        ]
        columns = [("from \\ to",), *((key.name,) for key in found.keys)]
        body += html_section("Weights", html_table(columns, rows))
    return html_page("Attention of one example", heading.replace("\n", "; "), body)
