"""Finding, checking and grouping the `result.json` files that runs write.

A result stays the plain dictionary that the run wrote, with one key added on reading: `path`, the
file that it came from. Everything that shows results (tables, plots, reports) starts here.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adapt.strategies import STRATEGIES
from common.errors import DataError
from common.projects import title_of
from common.reading import checked, read_json, short
from common.results.schema import ResultFile

Result = dict[str, Any]
FILE_NAME = "result.json"
ANSWER_TYPES = ("overall", "yes/no", "number", "other")
BASELINES = {"majority": "majority answer", "question_only": "question only", "chance": "chance"}
QUESTIONS = "vqa"  # the task whose samples are questions
_WAY_OUT = "run that training again, or delete the file to leave the run out"


GroupKey = tuple[str, str | None, str | None]  # strategy, policy, variant


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation of one figure over runs; `sd` is None for one run."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class RunGroup:
    """The runs of one strategy that differ in their seed only: one row of a table.

    A result's `variant` says what else sets it apart (layers, budget, evaluation of the policy).
    """

    strategy: str
    policy: str | None
    label: str
    results: tuple[Result, ...]

    def figure(self, dotted: str) -> Statistic | None:
        """Mean over the runs of the figure under a dotted key, such as `accuracy.val.overall`."""
        return summarise(lookup(result, dotted) for result in self.results)


@dataclass(frozen=True)
class Section:
    """The runs that can be compared: same backbone, size, task and dataset."""

    backbone: str
    size: str
    task: str
    dataset: str
    groups: tuple[RunGroup, ...]

    @property
    def results(self) -> list[Result]:
        return [result for group in self.groups for result in group.results]

    @property
    def title(self) -> str:
        size = f" ({self.size})" if self.size else ""
        return f"{title_of(self.backbone)}{size}{_told(self.task)} on {self.dataset}"

    @property
    def things(self) -> str:
        """What the samples are called."""
        return things_of(self.task)

    def baseline(self, name: str, answer_type: str) -> Statistic | None:
        """Mean over the section's runs of a baseline's validation accuracy, in percent."""
        found = summarise(
            lookup(result, f"baselines.{name}.{answer_type}") for result in self.results
        )
        if found is not None and not found.sd:
            return Statistic(found.mean, None, found.count)
        return found


def things_of(task: str | None, decided: bool = False) -> str:
    """What the samples of a task are called; decisions are about pairs of a text and an image."""
    if task in (None, "", QUESTIONS):
        return "questions"
    return "pairs" if decided else "samples"


def _told(task: str | None) -> str:
    """`, VCR_Q-A`; nothing for questions, which most runs are about."""
    return "" if task in (None, "", QUESTIONS) else f", {task.replace(',', ' + ')},"


def summarise(values: Iterable[float | None]) -> Statistic | None:
    """Mean and sample (n − 1) standard deviation of the finite values; None if there are none."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return Statistic(
        statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known)
    )


def mean_of_live(shares: Sequence[float], live: Sequence[bool]) -> float:
    """Mean of D shares over the decisions that are live."""
    used = [share for share, alive in zip(shares, live, strict=True) if alive]
    return sum(used) / len(used)


def lookup(result: Result, dotted: str) -> Any:
    """Value under a dotted key, or None where a part of the key is missing or null.

    `generalization_error` falls back to the difference of the two overall accuracies.
    """
    value: Any = result
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if value is None and dotted == "generalization_error":
        train, val = (lookup(result, f"accuracy.{part}.overall") for part in ("train", "val"))
        return None if train is None or val is None else train - val
    return value


