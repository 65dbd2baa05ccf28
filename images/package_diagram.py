"""The packages and their arrows, read from the code: the diagram `packages`.

Rows are the layers that pyproject.toml sets down as a contract, below the backbones. An arrow from
A to B says that a module of A imports one of B. It is left out where other arrows lead from A to B
already, and so are the arrows to the modules of the last row, which everything uses.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations, pairwise
from pathlib import Path

import grimp
from diagram_parts import FAINT, INK, WIDTH, Point, box, canvas, text
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path as Outline

ROOT = Path(__file__).resolve().parents[1]
CORE = "common"
# Single modules share a box: those that are commands, and those that everything uses.
COMMANDS, WORDS = "commands", "words"
# Looks of the rows, from that of the backbones.
LOOKS = ("cross", "plain", "plain", "policy", "frozen", "cross", "vision", "finetuned", "lang")
EXPLANATION = (
    "Arrows lead to what is imported; those that others imply are left out. "
    "Numbers count modules. Green: backbones; the rest: common."
)
# Sizes in inches.
LANE, GAP, MARGIN = 0.12, 0.16, 0.3
HEIGHT, BETWEEN, TOP, LAST = 0.6, 0.46, 0.75, 0.32
LETTERS_PER_INCH = 18.5


@dataclass(frozen=True)
class Facts:
    """What the diagram shows.

    Attributes:
        rows: names of the boxes, from the top.
        modules: how many modules a box stands for.
        summaries: the first line of what a package says of itself.
        arrows: importer and imported, without those that others imply.
    """

    rows: list[list[str]]
    modules: dict[str, int]
    summaries: dict[str, str]
    arrows: list[tuple[str, str]]

    def as_text(self) -> str:
        """What is kept in the file of the picture, to know whether it is out of date."""
        return json.dumps(vars(self), ensure_ascii=True)


def read_facts() -> Facts:
    """The packages as the code has them now."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    roots = tool["importlinter"]["root_packages"]
    contracts = tool["importlinter"]["contracts"]
    (layers,) = (c["layers"] for c in contracts if c.get("containers") == [CORE])
    below = [re.split(r"\s*[|:]\s*", layer) for layer in layers]
    graph = grimp.build_graph(*roots, cache_dir=None)
    parts: dict[str, str] = {}
    boxes: dict[str, str] = {}
    for module in sorted(graph.modules - {CORE}):
        package, *inner = module.split(".")
        part = parts[module] = inner[0] if package == CORE else package
        in_package = package != CORE or graph.find_children(f"{CORE}.{part}")
        alone = COMMANDS if part in below[0] else WORDS
        boxes[part] = part if in_package else alone
    rows = [[name for name in row if name in boxes.values()] for row in below]
    backbones = [root for root in roots if root != CORE]
    rows = [backbones, [COMMANDS], *(row for row in rows if row), [WORDS]]
    assert {name for row in rows for name in row} == set(boxes.values()), "a package has no layer"
    of_module = {module: boxes[part] for module, part in parts.items()}
    members = list(of_module.values())
    return Facts(
        rows,
        {name: members.count(name) for row in rows for name in row},
        {name: _summary(name, of_module) for row in rows for name in row},
        _arrows_between(graph, parts, boxes),
    )


def _arrows_between(
    graph: grimp.ImportGraph, parts: dict[str, str], boxes: dict[str, str]
) -> list[tuple[str, str]]:
    """The arrows that no others imply.

    Ways through the commands do not count, for they share a box and not what they import.
    """
    # What `python -m` of a package starts beside it is no part of the package.
    used = {
        (parts[module], parts[found])
        for module in parts
        if not module.endswith(".__main__")
        for found in graph.find_modules_directly_imported_by(module)
        if found in parts
    }
    arrows = {(boxes[a], boxes[b]) for a, b in used}
    arrows = {(a, b) for a, b in arrows if a != b and b != WORDS}
    ways = {(a, b) for a, b in arrows if b != COMMANDS}
    return sorted(arrow for arrow in arrows if not _implied(arrow, ways))


def _implied(arrow: tuple[str, str], arrows: set[tuple[str, str]]) -> bool:
    """Whether other arrows lead from its start to its end."""
    start, end = arrow
    reached, new = set(), {start}
    while new:
        reached |= new
        new = {b for a, b in arrows if a in new and (a, b) != arrow} - reached
    return end in reached


