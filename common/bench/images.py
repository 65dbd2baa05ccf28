"""Evaluation of several questions about one image: which rows are the same, and the table."""

from __future__ import annotations

from typing import Any

import torch

from common.adapt.sharing import SameRows
from common.bench.cases import MIDDLE, image_cases
from common.bench.results import BenchFile

DECIDED = {
    "sample": f", each question decided by itself, at random, share {MIDDLE:g}",
    "global": ", decided once for all",
}


def same_images(rows: int, questions: float, device: torch.device) -> SameRows:
    """So many rows about images, with a number of questions about each on average."""
    return SameRows.of([int(row / questions) for row in range(rows)], device)


def format_images(file: BenchFile, precision: str, cell: Any) -> str:
    """The table in Markdown, or nothing; `cell` writes a record."""
    numbers = (record.get("questions") for record in file.cases.values())
    wanted = sorted({number for number in numbers if number is not None})
    rows = []
    for questions in wanted:
        for case in image_cases(questions, precision, reference=True):
            if (record := file.get(case)) is None:
                continue
            model = "as above" if case.against == "standard" else "whole"
            library = case.against == "reference"
            rows.append(
                f"| {case.strategy}{'' if case.share is None else DECIDED[case.decided]} | {model} "
                f"| {file.reference if library else 'plain, each by itself'} | {cell(record)} |"
            )
    if not rows:
        return ""
    shown = ", ".join(f"{number:g}" for number in wanted)
    head = f"| evaluation in {precision}, {shown} questions about an image | model | = 1 | |"
    return "\n".join([head, "| :-- | :-- | :-- | --: |", *rows]) + (
        "\n\nQuestions about one image stand together; what depends on the image alone is computed "
        "once for those of a batch, as far as the same was decided. whole: "
        f"{file.reference_description}."
    )