def load_result(path: Path | str) -> Result:
    """Read and check one `result.json` (or the one in a folder); adds its `path`.

    Raises:
        DataError: the file is missing, unreadable, no JSON or lacks what a result needs.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    try:
        result = read_json(path, "a run writes it when its training ends")
    except DataError as error:
        raise DataError(f"{error}; {_WAY_OUT}" if path.exists() else str(error)) from None
    checked(result, ResultFile, str(path), _WAY_OUT)
    _check_accuracy(result, path)
    if result.get("decisions"):
        _check_decisions(result["decisions"], path)
        _check_epochs(result, path)
    return result | {"path": str(path)}


def _check_accuracy(result: Result, path: Path) -> None:
    for part in ("train", "val", "val_permuted"):
        for name, value in (result["accuracy"].get(part) or {}).items():
            if value is not None and not _is_number(value):
                raise DataError(
                    f"{path}: 'accuracy.{part}.{name}' is {short(value)}, "
                    f"expected a number or null; {_WAY_OUT}"
                )


def _check_decisions(decisions: dict[str, Any], path: Path) -> None:
    """Shares must lie in 0..1, and all lists (also those by question type) be equally long."""
    lists = {key: decisions.get(key) for key in ("names", "layers", "components", "share", "live")}
    for kind, entry in (decisions.get("share_by_type") or {}).items():
        lists[f"share_by_type.{kind}.share"] = lookup(entry, "share")
    for key, values in lists.items():
        if not isinstance(values, list) or len(values) != len(lists["names"] or ()):
            size = len(values) if isinstance(values, list) else values
            raise DataError(
                f"{path}: 'decisions.{key}' has {size} entries, "
                f"'decisions.names' {len(lists['names'] or ())}; {_WAY_OUT}"
            )
        if key.endswith("share"):
            bad = [v for v in values if not (_is_number(v) and 0 <= v <= 1)]
            if bad:
                raise DataError(
                    f"{path}: 'decisions.{key}' holds {bad[0]!r}, "
                    f"expected numbers from 0 to 1; {_WAY_OUT}"
                )


def _check_epochs(result: Result, path: Path) -> None:
    """The decisions of every epoch are about the same sites as those of the result."""
    count = len(result["decisions"]["names"])
    for epoch in result.get("epochs") or ():
        for key in ("decisions", "train_decisions"):
            shares = (epoch.get(key) or {}).get("share")
            if shares is not None and (
                len(shares) != count or not all(_is_number(v) and 0 <= v <= 1 for v in shares)
            ):
                raise DataError(
                    f"{path}: epoch {epoch['epoch']}: {key!r} has {len(shares)} shares, expected "
                    f"{count} numbers from 0 to 1; {_WAY_OUT}"
                )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def read_results(roots: Sequence[Path | str]) -> tuple[list[Result], list[str]]:
    """All results below some folders, in the order of `sort_results`, and what is wrong with
    the files that could not be read (one message each, naming the file).

    Hidden folders are not entered. A root may also be a `result.json` itself. Of files with the
    same content (a result copied beside a report) only the first counts.

    Raises:
        DataError: a root does not exist.
    """
    paths: dict[Path, Path] = {}
    for root in map(Path, roots):
        if not root.exists():
            raise DataError(f"{root}: no such folder; give folders that hold runs")
        for path in [root] if root.is_file() else _walk(root):
            paths.setdefault(path.resolve(), path)
    results: list[Result] = []
    problems: list[str] = []
    for path in paths.values():
        try:
            result = load_result(path)
            results += [] if any(_same(result, other) for other in results) else [result]
        except DataError as error:
            problems.append(str(error))
    return sort_results(results), problems


def _same(first: Result, second: Result) -> bool:
    return first | {"path": None} == second | {"path": None}


def _walk(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if FILE_NAME in files:
            found.append(Path(folder) / FILE_NAME)
    return found


def find_results(roots: Sequence[Path | str]) -> list[Result]:
    """All results below some folders.

    Raises:
        DataError: a root does not exist, or a `result.json` is corrupt; names every such file.
    """
    results, problems = read_results(roots)
    if problems:
        raise DataError("\n".join(problems))
    return results


def sort_results(results: Iterable[Result]) -> list[Result]:
    """Results by section, then in the order of the table of strategies, policy, seed and name."""
    order = {name: place for place, name in enumerate(STRATEGIES)}

    def key(result: Result) -> tuple[Any, ...]:
        return (
            *_section_key(result),
            order.get(result["strategy"], len(order)),
            result["strategy"],
            str(result.get("policy") or ""),
            str(result.get("variant") or ""),
            str(result.get("seed")).zfill(12),
            str(result.get("name") or ""),
        )

    return sorted(results, key=key)


def _section_key(result: Result) -> tuple[str, str, str, str]:
    backbone, size, task, dataset = (
        str(result.get(key) or "") for key in ("backbone", "size", "task", "dataset")
    )
    return backbone, size, task, dataset


def group_results(results: Iterable[Result]) -> list[Section]:
    """Sections of comparable runs, each with one group per strategy, policy and variant."""
    sections: dict[tuple[str, str, str, str], dict[GroupKey, list[Result]]] = {}
    for result in sort_results(results):
        groups = sections.setdefault(_section_key(result), {})
        key = result["strategy"], result.get("policy"), result.get("variant")
        groups.setdefault(key, []).append(result)
    return [Section(*key, groups=_label_groups(groups)) for key, groups in sections.items()]


def _label_groups(groups: dict[GroupKey, list[Result]]) -> tuple[RunGroup, ...]:
    """The policy is part of a row's label only where two rows of a strategy differ in it."""
    policies: dict[str, set[str | None]] = {}
    for strategy, policy, _ in groups:
        policies.setdefault(strategy, set()).add(policy)

    def label(strategy: str, policy: str | None, variant: str | None) -> str:
        parts = [policy if len(policies[strategy]) > 1 else None, variant]
        shown = ", ".join(filter(None, parts))
        return f"{strategy} ({shown})" if shown else strategy

    return tuple(
        RunGroup(strategy, policy, label(strategy, policy, variant), tuple(members))
        for (strategy, policy, variant), members in groups.items()
    )


def comparison_notes(results: Iterable[Result]) -> list[str]:
    """What a reader of the table must know: mixed numbers of questions, repeated seeds, settings
    that differ within a row, warnings of the runs."""
    notes = []
    for section in group_results(results):
        for part in ("train", "val"):
            counts = {lookup(result, f"accuracy.{part}.count") for result in section.results}
            if len(counts - {None}) > 1:
                listed = ", ".join(f"{count:,}" for count in sorted(counts - {None}))
                notes.append(
                    f"{section.title}: runs differ in their number of {part} {section.things} "
                    f"({listed}), so their rows are not strictly comparable."
                )
        for group in section.groups:
            notes += [f"{section.title}, {group.label}{note}" for note in _group_notes(group)]
    return notes


def _group_notes(group: RunGroup) -> list[str]:
    notes = []
    seeds = [result.get("seed") for result in group.results]
    repeated = sorted({str(seed) for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        notes.append(
            f": seed {', '.join(repeated)} occurs more than once; the runs are averaged "
            "as if they were independent."
        )
    for key in ("policy_eval", "precision", "recipe"):
        if len({repr(result.get(key)) for result in group.results}) > 1:
            notes.append(
                f": the runs of this row differ in {key}, so their deviation is not that "
                "of the seed alone."
            )
    return notes + [
        f", seed {result.get('seed')}: {warning}"
        for result in group.results
        for warning in result.get("warnings") or ()
    ]
