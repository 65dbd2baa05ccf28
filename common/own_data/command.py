"""`python -m common.data make`: a data set of one's own.

    python -m common.data make flowers --table flowers.csv --images photos --detector FOLDER
    python -m common.data make flowers --table flowers.jsonl --images photos.zip \\
        --detector FOLDER --boxes 10-100 --min-count 3 --valid 0.1 --test 0.1
    python -m common.data make flowers2 --table flowers.csv --features data/flowers/features

The table has columns image, question and answer (or answers), and by choice question_id, split,
answer_type, question_type, kind. Every image is in one split only. Afterwards
`--dataset flowers` trains and tests every backbone on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.detector.command import add_detector_options, detector_options
from common.files import repository_root
from common.own_data.making import VALID_SHARE, MakeOptions, make
from common.voice import spoken


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.data make",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="of the data set, for --dataset NAME")
    add("--table", type=Path, required=True, metavar="FILE", help="CSV with a header, or JSONL")
    add("--images", type=Path, metavar="DIR|ZIP", help="the pictures of the table")
    add(
        "--features",
        type=Path,
        metavar="STORE",
        help="region features that are there already, instead of --detector",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="its folder (default: data/NAME in the repository, which becomes a link to DIR)",
    )
    add(
        "--min-count",
        dest="minimum",
        type=int,
        default=1,
        metavar="N",
        help="answers are known that are the best one of N training questions (default 1)",
    )
    share = "share of the images %s, chosen by their content and --seed (default %s)"
    add("--valid", type=float, metavar="SHARE", help=share % ("to report on", VALID_SHARE))
    add("--test", type=float, metavar="SHARE", help=share % ("of a split test", "none"))
    add("--seed", type=int, metavar="N", help="another one chooses other images (default 0)")
    add(
        "--skip-bad",
        action="store_true",
        help="leave out rows and pictures that cannot be used; they are listed in skipped.txt",
    )
    add("--quiet", action="store_true", help="no progress bars")
    group = parser.add_argument_group("regions")
    add_detector_options(group, required=False)
    group.add_argument(
        "--detector-name",
        metavar="NAME",
        help="keep this as the detector's name, for runs that were trained with features under it",
    )
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    args = make_parser().parse_args(arguments)
    options = MakeOptions(
        args.name,
        args.table,
        args.images,
        args.detector,
        args.features,
        args.out,
        detector_options(args),
        args.detector_name,
        args.minimum,
        args.valid,
        args.test,
        args.seed,
        args.workers,
        args.threads,
        args.skip_bad,
        not args.quiet,
    )
    make(options, repository_root())
    return 0
