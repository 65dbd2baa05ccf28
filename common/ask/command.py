"""Ask a finetuned model questions about an image: answers, what was decided, and a picture.

    python -m common.ask --run LXMERT/snap/vqa/v1 --image FILE.png --question "What shape is it?"

Shape legend: A answers, D decisions.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.adapt.encoder import POLICY_EVALUATIONS
from common.ask.answering import Answered, PairDecisions, as_json, ask
from common.ask.attention import attention_lines, parse_choice
from common.ask.image import AskedImage, find_image
from common.ask.picture import plot_answer
from common.errors import ConfigError
from common.features.store import OPTIONAL
from common.files import write_json
from common.projects import vqa_data
from common.reading import is_unicode, short
from common.results.decision_grid import component_kind, head_number
from common.results.plot_style import run_title
from common.runs.backbones import OpenedRun
from common.runs.opened_run import open_run
from common.training.runtime import set_threads
from common.voice import spoken

PROGRAM = "python -m common.ask"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m common.ask`."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Ask a finetuned model about an image. Shows the likeliest answers, what the "
        "policy decided\nfor this pair of image and question, and writes a picture of "
        "both.",
        epilog="Probabilities: the model learns for each answer by itself whether it is right "
        "(binary cross-entropy),\nso a probability is the sigmoid of that answer's output; "
        "they are not a distribution and do not\nadd up to 1.\n\n"
        "Features must come from the detector that the run was finetuned with. For easy_vqa "
        "they are computed\nfrom the pixels of --image (plain shapes on a plain background, "
        "16 to 2048 pixels a side). For\nFaster R-CNN features give --image-id, which is "
        "looked up in the run's data set or in --features;\npython -m common.features "
        "imports your own. Exit status: 0 answered, 2 an error.",
    )
    made.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, with BEST.safetensors",
    )
    image = made.add_argument_group("the image")
    image.add_argument("--image", type=Path, metavar="FILE", help="a picture")
    image.add_argument(
        "--image-id",
        metavar="ID",
        help="take the features of this image from the "
        "run's data set or --features; its picture is --image, or ID.png or ID.jpg "
        "in a folder images beside the features",
    )
    image.add_argument(
        "--features",
        type=Path,
        metavar="STORE",
        help="region-feature store in which --image-id is looked up",
    )
    image.add_argument(
        "--data", type=Path, metavar="DIR", help=f"folder of VQA v2's files (default {vqa_data()})"
    )
    asked = made.add_argument_group("the questions")
    asked.add_argument(
        "--question", action="append", default=[], metavar="TEXT", help="may be given several times"
    )
    asked.add_argument(
        "--interactive",
        action="store_true",
        help="then read questions from the standard input, one a line",
    )
    asked.add_argument(
        "--attention",
        metavar="LAYER[:HEAD]",
        help="also draw the attention of this layer and head on the picture (heads from 1; "
        "without one the mean of all): from words to regions where the layer has that",
    )
    asked.add_argument(
        "--word",
        metavar="WORD",
        help="with --attention: shade the regions by what this word of the question looks at "
        "(default: the mean of all)",
    )
    asked.add_argument("--top", type=int, default=5, metavar="K", help="answers shown (default 5)")
    asked.add_argument(
        "--policy-eval",
        choices=POLICY_EVALUATIONS,
        help="take the policy's likelier decision, draw one, or use the one for the "
        "whole data set (default: as in the run)",
    )
    asked.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of drawn decisions (default 0; the same pair draws the same)",
    )
    shown = made.add_argument_group("what is written")
    shown.add_argument(
        "--out",
        type=Path,
        metavar="PNG",
        help="the picture, or an existing folder for it (default: in RUN/ask/); "
        "several questions are numbered",
    )
    shown.add_argument("--no-plots", action="store_true", help="no picture")
    shown.add_argument(
        "--json",
        metavar="FILE",
        help="also write everything as JSON; - writes it, and nothing else, to the standard output",
    )
    return made


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    made = parser()
    args = made.parse_args(arguments)
    if not args.question and not args.interactive:
        made.error("nothing to ask: give --question TEXT (as often as you like) or --interactive")
    try:
        run_command(args)
    except OSError as error:
        where = error.filename or "the output"
        print(f"error: cannot write {where}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def run_command(args: argparse.Namespace) -> None:
    """Open the run and the image, and answer every question."""
    check(args)
    run = open_run(args.run, args.data)
    set_threads(None, run.meta["size"] == "small")
    choose_policy_eval(run, args.policy_eval)
    attention = None
    if args.attention is not None:
        attention = parse_choice(run, args.attention, word=args.word)
    image = find_image(run, args.image, args.image_id, args.features, args.data)
    quiet = args.json == "-"
    if not quiet:
        print(heading(run, image), flush=True)
    entries = []
    for number, question in enumerate(questions(args), 1):
        answered = ask(run, image.regions, question, args.top, args.seed, attention)
        several = args.interactive or len(args.question) > 1
        picture = (
            None
            if args.no_plots
            else picture_path(args, image, question, number if several else None)
        )
        if picture is not None:
            plot_answer(image, answered, title(run), nothing_decided(run), picture)
        if not quiet:
            print(report(run, answered, picture), flush=True)
        entries.append(as_json(answered) | {"picture": None if picture is None else str(picture)})
    if args.json is not None:
        content = document(run, image, entries)
        if quiet:
            print(json.dumps(content, indent=1))
        else:
            write_json(Path(args.json), content, indent=1)
            print(f"\nJSON      {args.json}")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        ConfigError: an empty question, too few answers, or a picture that is no PNG.
    """
    for question in args.question:
        if not question.strip():
            raise ConfigError(f"--question {question!r} is empty: give some words")
        _check_unicode("--question", question)
    if args.image_id is not None:
        _check_unicode("--image-id", args.image_id)
    if args.word is not None and args.attention is None:
        raise ConfigError(f"--word {args.word}: say of which layer with --attention LAYER[:HEAD]")
    if args.top < 1:
        raise ConfigError(f"--top {args.top}: give a number of at least 1")
    if args.out is not None and not args.out.is_dir() and args.out.suffix.lower() != ".png":
        raise ConfigError(
            f"--out {args.out}: the picture is a PNG: give a name that ends in .png, "
            "or a folder that exists"
        )


