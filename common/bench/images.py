"""Evaluation of several questions about one image: which rows are the same, and the table."""

from __future__ import annotations

from typing import Any

import torch

from common.adapt.sharing import SameRows
from common.bench.cases import MIDDLE, image_cases
from common.bench.results import BenchFile

DECIDED = {
    "sample": f"decisions of every question by itself, at random, share {MIDDLE:g}",
    "global": "one decision for all questions",
}


def same_images(rows: int, questions: float, device: torch.device) -> SameRows:
    """So many rows about images, with a number of questions about each on average."""
    return SameRows.of([int(row / questions) for row in range(rows)], device)


def format_images(file: BenchFile, precision: str, cell: Any) -> str:
    """The table in Markdown, or nothing; `cell` writes a record."""
    questions = {
        record["questions"] for record in file.cases.values() if record.get("questions") is not None
    }
    rows = []
    for wanted in sorted(questions):
        for case in image_cases(wanted, precision, reference=True):
            record = file.get(case)
            if record is None:
                continue
            model = file.description if case.against == "standard" else file.reference_description
            against = {
                "reference": file.reference,
                "standard": "plain, every question by itself",
                "whole": "plain, every question by itself",
            }[case.against]
            name = case.strategy + (f", {DECIDED[case.decided]}" if case.share is not None else "")
            rows.append(f"| {name} | {model.split(',')[1].strip()} | {against} | {cell(record)} |")
    if not rows:
        return ""
    shown = ", ".join(f"{number:g}" for number in sorted(questions))
    head = f"| evaluation in {precision}, {shown} questions per image | layers | = 1 | |"
    return "\n".join([head, "| :-- | :-- | :-- | --: |", *rows]) + (
        "\n\nThe questions of a batch that are about one image stand together; what depends on the "
        "image alone is computed once for them, as far as the same was decided."
    )
