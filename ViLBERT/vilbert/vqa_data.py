"""VQA v2 and VQA-CP v2 in the folders of the original ViLBERT.

Questions and annotations are the official files in `dataroot`; images are known by their COCO
number alone. `trainval` are train and val without the last 3,000 questions, which are `minival`.
Where the original's folder `cache/` of prepared answers is there, its list of answers is used, in
the order of classifiers that were finetuned with it; and its targets, if annotations are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.data.annotations import AnswerVocabulary, Example, read_official
from common.data.dataset_table import DatasetKind, Split
from common.data.datasets import Dataset, missing_files, resolve_dataset
from common.errors import ConfigError, DataError, named
from common.features.writer import replace_folder
from common.files import exclusive
from common.pickles import read_pickle
from common.reading import short
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
CACHE = "cache"
ORIGINAL_ANSWERS = f"{CACHE}/answers_original"
LABEL_TO_ANSWER = f"{CACHE}/trainval_label2ans.pkl"
TARGETS = {"train2014": f"{CACHE}/train_target.pkl", "val2014": f"{CACHE}/val_target.pkl"}
TARGET_FIELDS = {"question_id", "labels", "scores"}
MAX_INSTRUCTIONS = 100_000_000  # about 30 for each question
# Keys of a task that other tasks of the original have a use for.
WITHOUT_EFFECT = ("features_h5path2", "train_annotations_jsonpath", "val_annotations_jsonpath")
EMBEDDED = {"vqa": "easy_vqa", "vqa_cp": "easy_vqa_cp"}


@dataclass(frozen=True)
class PartOfSplit(Split):
    """Questions in the order of their ids, from one place to another."""

    first: int | None = None
    last: int | None = None


def read_part(folder: Path, split: Split) -> list[Example]:
    """The questions of a part; image ids are COCO's numbers."""
    assert isinstance(split, PartOfSplit)
    prepared = split.annotations is not None and split.annotations.endswith(".pkl")
    annotations = None if split.annotations is None or prepared else folder / split.annotations
    examples = read_official(folder / split.questions, annotations)
    if prepared:
        assert split.annotations is not None
        examples = with_targets(examples, folder / split.annotations, original_answers(folder))
    path = folder / split.questions
    found = [replace(e, image_id=coco_number(e, path)) for e in examples]
    found.sort(key=lambda e: (isinstance(e.question_id, str), e.question_id))
    return found[split.first : split.last]


def original_answers(folder: Path) -> list[str]:
    """The answers of `cache/trainval_label2ans.pkl` in their order.

    Raises:
        DataError: it is no pickle of a list of texts.
    """
    path = folder / LABEL_TO_ANSWER
    found = read_pickle(path)
    if not isinstance(found, list) or not all(isinstance(answer, str) for answer in found):
        raise DataError(f"{path}: {short(found)}: expected a list of texts")
    return found


def with_targets(examples: Sequence[Example], path: Path, answers: Sequence[str]) -> list[Example]:
    """Questions with the answers of a `*_target.pkl`, by their question ids.

    Args:
        examples: the questions.
        path: pickled list of question_id, labels (places in the list of answers) and scores.
        answers: that list.

    Raises:
        DataError: it is no such list, a label or score is none, or a question has no entry; with
            file, entry and value.
    """
    found = read_pickle(path, MAX_INSTRUCTIONS)
    if not isinstance(found, list):
        raise DataError(f"{path}: {short(found)}: expected a list of targets")
    targets: dict[int | str, dict[str, float]] = {}
    for number, entry in enumerate(found, 1):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict) or TARGET_FIELDS - entry.keys():
            raise DataError(f"{where}: {short(entry)}: expected {', '.join(sorted(TARGET_FIELDS))}")
        asked = entry["question_id"]
        if not isinstance(asked, int | str) or isinstance(asked, bool) or asked in targets:
            raise DataError(f"{where}: question_id {short(asked)}: is no id, or is there twice")
        targets[asked] = _target(where, entry["labels"], entry["scores"], answers)
    for example in examples:
        if example.question_id not in targets:
            raise DataError(
                f"{path}: question {example.question_id} has no target: the file belongs to other "
                "questions"
            )
    return [replace(e, answers=targets[e.question_id]) for e in examples]


def _target(where: str, labels: Any, scores: Any, answers: Sequence[str]) -> dict[str, float]:
    """The scores of a question's answers."""
    if not isinstance(labels, list) or not isinstance(scores, list):
        raise DataError(f"{where}: labels and scores: expected two lists")
    if len(labels) != len(scores):
        raise DataError(f"{where}: {len(labels)} labels, {len(scores)} scores")
    target: dict[str, float] = {}
    for label, score in zip(labels, scores, strict=True):
        if type(label) is not int or not 0 <= label < len(answers):
            raise DataError(
                f"{where}: label {short(label)}: there are {len(answers)} answers, from 0"
            )
        if answers[label] in target:
            raise DataError(f"{where}: label {label}: is there twice")
        if type(score) not in (int, float) or not 0 < score <= 1:
            raise DataError(f"{where}: score {short(score)}: expected a number above 0, to 1")
        target[answers[label]] = float(score)
    return target


def coco_number(example: Example, path: Path) -> str:
    """42 for COCO_train2014_000000000042.

    Raises:
        DataError: an image without a number; names file and question.
    """
    number = example.image_id.rsplit("_", 1)[-1]
    if not (number.isascii() and number.isdecimal()):
        raise DataError(
            f"{path}: question {example.question_id}: image_id {short(example.image_id)}: expected "
            "the number that COCO gives the image"
        )
    return str(int(number))