def _check_unicode(flag: str, text: str) -> None:
    if not is_unicode(text):
        raise ConfigError(
            f"{flag} {short(text)}: no Unicode text: it was typed, or is stored, in another "
            "encoding than this terminal's (UTF-8)"
        )


def choose_policy_eval(run: OpenedRun, chosen: str | None) -> None:
    """Decide as the run was evaluated, or as the command line says.

    Raises:
        ConfigError: a choice for a strategy that decides nothing, or global decisions that the
            checkpoint does not have.
    """
    if run.adaptive is None:
        if chosen is not None:
            raise ConfigError(
                f"--policy-eval {chosen}: strategy {run.strategy.name} of "
                f"{run.folder} decides nothing"
            )
        return
    chosen = chosen or run.adaptive.options.policy_eval
    if chosen == "global" and bool((run.adaptive.global_decisions < 0).any()):
        raise ConfigError(
            f"--policy-eval global: {run.checkpoint} holds no decisions for the "
            "whole data set: a run with --policy-eval global makes them at its end, "
            "from the training questions"
        )
    run.adaptive.options.policy_eval = chosen


def questions(args: argparse.Namespace) -> Iterator[str]:
    """Those of the command line, then the lines of the standard input that are not empty."""
    yield from args.question
    while args.interactive:
        if sys.stdin.isatty():
            print("\nquestion (empty line: end) > ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (sys.stdin.isatty() and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def picture_path(
    args: argparse.Namespace, image: AskedImage, question: str, number: int | None
) -> Path:
    """Where the picture of a question goes; `number` where there are several."""
    if args.out is not None and not args.out.is_dir():
        stem = args.out.stem if number is None else f"{args.out.stem}-{number}"
        return args.out.with_name(f"{stem}{args.out.suffix}")
    name = Path(image.name).stem if image.file is not None else image.name
    words = re.sub(r"[^\w]+", "-", f"{name} {question}".strip(), flags=re.ASCII).strip("-")
    folder = args.run / "ask" if args.out is None else args.out
    return folder / f"{words[:100]}.png"


def heading(run: OpenedRun, image: AskedImage) -> str:
    """What is asked about what."""
    regions = image.regions
    picture = f" (picture {image.file})" if image.file and str(image.file) != image.name else ""
    lines = [
        f"run       {run.folder}: {title(run)}",
        f"image     {image.name}{picture}, {regions.width} x {regions.height} pixels, "
        f"{len(regions.boxes)} regions",
    ]
    return "\n".join(lines + [_note(note) for note in image.notes])


def title(run: OpenedRun) -> str:
    """`SpotTune · LXMERT (small) · easy_vqa · seed 1`."""
    identity = {"seed": None} | run.meta | {"dataset": run.dataset} | (run.result or {})
    return run_title(identity, "").strip()


