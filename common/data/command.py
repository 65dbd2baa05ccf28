"""Command line for data: make the embedded sets, import features, check and list data sets.

python -m common.data easy_vqa
python -m common.data make flowers --table flowers.csv --images photos --detector FOLDER
python -m common.data import --tsv data/mscoco_imgfeat/train2014_obj36.tsv
python -m common.data answers vqa_cp
python -m common.data check vqa_cp
python -m common.data list

Its command `make` is in `common.own_data`.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from common.data.annotations import ANSWER_TO_LABEL
from common.data.answer_lists import MINIMUM, answer_list
from common.data.dataset_table import DATASETS
from common.data.datasets import (
    BUILDERS,
    Dataset,
    find_kind,
    is_there,
    load_split,
    open_features,
    own_datasets,
    resolve_dataset,
)
from common.data.vqa_dataset import VQADataset, check_answers
from common.errors import AdaptiveError, ConfigError
from common.features.command import add_import_options, run_import
from common.files import repository_root
from common.projects import vqa_data
from common.reading import read_json
from common.voice import spoken

MAKE = "make"
MADE_OF_ANNOTATIONS = [name for name, kind in DATASETS.items() if kind.answers_of]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.data",
        description="Make the embedded data sets, import region features, check and list data "
        "sets.",
        epilog="A data set of your own out of a table of questions and a folder of pictures: "
        f"python -m common.data {MAKE} --help.",
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
            "--out",
            type=Path,
            metavar="DIR",
            help=f"its folder (default: {DATASETS[name].base} in the repository)",
        )
    add_import_options(
        commands.add_parser(
            "import",
            help="turn region features (LXMERT TSV, NPZ, JSON, LMDB) into a memory-mapped store",
            description="Import region features, one image at a time: memory does not depend on "
            "their size, and a stopped import goes on where it was. Training does the same on "
            "first use.",
        )
    )
    answers = commands.add_parser(
        "answers",
        help="make the answer lists of a data set in official files",
        description="The answers that are the most common one of enough questions. Training "
        "makes the lists on first use; this command is for another limit.",
    )
    answers.add_argument("name", choices=MADE_OF_ANNOTATIONS)
    answers.add_argument(
        "--minimum",
        type=int,
        metavar="N",
        help=f"questions that an answer has to be the most common one of (default: {MINIMUM}, or "
        "that of the lists that are there)",
    )
    check = commands.add_parser(
        "check",
        help="read a whole data set: questions, answers, features of every image",
        description="Read every split that is there, importing features and making answer lists "
        "where necessary, compare features with their checksums, and count; errors name file, "
        "entry and value.",
    )
    check.add_argument(
        "name", metavar="NAME", help=f"{', '.join(DATASETS)}, or one of your own (see list)"
    )
    check.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out what an import of features cannot read, and the questions about it",
    )
    check.add_argument("--quiet", action="store_true", help="no progress bars")
    for command in (answers, check):
        command.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help=f"folder of the files of data that is not embedded (default: {vqa_data()})",
        )
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
    """Print every known data set with its files, or why it cannot be used."""
    for name in (*DATASETS, *own_datasets(root)):
        try:
            kind = find_kind(name, root)
        except AdaptiveError as error:
            print(f"{name}: CANNOT BE USED: {error}")
            continue
        print(f"{name}: {kind.summary} ({kind.base})")
        for path, source in kind.files(optional=True).items():
            state = "there  " if is_there(kind, root / kind.base, path) else "MISSING"
            print(f"  {state} {path:52} {source}")


def make_answers(name: str, data: Path | None, minimum: int | None) -> None:
    """Make the answer lists of a data set, or say that they are there.

    Raises:
        ConfigError: A minimum below 1.
        DataError: See `answer_list`.
    """
    if minimum is not None and minimum < 1:
        raise ConfigError(f"--minimum {minimum}: give a whole number of at least 1")
    kind = DATASETS[name]
    base = data if data is not None else repository_root() / kind.base
    folder = base / kind.vocabulary
    found = answer_list(folder, [base / path for path in kind.answer_files()], minimum)
    print(f"{folder / ANSWER_TO_LABEL}: {len(found)} answers")


def check_dataset(dataset: Dataset, skip_bad: bool, progress: bool) -> None:
    """Read every split of a data set whose files are there, and verify its features.

    Raises:
        AdaptiveError: Something is missing, damaged or does not fit together.
    """
    vocabulary = dataset.vocabulary()
    print(f"{dataset.name} in {dataset.folder}: {len(vocabulary)} answers")
    verified: set[Path] = set()
    warnings: list[str] = []
    for name, split in dataset.kind.splits.items():
        files = (split.questions, *split.features)
        there = all(is_there(dataset.kind, dataset.folder, path) for path in files)
        if name in dataset.kind.optional and not there:
            print(f"  {name:10} not there")
            continue
        features = open_features(dataset, name, skip_bad=skip_bad, progress=progress)
        for store in features.stores:
            if store.path not in verified:
                store.verify(progress)
                verified.add(store.path)
        examples = load_split(dataset, name)
        if examples:
            data = VQADataset(examples, features, vocabulary)
            examples = data.examples
            warnings += check_answers({name: data})
        images = len({example.image_id for example in examples})
        hidden = ", without answers" if any(e.answers is None for e in examples) else ""
        print(f"  {name:10} {images:7,} images {len(examples):8,} questions{hidden}")
    for said in warnings:
        print(f"  warning: {said}")


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    if args.command == "list":
        list_datasets(args.root or repository_root())
    elif args.command == "import":
        run_import(args)
    elif args.command == "answers":
        make_answers(args.name, args.data, args.minimum)
    elif args.command == "check":
        dataset = resolve_dataset(args.name, data_root=args.data)
        check_dataset(dataset, args.skip_bad, not args.quiet)
    else:
        out = args.out or repository_root() / DATASETS[args.command].base
        make_dataset(args.command, out, args.force)


@spoken
def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    run(args)
    return 0
