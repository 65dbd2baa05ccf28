"""The task file `vlbert_tasks.yml`: which data, which loss, how much of it, for how long.

A section is `TASK<number>`; a task is chosen by its number or its name.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError, named
from common.reading import parse_yaml, read_text, short
from vilbert.sizes import HOME, nearest

TASKS_FILE = HOME / "vlbert_tasks.yml"
LOSSES = {
    "VL-classifier": "BCEWithLogitLoss",
    "VL-logit": "CrossEntropyLoss",
    "V-logit": "BCEWithLogitLoss",
}
# Names of tasks by the numbers of the original's later READMEs; `readme`: those of the task file.
NUMBERS: dict[str, dict[str, str]] = {
    "readme": {},
    "beta": {
        "0": "VQA",
        "1": "VCR_Q-A",
        "2": "VCR_QA-R",
        "3": "RetrievalFlickr30k",
        "4": "refcoco+",
    },
    "12in1": {
        "1": "VQA",
        "5": "VCR_Q-A",
        "6": "VCR_QA-R",
        "7": "RetrievalCOCO",
        "8": "RetrievalFlickr30k",
        "9": "refcoco",
        "10": "refcoco+",
        "11": "refcocog",
    },
}
DEFAULT = "1"


@dataclass(frozen=True)
class TaskEntry:
    """One section of the task file, under the keys of the original.

    Attributes:
        name: of the task; names the run's folder.
        type: what is read of the model: VL-classifier, answers; VL-logit, a score of every pair,
            of which one is right; V-logit, a score of every region.
        loss: of that type, see `LOSSES`.
        task_id: number of the task in the original's first numbering.
        dataroot: folder of questions and annotations, relative to ViLBERT/.
        features_h5path1: region features: an LMDB of the original, a TSV or a store of ours.
        features_h5path2: a second set of regions, annotated ones; may be empty.
        train_annotations_jsonpath, val_annotations_jsonpath: of tasks that name their annotations.
        max_seq_length: word pieces of a text, with [CLS] and [SEP].
        max_region_num: regions, with the image as a whole.
        batch_size, eval_batch_size: questions in an update, in all processes together; and in a
            batch of evaluation.
        train_split, val_split: what is trained on and reported.
        lr, num_epoch: of the recipe.
        data: `module:Class` that reads the samples of a task of one's own; see `vilbert.samples`.
    """

    name: str
    type: str
    loss: str
    dataroot: str
    features_h5path1: str
    train_split: str
    val_split: str
    max_seq_length: int
    max_region_num: int
    batch_size: int
    lr: float
    num_epoch: int
    task_id: int = 1
    eval_batch_size: int = 1024
    features_h5path2: str = ""
    train_annotations_jsonpath: str = ""
    val_annotations_jsonpath: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "str" and not isinstance(value, str):
                raise ConfigError(f"key {field.name}: {short(value)}: give a text")
            if field.type in ("int", "float"):
                kinds = (int,) if field.type == "int" else (int, float)
                if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1e9:
                    raise ConfigError(f"key {field.name}: {short(value)}: give a positive number")
        if not self.name.strip() or set("/,") & set(self.name):
            raise ConfigError(f"key name: {short(self.name)}: give a name without a slash or comma")
        if LOSSES.get(self.type) != self.loss:
            listed = "; ".join(f"{kind} with {loss}" for kind, loss in LOSSES.items())
            raise ConfigError(
                f"keys type, loss: {short(self.type)} with {short(self.loss)}: valid: {listed}"
            )
        if self.max_seq_length < 3 or self.max_region_num < 2:
            raise ConfigError(
                f"keys max_seq_length, max_region_num: {self.max_seq_length}, "
                f"{self.max_region_num}: a text has [CLS], a word and [SEP], an image itself and a "
                "region"
            )


def read_tasks(path: Path | str = TASKS_FILE) -> dict[str, TaskEntry]:
    """All tasks of a file by number.

    Raises:
        DataError: missing, or no YAML.
        ConfigError: an unknown section or key (names the nearest), a missing one, a value of
            another type; with file, section and key.
    """
    values = parse_yaml(read_text(path, kind="the file of tasks"), str(path))
    if not isinstance(values, dict) or not values:
        raise DataError(f"{path}: {short(values)}: expected sections TASK1, TASK2, …")
    return {
        str(name).removeprefix("TASK"): _entry(f"{path}: {name}", str(name), section)
        for name, section in values.items()
    }


def _entry(where: str, name: str, section: Any) -> TaskEntry:
    if not (name.startswith("TASK") and name[4:].isdecimal()):
        raise ConfigError(f"{where}: a section is called TASK with a number")
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: {short(section)}: expected keys with values")
    known = [field.name for field in fields(TaskEntry)]
    for key in section:
        if key not in known:
            raise ConfigError(f"{where}: key {short(key)} is unknown{nearest(str(key), known)}")
    missing = [f.name for f in fields(TaskEntry) if f.default is MISSING and f.name not in section]
    if missing:
        raise ConfigError(f"{where}: key {missing[0]} is missing")
    numbers = {field.name for field in fields(TaskEntry) if field.type == "float"}
    values = {k: _number(v) if k in numbers else v for k, v in section.items()}
    with named(where):
        return TaskEntry(**values)


def _number(value: Any) -> Any:
    """What YAML takes for a text, because it has no point: 4e-5."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def chosen_tasks(
    words: str, path: Path | str = TASKS_FILE, numbers: str = "readme"
) -> list[TaskEntry]:
    """The tasks of `--tasks 6-7`, by number or name, with `-` or a comma between.

    Args:
        words: what was typed.
        path: the task file.
        numbers: whose numbers they are, see `NUMBERS`.

    Raises:
        ConfigError: one that the file does not have, or one twice.
    """
    tasks = read_tasks(path)
    by_name = {task.name.lower(): task for task in tasks.values()}
    renamed = NUMBERS[numbers]
    by_number = {n: by_name.get(name.lower()) for n, name in renamed.items()} or tasks
    found: list[TaskEntry] = []
    for word in _split(words, by_name):
        task = by_number.get(word.removeprefix("TASK")) or by_name.get(word.lower())
        if task is None:
            meant = f" ({renamed[word]})" if word in renamed else ""
            raise ConfigError(
                f"--tasks {words}: {path} has no task {word!r}{meant}; there are {listed(tasks)}"
            )
        if task in found:
            raise ConfigError(f"--tasks {words}: {task.name} is there twice")
        found.append(task)
    return found


def _split(words: str, names: Container[str]) -> list[str]:
    """The tasks of a list, in whose names there may be a `-`."""
    found: list[str] = []
    for word in words.split(","):
        parts = word.strip().split("-")
        while parts:
            # The longest name that stands first, else what is before the next `-`.
            length = next(
                (n for n in range(len(parts), 1, -1) if "-".join(parts[:n]).lower() in names), 1
            )
            found.append("-".join(parts[:length]).strip())
            parts = parts[length:]
    return found


def listed(tasks: dict[str, TaskEntry]) -> str:
    """Numbers and names."""
    return ", ".join(f"{number} ({task.name})" for number, task in tasks.items())


def names(tasks: Sequence[TaskEntry]) -> str:
    """For the name of a run's folder."""
    return "-".join(task.name for task in tasks)