def report(run: OpenedRun, answered: Answered, picture: Path | None) -> str:
    """Answers and decisions as text."""
    lines = [f"\nquestion  {answered.question}", *map(_note, answered.notes)]
    width = max(len(answer.text) for answer in answered.answers)
    for place, answer in enumerate(answered.answers):
        head = "answers   " if place == 0 else " " * 10
        bar = "#" * round(20 * answer.probability)
        lines.append(f"{head}{answer.text:{width}}  {answer.probability:.3f}  {bar}".rstrip())
    if answered.decisions is None:
        lines.append(f"decided   {nothing_decided(run)}")
    else:
        lines += decision_lines(answered.decisions, run.strategy.name)
    if answered.attention is not None:
        shown = attention_lines(answered.attention)
        lines += [_wrapped(shown[0], "attended  "), *(_wrapped(t, " " * 10) for t in shown[1:])]
        lines += map(_note, answered.attention.notes)
    if picture is not None:
        lines.append(f"picture   {picture}")
    return "\n".join(lines)


def _note(text: str) -> str:
    return _wrapped(text, "note      ")


def _wrapped(text: str, start: str) -> str:
    """At most 100 characters a line; further lines begin below the text."""
    return textwrap.fill(
        text,
        100,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
        break_long_words=False,
    )


def nothing_decided(run: OpenedRun) -> str:
    """For a strategy without decisions."""
    return f"nothing: with {run.strategy.name}, {run.strategy.summary}, for every pair alike"


def decision_lines(found: PairDecisions, strategy: str) -> list[str]:
    """What was decided, one entry for each layer."""
    live = sum(found.live)
    ones = sum(d for d, alive in zip(found.decisions, found.live, strict=True) if alive)
    how = {
        "argmax": "the policy's likelier decision",
        "sample": "drawn from the policy's probabilities",
        "global": "one decision for all pairs",
    }[found.how]
    whole = not any(found.components)
    dead = f", {len(found.live) - live} dead" if live < len(found.live) else ""
    lines = [
        f"decided   {strategy}, {how}: {ones} of {live} {'layers' if whole else 'parts'} "
        f"{found.words[1]}{dead}"
    ]
    if whole:
        cells = [layer_cell(found, place) for place in range(len(found.layers))]
        width = max(map(len, cells)) + 3
        columns = max(1, 90 // width)
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        return lines + [
            "          " + "".join(f"{c:{width}}" for c in row).rstrip() for row in rows
        ]
    layers = list(dict.fromkeys(found.layers))
    width = max(map(len, layers))
    return lines + [
        _wrapped(layer_parts(found, layer), f"{'':10}{layer:{width}}  ") for layer in layers
    ]


def layer_cell(found: PairDecisions, place: int) -> str:
    """`lang.1 finetuned 0.83`: a layer about which one decision is made."""
    if not found.live[place]:
        return f"{found.layers[place]} dead"
    chance = "" if found.probabilities is None else f" {found.probabilities[place]:.2f}"
    return f"{found.layers[place]} {found.words[found.decisions[place]]}{chance}"


def layer_parts(found: PairDecisions, layer: str) -> str:
    """`3 of 6 finetuned: heads 2/4, output`: a layer with several decisions."""
    heads: dict[str, list[int]] = {}
    chosen: list[str] = []
    dead = 0
    ones = []
    for place in (i for i, name in enumerate(found.layers) if name == layer):
        component, decision = found.components[place], found.decisions[place]
        if not found.live[place]:
            dead += 1
            continue
        ones.append(decision)
        if head_number(component) is not None:
            heads.setdefault(component_kind(component), []).append(decision)
        elif decision:
            chosen.append(component)
    parts = [f"{kind} {sum(group)}/{len(group)}" for kind, group in heads.items()] + chosen
    text = f"{sum(ones)} of {len(ones)} {found.words[1]}" + (f" ({dead} dead)" if dead else "")
    return f"{text}: {', '.join(parts)}" if parts else text


def document(run: OpenedRun, image: AskedImage, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that was found, for machines."""
    regions = image.regions
    given = {
        name: getattr(regions, name).tolist()
        for name in OPTIONAL
        if getattr(regions, name) is not None
    }
    boxes = [
        {"number": place + 1, "box": box, **{name: of[place] for name, of in given.items()}}
        for place, box in enumerate(regions.boxes.tolist())
    ]
    return {
        "run": str(run.folder),
        "checkpoint": str(run.checkpoint),
        "backbone": run.meta["backbone"],
        "strategy": run.strategy.name,
        "policy": run.meta["policy"],
        "dataset": run.dataset,
        "image": {
            "name": image.name,
            "file": None if image.file is None else str(image.file),
            "width": regions.width,
            "height": regions.height,
            "boxes": boxes,
            "detector": run.meta["features"]["detector"],
            "notes": image.notes,
        },
        "questions": entries,
    }
