"""Asking a finished run about an image: `python -m common.ask`."""

from common.ask.answerer import Answerer, AnswererOptions
from common.ask.answering import (
    Answer,
    Answered,
    PairDecisions,
    as_json,
    ask,
    make_batch,
    question_notes,
)
from common.ask.command import main
from common.ask.image import AskedImage, find_image
from common.ask.picture import draw_answer, plot_answer

__all__ = [
    "Answer",
    "Answered",
    "Answerer",
    "AnswererOptions",
    "AskedImage",
    "PairDecisions",
    "as_json",
    "ask",
    "draw_answer",
    "find_image",
    "main",
    "make_batch",
    "plot_answer",
    "question_notes",
]
