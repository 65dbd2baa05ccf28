"""Answers of LXMERT's pretraining: how a task's answers are found among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.errors import ConfigError, DataError
from common.reading import read_json

_SAME = {
    "a man": "man",
    "the man": "man",
    "a woman": "woman",
    "the woman": "woman",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
    "grey": "gray",
}


def convert_answer(answer: str) -> str:
    """The form under which pretraining knows an answer (rules of the original system).

    Lower case, without one final full stop, without a leading `a`, `an` and `the` (each once, in
    that order), number words as digits.
    """
    if not answer:
        return ""
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in ("a ", "an ", "the "):
        if answer.startswith(article):
            answer = answer[len(article) :].strip()
    return _SAME.get(answer, answer)


def read_answers(
    path: Path, hint: str, way_out: str, qa_sets: Sequence[str] | None = None
) -> list[str]:
    """The answers of upstream's all_ans.json, in the order of the rows of the answer head.

    Args:
        path: a list of entries `{"ans": …, "dsets": […]}`.
        hint: what the file is for, said when it is missing.
        way_out: what to do without it, said when it has another form.
        qa_sets: only answers that occur in one of these data sets (`vqa`, `gqa`, `visual7w`).

    Raises:
        DataError: the file is missing or has another form.
        ConfigError: a data set that no answer belongs to.
    """
    entries = read_json(path, hint=hint)
    try:
        answers = [entry["ans"] for entry in entries]
        sets = [() if qa_sets is None else tuple(entry["dsets"]) for entry in entries]
    except (KeyError, TypeError):
        keys = "`ans`" if qa_sets is None else "`ans` and `dsets`"
        raise DataError(
            f"{path}: not a list of entries with {keys}, as upstream's all_ans.json; "
            f"fetch it again, or {way_out}"
        ) from None
    if not answers:
        raise DataError(f"{path}: no answers in it; fetch it again, or {way_out}")
    if qa_sets is None:
        return answers
    known = sorted({name for names in sets for name in names})
    if not qa_sets or (unknown := [name for name in qa_sets if name not in known]):
        raise ConfigError(
            f"--qaSets {','.join(unknown if qa_sets else [])!r}: the answers of "
            f"{path} are of {', '.join(known)}"
        )
    return [a for a, names in zip(answers, sets, strict=True) if set(names) & set(qa_sets)]


def transfer_answer_head(
    target: dict[str, Tensor],
    source: Mapping[str, Tensor],
    answers: Sequence[str],
    known: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Rows of a pretrained answer head for the answers of a task.

    Args:
        target: state dict of the task's head (`0.weight` …), for shapes.
        source: state dict of the pretrained head.
        answers: of the task, A of them.
        known: of pretraining, in the order of the rows of the pretrained head. The answer as it
            is comes before its converted form, which is the only one that upstream's list has.

    Returns:
        The task's head: layers 0 and 2 copied, each row of layer 3 copied, or zero where the
        answer is unknown; and the unknown answers.
    """
    index = {answer: row for row, answer in enumerate(known)}
    rows = [index.get(answer, index.get(convert_answer(answer))) for answer in answers]
    head = {name: source[name].clone() for name in target if not name.startswith("3.")}
    for name in ("3.weight", "3.bias"):
        head[name] = torch.zeros_like(target[name])
        for place, row in enumerate(rows):
            if row is not None:
                head[name][place] = source[name][row]
    return head, [a for a, row in zip(answers, rows, strict=True) if row is None]