def _summary(name: str, of_module: dict[str, str]) -> str:
    """The first line of a package's docstring, or the modules that share a box."""
    modules = [module for module, box_name in of_module.items() if box_name == name]
    if name in (COMMANDS, WORDS):
        return ", ".join(module.removeprefix(f"{CORE}.") for module in modules)
    top = min(modules, key=len)
    for module in (top, f"{top}.backbone"):
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
            if said := ast.get_docstring(tree):
                line = re.split(r"[:.] `python|: found", said.splitlines()[0])[0]
                return line.replace("`", "").rstrip(".")
    return ""


# A node is a box, or the lane that leads past a row to a box below: (its name, the row).
Node = tuple[str, int]


class Layout:
    """Where boxes and lanes stand in their rows: few crossings, short arrows."""

    def __init__(self, facts: Facts) -> None:
        self.row_of = {name: i for i, row in enumerate(facts.rows) for name in row}
        self.rows: list[list[Node]] = [[(n, i) for n in row] for i, row in enumerate(facts.rows)]
        self.parts: list[tuple[Node, Node]] = []
        for start, end in facts.arrows:
            first, last = self.row_of[start], self.row_of[end]
            chain = [(start, first), *((end, row) for row in range(first + 1, last + 1))]
            self.parts += pairwise(chain)
        self.parts = list(dict.fromkeys(self.parts))
        for _, node in self.parts:
            if node not in self.rows[node[1]]:
                self.rows[node[1]].append(node)
        self.x: dict[Node, float] = {}
        self._arrange()
        self._place()

    def width(self, node: Node) -> float:
        """Width of a box, so that the boxes and lanes of a row fill the picture, or of a lane."""
        if not self.is_box(node):
            return LANE
        row = self.rows[node[1]]
        boxes = sum(map(self.is_box, row))
        free = WIDTH - 2 * MARGIN - (len(row) - 1) * GAP - (len(row) - boxes) * LANE
        return min(free / boxes, 2.5)

    def is_box(self, node: Node) -> bool:
        """Whether it is no lane."""
        return self.row_of[node[0]] == node[1]

    def _cost(self) -> float:
        """Crossings, and the length of all arrows where rows are spread evenly."""
        at = {node: (place + 0.5) / len(row) for row in self.rows for place, node in enumerate(row)}
        crossings = 0
        for (a, b), (c, d) in combinations(self.parts, 2):
            if a[1] == c[1] and (at[a] - at[c]) * (at[b] - at[d]) < 0:
                crossings += 1
        return crossings + sum((at[a] - at[b]) ** 2 for a, b in self.parts) / 2

    def _arrange(self) -> None:
        """Move single nodes within their rows as long as that makes the picture better."""
        best, before = self._cost(), float("inf")
        while best < before:
            before = best
            for row in self.rows:
                for node in list(row):
                    for place in range(len(row)):
                        old = row[:]
                        row.remove(node)
                        row.insert(place, node)
                        cost = self._cost()
                        if cost < best - 1e-9:
                            best = cost
                        else:
                            row[:] = old

    def _place(self) -> None:
        """x of every node: close to its neighbours, boxes of a row apart from each other."""
        for row in self.rows:
            self._settle(row, [WIDTH * (place + 0.5) / len(row) for place in range(len(row))])
        neighbours: dict[Node, list[Node]] = {node: [] for row in self.rows for node in row}
        for a, b in self.parts:
            neighbours[a].append(b)
            neighbours[b].append(a)
        for _ in range(30):
            for row in self.rows:
                wanted = []
                for node in row:
                    near = [self.x[other] for other in neighbours[node]]
                    wanted.append(sum(near) / len(near) if near else self.x[node])
                self._settle(row, wanted)

    def _settle(self, row: list[Node], wanted: list[float]) -> None:
        """Nearest places to those wanted that keep the order, the distances and the margins."""
        widths = [self.width(node) for node in row]
        offsets = [0.0]
        for left, right in pairwise(widths):
            offsets.append(offsets[-1] + (left + right) / 2 + GAP)
        blocks: list[list[float]] = []
        for want, offset in zip(wanted, offsets, strict=True):
            blocks.append([want - offset])
            while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
                last = blocks.pop()
                blocks[-1] += last
        free = [_mean(block) for block in blocks for _ in block]
        low, high = MARGIN + widths[0] / 2, WIDTH - MARGIN - widths[-1] / 2 - offsets[-1]
        for node, start, offset in zip(row, free, offsets, strict=True):
            self.x[node] = min(max(start, low), high) + offset


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def packages() -> Axes:
    """The packages in their layers, and which imports which."""
    facts = read_facts()
    layout = Layout(facts)
    height = TOP + (len(facts.rows) - 1) * (HEIGHT + BETWEEN) + LAST
    axes = canvas(height)
    axes.set_label(facts.as_text())
    text(axes, (MARGIN, height - 0.25), "Packages, and which imports which", 11, "left", bold=True)
    text(axes, (MARGIN, height - 0.48), EXPLANATION, 7.5, "left", FAINT)

    def level(row: int) -> float:
        return height - TOP - HEIGHT / 2 - row * (HEIGHT + BETWEEN)

    *layers, words = facts.rows
    for row, names in enumerate(layers):
        for name in names:
            _package(axes, facts, layout, name, (layout.x[name, row], level(row)))
    _last_row(axes, facts, *words)
    _arrows(axes, layout, level)
    return axes


