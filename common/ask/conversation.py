"""Questions about a picture that may change, one after the other, also from a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from common.ask.answerer import Answerer
from common.ask.answering import as_json
from common.ask.attention import Choice
from common.ask.image import AskedImage
from common.ask.picture import plot_answer
from common.ask.report import heading, image_document, nothing_decided, report, run_document, title
from common.errors import AdaptiveError, ConfigError

HELP = """a question is answered about the picture that is shown; besides:
  :image PATH     show another picture
  :image-id ID    show a record of the features of the run's data set
  :help           this
An empty line or Ctrl-D ends."""


@dataclass(frozen=True)
class Shown:
    """What a conversation shows of every answer.

    Attributes:
        top: how many answers.
        seed: of decisions that are drawn.
        attention: of which layer and head; None: none.
        picture: where the picture of an image, a question and its number goes; None: none is drawn.
        quiet: nothing is printed on the standard output.
    """

    top: int = 5
    seed: int = 0
    attention: Choice | None = None
    picture: Callable[[AskedImage, str, int], Path] | None = None
    quiet: bool = False


@dataclass
class Conversation:
    """What was asked so far.

    Attributes:
        answerer: answers.
        shown: what is shown of that.
        image: that questions are about; None before the first.
        images, entries: images and answers in the form of JSON.
    """

    answerer: Answerer
    shown: Shown
    image: AskedImage | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)

    def show(self, image: AskedImage) -> None:
        """Questions are about this image from now on."""
        self.image = image
        self.images.append(image_document(image))
        self._say(heading(self.answerer.run, image))

    def answer(self, question: str) -> None:
        """Answer a question about the image.

        Raises:
            ConfigError: there is no image yet, or the question is empty.
            DataError: a model that computes no finite numbers.
            OSError: the picture cannot be written.
        """
        image, shown, run = self.image, self.shown, self.answerer.run
        if image is None:
            raise ConfigError("no picture: show one with :image PATH")
        answered = self.answerer.ask(image, question, shown.top, shown.seed, shown.attention)
        path = shown.picture and shown.picture(image, question, len(self.entries) + 1)
        if path is not None:
            plot_answer(image, answered, title(run), nothing_decided(run), path)
        self._say(report(run, answered, path))
        written = {"picture": None if path is None else str(path), "image": image.name}
        self.entries.append(as_json(answered) | written)

    def listen(self, stream: TextIO) -> bool:
        """Answer a line after the other; an error is said, and the next line read.

        On a terminal an empty line ends it, else the end of the stream.

        Returns:
            Whether something went wrong.
        """
        typed, failed = stream.isatty(), False
        while True:
            if typed:
                print("\nquestion (:help, empty line: end) > ", end="", file=sys.stderr, flush=True)
            line = stream.readline()
            if not line or (typed and not line.strip()):
                return failed
            try:
                self.take(line.strip())
            except (AdaptiveError, OSError) as error:
                failed = True
                print(f"error: {error}", file=sys.stderr, flush=True)

    def take(self, line: str) -> None:
        """Do what a line says: a question, or a word of `HELP`; nothing where it is empty.

        Raises:
            ConfigError: an unknown word.
            AdaptiveError, OSError: as `answer`, and where a picture cannot be shown.
        """
        word, _, rest = line.partition(" ")
        rest = rest.strip().strip("'\"")
        if not line:
            return
        if word == ":help":
            print(HELP, file=sys.stderr, flush=True)
        elif word == ":image" and rest:
            self.image = None  # what follows is not about the picture before, if this is none
            self.show(self.answerer.look(Path(rest).expanduser()))
        elif word == ":image-id" and rest:
            self.image = None
            self.show(self.answerer.find(None, rest))
        elif word.startswith(":"):
            raise ConfigError(f"{line!r} is not understood: :help says what is")
        else:
            self.answer(line)

    def document(self) -> dict[str, Any]:
        """Everything that was found, for machines; `image` is the first one."""
        first = self.images[0] if self.images else None
        more = {"images": self.images} if len(self.images) > 1 else {}
        return (
            run_document(self.answerer.run) | {"image": first} | more | {"questions": self.entries}
        )

    def _say(self, text: str) -> None:
        if not self.shown.quiet:
            print(text, flush=True)
