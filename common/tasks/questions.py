"""Which questions a run is about: flags, data sets of the table, training and held-out parts."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.annotations import Example
from common.data.dataset_table import DATASETS
from common.data.datasets import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    check_disjoint,
    load_split,
    open_features,
    split_holdout,
)
from common.data.vqa_dataset import PARTS, VQADataset, check_answers
from common.errors import ConfigError
from common.features.sources import FeatureSources
from common.projects import vqa_data
from common.training.distributed import World


@dataclass(frozen=True)
class QuestionOptions:
    """Which questions are asked.

    Attributes:
        dataset, data: name and folder of the data set; None: the default ones.
        train, valid: splits; None: those of the data set.
        questions: so many of the training questions, chosen at random.
        holdout: share of the training images that the best epoch is chosen with.
        skip_bad: leave out feature records that cannot be read.
        tiny, fast: only the first images of each split.
    """

    dataset: str | None
    data: Path | None
    train: str | None
    valid: str | None
    questions: int | None
    holdout: float
    skip_bad: bool
    tiny: bool
    fast: bool

    @property
    def image_limit(self) -> int | None:
        """Images per split that --tiny or --fast leaves."""
        return TINY_IMAGES if self.tiny else FAST_IMAGES if self.fast else None


def add_question_options(
    parser: argparse.ArgumentParser, told: Mapping[str, str] | None = None
) -> None:
    """Data set, splits, and how much of them.

    Args:
        parser: gets the flags.
        told: flag → its help, where a backbone has data in a layout of its own.
    """
    told = told or {}
    data = parser.add_argument_group("data")
    rows = "; ".join(f"{name}: {kind.summary}" for name, kind in DATASETS.items())
    data.add_argument(
        "--dataset",
        help=told.get("--dataset")
        or f"{rows}; or one of your own, made by `python -m common.data make` (default: vqa or "
        "vqa_official if their files are there, easy_vqa if none of them is)",
    )
    data.add_argument(
        "--data",
        type=Path,
        help=told.get("--data")
        or f"folder of the files of vqa, vqa_official and vqa_cp (default {vqa_data()})",
    )
    data.add_argument(
        "--train",
        help=told.get("--train")
        or "training splits (default: those of the data set, train,nominival; for vqa_cp train)",
    )
    data.add_argument(
        "--valid",
        help="the split that is reported, never used to choose the best "
        "epoch (default: minival; for vqa_cp test)",
    )
    data.add_argument(
        "--test",
        help="only test: a split with `test` or `val` in its name; other "
        "names with `val` mean the split that is reported",
    )
    data.add_argument(
        "--skip-bad",
        dest="skip_bad",
        action="store_true",
        help="where features have to be imported first: leave out records that "
        "cannot be read, with a report beside the store, and leave out the "
        "questions about their images",
    )
    data.add_argument(
        "--tiny",
        action="store_true",
        help="512 images of each split, for a quick look; small models are then trained for "
        "fewer epochs unless --epochs says more",
    )
    data.add_argument("--fast", action="store_true", help="5,000 images of each split")
    data.add_argument("--questions", type=int, help="train on so many questions, chosen at random")
    data.add_argument(
        "--numWorkers",
        dest="workers",
        type=int,
        default=0,
        help="processes that read batches (default 0: in this one)",
    )


def with_splits(options: QuestionOptions, dataset: Dataset) -> QuestionOptions:
    """The options with the splits filled in: those that are given, else the data set's."""
    train, valid = dataset.choose_splits(options.train, options.valid)
    return replace(options, train=train, valid=valid)


def find_features(
    options: QuestionOptions, dataset: Dataset, world: World, quiet: bool
) -> FeatureSources:
    """Features of both splits; the first process imports them, and makes the list of answers."""
    with world.main_first():
        dataset.vocabulary()
        return open_features(
            dataset,
            f"{options.train},{options.valid}",
            skip_bad=options.skip_bad,
            progress=not quiet,
        )


def find_questions(
    options: QuestionOptions,
    dataset: Dataset,
    features: FeatureSources,
    seed: int,
    say: Callable[[str], None] = print,
) -> tuple[VQADataset, VQADataset, VQADataset]:
    """Questions to train on, held-out ones, and those that are reported.

    Raises:
        ConfigError: questions without answers, or fewer than are wanted.
        DataError: images that are trained on and reported, or no answer that scores.
    """
    trained, reported = dataset.choose_splits(options.train, options.valid)
    train, heldout = training_examples(options, dataset, seed)
    val = load_split(dataset, reported, options.image_limit)
    for splits, examples in ((trained, train + heldout), (reported, val)):
        if any(example.answers is None for example in examples):
            raise ConfigError(
                f"split {splits} of {dataset.name} has questions without answers: it "
                "can be predicted (--test), not trained or validated on"
            )
    check_disjoint(train + heldout, val)
    vocabulary = dataset.vocabulary()
    parts = (
        VQADataset(train, features, vocabulary),
        VQADataset(heldout, features, vocabulary),
        VQADataset(val, features, vocabulary),
    )
    for said in check_answers(dict(zip(PARTS, parts, strict=True))):
        say(f"warning: {said}")
    return parts


def training_examples(
    options: QuestionOptions, dataset: Dataset, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and held-out questions; the held-out images are the same for every seed."""
    trained = dataset.choose_splits(options.train, options.valid)[0]
    examples = load_split(dataset, trained, options.image_limit)
    train_part, heldout = split_holdout(examples, options.holdout)
    if options.questions is not None:
        if not 0 < options.questions <= len(train_part):
            raise ConfigError(
                f"--questions {options.questions}: there are {len(train_part)} training "
                f"questions in {trained} of {dataset.name}"
            )
        train_part = random.Random(seed).sample(train_part, options.questions)
    return train_part, heldout


def trained_on(options: QuestionOptions, dataset: Dataset, seed: int) -> tuple[VQADataset, Path]:
    """The questions that a run was finetuned on, with the folder of their data set.

    Args:
        options: of the run.
        dataset: its data set.
        seed: of the run.
    """
    trained = dataset.choose_splits(options.train, options.valid)[0]
    features = open_features(dataset, trained, skip_bad=options.skip_bad)
    examples = training_examples(options, dataset, seed)[0]
    return VQADataset(examples, features, dataset.vocabulary()), dataset.folder
