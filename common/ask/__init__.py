"""Asking a finished run about an image: `python -m common.ask`."""

from common.ask.answering import ask, make_batch, question_notes
from common.ask.command import main
from common.ask.image import find_image
from common.ask.picture import draw_answer

__all__ = ["ask", "draw_answer", "find_image", "main", "make_batch", "question_notes"]
