"""Ask a finetuned model questions about an image: answers, what was decided, and a picture.

python -m common.ask --run LXMERT/snap/vqa/v1 --image FILE.png --question "What shape is it?"
python -m common.ask --run LXMERT/snap/vqa/v1 --image FILE.jpg --detector FOLDER --interactive
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.adapt.encoder import POLICY_EVALUATIONS
from common.ask.answerer import Answerer, AnswererOptions
from common.ask.conversation import Conversation, Shown
from common.ask.image import AskedImage
from common.detector.faster_rcnn import RULES
from common.detector.opening import parse_boxes
from common.errors import ConfigError
from common.files import file_stem, write_json
from common.projects import vqa_data
from common.reading import is_unicode, short
from common.training.options import add_detector_option
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
        "16 to 2048 pixels a side). For\nFaster R-CNN features name the detector's files with "
        "--detector, or give --image-id, which is\nlooked up in the run's data set or in "
        "--features; python -m common.features extracts and\nimports your own. Exit status: 0 "
        "answered, 2 an error (of --interactive: at least one).",
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
        "--detector",
        metavar="FOLDER|pixels",
        help="what finds the regions of --image: the folder of config.yaml and "
        "pytorch_model.bin; or the pixel regions of easy-VQA (default, and of no other runs)",
    )
    image.add_argument(
        "--boxes",
        type=parse_boxes,
        metavar="N|MIN-MAX",
        help="regions of a picture (default: as the run was trained, else as the config says)",
    )
    image.add_argument(
        "--rule",
        choices=RULES,
        help=f"which proposals become regions (default: as the run was trained, else {RULES[0]})",
    )
    add_detector_option(image)
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
        help="then read questions from the standard input, one a line; :help lists what else",
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
        return run_command(args)
    except OSError as error:
        where = error.filename or "the output"
        print(f"error: cannot write {where}: {error.strerror}", file=sys.stderr)
        return 2


def run_command(args: argparse.Namespace) -> int:
    """Open the run and the image, and answer every question; returns the exit status."""
    check(args)
    options = AnswererOptions(
        *(args.detector, args.boxes, args.rule, args.any_detector, args.data, args.policy_eval)
    )
    answerer = Answerer.open(args.run, options)
    several = args.interactive or len(args.question) > 1
    shown = Shown(
        args.top,
        args.seed,
        None if args.attention is None else answerer.attention(args.attention, args.word),
        None if args.no_plots else lambda *asked: picture_path(args, several, *asked),
        args.json == "-",
    )
    talk = Conversation(answerer, shown)
    if args.question or not args.interactive or args.image or args.image_id or args.features:
        talk.show(answerer.find(args.image, args.image_id, args.features))
    for question in args.question:
        talk.answer(question)
    failed = args.interactive and talk.listen(sys.stdin)
    if args.json == "-":
        print(json.dumps(talk.document(), indent=1))
    elif args.json is not None:
        write_json(Path(args.json), talk.document(), indent=1)
        print(f"\nJSON      {args.json}")
    return 2 if failed else 0


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


def picture_path(
    args: argparse.Namespace, several: bool, image: AskedImage, question: str, number: int
) -> Path:
    """Where the picture of a question goes; it has its number where there are several."""
    if args.out is not None and not args.out.is_dir():
        stem = f"{args.out.stem}-{number}" if several else args.out.stem
        return args.out.with_name(f"{stem}{args.out.suffix}")
    name = Path(image.name).stem if image.file is not None else image.name
    folder = args.run / "ask" if args.out is None else args.out
    return folder / f"{file_stem(f'{name} {question}')}.png"
