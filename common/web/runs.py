"""Finished runs by name, of which the last few that were asked are in memory."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from common.adapt.attention_capture import attention_heads
from common.ask.answerer import Answerer, AnswererOptions
from common.ask.answering import Answered
from common.ask.attention import default_layer
from common.ask.image import AskedImage
from common.data.datasets import load_split
from common.errors import CheckpointError, ConfigError, DataError
from common.files import repository_root
from common.results.files import FILE_NAME, load_result
from common.results.plot_style import run_title
from common.runs.backbones import backbones, dataset_name, find_backbone
from common.runs.opened_run import VQA, find_best
from common.training.checkpoint import load_meta
from common.training.run_folder import SnapshotNames

IN_MEMORY = 2  # those that are shown side by side
PICTURES = 4  # whose regions are remembered, of each run


def find_runs() -> list[Path]:
    """The folders of all runs of this checkout that answer questions, the newest first.

    Raises:
        ConfigError: there is none; says how to make one.
    """
    name = f"{SnapshotNames().best}.safetensors"
    found: dict[Path, float] = {}
    for folder in run_roots():
        for file in folder.rglob(name) if folder.is_dir() else ():
            if _answers_questions(file):
                found[file.parent] = file.stat().st_mtime
    if not found:
        script = next(iter(backbones().values())).script
        command = " ".join(script.train("cpu", "first", [*script.data("easy_vqa")]))
        places = ", ".join(shown_folder(folder) for folder in run_roots())
        raise ConfigError(
            f"no finished run in {places}: train one (in {script.folder}/: {command}; or "
            "make demo), or say with --run DIR where it is"
        )
    return sorted(found, key=lambda folder: (-found[folder], folder))


def run_roots() -> list[Path]:
    """Where the runs of the installed backbones are."""
    scripts = [backbone.script for backbone in backbones().values()]
    return list(dict.fromkeys(script.home / Path(script.runs).parts[0] for script in scripts))


def _answers_questions(file: Path) -> bool:
    try:
        return load_meta(file).get("task") == VQA
    except CheckpointError:
        return False


def run_label(folder: Path) -> str:
    """`SpotTune · LXMERT (small) · easy_vqa · seed 1 (LXMERT/snap/vqa/v1)`, without its model.

    Raises:
        CheckpointError: no run in the folder.
    """
    checkpoint = find_best(folder)
    meta = load_meta(checkpoint)
    identity: dict[str, Any] = {"seed": None, "dataset": None} | meta
    result = folder / FILE_NAME
    try:
        identity["dataset"] = dataset_name(meta, checkpoint)
        if result.is_file():
            identity |= load_result(result)
    except (CheckpointError, DataError):  # said when the run is opened
        pass
    title = run_title(identity, "").strip() if "strategy" in meta else "run"
    return f"{title} ({shown_folder(folder)})"


def shown_folder(folder: Path) -> str:
    """Relative to the repository, where it is in it."""
    try:
        return folder.resolve().relative_to(repository_root()).as_posix()
    except ValueError:
        return str(folder)


@dataclass(frozen=True)
class ExamplePicture:
    """A picture of a run's data set with a question of it."""

    file: Path
    image_id: str
    question: str


@dataclass
class _Opened:
    """A run in memory, and the pictures that it was shown last."""

    answerer: Answerer
    looked: OrderedDict[str, AskedImage] = field(default_factory=OrderedDict)


