"""The official VQA metric, predictions in the EvalAI form, and two baselines.

The metric is that of https://visualqa.org/evaluation.html (Antol et al. 2015): an answer counts
min(1, matches / 3), averaged over all ways to leave out one of the ten human answers, after a
normalisation of spelling. One corner is more lenient than the published script: it leaves answers
as they are where all ten people typed exactly the same, here they are normalised there as well,
so that a question scores the same whichever file format it was read from.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.answer_scores import ANSWER_TYPES, answer_score
from common.errors import DataError
from common.files import write_json
from common.reading import short

if TYPE_CHECKING:
    from common.data.annotations import AnswerVocabulary, Example, QuestionId

Scores = dict[str, float | None]


def score(predictions: Mapping["QuestionId", str], examples: Sequence["Example"]) -> Scores:
    """Official accuracy in percent, overall, per answer type and per kind of question.

    Args:
        predictions: Question id to answer; exactly the questions of `examples`.
        examples: Questions with their answers.

    Returns:
        `overall`, `yes/no`, `number` and `other`, None where the type does not occur; and the
        kinds that occur, in order of the alphabet.

    Raises:
        DataError: A question without prediction or the reverse, a prediction that is no text, or
            questions whose answers are not public.
    """
    _check_same_questions(predictions, examples)
    earned: dict[str, list[float]] = defaultdict(list)
    for example in examples:
        answer = predictions[example.question_id]
        if not isinstance(answer, str):
            raise DataError(
                f"question {example.question_id}: prediction {short(answer)} is not a text"
            )
        if example.answers is None:
            raise DataError(
                f"question {example.question_id} has no answers to compare with: it is of a test "
                "part; write the predictions and submit them to EvalAI instead"
            )
        value = answer_score(answer, example.answers)
        earned["overall"].append(value)
        for group in (example.answer_type, example.kind):
            if group is not None:
                earned[group].append(value)
    kinds = sorted({example.kind for example in examples if example.kind is not None})
    return {
        group: 100 * sum(earned[group]) / len(earned[group]) if earned[group] else None
        for group in ("overall", *ANSWER_TYPES, *kinds)
    }


def _check_same_questions(
    predictions: Mapping["QuestionId", str], examples: Sequence["Example"]
) -> None:
    asked = {example.question_id for example in examples}
    if len(asked) < len(examples):
        twice = Counter(e.question_id for e in examples).most_common(1)[0][0]
        raise DataError(f"question {twice} is scored twice: question ids must be unique")
    without = [e for e in examples if e.question_id not in predictions]
    if without:
        raise DataError(
            f"question {without[0].question_id} ({without[0].question!r}) has no prediction "
            f"({len(without)} of {len(examples)} questions have none): predict all of them"
        )
    if stray := [question for question in predictions if question not in asked]:
        raise DataError(
            f"prediction {predictions[stray[0]]!r} is for question {stray[0]!r}, which is not "
            f"among the {len(examples)} questions ({len(stray)} such): score the same split"
        )


def write_predictions(path: Path | str, predictions: Mapping["QuestionId", str]) -> None:
    """Write predictions in the form that the EvalAI server takes."""
    rows = [{"answer": answer, "question_id": key} for key, answer in predictions.items()]
    write_json(path, rows, indent=4)


def _best(votes: Mapping[str, float]) -> str:
    """The answer with the most votes; of equals the first in the alphabet."""
    return min(votes, key=lambda answer: (-votes[answer], answer))


def _votes(examples: Sequence["Example"]) -> dict[str, float]:
    votes: dict[str, float] = defaultdict(float)
    for example in examples:
        for answer, value in (example.answers or {}).items():
            votes[answer] += value
    if not votes:
        raise DataError(f"none of the {len(examples)} training questions has an answer")
    return votes


def majority_answer_baseline(train: Sequence["Example"], val: Sequence["Example"]) -> Scores:
    """Accuracy on `val` of always giving the most frequent answer of `train`, as `score`."""
    answer = _best(_votes(train))
    return score({example.question_id: answer for example in val}, val)


def oracle_score(vocabulary: "AnswerVocabulary", examples: Sequence["Example"]) -> Scores:
    """The accuracy, as `score`, of always giving the best answer that a model has."""
    predictions = {}
    for example in examples:
        known = vocabulary.encode(example, "skip")
        best = max(known, key=lambda label: known[label], default=0)
        predictions[example.question_id] = vocabulary.answers[best]
    return score(predictions, examples)


def _contexts(question: str) -> list[str]:
    """What a question is recognised by: its words, then its first three, two and one."""
    words = question.lower().rstrip("? .").split()
    return [" ".join(words), *(" ".join(words[:n]) + " ..." for n in (3, 2, 1)), ""]


def question_only_baseline(train: Sequence["Example"], val: Sequence["Example"]) -> Scores:
    """Accuracy on `val` of the most frequent answer of `train` to the same question, as `score`.

    No image is looked at. A question that `train` does not have is answered by its first three,
    two or one words, and else by the most frequent answer of all.
    """
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in train:
        if example.answers:
            for context in _contexts(example.question):
                groups[context].append(example)
    answers = {context: _best(_votes(group)) for context, group in groups.items()}
    answers.setdefault("", _best(_votes(train)))
    predictions = {
        example.question_id: next(answers[c] for c in _contexts(example.question) if c in answers)
        for example in val
    }
    return score(predictions, val)
