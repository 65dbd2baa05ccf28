"""A finished run and a detector, opened once and asked many times.

    answerer = Answerer.open(Path("LXMERT/snap/vqa/v1"), AnswererOptions(detector="frcnn"))
    image = answerer.look(Path("photo.jpg"))                  # its regions are found once
    found = answerer.ask(image, "What is on the mat?")        # as often as one likes
    found.answers, found.decisions, found.attention, image.regions, image.names

What is in these is said in `common.ask.answering` and `common.ask.image`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.ask.answering import Answered, ask, make_batch
from common.ask.attention import Choice, parse_choice
from common.ask.image import AskedImage, find_image, image_of_file, image_of_picture
from common.detector.opening import open_detector, options_of_origin
from common.detector.regions import Detector
from common.errors import ConfigError
from common.runs.attention_blocks import Block, attention_of
from common.runs.backbones import OpenedRun
from common.runs.opened_run import open_run
from common.training.runtime import set_threads


@dataclass(frozen=True)
class AnswererOptions:
    """What an `Answerer` is told.

    Attributes:
        detector: a folder of weights, or `pixels`; None: pictures are looked at by the pixel
            detector, and only if the run was trained with that.
        boxes: fewest and most regions of a picture; None: as the run was trained.
        rule: which proposals become regions; None: likewise.
        any_detector: features may be of another detector than the run's.
        data_root: folder of VQA v2's files.
        policy_eval: how decisions are made; None: as in the run.
    """

    detector: str | None = None
    boxes: tuple[int, int] | None = None
    rule: str | None = None
    any_detector: bool = False
    data_root: Path | None = None
    policy_eval: str | None = None


class Answerer:
    """Answers questions about pictures. Not for several threads at once."""

    def __init__(
        self,
        run: OpenedRun,
        detector: Detector | None = None,
        options: AnswererOptions | None = None,
    ) -> None:
        """Put a run and a detector together that are open already; see `open`."""
        self.run, self.detector = run, detector
        self.options = options or AnswererOptions()

    @classmethod
    def open(cls, folder: Path, options: AnswererOptions | None = None) -> Answerer:
        """Load the model of a run, and the detector.

        Args:
            folder: of the run, with BEST.safetensors.
            options: which detector, and how decisions are made.

        Raises:
            CheckpointError: no run, or no detector, in the folder that should hold it.
            ConfigError, DataError: they cannot be used as the options say.
        """
        options = options or AnswererOptions()
        run = open_run(folder, options.data_root)
        set_threads(None, run.meta["size"] == "small")
        choose_policy_eval(run, options.policy_eval)
        detector = None
        if options.detector is not None:
            origin = run.meta["features"]
            how = options_of_origin(origin, options.boxes, options.rule)
            detector = open_detector(options.detector, how)
        elif options.boxes or options.rule:
            raise ConfigError("--boxes and --rule say how --detector finds regions: name one")
        return cls(run, detector, options)

    @property
    def average_decisions(self) -> dict[str, Any] | None:
        """How often each site chose 1 over the evaluated questions, from the run's result.json.

        Returns:
            `names`, `layers`, `components`, `live` and `share` of D decisions, and `share_by_type`
            of question; None where the strategy decides nothing or the run has no result.
        """
        return (self.run.result or {}).get("decisions")

    def look(self, picture: Path | Image.Image, name: str = "picture") -> AskedImage:
        """Find the regions of a picture.

        Args:
            picture: a file, or an RGB image that is called `name`.
            name: of an image.

        Raises:
            DataError: it cannot be used, or the run was trained with another detector.
        """
        given = (self.detector, self.options.any_detector)
        if isinstance(picture, Path):
            return image_of_file(self.run, picture, *given)
        return image_of_picture(self.run, picture, name, *given)

    def find(
        self, file: Path | None, image_id: str | None = None, store: Path | None = None
    ) -> AskedImage:
        """A picture file, or a record of region features; see `find_image`."""
        options = self.options
        return find_image(
            *(self.run, file, image_id, store, options.data_root),
            *(self.detector, options.any_detector),
        )

    def attended(self, image: AskedImage, question: str) -> list[Block]:
        """The attention of all layers to a picture and a question, by a pass of its own.

        Raises:
            ConfigError: the backbone does not say what stands where.
        """
        return attention_of(self.run, make_batch(image.regions, question, image.picture))

    def attention(self, layer: str, word: str | None = None) -> Choice:
        """What `ask` is to show of the attention.

        Args:
            layer: and maybe a head of it, `cross.1` or `cross.1:2`.
            word: of the question, whose attention is meant.

        Raises:
            ConfigError: an unknown layer or head; lists those that there are.
        """
        return parse_choice(self.run, layer, word=word)

    def ask(
        self,
        image: AskedImage,
        question: str,
        top: int = 5,
        seed: int = 0,
        attention: Choice | None = None,
    ) -> Answered:
        """Answer a question about a picture; see `common.ask.answering.ask`."""
        return ask(self.run, image.regions, question, top, seed, attention, image.picture)


def choose_policy_eval(run: OpenedRun, chosen: str | None) -> None:
    """Decide as the run was evaluated, or as the command line says.

    Raises:
        ConfigError: a choice for a strategy that decides nothing, or global decisions that the
            checkpoint does not have.
    """
    if run.adaptive is None:
        if chosen is not None:
            raise ConfigError(
                f"--policy-eval {chosen}: strategy {run.strategy.name} of "
                f"{run.folder} decides nothing"
            )
        return
    chosen = chosen or run.adaptive.options.policy_eval
    if chosen == "global" and bool((run.adaptive.global_decisions < 0).any()):
        raise ConfigError(
            f"--policy-eval global: {run.checkpoint} holds no decisions for the "
            "whole data set: a run with --policy-eval global makes them at its end, "
            "from the training questions"
        )
    run.adaptive.options.policy_eval = chosen
