"""Sentences in the files of the original system: lxmert/{mscoco_train,vgnococo,…}.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import DataError
from common.reading import read_text, short
from lxrt.answers import convert_answer
from lxrt.pretraining_sentences import Sentences, SentencesBuilder

Say = Callable[[str], None]
_BETWEEN = re.compile(r"[\s,]*")


def read_upstream(
    paths: Sequence[Path], answers: Sequence[str], say: Say = print, progress: bool = True
) -> Sentences:
    """Read files of the original system into one table.

    Each is a list of `{"img_id", "sentf": {category: [sentence]}, "labelf": {category:
    [{answer: score}]}}`; a category that `labelf` lacks has no labels (captions). Answers are
    brought into the form that pretraining knows; those that it does not know are left out.

    Raises:
        DataError: an entry of another form; names file, entry, image and category.
    """
    reader = _UpstreamReader(answers)
    for path in paths:
        for number, entry in enumerate(json_entries(path, progress), 1):
            reader.add(f"{path}: entry {number}", entry)
    names = ", ".join(path.stem for path in paths)
    say(
        f"{names}: {reader.sentences} sentences about {reader.images} images"
        + (f"; {reader.blank} blank ones are left out" if reader.blank else "")
        + (
            f"; {reader.unknown} answers are not among the {len(answers)} known ones"
            if reader.unknown
            else ""
        )
    )
    return reader.builder.build()


class _UpstreamReader:
    """Takes entries of the original files, checks them, and counts what was left out."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.builder = SentencesBuilder()
        self.sentences = self.images = self.blank = self.unknown = 0
        self._labels = {answer: label for label, answer in enumerate(answers)}
        self._known: dict[str, int | None] = {}

    def add(self, where: str, entry: Any) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("img_id"), str):
            raise DataError(f"{where}: not an object with a text `img_id`")
        image, sentf, labelf = entry["img_id"], entry.get("sentf"), entry.get("labelf", {})
        where = f"{where}, image {image!r}"
        if not isinstance(sentf, dict) or not isinstance(labelf, dict):
            raise DataError(
                f"{where}: `sentf` and `labelf` must be objects with one entry per category"
            )
        self.images += 1
        for category, sentences in sentf.items():
            labels = labelf.get(category)
            if not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
                raise DataError(f"{where}: `sentf` of {category!r} is not a list of texts")
            if labels is not None and (
                not isinstance(labels, list) or len(labels) != len(sentences)
            ):
                raise DataError(
                    f"{where}: `labelf` of {category!r} is not a list of as many "
                    f"labels as there are sentences ({len(sentences)})"
                )
            for place, sentence in enumerate(sentences):
                label = (
                    None
                    if labels is None
                    else self._label(f"{where}, {category!r}, sentence {place + 1}", labels[place])
                )
                if sentence.strip():
                    self.builder.add(image, category, sentence, label)
                    self.sentences += 1
                else:
                    self.blank += 1

    def _label(self, where: str, label: Any) -> dict[int, float]:
        """{place of a known answer: soft score}; of two spellings of one, the higher score."""
        if not isinstance(label, dict):
            raise DataError(f"{where}: the label is not an object answer: score")
        found: dict[int, float] = {}
        for answer, score in label.items():
            if (
                isinstance(score, bool)
                or not isinstance(score, int | float)
                or not (0 < score <= 1 and math.isfinite(score))
            ):
                raise DataError(
                    f"{where}: answer {short(answer)} has score {short(score)}, expected a "
                    "number in (0, 1]"
                )
            if answer not in self._known:
                self._known[answer] = self._labels.get(convert_answer(answer))
            place = self._known[answer]
            if place is None:
                self.unknown += 1
            else:
                found[place] = max(found.get(place, 0.0), float(score))
        return found


def json_entries(path: Path, progress: bool = True) -> Iterator[Any]:
    """The entries of a JSON list, parsed one by one: the files have hundreds of MB.

    Raises:
        DataError: the file is missing, damaged or no list.
    """
    text = read_text(path, kind="a JSON file")
    decoder = json.JSONDecoder()
    place = len(text) - len(text.lstrip())
    if text[place : place + 1] != "[":
        raise DataError(f"{path}: not a JSON list of images with sentences")
    place += 1
    with tqdm(
        total=len(text),
        unit="B",
        unit_scale=True,
        desc=path.name,
        leave=False,
        disable=not progress,
    ) as bar:
        while True:
            between = _BETWEEN.match(text, place)
            assert between is not None  # the empty text matches too
            place = between.end()
            if text[place : place + 1] == "]" and not text[place + 1 :].strip():
                return
            try:
                entry, end = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}: line {error.lineno}, column {error.colno}: not valid "
                    f"JSON ({error.msg}); the file is truncated or damaged: fetch it "
                    "again"
                ) from None
            yield entry
            bar.update(end - place)
            place = end
