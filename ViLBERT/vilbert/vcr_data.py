"""Visual Commonsense Reasoning: questions with four answers, and with four rationales.

Texts are lists of words in which a list of numbers stands for detected objects. A detected person
gets a name, other objects are called by their class. Images are known by numbers: those of val
stand behind 1,000,000, those of test behind 2,000,000.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from common.errors import DataError
from common.files import text_digest
from common.reading import read_json, read_json_lines, read_text, short

SOURCE = "https://visualcommonsense.com/download/"
OPTIONS = 4
PERSON = "person"
PARTS = {"train": 0, "val": 1_000_000, "test": 2_000_000}
SEPARATOR = "[SEP]"
Word = str | list[int]


class VCRLine(TypedDict):
    """A line of `train.jsonl`, as far as it is read."""

    annot_id: str
    img_id: str
    metadata_fn: str
    question: list[Word]
    answer_choices: list[list[Word]]
    rationale_choices: NotRequired[list[list[Word]]]
    answer_label: NotRequired[int]
    rationale_label: NotRequired[int]


class VCRMetadata(TypedDict):
    """What is known of an image's objects."""

    names: list[str]


@dataclass(frozen=True)
class VCREntry:
    """A question, or a question with its right answer, and what may follow.

    Attributes:
        entry_id: of the annotation; a rationale's ends in the answer's place if none is known.
        image_id: number of the image.
        question: before the options.
        options: four answers or rationales.
        label: place of the right one, from 0; None where it is not public.
    """

    entry_id: str
    image_id: str
    question: str
    options: tuple[str, ...]
    label: int | None


def read_vcr(
    path: Path, images: Path, names: Sequence[str], rationales: bool = False
) -> list[VCREntry]:
    """The questions of a part, or with `rationales` each with its right answer.

    Where the right answer is not public there is one entry for each of the four.

    Args:
        path: JSON lines, such as `train.jsonl`.
        images: folder that `metadata_fn` is relative to (`vcr1images`).
        names: for persons, see `read_names`.
        rationales: ask for the rationale of the right answer.

    Raises:
        DataError: a file is missing or damaged, an object is not there, there are not four options,
            or a label is none; with file, line and value.
    """
    known: dict[str, list[str]] = {}
    entries: list[VCREntry] = []
    for number, line in read_json_lines(path, VCRLine, SOURCE):
        where = f"{path}: line {number}"
        metadata = line["metadata_fn"]
        if metadata not in known:
            known[metadata] = read_json(images / metadata, SOURCE, schema=VCRMetadata)["names"]
        speak = _Speaker(where, line["annot_id"], known[metadata], names)
        entries += _entries(where, line, speak, rationales)
    return entries


def _entries(where: str, line: VCRLine, speak: _Speaker, rationales: bool) -> Iterator[VCREntry]:
    """One entry, or one for each answer that might be the right one."""
    image, annotation = image_number(line["img_id"], where), line["annot_id"]
    question = speak(line["question"])
    answers = _options(where, "answer_choices", line["answer_choices"], speak)
    answer = _label(where, "answer_label", line.get("answer_label"))
    if not rationales:
        yield VCREntry(annotation, image, question, answers, answer)
        return
    if "rationale_choices" not in line:
        raise DataError(f"{where}: field 'rationale_choices' is missing")
    options = _options(where, "rationale_choices", line["rationale_choices"], speak)
    label = _label(where, "rationale_label", line.get("rationale_label"))
    for place in range(OPTIONS) if answer is None else (answer,):
        entry_id = f"{annotation}_{place}" if answer is None else annotation
        asked = f"{question} {SEPARATOR} {answers[place]}"
        yield VCREntry(entry_id, image, asked, options, label)


class _Speaker:
    """Says words of one annotation, with the same name for a person wherever it occurs."""

    def __init__(
        self, where: str, annotation: str, objects: Sequence[str], names: Sequence[str]
    ) -> None:
        self._where, self._annotation = where, annotation
        self._objects, self._names = objects, names

    def __call__(self, words: Sequence[Word]) -> str:
        said = []
        for word in words:
            said += [word] if isinstance(word, str) else [self._called(n) for n in word]
        return " ".join(said)

    def _called(self, number: int) -> str:
        if not 0 <= number < len(self._objects):
            raise DataError(
                f"{self._where}: object {number} is spoken of, but the image has "
                f"{len(self._objects)} objects, from 0"
            )
        if self._objects[number] != PERSON:
            return self._objects[number]
        # The same in every run, process and epoch.
        drawn = int(text_digest(f"{self._annotation} {number}"), 16)
        return self._names[drawn % len(self._names)]


def _options(
    where: str, field: str, choices: Sequence[Sequence[Word]], speak: _Speaker
) -> tuple[str, ...]:
    if len(choices) != OPTIONS:
        raise DataError(f"{where}: field {field!r} has {len(choices)} choices, expected {OPTIONS}")
    return tuple(speak(words) for words in choices)


def _label(where: str, field: str, label: int | None) -> int | None:
    if label is not None and not 0 <= label < OPTIONS:
        raise DataError(
            f"{where}: field {field!r} is {short(label)}, expected a number from 0 to {OPTIONS - 1}"
        )
    return label


def image_number(name: str, where: str) -> str:
    """1000007 for val-7.

    Raises:
        DataError: another name.
    """
    part, _, number = name.partition("-")
    if part not in PARTS or not (number.isascii() and number.isdecimal()):
        raise DataError(
            f"{where}: field 'img_id' is {short(name)}, expected train-, val- or test- and a number"
        )
    return str(PARTS[part] + int(number))


def read_names(path: Path) -> list[str]:
    """Names for persons: the second column of a table with a head (`unisex_names_table.csv`).

    Raises:
        DataError: it is missing, or a row has no name.
    """
    rows = list(csv.reader(read_text(path, SOURCE, "a table of names").splitlines()))[1:]
    for number, row in enumerate(rows, 2):
        if len(row) < 2 or not row[1].strip():
            raise DataError(f"{path}: line {number}: no name in the second column")
    if not rows:
        raise DataError(f"{path}: no names in it")
    return [row[1].strip() for row in rows]
