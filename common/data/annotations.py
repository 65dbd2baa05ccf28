"""Questions and answers: one example, two file formats, one vocabulary.

* The official JSON of VQA v2 and VQA-CP v2 (https://visualqa.org/download.html): one file of
  questions, one of annotations with ten answers each; VQA-CP has bare lists and says per question
  which COCO part the image is of.
* The JSON that LXMERT re-distributes (https://github.com/airsplay/lxmert): soft scores instead of
  ten answers.
Both read into the same `Example`s.
"""

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.answer_scores import ANSWER_TYPES, soft_scores
from common.errors import DataError, named
from common.files import text_digest, write_bytes
from common.reading import read_json, short

QuestionId = int | str
ANSWER_TO_LABEL = "trainval_ans2label.json"
LABEL_TO_ANSWER = "trainval_label2ans.json"
# A part of the questions -> the part of COCO whose images they are about, where that differs.
IMAGES_OF = {"test-dev2015": "test2015", "minival2014": "val2014", "valminusminival2014": "val2014"}
KIND = re.compile(r"[\w-]+")
FIGURES = (*ANSWER_TYPES, "overall", "count")  # what stands beside the kinds
Scores = Callable[[Sequence[str]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one image."""

    question_id: QuestionId
    image_id: str
    """Key of the image in the region-feature store, e.g. COCO_train2014_000000000042."""
    question: str
    answers: dict[str, float] | None = None
    """Normalised answer to soft score in (0, 1]; None where the answers are not public."""
    answer_type: str | None = None
    """yes/no, number, other or None."""
    question_type: str = ""
    kind: str | None = None
    """Which of its data set's kinds it is of, where those are told apart; accuracies and decisions
    are then counted for each."""


class Row:
    """One JSON object of a list, with errors that say which."""

    __slots__ = ("number", "path", "value")

    def __init__(self, path: Path, number: int, value: Any) -> None:
        self.path, self.number, self.value = path, number, value
        if not isinstance(value, dict):
            self.value = {}
            raise DataError(f"{self.where}: {short(value)} is not an object")

    @property
    def where(self) -> str:
        """File, entry and question, for errors."""
        known = "question_id" in self.value
        named = f", question {short(self.value['question_id'])}" if known else ""
        return f"{self.path}: entry {self.number}{named}"

    def get(self, key: str, *kinds: type, optional: bool = False) -> Any:
        """The value of a key; an optional one may be missing or null."""
        value = self.value.get(key)
        if optional and value is None:
            return None
        if key not in self.value:
            raise DataError(
                f"{self.where}: field {key!r} is missing (it has {', '.join(self.value)})"
            )
        if not isinstance(value, kinds) or isinstance(value, bool):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise DataError(f"{self.where}: field {key!r} is {short(value)}, expected {names}")
        return value

    def question(self, key: str) -> str:
        text = self.get(key, str)
        if not text.strip():
            raise DataError(f"{self.where}: field {key!r}: empty question {short(text)}")
        return text

    def answer_type(self) -> str | None:
        kind = self.get("answer_type", str, optional=True)
        if kind is not None and kind not in ANSWER_TYPES:
            raise DataError(
                f"{self.where}: field 'answer_type' is {short(kind)}, expected one of "
                f"{ANSWER_TYPES}"
            )
        return kind

    def kind(self) -> str | None:
        """The kind of a question, in letters, digits, `_` and `-`."""
        kind = self.get("kind", str, optional=True)
        if kind is not None and (not KIND.fullmatch(kind) or kind in FIGURES):
            raise DataError(
                f"{self.where}: field 'kind' is {short(kind)}, expected a word of letters, digits, "
                f"_ and - that is none of {FIGURES}"
            )
        return kind


def _rows(path: Path, value: Any) -> list[Row]:
    if not isinstance(value, list):
        raise DataError(f"{path}: {short(value)}: expected a list of objects")
    return [Row(path, number, entry) for number, entry in enumerate(value, 1)]


def _by_question(rows: Iterable[Row]) -> dict[QuestionId, Row]:
    """Rows by question id, which must be unique."""
    found: dict[QuestionId, Row] = {}
    for row in rows:
        key = row.get("question_id", int, str)
        if key in found:
            raise DataError(f"{row.where}: question id occurs twice (first in {found[key].where})")
        found[key] = row
    return found


def read_lxmert_json(path: Path | str) -> list[Example]:
    """Read LXMERT's VQA JSON: `img_id, sent, question_id` and, except in test parts, `label`.

    Raises:
        DataError: Truncated or invalid JSON, a missing field, an empty question, a duplicate
            question id, or a score outside (0, 1]; with file, entry, field and value.
    """
    path = Path(path)
    return [
        Example(
            key,
            row.get("img_id", str),
            row.question("sent"),
            _label(row),
            row.answer_type(),
            row.get("question_type", str, optional=True) or "",
            row.kind(),
        )
        for key, row in _by_question(_rows(path, read_json(path))).items()
    ]


def _label(row: Row) -> dict[str, float] | None:
    label = row.get("label", dict, optional=True)
    for answer, value in (label or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise DataError(
                f"{row.where}: field 'label': answer {short(answer)} has score {short(value)}, "
                "expected a number in (0, 1]"
            )
    return label


def read_official(
    questions_path: Path | str,
    annotations_path: Path | str | None = None,
    image_prefix: str = "COCO",
    scores: Scores = soft_scores,
) -> list[Example]:
    """Read official VQA v2 or VQA-CP v2 JSON.

    Args:
        questions_path: The file of questions.
        annotations_path: The file of annotations; None for a test part.
        image_prefix: Start of image keys: image 42 of train2014 is COCO_train2014_000000000042.
        scores: Gives the scores of all answers to a question.

    Raises:
        DataError: Truncated or invalid JSON, a missing field, an empty question, a duplicate
            question id, a question without annotation or the reverse; with file, entry and value.
    """
    questions_path = Path(questions_path)
    with no_garbage_collection():
        return _read_official(questions_path, annotations_path, image_prefix, scores)


def _read_official(
    questions_path: Path, annotations_path: Path | str | None, image_prefix: str, scores: Scores
) -> list[Example]:
    questions, part = official_rows(questions_path, "questions")
    annotations: dict[QuestionId, Row] = {}
    if annotations_path is not None:
        annotations_path = Path(annotations_path)
        annotations = official_rows(annotations_path, "annotations")[0]
        _check_pairs(questions_path, questions, annotations_path, annotations)
    return [
        _official_example(row, annotations.get(key), part, image_prefix, scores)
        for key, row in questions.items()
    ]


class _Answer(str):
    """What one person answered; stands for the whole entry, of which nothing else is used."""

    __slots__ = ()


def _compact_answers() -> Callable[[dict[str, Any]], Any]:
    """Replaces entries of `answers` while a file is read, each different text kept once.

    VQA v2 has 4.4 million such entries in one file; as objects they need 2 GB.
    """
    known: dict[str, _Answer] = {}

    def replace(entry: dict[str, Any]) -> Any:
        text = entry.get("answer")
        if not isinstance(text, str) or "answers" in entry:  # which a question has
            return entry
        return known.setdefault(text, _Answer(text)) if text not in known else known[text]

    return replace


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Reading millions of objects takes twice as long when they are looked through in between."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def official_rows(path: Path, key: str) -> tuple[dict[QuestionId, Row], str | None]:
    """Rows of an official file by question id, and the COCO part that it names for all of them.

    Args:
        path: The file.
        key: `questions` or `annotations`; in VQA-CP's files the list is all there is.

    Raises:
        DataError: See `read_official`.
    """
    value = read_json(path, replace=_compact_answers())
    part = None
    if isinstance(value, dict):
        if key not in value:
            raise DataError(
                f"{path}: key {key!r} is missing (it has {', '.join(value)}): not an official "
                f"file of {key}"
            )
        value, part = value[key], value.get("data_subtype")
        if part is not None and not isinstance(part, str):
            raise DataError(f"{path}: key 'data_subtype' is {short(part)}, expected a text")
    return _by_question(_rows(path, value)), part


def _check_pairs(
    questions_path: Path,
    questions: Mapping[QuestionId, Row],
    annotations_path: Path,
    annotations: Mapping[QuestionId, Row],
) -> None:
    alone = [key for key in questions if key not in annotations]
    if alone:
        raise DataError(
            f"{questions[alone[0]].where} has no annotation in {annotations_path} ({len(alone)} "
            "such questions): the two files must be of the same part"
        )
    alone = [key for key in annotations if key not in questions]
    if alone:
        raise DataError(
            f"{annotations[alone[0]].where} has no question in {questions_path} ({len(alone)} "
            "such annotations): the two files must be of the same part"
        )


def _official_example(
    row: Row, annotation: Row | None, part: str | None, prefix: str, scores: Scores
) -> Example:
    image = row.get("image_id", int, str)
    key = row.value["question_id"]
    if isinstance(image, int):
        part = row.get("coco_split", str, optional=True) or part
        if part is None:
            raise DataError(
                f"{row.where}: field 'coco_split' is missing, and the file has no 'data_subtype': "
                f"the COCO part of image {image} is unknown"
            )
        image = f"{prefix}_{IMAGES_OF.get(part, part)}_{image:012d}"
    if annotation is None:
        return Example(key, image, row.question("question"), kind=row.kind())
    if annotation.value.get("image_id", row.value["image_id"]) != row.value["image_id"]:
        raise DataError(
            f"{annotation.where}: field 'image_id' is {short(annotation.value['image_id'])}, the "
            f"question is about image {short(row.value['image_id'])}"
        )
    return Example(
        key,
        image,
        row.question("question"),
        scores(_answers(annotation)),
        annotation.answer_type(),
        annotation.get("question_type", str, optional=True) or "",
        row.kind(),
    )


def _answers(annotation: Row) -> list[str]:
    answers = annotation.get("answers", list)
    for entry in answers:
        if not isinstance(entry, _Answer):
            raise DataError(
                f"{annotation.where}: field 'answers': {short(entry)} has no text 'answer'"
            )
    if not answers:
        raise DataError(f"{annotation.where}: field 'answers' is empty")
    return answers


class AnswerVocabulary:
    """The answers a model can give; a label is the place of an answer in the list."""

    def __init__(self, answers: Sequence[str]) -> None:
        """Make a vocabulary.

        Raises:
            DataError: An answer occurs twice, or there is none.
        """
        self.answers = list(answers)
        self.labels = {answer: label for label, answer in enumerate(self.answers)}
        if len(self.labels) < max(1, len(self.answers)):
            twice = [answer for answer, n in Counter(self.answers).items() if n > 1]
            raise DataError(
                f"{len(self.answers)} answers in the vocabulary; repeated: {short(twice)}"
            )

    def __len__(self) -> int:
        return len(self.answers)

    def __contains__(self, answer: object) -> bool:
        return answer in self.labels

    @classmethod
    def build(cls, examples: Iterable[Example], minimum: int = 9) -> "AnswerVocabulary":
        """The answers that are the best one of at least `minimum` questions, frequent ones first.

        (`common.data.answer_lists` has the usual rule for VQA v2, which needs the official files.)
        """
        counts: Counter[str] = Counter()
        for example in examples:
            if example.answers:
                best = max(example.answers.values())
                counts.update(a for a, value in example.answers.items() if value == best)
        kept = [answer for answer, n in counts.items() if n >= minimum]
        return cls(sorted(kept, key=lambda answer: (-counts[answer], answer)))

    @classmethod
    def read(cls, folder: Path | str) -> "AnswerVocabulary":
        """Read `trainval_label2ans.json` and `trainval_ans2label.json` of a folder.

        Raises:
            DataError: A file is missing or invalid, or they are not exact inverses.
        """
        list_path, dict_path = Path(folder) / LABEL_TO_ANSWER, Path(folder) / ANSWER_TO_LABEL
        answers, labels = read_json(list_path), read_json(dict_path)
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise DataError(f"{list_path}: {short(answers)}: expected a list of texts")
        if not isinstance(labels, dict):
            raise DataError(f"{dict_path}: {short(labels)}: expected an object answer -> label")
        with named(list_path, DataError):
            vocabulary = cls(answers)
        for answer in [*answers, *labels]:
            label, expected = labels.get(answer), vocabulary.labels.get(answer)
            if label != expected:
                raise DataError(
                    f"{dict_path}: answer {short(answer)} has label {short(label)}, "
                    f"{list_path.name} has it at {expected!r}: the two files must be exact "
                    "inverses; take both from the same place"
                )
        return vocabulary

    def write(self, folder: Path | str) -> None:
        """Write the two files that `read` reads."""
        for name, value in ((LABEL_TO_ANSWER, self.answers), (ANSWER_TO_LABEL, self.labels)):
            write_bytes(Path(folder) / name, json.dumps(value).encode())

    def encode(self, example: Example, unknown: str = "skip") -> dict[int, float]:
        """Label to score of the answers of one example.

        Args:
            example: Its answers are not None.
            unknown: What to do with an answer outside the vocabulary: `skip` it or `error`.

        Raises:
            DataError: Such an answer, with `unknown="error"`.
        """
        found = {}
        for answer, value in (example.answers or {}).items():
            if answer in self.labels:
                found[self.labels[answer]] = value
            elif unknown == "error":
                raise DataError(
                    f"question {example.question_id} ({example.question!r}): answer "
                    f"{short(answer)} is not one of the {len(self)} known answers: add it to "
                    f"{LABEL_TO_ANSWER}, or let such answers be skipped"
                )
        return found

    def decode(self, logits: Tensor) -> list[str]:
        """The best answers of logits (B, A)."""
        if logits.shape[-1] != len(self):
            raise DataError(f"logits are {logits.shape[-1]} wide, the vocabulary has {len(self)}")
        return [self.answers[label] for label in torch.argmax(logits, dim=-1).tolist()]


def answer_digest(answers: list[str]) -> dict[str, Any]:
    """Number and checksum of answers, for a checkpoint to remember."""
    return {"count": len(answers), "sha256": text_digest("\n".join(answers))}
