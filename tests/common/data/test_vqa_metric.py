"""The official metric against a literal computation, and the baselines."""

import json
import random
from pathlib import Path

import pytest

from common.data.annotations import Example
from common.data.answer_scores import answer_score, normalise_answer, soft_scores, strip_punctuation
from common.data.vqa_metric import (
    majority_answer_baseline,
    question_only_baseline,
    score,
    write_predictions,
)
from common.errors import DataError


def literal_accuracy(prediction: str, answers: list[str]) -> float:
    """The definition: mean over the ways to leave one person out of min(1, matches / 3)."""
    rounds = [answers[:i] + answers[i + 1 :] for i in range(len(answers))]
    return sum(min(1.0, others.count(prediction) / 3) for others in rounds) / len(rounds)


def test_soft_scores_equal_the_literal_definition() -> None:
    draw = random.Random(0)
    for _ in range(300):
        people = draw.choice([3, 5, 10, 10])
        answers = draw.choices(["yes", "no", "red", "2"], k=people)
        found = soft_scores(answers)
        for answer in ("yes", "no", "red", "2"):
            assert found.get(answer, 0.0) == pytest.approx(literal_accuracy(answer, answers))


def test_accuracy_is_given_for_every_kind_beside_the_answer_types() -> None:
    kinds = ["new", "new", "old", None]
    examples = [
        Example(n, "i", "q?", {"yes": 1.0}, "yes/no", kind=kind) for n, kind in enumerate(kinds)
    ]
    found = score({0: "yes", 1: "no", 2: "no", 3: "yes"}, examples)
    assert list(found.items()) == [
        ("overall", 50.0),
        ("yes/no", 50.0),
        ("number", None),
        ("other", None),
        ("new", 50.0),
        ("old", 0.0),
    ]


@pytest.mark.parametrize(("matches", "expected"), enumerate([0.0, 0.3, 0.6, 0.9, 1.0, 1.0]))
def test_scores_of_ten_answers_are_the_known_steps(matches: int, expected: float) -> None:
    answers = matches * ["yes"] + [f"other{i}" for i in range(10 - matches)]
    assert soft_scores(answers).get("yes", 0.0) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes!", "yes"),
        ("A Woman.", "woman"),
        ("the cat and the dog", "cat and dog"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("p.m.", "pm"),
        ("t-shirt", "t shirt"),
        ("black - white", "black white"),
        ("dont know", "don't know"),
        ("it's", "it's"),
        ("shouldn'tve", "shouldn't've"),
        ("yall'd've", "y'all'd've"),
        ("red\nblue\t", "red blue"),
        ("the", ""),
    ],
)
def test_answers_are_normalised_as_the_metric_does(answer: str, expected: str) -> None:
    assert normalise_answer(answer) == expected


def test_punctuation_is_stripped_as_the_original_code_does(goldens: Path) -> None:
    config = json.loads((goldens / "vlbert" / "vqa_data" / "config.json").read_text())
    table = config["process_punctuation"]
    del table["<unk>"]  # an entry of that system's vocabulary, which it leaves alone
    assert len(table) > 3
    assert {text: strip_punctuation(text) for text in table} == table


def test_people_who_spell_differently_agree() -> None:
    answers = ["2", "two", "Two.", "the two"] + 6 * ["three"]
    assert soft_scores(answers) == {"2": 1.0, "3": 1.0}
    assert answer_score("Two", {"2": 0.9}) == 0.9


def test_scores_read_from_lxmert_labels_are_taken_as_they_are(goldens: Path) -> None:
    table = json.loads((goldens / "lxmert" / "data_formats.json").read_text())["scoring"]
    for row in table:
        assert answer_score(row["answer"], row["label"]) == row["score"]


def examples() -> list[Example]:
    return [
        Example(1, "a", "is it red?", {"yes": 1.0, "no": 0.3}, "yes/no"),
        Example(2, "a", "what is it?", {"cat": 0.9}, "other"),
        Example(3, "b", "is it red?", {"no": 1.0}, "yes/no"),
    ]


