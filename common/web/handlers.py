"""What the page does with what a browser sends, which may be anything.

Whatever is wrong is said on the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from common.errors import AdaptiveError, ConfigError, DataError
from common.reading import is_unicode, short
from common.voice import said
from common.web.replies import Reply, reply_html, wrong_html
from common.web.runs import Runs, file_digest
from common.web.uploads import Limits, read_upload

NO_RUN, AUTOMATIC = "no second run", "the last that looks at regions"
NAME_LENGTH = 80


class Handlers:
    """What happens on the page. One at a time, from however many threads they are called."""

    def __init__(self, runs: Runs, limits: Limits) -> None:
        """Note what can be asked, and what is taken."""
        self.runs, self.limits = runs, limits
        self._alone = threading.Lock()

    def check(self, picture: object) -> str:
        """What is wrong with a picture, as HTML; empty: nothing."""

        def wrong() -> str:
            if picture is not None:
                self._read(picture)
            return ""

        return _said_instead(wrong)

    def layers(self, label: object) -> list[str]:
        """The layers of a run whose attention can be chosen; none of one that cannot be opened,
        which is said where it is asked."""
        if label == NO_RUN:
            return []
        try:
            with self._alone:
                return list(self.runs.layers(_text(label, "run")))
        except AdaptiveError:
            return []

    def ask(
        self,
        picture: object,
        question: object,
        first: object,
        second: object,
        first_layer: object,
        second_layer: object,
        head: object,
        word: object,
    ) -> tuple[str, str]:
        """The replies of one or two runs, or what is wrong, as HTML.

        Args:
            picture: a file as gradio describes it; None: there is none.
            question: about it.
            first, second: labels of runs; `NO_RUN`: no second one, its reply is empty.
            first_layer, second_layer: whose attention is shown; `AUTOMATIC`: see `Runs.ask`.
            head: its head, from 1; 0: the mean of all.
            word: of the question, whose attention is meant; empty: all.
        """

        def reply(label: object, layer: object) -> str:
            return _said_instead(lambda: self._reply(picture, question, label, layer, head, word))

        return reply(first, first_layer), "" if second == NO_RUN else reply(second, second_layer)

    def _reply(
        self,
        picture: object,
        question: object,
        label: object,
        layer: object,
        head: object,
        word: object,
    ) -> str:
        if picture is None:
            raise ConfigError("no picture: upload one, or choose one of the examples")
        asked = self._question(question)
        name = _text(label, "run")
        path, known_as = _file_of(picture)
        content, notes = self._read(picture)
        with self._alone:
            image = self.runs.look(name, content, known_as, file_digest(path), notes)
            answered = self.runs.ask(name, image, asked, _layer(layer, head), _text(word, "word"))
            answerer = self.runs.answerer(name)
            average = answerer.average_decisions
            return reply_html(Reply(answerer.run, image, answered, average))

    def _read(self, picture: object) -> tuple[Image.Image, list[str]]:
        return read_upload(*_file_of(picture), self.limits)

    def _question(self, question: object) -> str:
        text = _text(question, "question").strip()
        if not text:
            raise ConfigError("no question: write one")
        if len(text) > self.limits.characters:
            raise ConfigError(
                f"the question has {len(text):,} characters, at most {self.limits.characters} are "
                "read: make it shorter"
            )
        return text


def _file_of(picture: object) -> tuple[Path, str]:
    """Where a picture is that the browser has sent, and its name there.

    gradio has made sure that it is in the folder of uploads.
    """
    if not isinstance(picture, Mapping) or not isinstance(picture.get("path"), str):
        raise DataError("the browser has sent no picture: upload it again")
    path = Path(picture["path"])
    if not path.is_file():
        raise DataError("this picture is not kept any longer: upload it again")
    return path, str(picture.get("orig_name") or path.name)[:NAME_LENGTH]


def _layer(layer: object, head: object) -> str:
    """`cross.1:2` as `parse_choice` has it; empty: chosen by itself."""
    name = _text(layer, "layer")
    if name == AUTOMATIC:
        if head:
            raise ConfigError(f"head {short(head)}: choose its layer as well")
        return ""
    return f"{name}:{head}" if head else name


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not is_unicode(value):
        raise ConfigError(f"{what}: expected a text, got {short(value)}")
    return value


def _said_instead(make: Callable[[], str]) -> str:
    """What is made, or what went wrong; a bug's trace is written as by a command."""
    try:
        return make()
    except Exception as error:
        return wrong_html(said(error)[1].removeprefix("error: "))