def _package(axes: Axes, facts: Facts, layout: Layout, name: str, at: Point) -> None:
    """Box of a package: name, number of modules, what it says of itself."""
    x, y = at
    row = layout.row_of[name]
    width = layout.width((name, row))
    box(axes, at, (width, HEIGHT), "", LOOKS[row % len(LOOKS)])
    left, right, top = x - width / 2 + 0.09, x + width / 2 - 0.09, y + HEIGHT / 2 - 0.13
    text(axes, (left, top), name, 9.5, "left", bold=True)
    text(axes, (right, top), str(facts.modules[name]), 8, "right", FAINT)
    lines = textwrap.wrap(facts.summaries[name], int(width * LETTERS_PER_INCH))
    for place, line in enumerate(lines):
        text(axes, (left, top - 0.17 - 0.13 * place), line, 7.2, "left")


def _last_row(axes: Axes, facts: Facts, name: str) -> None:
    """What everything uses: a low box as wide as the picture."""
    y = LAST / 2 + 0.15
    box(axes, (WIDTH / 2, y), (WIDTH - 2 * MARGIN, LAST), "", "plain")
    text(axes, (MARGIN + 0.09, y), facts.summaries[name], 9.5, "left", bold=True)
    right = WIDTH - MARGIN - 0.09
    text(axes, (right - 0.4, y), "used by all; arrows to them are left out", 7.2, "right")
    text(axes, (right, y), str(facts.modules[name]), 8, "right", FAINT)


def _arrows(axes: Axes, layout: Layout, level: Callable[[int], float]) -> None:
    """All parts of all arrows; those to one box join in its lane."""
    for a, b in layout.parts:
        ends = []
        for node, other, side, down in ((a, b, 0, -1), (b, a, 1, 1)):
            x = layout.x[node]
            if layout.is_box(node):
                same = sorted(p[1 - side] for p in layout.parts if p[side] == node)
                same.sort(key=lambda n: layout.x[n])
                share = (same.index(other) + 1) / (len(same) + 1) - 0.5
                x += share * layout.width(node) * 0.8
            ends.append((x, level(node[1]) + down * HEIGHT / 2))
        (x0, y0), (x1, y1) = ends
        middle = (y0 + y1) / 2
        points = [(x0, y0), (x0, middle), (x1, middle), (x1, y1)]
        codes = [Outline.MOVETO, *[Outline.CURVE4] * 3]
        if not layout.is_box(b):
            points.append((x1, y1 - HEIGHT))
            codes.append(Outline.LINETO)
        axes.add_patch(
            FancyArrowPatch(
                path=Outline(points, codes),
                arrowstyle="-|>" if layout.is_box(b) else "-",
                mutation_scale=9,
                linewidth=1.1,
                color=INK,
                fill=layout.is_box(b),
                shrinkA=0,
                shrinkB=0,
                zorder=2,
            )
        )