def vqa_kind(task: TaskEntry, folder: Path, features: tuple[str, ...]) -> DatasetKind:
    """VQA v2 as a row of the table of data sets, with the features of a task."""
    listed = (folder / LABEL_TO_ANSWER).is_file()

    def part(
        name: str, answered: bool = True, first: int | None = None, last: int | None = None
    ) -> PartOfSplit:
        answers = f"v2_mscoco_{name}_annotations.json"
        targets = TARGETS.get(name, "")
        if listed and not (folder / answers).is_file() and (folder / targets).is_file():
            answers = targets
        return PartOfSplit(
            f"v2_OpenEnded_mscoco_{name}_questions.json",
            features,
            answers if answered else None,
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
        vocabulary=ORIGINAL_ANSWERS if listed else f"{CACHE}/answers_vqa",
        sources={"v2_": SOURCE, CACHE: "the original's prepared answers", "": FEATURES_SOURCE},
        train=_alias(task.train_split),
        valid=_alias(task.val_split),
        reported_only=("minival",),
        read=read_part,
        answers_of=() if listed else ("train", "val"),
        optional=("test", "test-dev"),
        instead="easy_vqa",
    )


def vqa_cp_kind(task: TaskEntry, _folder: Path, features: tuple[str, ...]) -> DatasetKind:
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
        vocabulary=f"{CACHE}/answers_vqa_cp",
        sources={"vqacp_": SOURCE_CP, "": FEATURES_SOURCE},
        train=task.train_split,
        valid=task.val_split,
        reported_only=("test",),
        read=read_part,
        answers_of=("train",),
        instead="easy_vqa_cp",
    )


Kind = Callable[[TaskEntry, Path, tuple[str, ...]], DatasetKind]
KINDS: dict[str, tuple[str, Kind]] = {"VQA": ("vqa", vqa_kind), "VQA-CP": ("vqa_cp", vqa_cp_kind)}


def _alias(splits: str) -> str:
    """The splits of the table that a name of the original means."""
    return TRAINVAL if splits == "trainval" else splits


def task_dataset(task: TaskEntry, name: str | None, data: Path | None) -> Dataset:
    """The data of a task: an embedded data set by its name, else the files that the task names.

    Args:
        task: an entry of the task file.
        name: `easy_vqa`, `easy_vqa_cp`, …; None: the task's own data if any of its files is there,
            else the embedded data set, with a line that says so.
        data: folder of the task's questions instead of its `dataroot`.

    Raises:
        ConfigError: a task that there are no data for, or a key that is not read.
        DataError: only some of the files are there; they are listed with their sources.
    """
    if task.name not in KINDS:
        raise ConfigError(
            f"task {task.name}: questions are answered by tasks called {', '.join(KINDS)}"
        )
    for key in WITHOUT_EFFECT:
        if value := getattr(task, key):
            raise ConfigError(
                f"task {task.name}: key {key}: {short(value)}: is not read: questions and "
                "annotations are found in dataroot, regions in features_h5path1; leave it empty"
            )
    own = KINDS[task.name][0]
    if name is not None and name != own:
        return resolve_dataset(name, data_root=data)
    folder, kind = own_files(task, data)
    if not is_own(task, name, data):
        print(
            f"No files of {task.name} in {folder}: using {EMBEDDED[own]}. It needs there: "
            f"{', '.join(kind.files())}"
        )
        return resolve_dataset(EMBEDDED[own])
    if kind.vocabulary == ORIGINAL_ANSWERS:
        _keep_original_answers(folder)
    if missing := missing_files(kind, folder):
        listing = "\n".join(f"  {folder / path}  from {kind.source(path)}" for path in missing)
        raise DataError(
            f"task {task.name}: {len(missing)} files are missing:\n{listing}\n"
            f"fetch them, or use the embedded data with --dataset {kind.instead}"
        )
    return Dataset(own, folder, kind)


def own_files(task: TaskEntry, data: Path | None) -> tuple[Path, DatasetKind]:
    """Folder and files of a task's own data, whether they are there or not."""
    folder = data or HOME / task.dataroot
    store = str(features_path(HOME / task.features_h5path1))
    return folder, KINDS[task.name][1](task, folder, (store,))


def is_own(task: TaskEntry, name: str | None, data: Path | None) -> bool:
    """Whether a task's own data are meant, and not other ones; see `task_dataset`."""
    if task.name not in KINDS:
        return True  # which is refused when its data are looked for
    if name is not None or data is not None:
        return name in (None, KINDS[task.name][0])
    folder, kind = own_files(task, data)
    return len(missing_files(kind, folder)) < len(kind.files())


def embedded_name(task: TaskEntry, name: str | None) -> str:
    """The data set that stands in for a task's own one, unless another one is named."""
    return name or EMBEDDED[KINDS[task.name][0]]


def _keep_original_answers(folder: Path) -> None:
    """The original's list of answers in the form of ours, made again where it has changed."""
    answers, ours = original_answers(folder), folder / ORIGINAL_ANSWERS
    try:
        with exclusive(ours.with_name(f".{ours.name}.lock")):
            if ours.is_dir() and AnswerVocabulary.read(ours).answers == answers:
                return
            partial = ours.with_name(f"{ours.name}.partial")
            with named(folder / LABEL_TO_ANSWER, DataError):
                AnswerVocabulary(answers).write(partial)
            replace_folder(partial, ours)
    except OSError as error:
        raise DataError(f"{ours}: cannot be written ({error}): make the folder writable") from error


def features_path(path: Path) -> Path:
    """The name of a store for the path that a task file gives, which may be that of its source."""
    return path.with_suffix("") if path.suffix in (".lmdb", ".tsv") else path
