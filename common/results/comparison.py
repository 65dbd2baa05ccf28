"""A comparison of runs: table, plots and report in one folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_bytes
from common.results.decision_plots import plot_decisions
from common.results.decision_trends import plot_decisions_by_type
from common.results.files import (
    BASELINES,
    QUESTIONS,
    Result,
    Section,
    comparison_notes,
    group_results,
    sort_results,
)
from common.results.plots import plot_comparison
from common.results.report import write_comparison_report
from common.results.table import all_columns, format_markdown, group_summary


def write_comparison(
    results: Iterable[Result],
    out_dir: Path | str,
    problems: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Write `comparison.md`, `.json`, `.png` and `.html` into a folder, which is made.

    Args:
        results: runs as `find_results` returns them.
        out_dir: folder for the four files.
        problems: messages about results that could not be read; recorded in JSON and HTML.
        remarks: what else a reader of the tables must know; put with their notes.

    Raises:
        DataError: there are no results.
    """
    results, out_dir = sort_results(results), Path(out_dir)
    if not results:
        raise DataError("no results to compare")
    write_bytes(out_dir / "comparison.md", format_markdown(results, remarks).encode())
    summary = _summary(results, out_dir, problems, remarks)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_bytes(out_dir / "comparison.json", text.encode())
    plot_comparison(results, out_dir / "comparison.png")
    write_comparison_report(results, out_dir / "comparison.html", [*problems, *remarks])


def _summary(
    results: Sequence[Result], out_dir: Path, problems: Sequence[str], remarks: Sequence[str]
) -> dict[str, Any]:
    """The table with full precision: figures as {mean, sd, count} in the units of `result.json`."""
    return {
        "sections": [_section_summary(section, out_dir) for section in group_results(results)],
        "notes": [*comparison_notes(results), *remarks],
        "problems": list(problems),
    }


def _section_summary(section: Section, out_dir: Path) -> dict[str, Any]:
    columns = all_columns(section.results)
    names = [column.answer_type for column in columns if column.answer_type]
    return {
        "backbone": section.backbone,
        "size": section.size,
        "task": section.task,
        "dataset": section.dataset,
        "rows": [group_summary(group, out_dir) for group in section.groups],
        "baselines": {
            name: {
                answer_type: found.mean if found else None
                for answer_type in names
                for found in [section.baseline(name, answer_type)]
            }
            for name in BASELINES
        },
    }


def copy_decision_maps(results: Iterable[Result], folder: Path | str) -> list[Path]:
    """Draw each run's decision map into one folder, under a name that says which run it is.

    Names are `lxmert_easy_vqa_SpotTune_seed9595_decisions.png`, with the task where it is not
    questions, and with what else sets the run apart (`started`); where runs would share one, their
    size, policy and name are added, and a number if even these are equal. Runs without decisions
    have no map, runs on several tasks a second one, by task.
    """
    decided = [result for result in sort_results(results) if result.get("decisions")]
    short = [_stem(result, "backbone", "dataset", "strategy", "variant") for result in decided]
    paths: list[Path] = []
    for result, stem in zip(decided, short, strict=True):
        if short.count(stem) > 1:
            stem = _stem(
                result, "backbone", "dataset", "strategy", "variant", "size", "policy", "name"
            )
        path = Path(folder) / f"{stem}_decisions.png"
        number = 2
        while path in paths:
            path = Path(folder) / f"{stem}_{number}_decisions.png"
            number += 1
        plot_decisions(result, path)
        paths.append(path)
        if "," in (result.get("task") or ""):
            by_task = path.with_name(f"{path.stem}_by_task.png")
            plot_decisions_by_type(result, by_task)
            paths.append(by_task)
    return paths


def _stem(result: Result, *keys: str) -> str:
    parts = [str(result[key]) for key in keys if result.get(key)]
    if (task := result.get("task")) not in (None, "", QUESTIONS):
        parts.insert(1, task)
    stem = "_".join([*parts, f"seed{result.get('seed')}"])
    return re.sub(r"[^\w.-]+", "-", stem)
