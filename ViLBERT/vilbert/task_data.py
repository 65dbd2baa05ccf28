"""The data of ViLBERT's tasks beside questions: VCR, retrieval, referring expressions, one's own.

A class of `TaskData` reads a split of a task from the files that its section of the task file
names; which class is said by the task's name, or by its key `data`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Self

from common.adapt.gumbel import keyed_uniform
from common.errors import ConfigError, DataError
from common.reading import short
from common.tasks.vqa import sample_key
from vilbert.caption_data import CaptionedImage, read_captions, read_hard_negatives
from vilbert.referring_data import read_referring
from vilbert.samples import Pair, Sample, TaskData
from vilbert.sizes import HOME
from vilbert.tasks import TaskEntry
from vilbert.vcr_data import read_names, read_vcr

NAMES_TABLE, METADATA = "unisex_names_table.csv", "vcr1images"
HARD_NEGATIVES = "hard_negative.pkl"
CAPTIONS = "all_data_final_{}_set0_2014.jsonline"


def annotation_file(task: TaskEntry, split: str, otherwise: str = "{}.jsonl") -> Path:
    """The file of a split: the one that the task names, else one in its folder."""
    named = {
        task.train_split: task.train_annotations_jsonpath,
        task.val_split: task.val_annotations_jsonpath,
    }
    return HOME / (named.get(split) or f"{task.dataroot}/{otherwise.format(split)}")


class VCRData(TaskData):
    """VCR: a question and four answers."""

    options = 4
    second_features = True
    rationales = False

    def __init__(self, task: TaskEntry, split: str) -> None:
        """Read a split; see `read_vcr` for errors."""
        folder = HOME / task.dataroot
        names = read_names(folder / NAMES_TABLE)
        entries = read_vcr(annotation_file(task, split), folder / METADATA, names, self.rationales)
        super().__init__(
            [
                Sample(
                    entry.entry_id,
                    tuple(Pair(entry.question, entry.image_id, o) for o in entry.options),
                    entry.label,
                )
                for entry in entries
            ]
        )


class VCRRationales(VCRData):
    """VCR: a question with its right answer, and four rationales."""

    rationales = True


class ReferringData(TaskData):
    """RefCOCO+ and the like: a text that means a region.

    In training annotated regions are shown beside those of the detector, so that there is a right
    one.
    """

    def __init__(self, task: TaskEntry, split: str) -> None:
        """Read a split; see `read_referring` for errors."""
        found = read_referring(HOME / task.dataroot / task.name, split)
        super().__init__(
            [
                Sample(said.sentence_id, (Pair(said.text, said.image_id),), box=said.box)
                for said in found
            ]
        )

    def part(self, places: Sequence[int], training: bool) -> Self:
        part = super().part(places, training)
        part.second_features = training
        return part


class RetrievalData(TaskData):
    """Captions of images: the right pair, and three that a caption or an image was exchanged in.

    A pair whose image has that very caption is never one of the wrong ones.
    """

    options = 4
    by_id = False

    def __init__(self, task: TaskEntry, split: str) -> None:
        """Read a split; that which is trained on needs the pool of hard negatives.

        Raises:
            DataError: see `read_captions` and `read_hard_negatives`; every image has one caption.
        """
        super().__init__([])
        captions = annotation_file(task, split, CAPTIONS)
        self.captioned = read_captions(captions, self.by_id)
        self._pool: dict[str, tuple[str, ...]] = {}
        if split == task.train_split:
            path = HOME / task.dataroot / HARD_NEGATIVES
            if not path.is_file():
                raise DataError(
                    f"{path}: no such file: make it with `python make_hard_negatives.py --captions "
                    f"{captions} --features {HOME / task.features_h5path1} --out {path}`"
                )
            needed = [image.image_id for image in self.captioned]
            self._pool = read_hard_negatives(path, needed).of()
        every = enumerate(self.captioned)
        self._show(self.captioned, [(n, k) for n, i in every for k in range(len(i.captions))])

    def _show(
        self, captioned: Sequence[CaptionedImage], entries: Sequence[tuple[int, int]]
    ) -> None:
        """Draw from these images alone; entries are places of images and of their captions."""
        self.captioned, self._entries = list(captioned), list(entries)
        self._place = {image.image_id: n for n, image in enumerate(captioned)}
        if len({frozenset(image.captions) for image in captioned}) < 2:
            raise DataError(
                f"{len(captioned)} images with the same captions: a wrong pair needs another one"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def image(self, place: int) -> str:
        return self.captioned[self._entries[place][0]].image_id

    def images(self) -> dict[str, int | str]:
        return {image.image_id: f"caption of {image.image_id}" for image in self.captioned}

    def without(self, images: Container[str]) -> Self:
        kept = [n for n in range(len(self)) if self.image(n) not in images]
        return self.part(kept, training=True)

    def part(self, places: Sequence[int], training: bool) -> Self:
        part = super().part([], training)
        part._pool = self._pool if training else {}
        chosen = [self._entries[place] for place in places]
        # Training never sees an image that is held out; the held-out ones, which may be few, are
        # set against all images.
        images = sorted({n for n, _ in chosen}) if training else range(len(self.captioned))
        new = {old: n for n, old in enumerate(images)}
        part._show([self.captioned[n] for n in images], [(new[n], k) for n, k in chosen])
        return part

    def sample(self, place: int, epoch: int) -> Sample:
        """The right pair first, then another caption, another image, an image that is alike."""
        number, which = self._entries[place]
        image = self.captioned[number]
        caption = image.captions[which]
        sample_id = f"{image.image_id}_{which}"
        draws = keyed_uniform(self.seed, epoch, [sample_key(sample_id)], 5)[0].tolist()
        own = set(image.captions)
        other = self._other(sample_id, lambda i: bool(set(i.captions) - own), draws[0])
        wrong = [text for text in other.captions if text not in own]
        shown = self._other(sample_id, lambda i: caption not in i.captions, draws[2])
        near = [i for i in self._near(image.image_id) if set(i.captions) - own]
        # As in the original: a caption of an image that looks alike, with this image.
        alike = (
            near[int(draws[3] * len(near))]
            if near
            else self._other(sample_id, lambda i: bool(set(i.captions) - own), draws[3])
        )
        said = [text for text in alike.captions if text not in own]
        return Sample(
            sample_id,
            (
                Pair(caption, image.image_id),
                Pair(wrong[int(draws[1] * len(wrong))], image.image_id),
                Pair(caption, shown.image_id),
                Pair(said[int(draws[4] * len(said))], image.image_id),
            ),
            right=0,
        )

    def _near(self, image_id: str) -> list[CaptionedImage]:
        """Images that look alike, as far as they are shown."""
        found = (self._place.get(other) for other in self._pool.get(image_id, ()))
        return [self.captioned[place] for place in found if place is not None]

    def _other(
        self, sample_id: str, fits: Callable[[CaptionedImage], bool], draw: float
    ) -> CaptionedImage:
        """The first image that fits, from a place drawn at random on."""
        start, count = int(draw * len(self.captioned)), len(self.captioned)
        for step in range(count):
            found = self.captioned[(start + step) % count]
            if fits(found):
                return found
        raise DataError(
            f"caption {sample_id.rsplit('_', 1)[1]} of image {sample_id.rsplit('_', 1)[0]}: all "
            f"{count} images have the same: a wrong pair needs another one"
        )


class RetrievalCOCO(RetrievalData):
    """The same with images that are known by their field `id`."""

    by_id = True


Read = Callable[[TaskEntry, str], TaskData]
CLASSES: dict[str, type[TaskData]] = {
    "VCR_Q-A": VCRData,
    "VCR_QA-R": VCRRationales,
    "RetrievalFlickr30k": RetrievalData,
    "RetrievalCOCO": RetrievalCOCO,
    **dict.fromkeys(("refcoco+", "refcoco"), ReferringData),
}


def data_class(task: TaskEntry) -> Read:
    """What reads a task's splits.

    Raises:
        ConfigError: there is no such class; names the task and the way out.
    """
    if not task.data:
        if task.name not in CLASSES:
            raise ConfigError(
                f"task {task.name}: nothing is known of its data: give key data, module:Class, or "
                f"call it {', '.join(CLASSES)}"
            )
        return CLASSES[task.name]
    module, _, name = task.data.partition(":")
    if str(HOME) not in sys.path:
        sys.path.insert(0, str(HOME))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"task {task.name}: key data: {short(task.data)}: cannot be imported ({error}); give "
            "module:Class, of a module in ViLBERT/ or on PYTHONPATH"
        ) from None
    if not (isinstance(found, type) and issubclass(found, TaskData)):
        raise ConfigError(
            f"task {task.name}: key data: {short(task.data)} is no subclass of "
            "vilbert.samples.TaskData"
        )
    return found


def read_split(task: TaskEntry, split: str, seed: int) -> TaskData:
    """A split of a task.

    Raises:
        DataError: it has no sample, or one whose number of pairs is not that of the task.
    """
    data = data_class(task)(task, split)
    data.seed = seed
    where = f"task {task.name}: split {split}"
    if not len(data):
        raise DataError(f"{where} has no samples")
    _check(where, data)
    return data


def _check(where: str, data: TaskData) -> None:
    """Refuse samples that no task can have."""
    seen: set[int | str] = set()
    pairs = data.samples[0].pairs if data.samples else ()
    second = any(pair.second is not None for pair in pairs)
    for sample in data.samples:
        name = f"{where}: sample {short(sample.sample_id)}"
        if sample.sample_id in seen:
            raise DataError(f"{name} is there twice: ids are those of the answers")
        seen.add(sample.sample_id)
        if len(sample.pairs) != data.options:
            raise DataError(f"{name} has {len(sample.pairs)} pairs, expected {data.options}")
        if sample.right is not None and not 0 <= sample.right < data.options:
            raise DataError(
                f"{name}: right is {short(sample.right)}: expected a number from 0 to "
                f"{data.options - 1}"
            )
        if any((pair.second is not None) != second for pair in sample.pairs):
            raise DataError(f"{name}: a second text in some pairs and not in others")
