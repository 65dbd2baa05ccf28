"""VQA v2 and VQA-CP v2 in the folders of the original ViLBERT.

Questions and annotations are the official files in `dataroot`; images are known by their COCO
number alone. `trainval` are train and val without the last 3,000 questions, which are `minival`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.annotations import Example, read_official
from common.data.dataset_table import DatasetKind, Split
from common.data.datasets import Dataset, missing_files, resolve_dataset
from common.errors import ConfigError, DataError
from common.features.sources import features_there
from vilbert.sizes import HOME
from vilbert.tasks import TaskEntry

MINIVAL = 3000  # questions
TRAINVAL = "train,nominival"
SOURCE = "https://visualqa.org/download.html"
SOURCE_CP = "https://computing.ece.vt.edu/~aish/vqacp"
FEATURES_SOURCE = (
    "the authors' coco_trainval_resnet101_faster_rcnn_genome.lmdb (import it with `python -m "
    "common.features --lmdb`), or any other features of these images in a store of that name"
)
EMBEDDED = {"vqa": "easy_vqa", "vqa_cp": "easy_vqa_cp"}


@dataclass(frozen=True)
class PartOfSplit(Split):
    """Questions in the order of their ids, from one place to another."""

    first: int | None = None
    last: int | None = None


def read_part(folder: Path, split: Split) -> list[Example]:
    """The questions of a part; image ids are COCO's numbers."""
    assert isinstance(split, PartOfSplit)
    annotations = None if split.annotations is None else folder / split.annotations
    examples = read_official(folder / split.questions, annotations)
    found = [replace(e, image_id=coco_number(e.image_id)) for e in examples]
    found.sort(key=lambda e: (isinstance(e.question_id, str), e.question_id))
    return found[split.first : split.last]


def coco_number(image_id: str) -> str:
    """42 for COCO_train2014_000000000042."""
    return str(int(image_id.rsplit("_", 1)[-1]))


def vqa_kind(task: TaskEntry, features: tuple[str, ...]) -> DatasetKind:
    """VQA v2 as a row of the table of data sets, with the features of a task."""

    def part(
        name: str, answered: bool = True, first: int | None = None, last: int | None = None
    ) -> PartOfSplit:
        return PartOfSplit(
            f"v2_OpenEnded_mscoco_{name}_questions.json",
            features,
            f"v2_mscoco_{name}_annotations.json" if answered else None,
            first=first,
            last=last,
        )

    return DatasetKind(
        summary=f"{task.name} in the layout of ViLBERT",
        splits={
            "train": part("train2014"),
            "val": part("val2014"),
            "nominival": part("val2014", last=-MINIVAL),
            "minival": part("val2014", first=-MINIVAL),
            "test": part("test2015", answered=False),
            "test-dev": part("test-dev2015", answered=False),
        },
        vocabulary="cache/answers_vqa",
        sources={"v2_": SOURCE, "": FEATURES_SOURCE},
        train=_alias(task.train_split),
        valid=_alias(task.val_split),
        reported_only=("minival",),
        read=read_part,
        answers_of=("train", "val"),
        optional=("test", "test-dev"),
        instead="easy_vqa",
    )


def vqa_cp_kind(task: TaskEntry, features: tuple[str, ...]) -> DatasetKind:
    """VQA-CP v2, likewise; its answer list is made of the training part alone."""
    splits: dict[str, Split] = {
        name: PartOfSplit(
            f"vqacp_v2_{name}_questions.json", features, f"vqacp_v2_{name}_annotations.json"
        )
        for name in ("train", "test")
    }
    return DatasetKind(
        summary=f"{task.name} in the layout of ViLBERT",
        splits=splits,
        vocabulary="cache/answers_vqa_cp",
        sources={"vqacp_": SOURCE_CP, "": FEATURES_SOURCE},
        train=task.train_split,
        valid=task.val_split,
        reported_only=("test",),
        read=read_part,
        answers_of=("train",),
        instead="easy_vqa_cp",
    )


KINDS: dict[str, tuple[str, Callable[[TaskEntry, tuple[str, ...]], DatasetKind]]] = {
    "VQA": ("vqa", vqa_kind),
    "VQA-CP": ("vqa_cp", vqa_cp_kind),
}


def _alias(splits: str) -> str:
    """The splits of the table that a name of the original means."""
    return TRAINVAL if splits == "trainval" else splits


def task_dataset(task: TaskEntry, name: str | None, data: Path | None) -> Dataset:
    """The data of a task: an embedded data set by its name, else the files that the task names.

    Args:
        task: an entry of the task file.
        name: `easy_vqa`, `easy_vqa_cp`; None: the task's own data if any of its files is there,
            else the embedded data set, with a line that says so.
        data: folder of the task's questions instead of its `dataroot`.

    Raises:
        ConfigError: a task that there are no data for.
        DataError: only some of the files are there; they are listed with their sources.
    """
    if task.name not in KINDS:
        raise ConfigError(
            f"task {task.name}: questions are answered by tasks called {', '.join(KINDS)}"
        )
    own, make = KINDS[task.name]
    if name is not None and name != own:
        return resolve_dataset(name)
    folder = data or HOME / task.dataroot
    store = str(features_path(HOME / task.features_h5path1))
    kind = make(task, (store,))
    missing = missing_files(kind, folder)
    if name is None and data is None and len(missing) == len(kind.files()):
        print(
            f"No files of {task.name} in {folder}: using {EMBEDDED[own]}. It needs there: "
            f"{', '.join(kind.files())}"
        )
        return resolve_dataset(EMBEDDED[own])
    if missing:
        listing = "\n".join(f"  {folder / path}  from {kind.source(path)}" for path in missing)
        raise DataError(
            f"task {task.name}: {len(missing)} files are missing:\n{listing}\n"
            f"fetch them, or use the embedded data with --dataset {kind.instead}"
        )
    return Dataset(own, folder, kind)


def features_path(path: Path) -> Path:
    """The name of a store for the path that a task file gives, which may be that of an LMDB."""
    if path.suffix == ".lmdb" and not features_there(path):
        return path.with_suffix("")
    return path