class Runs:
    """Runs by label. Not for several threads at once."""

    def __init__(
        self, folders: Sequence[Path], options: AnswererOptions | None = None, opened: bool = False
    ) -> None:
        """Note where runs are.

        Args:
            folders: of runs.
            options: how they are asked.
            opened: open the first ones now, so that what is wrong with them is said at once.

        Raises:
            CheckpointError: a folder without a run.
            ConfigError: the same run twice.
        """
        self.options = options or AnswererOptions()
        self.folders: dict[str, Path] = {}
        for folder in folders:
            label = run_label(folder)
            if label in self.folders:
                raise ConfigError(f"--run {folder}: the same run twice: give each once")
            self.folders[label] = folder
        self._open: OrderedDict[str, _Opened] = OrderedDict()
        self._ids: dict[str, str] = {}
        for label in list(self.folders)[: IN_MEMORY if opened else 0]:
            self.answerer(label)

    @property
    def labels(self) -> list[str]:
        return list(self.folders)

    def answerer(self, label: str) -> Answerer:
        """The run of that label, opened if it is not in memory.

        Raises:
            ConfigError: an unknown label.
            AdaptiveError: the run cannot be opened.
        """
        return self._opened(label).answerer

    def _opened(self, label: str) -> _Opened:
        if label not in self.folders:
            raise ConfigError(f"run {label!r} is none of those of this page: choose another one")
        if label not in self._open:
            while len(self._open) >= IN_MEMORY:
                self._open.popitem(last=False)
            with redirect_stdout(sys.stderr):
                self._open[label] = _Opened(Answerer.open(self.folders[label], self.options))
        self._open.move_to_end(label)
        return self._open[label]

    def layers(self, label: str) -> dict[str, int]:
        """The layers of a run whose attention can be shown, with their number of heads."""
        run = self.answerer(label).run
        return attention_heads(run.model) if find_backbone(run.meta["backbone"]).places else {}

    def look(
        self, label: str, picture: Image.Image, name: str, digest: str, notes: Iterable[str] = ()
    ) -> AskedImage:
        """A picture with the regions that this run's detector finds, or has found, in it.

        Args:
            label: of the run.
            picture: RGB.
            name: that the user knows it by.
            digest: of the file; an example's regions are those of the run's data set.
            notes: on how it was read.

        Raises:
            DataError: the run's detector cannot look at it; says which one that is.
        """
        opened = self._opened(label)
        if digest not in opened.looked:
            found = self._of_data_set(opened.answerer, digest)
            opened.looked[digest] = found or opened.answerer.look(picture, name)
            while len(opened.looked) > PICTURES:
                opened.looked.popitem(last=False)
        found = opened.looked[digest]
        return replace(found, name=name, notes=[*notes, *found.notes])

    def _of_data_set(self, answerer: Answerer, digest: str) -> AskedImage | None:
        """The record of an example in the run's own data set; None where it has none."""
        image_id = self._ids.get(digest)
        if image_id is None:
            return None
        try:
            found = answerer.find(None, image_id)
        except DataError:  # an example of another run's data set
            return None
        # Another data set may call another picture the same.
        return found if found.file is not None and file_digest(found.file) == digest else None

    def ask(self, label: str, image: AskedImage, question: str, layer: str, word: str) -> Answered:
        """Answer a question.

        Args:
            label: of the run.
            image: from `look`.
            question: about it.
            layer: whose attention is shown, `cross.1` or `cross.1:2`; empty: the last layer in
                which words look at regions.
            word: of the question, whose attention is meant; empty: all.

        Raises:
            AdaptiveError: see `Answerer.ask`.
        """
        answerer = self.answerer(label)
        if not layer and question.strip() and self.layers(label):
            layer = default_layer(answerer.attended(image, question)) or ""
        chosen = answerer.attention(layer, word.strip() or None) if layer else None
        return answerer.ask(image, question, attention=chosen)

    def examples(self, label: str, count: int) -> list[ExamplePicture]:
        """Pictures of the reported split of a run's data set, each with one of its questions.

        Raises:
            DataError: the data set is not there, or has no pictures beside its features.
        """
        answerer = self.answerer(label)
        backbone = find_backbone(answerer.run.meta["backbone"])
        with redirect_stdout(sys.stderr):
            dataset = backbone.dataset(answerer.run, self.options.data_root)
            rows = load_split(dataset, dataset.kind.valid)
        found: dict[str, ExamplePicture] = {}
        for place in range(count):
            further = rows[place * len(rows) // count :]
            row = next((row for row in further if row.image_id not in found), None)
            if row is None:
                break
            file = answerer.find(None, row.image_id).file
            if file is None:
                raise DataError(f"no pictures of {dataset.name} are beside its features")
            found[row.image_id] = ExamplePicture(file, row.image_id, row.question)
            self._ids[file_digest(file)] = row.image_id
        return list(found.values())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
