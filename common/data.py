"""Command line for data sets: make the embedded ones, list all of them.

    python -m common.data easy_vqa
    python -m common.data list
"""

import argparse
import sys
import time
from pathlib import Path

from common.changing_priors import build_easy_vqa_cp
from common.datasets import DATASETS, dataset_files, is_there
from common.easy_vqa import build_easy_vqa
from common.errors import AdaptiveError
from common.files import read_json, repository_root

BUILDERS = {"easy_vqa": build_easy_vqa, "easy_vqa_cp": build_easy_vqa_cp}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.data",
        description="Make the embedded data sets and list the known ones.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in BUILDERS:
        make = commands.add_parser(
            name,
            help=DATASETS[name].summary,
            description=f"Make data set {name}: {DATASETS[name].summary}. Question and annotation "
            "JSON as of VQA v2, the JSON of LXMERT, and for easy_vqa image files and region "
            "features. Where it is there and whole, nothing is done.",
        )
        make.add_argument("--force", action="store_true", help="make it anew in any case")
        make.add_argument(
            "--out", type=Path, metavar="DIR",
            help=f"its folder (default: {DATASETS[name].base} in the repository)",
        )  # fmt: skip
    listing = commands.add_parser(
        "list", help="the known data sets, whether their files are there, where they come from"
    )
    listing.add_argument("--root", type=Path, help="the repository (default: of this code)")
    return parser


def make_dataset(name: str, out: Path, force: bool) -> None:
    """Build an embedded data set and say what is in it."""
    start = time.monotonic()
    if BUILDERS[name](out, force=force):
        print(f"{out}: made in {time.monotonic() - start:.0f} s")
    else:
        print(f"{out}: is there and its checksums match; --force makes it anew")
    for split, count in read_json(out / "meta.json")["splits"].items():
        print(f"  {split:10} {count['images']:6,} images {count['questions']:8,} questions")


def list_datasets(root: Path) -> None:
    """Print every known data set with its files."""
    for name, kind in DATASETS.items():
        print(f"{name}: {kind.summary} ({kind.base})")
        for path, source in dataset_files(kind, optional=True).items():
            state = "there  " if is_there(root / kind.base / path) else "MISSING"
            print(f"  {state} {path:34} {source}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "list":
            list_datasets(args.root or repository_root())
        else:
            out = args.out or repository_root() / DATASETS[args.command].base
            make_dataset(args.command, out, args.force)
    except (AdaptiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
