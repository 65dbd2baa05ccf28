"""How VQA answers are spelled for comparison, and the scores that annotators' answers give.

The rules are those of the official evaluation of VQA.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

ANSWER_TYPES = ("yes/no", "number", "other")


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


ARTICLES = ("a", "an", "the")


NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 1
    )
}


# Words whose apostrophe people leave out. A key of the table is the word without one of them.
APOSTROPHE_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    table = {"somebody'd": "somebodyd"}
    for word in APOSTROPHE_WORDS.split():
        for i in (i for i, letter in enumerate(word) if letter == "'"):
            table[word[:i] + word[i + 1 :]] = word
    return table


CONTRACTIONS = _contractions()


DIGITS_WITH_COMMA = re.compile(r"\d,\d")


# The published pattern means "not after a digit" as well, but a slip in it switches that off.
PERIOD = re.compile(r"\.(?!\d)")


MAX_PERIODS = 32


def strip_punctuation(text: str) -> str:
    """The punctuation rule of the metric.

    A sign is removed where it stands next to a space anywhere in the text, or where the text has
    digits with a comma between them (1,000); otherwise it becomes a space. A period goes unless a
    digit follows it.
    """
    remove_all = DIGITS_WITH_COMMA.search(text) is not None
    out = text
    for sign in PUNCTUATION:
        remove = remove_all or f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if remove else " ")
    return PERIOD.sub("", out, count=MAX_PERIODS)


@lru_cache(maxsize=1 << 16)
def normalise_answer(answer: str) -> str:
    """Bring an answer to the spelling in which the metric compares.

    Punctuation goes (`strip_punctuation`), letters become small, numbers up to ten become digits,
    articles go, and contractions get their apostrophe back.
    """
    text = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip())
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_scores(
    answers: Sequence[str], spelling: Callable[[str], str] = normalise_answer
) -> dict[str, float]:
    """Score of every answer that people gave to one question.

    Args:
        answers: What each person answered (ten in VQA v2), in any spelling.
        spelling: Brings an answer to the spelling in which answers are compared.

    Returns:
        Normalised answer to score in (0, 1]; with ten people 0.3, 0.6, 0.9 or 1. An answer that
        only one of a single person gave scores 0 and is left out.
    """
    people = len(answers)
    scores = {}
    for answer, matches in Counter(map(spelling, answers)).items():
        others = (people - matches) * min(1.0, matches / 3)
        selves = matches * min(1.0, (matches - 1) / 3)
        if others + selves > 0:
            scores[answer] = round((others + selves) / people, 10)
    return scores


def answer_score(prediction: str, answers: Mapping[str, float]) -> float:
    """Score in 0..1 of one predicted answer, spelt as in `answers` or normalised."""
    prediction = prediction.strip()
    if prediction in answers:
        return answers[prediction]
    return answers.get(normalise_answer(prediction), 0.0)
