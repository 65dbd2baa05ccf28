"""Captions of easy-VQA images, for pretraining: what the questions' answers say, as statements.

Nothing is added to the data: colour and shape of an image are read off the answers to its own
questions. Captions give the words of the questions a meaning in the image, as COCO's captions do
in LXMERT's pretraining.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.data.annotations import Example

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
TEMPLATES = (
    "a {colour} {shape}",
    "there is a {colour} {shape} in the image",
    "the {shape} is {colour}",
    "the image contains a {colour} shape",
    "a {shape} is present",
)
_DENIED = re.compile(r"\b(not|no)\b")


def described(examples: Sequence[Example]) -> dict[str, dict[str, str]]:
    """Colour and shape of each image, as far as its answered questions tell.

    Returns:
        {image id: {"colour": …, "shape": …}}, either key missing where no question tells.
    """
    known: dict[str, dict[str, str]] = {}
    for example in examples:
        answer = max(example.answers, key=example.answers.__getitem__) if example.answers else ""
        if answer in SHAPES or answer in COLOURS:
            words = [answer]
        elif answer == ("no" if _DENIED.search(example.question) else "yes"):
            words = re.findall(r"[a-z]+", example.question.lower())
        else:
            continue
        entry = known.setdefault(example.image_id, {})
        for word in words:
            if word in SHAPES:
                entry["shape"] = word
            if word in COLOURS:
                entry["colour"] = word
    return known


def caption_examples(examples: Sequence[Example]) -> list[Example]:
    """Captions of the images of some questions, as examples without an answer.

    Their ids are negative, so that they never meet a question's.
    """
    captions: list[Example] = []
    for image_id, entry in described(examples).items():
        for template in TEMPLATES:
            wanted = set(re.findall(r"{(\w+)}", template))
            if wanted <= set(entry):
                captions.append(
                    Example(
                        question_id=-1 - len(captions),
                        image_id=image_id,
                        question=template.format(**entry),
                        question_type="caption",
                    )
                )
    return captions
