"""A table and drawings for it: coloured shapes, as the small committed models know them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from common.data import datasets
from common.own_data import MakeOptions

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0), "yellow": (255, 255, 0)}
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw], Callable[..., None]]] = {
    "rectangle": lambda pen: pen.rectangle,
    "circle": lambda pen: pen.ellipse,
}


def looks(number: int) -> tuple[str, str]:
    """Colour and shape of a drawing."""
    return [*COLOURS][number % 4], [*SHAPES][number // 4 % 2]


def drawing(number: int) -> Image.Image:
    """64 x 64, one shape on white; other places for other numbers."""
    colour, shape = looks(number)
    image = Image.new("RGB", (64, 64), "white")
    x, y = 4 + number % 7, 6 + number % 5
    SHAPES[shape](ImageDraw.Draw(image))((x, y, x + 30 + number % 3, y + 30), fill=COLOURS[colour])
    return image


def write_drawings(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        drawing(number).save(folder / f"shape {number:02}.png")
    return folder


def questions(count: int) -> list[dict[str, Any]]:
    """Three about each drawing."""
    return [
        {"image": f"shape {number:02}.png", "question": question, "answer": answer}
        for number in range(count)
        for colour, shape in [looks(number)]
        for question, answer in (
            ("What color is the shape?", colour),
            ("What shape is present?", shape),
            ("Is there a circle?", "yes" if shape == "circle" else "no"),
        )
    ]


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], **style: Any) -> Path:
    rows = list(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), **style)
        writer.writeheader()
        writer.writerows(rows)
    return path


def options(root: Path, name: str = "shapes", **changes: Any) -> MakeOptions:
    """Of a data set of the drawings and the table in `root`."""
    given: dict[str, Any] = {
        "table": root / "shapes.csv",
        "images": root / "shapes",
        "detector": "pixels",
        "progress": False,
    }
    return MakeOptions(name, **(given | changes))


def write_shapes(root: Path, count: int) -> Path:
    """Drawings in `shapes`, the table `shapes.csv`."""
    write_drawings(root / "shapes", count)
    write_csv(root / "shapes.csv", questions(count))
    return root


def found_in(patch: Any, root: Path) -> None:
    """Let commands find data sets in the folder data of `root`."""
    patch.setattr(datasets, "repository_root", lambda: root)
