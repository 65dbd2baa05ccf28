"""The answer lists of data sets in official files, made once and kept beside the data.

The usual rule for VQA v2 (Anderson et al. 2018, whose lists LXMERT re-distributes): an answer is in
the list if it is the most common human answer (`multiple_choice_answer`, normalised as in the
official metric) of at least nine questions. Frequent answers come first, equally frequent ones in
the order of the alphabet, so the same annotations always give the same list.

The folder of the lists also has `settings.json`: the rule, the checksums of the annotation files,
and how many questions the list covers.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.data.annotations import AnswerVocabulary, no_garbage_collection, official_rows
from common.data.answer_scores import normalise_answer
from common.errors import DataError
from common.features.writer import replace_folder
from common.files import exclusive, sha256, write_json
from common.reading import read_json

MINIMUM = 9
SETTINGS = "settings.json"
VERSION = 1


def answer_list(
    folder: Path, annotations: Sequence[Path], minimum: int | None = None
) -> AnswerVocabulary:
    """Read the answer lists of a folder; make them first where they are not there.

    They are made anew where the annotations are other ones than those they were made of, or where
    another minimum is asked for.

    Args:
        folder: Of the lists.
        annotations: Official annotation files; of the training part alone where the other part
            must not be known.
        minimum: Questions an answer has to be the most common one of; None keeps that of the
            lists that are there, else 9.

    Raises:
        DataError: A file is missing or damaged, no answer is frequent enough, lists of an unknown
            origin are in the folder, or it cannot be written.
    """
    wanted = {path.name: _checksum(path) for path in annotations}
    if minimum is None:
        minimum = (_settings(folder) or {"minimum": MINIMUM})["minimum"]
    if _fits(folder, minimum, wanted):
        return AnswerVocabulary.read(folder)
    try:
        with exclusive(folder.with_name(f".{folder.name}.lock")):
            if not _fits(folder, minimum, wanted):  # another process may just have made them
                _make(folder, annotations, wanted, minimum)
        return AnswerVocabulary.read(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the answer lists cannot be written ({error}): make the folder writable "
            "once; later runs only read them"
        ) from error


def _checksum(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file: the answer list is made of it")
    status = path.stat()
    return _known_checksum(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _known_checksum(path: Path, size: int, changed: int) -> str:
    """Read the file again only where size or time of change say that it is another one."""
    return sha256(path)


def _settings(folder: Path) -> dict[str, Any] | None:
    """What the lists of a folder were made of; None if there are none."""
    if not folder.exists():
        return None
    path = folder / SETTINGS
    found = read_json(path, f"{folder} was not made by this code: remove it to have it made")
    keys = {"version", "minimum", "annotations"}
    if not isinstance(found, dict) or not keys <= found.keys():
        raise DataError(
            f"{path}: keys {sorted(keys)} expected: remove {folder} to have it made again"
        )
    return found


def _fits(folder: Path, minimum: int, wanted: dict[str, str]) -> bool:
    """Whether a folder has the lists that these settings give."""
    expected = {"version": VERSION, "minimum": minimum, "annotations": wanted}
    found = _settings(folder)
    return found is not None and {key: found[key] for key in expected} == expected


def _make(folder: Path, annotations: Sequence[Path], wanted: dict[str, str], minimum: int) -> None:
    counts = most_common_answers(annotations)
    questions = counts.total()
    kept = sorted((a for a, n in counts.items() if n >= minimum), key=lambda a: (-counts[a], a))
    names = ", ".join(wanted)
    if not kept:
        raise DataError(
            f"{names}: no answer is the most common one of at least {minimum} of the {questions} "
            "questions: for small data make the list with a lower limit, "
            "`python -m common.data answers NAME --minimum N`"
        )
    vocabulary = AnswerVocabulary(kept)
    covered = sum(counts[answer] for answer in kept)
    partial = folder.with_name(f"{folder.name}.partial")
    vocabulary.write(partial)
    settings = {
        "version": VERSION,
        "rule": "normalised multiple_choice_answer of at least `minimum` questions",
        "minimum": minimum,
        "annotations": wanted,
        "questions": questions,
        "covered": covered,
        "answers": len(kept),
    }
    write_json(partial / SETTINGS, settings, indent=1)
    replace_folder(partial, folder)
    print(
        f"{folder}: made of {names}: {len(kept)} answers that are the most common one of at least "
        f"{minimum} questions; they are that of {covered} of {questions} questions "
        f"({100 * covered / questions:.1f} %)"
    )


def most_common_answers(annotations: Sequence[Path]) -> Counter[str]:
    """Questions of some annotation files per most common answer, normalised.

    Raises:
        DataError: A file is missing or damaged, or has no questions.
    """
    counts: Counter[str] = Counter()
    for path in annotations:
        with no_garbage_collection():
            rows = official_rows(path, "annotations")[0].values()
            counts.update(normalise_answer(r.get("multiple_choice_answer", str)) for r in rows)
    if not counts:
        raise DataError(f"{', '.join(str(p) for p in annotations)}: no annotations in it")
    return counts
