"""Data sets of one's own, found by their names: folders of data/ that `common.data make` made.

Such a folder has the questions of each split (`train.json`, …, in the form of LXMERT), the answer
lists, the region features (or their path), and `dataset.json`, which is written last and says what
the data set is. Everything that knows data sets by name finds it through `own_kind`.
"""

import re
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from common.data.dataset_table import DatasetKind, Split
from common.errors import DataError
from common.reading import read_json, short

MAKE = "python -m common.data make"
FOLDER, RECORD, BEGUN = "data", "dataset.json", "making.json"
TRAIN, VALID, TEST = SPLITS = ("train", "valid", "test")
SMALL, BASE = "small", "base"
FEATURES = "features"
VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)


class Counts(TypedDict):
    """Of a split."""

    images: int
    questions: int


class Record(TypedDict):
    """What `dataset.json` says."""

    version: int
    name: str
    table: str
    """Name of the file that it was made of."""
    images: str | None
    """The folder or ZIP archive; None: features that were there were taken."""
    features: str
    """The store; relative to the data set's folder, or absolute."""
    detector: str
    """Name of the detector in the store."""
    size: str
    """`small`: features of plain shapes, which the small committed models know; else `base`."""
    answers: int
    minimum: int
    """Training questions that an answer has to be the best one of."""
    splits: dict[str, Counts]
    arguments: dict[str, Any]
    """What it was made with; see `common.own_data.making`."""


def place(name: str, root: Path) -> Path:
    """The folder of a data set of that name."""
    return root / FOLDER / name


def own_names(root: Path) -> list[str]:
    """Data sets of one's own that are finished."""
    return sorted(p.parent.name for p in (root / FOLDER).glob(f"*/{RECORD}"))


def read_record(folder: Path) -> Record:
    """The record of a finished data set.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / RECORD
    found: Record = read_json(path, schema=Record)
    wrong = found["version"] != VERSION or found["size"] not in (SMALL, BASE)
    if wrong or not {TRAIN, VALID} <= found["splits"].keys() <= set(SPLITS):
        raise DataError(
            f"{path}: version {found['version']}, size {short(found['size'])}, splits "
            f"{short(sorted(found['splits']))}: expected version {VERSION}, {SMALL} or {BASE}, and "
            f"{TRAIN}, {VALID} and perhaps {TEST}; was it edited? make the data set again"
        )
    return found


def own_kind(name: str, root: Path) -> DatasetKind | None:
    """A data set of one's own as a row of the table; None if there is none of that name.

    Raises:
        DataError: it is not finished, or its record is damaged.
    """
    folder = place(name, root)
    if not NAME.fullmatch(name):
        return None
    if not (folder / RECORD).is_file():
        if (folder / BEGUN).is_file():
            raise DataError(
                f"{folder}: is not finished: the same `{MAKE} {name} …` goes on where it stopped"
            )
        return None
    record = read_record(folder)
    features = (record["features"],)
    where = f"made by `{MAKE} {name}`"
    return DatasetKind(
        summary=f"made of {record['table']}, {record['answers']:,} answers, features of "
        f"{record['detector']}",
        place=f"{FOLDER}/{name}",
        splits={split: Split(f"{split}.json", features) for split in record["splits"]},
        vocabulary=".",
        sources={"": where},
        train=TRAIN,
        valid=VALID,
        reported_only=(TEST,),
        small=record["size"] == SMALL,
    )