def test_score_is_percent_per_answer_type_and_none_where_there_is_none() -> None:
    found = score({1: "no", 2: "a Cat", 3: "no"}, examples())
    assert found == {
        "overall": pytest.approx(100 * 2.2 / 3),
        "yes/no": pytest.approx(65),
        "number": None,
        "other": pytest.approx(90),
    }


def test_score_refuses_missing_and_stray_predictions() -> None:
    with pytest.raises(DataError, match=r"question 2 \('what is it\?'\) has no prediction \(2 o"):
        score({1: "no"}, examples())
    with pytest.raises(DataError, match=r"prediction 'cat' is for question 9, which is not .* 3 q"):
        score({1: "no", 2: "no", 3: "no", 9: "cat"}, examples())
    with pytest.raises(DataError, match="question 2: prediction 7 is not a text"):
        score({1: "no", 2: 7, 3: "no"}, examples())
    with pytest.raises(DataError, match="question 1 is scored twice"):
        score({1: "no", 2: "no", 3: "no"}, examples() + examples()[:1])
    with pytest.raises(DataError, match="question 4 has no answers .* EvalAI"):
        score({4: "no"}, [Example(4, "a", "why?")])


def test_predictions_are_written_in_the_evalai_form(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", {7: "yes", 3: "café"})
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"answer": "yes", "question_id": 7},
        {"answer": "café", "question_id": 3},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_majority_baseline_gives_one_answer_to_all() -> None:
    train = [Example(i, "a", "q?", {a: 1.0}) for i, a in enumerate(["no", "no", "yes", "cat"])]
    found = majority_answer_baseline(train, examples())
    assert found["overall"] == pytest.approx(100 * 1.3 / 3) and found["other"] == 0


def test_question_only_baseline_knows_the_question_and_backs_off_to_its_first_words() -> None:
    asked = [
        ("is it red?", "yes"),
        ("is it red?", "yes"),
        ("is it blue?", "no"),
        ("is it a cat?", "no"),
        ("is it small?", "no"),
        ("what is it?", "cat"),
        ("what is that?", "dog"),
        ("what is that?", "dog"),
    ]
    train = [Example(i, "a", q, {a: 1.0}) for i, (q, a) in enumerate(asked)]
    for text, answer in (
        ("Is it red", "yes"),
        ("is it green?", "no"),
        ("what is the time?", "dog"),
        ("what is it?", "cat"),
        ("why?", "no"),
    ):
        val = [Example(1, "a", text, {answer: 1.0}, "other")]
        assert question_only_baseline(train, val)["overall"] == 100, text
    with pytest.raises(DataError, match="none of the 1 training questions has an answer"):
        question_only_baseline([Example(1, "a", "q")], examples())


def test_baselines_are_those_of_the_training_questions() -> None:
    train = [Example(i, "a", "q?", {"cat": 1.0}) for i in range(3)]
    val = [Example(i, "a", "q?", {"dog": 1.0}) for i in range(4, 9)]
    assert majority_answer_baseline(train, val)["overall"] == 0
    assert question_only_baseline(train, val)["overall"] == 0


def test_the_longest_known_beginning_of_a_question_decides() -> None:
    """Beginnings that disagree: one, two and three words."""
    asked = 4 * [("is here", "one")] + 3 * [("is it", "two")] + 2 * [("is it a cow", "three")]
    train = [Example(i, "a", q, {a: 1.0}) for i, (q, a) in enumerate(asked)]
    for text, answer in (
        ("is it a dog?", "three"),
        ("is it warm?", "two"),
        ("is that so?", "one"),
        ("why?", "one"),
    ):
        val = [Example(99, "a", text, {answer: 1.0})]
        assert question_only_baseline(train, val)["overall"] == 100, text
