"""A page in the browser on which finished runs are asked: `python -m common.web`."""

from common.web.command import main
from common.web.replies import Reply, reply_html, wrong_html
from common.web.runs import ExamplePicture, Runs, find_runs, run_label
from common.web.uploads import Limits, read_upload

__all__ = [
    "ExamplePicture",
    "Limits",
    "Reply",
    "Runs",
    "find_runs",
    "main",
    "read_upload",
    "reply_html",
    "run_label",
    "wrong_html",
]
