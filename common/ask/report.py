"""What a run answered, in words and for programs.

Shape legend: A answers, D decisions.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from common.ask.answering import Answered, PairDecisions
from common.ask.attention import attention_lines
from common.ask.image import AskedImage
from common.features.store import OPTIONAL
from common.results.decision_grid import component_kind, head_number
from common.results.plot_style import run_title
from common.runs.backbones import OpenedRun


def heading(run: OpenedRun, image: AskedImage) -> str:
    """What is asked about what."""
    regions = image.regions
    picture = f" (picture {image.file})" if image.file and str(image.file) != image.name else ""
    lines = [
        f"run       {run.folder}: {title(run)}",
        f"image     {image.name}{picture}, {regions.width} x {regions.height} pixels, "
        f"{len(regions.boxes)} regions",
    ]
    return "\n".join(lines + [_note(note) for note in image.notes])


def title(run: OpenedRun) -> str:
    """`SpotTune · LXMERT (small) · easy_vqa · seed 1`."""
    identity = {"seed": None} | run.meta | {"dataset": run.dataset} | (run.result or {})
    return run_title(identity, "").strip()


def report(run: OpenedRun, answered: Answered, picture: Path | None) -> str:
    """Answers and decisions as text."""
    lines = [f"\nquestion  {answered.question}", *map(_note, answered.notes)]
    width = max(len(answer.text) for answer in answered.answers)
    for place, answer in enumerate(answered.answers):
        head = "answers   " if place == 0 else " " * 10
        bar = "#" * round(20 * answer.probability)
        lines.append(f"{head}{answer.text:{width}}  {answer.probability:.3f}  {bar}".rstrip())
    if answered.decisions is None:
        lines.append(f"decided   {nothing_decided(run)}")
    else:
        lines += decision_lines(answered.decisions, run.strategy.name)
    if answered.attention is not None:
        shown = attention_lines(answered.attention)
        lines += [_wrapped(shown[0], "attended  "), *(_wrapped(t, " " * 10) for t in shown[1:])]
        lines += map(_note, answered.attention.notes)
    if picture is not None:
        lines.append(f"picture   {picture}")
    return "\n".join(lines)


def _note(text: str) -> str:
    return _wrapped(text, "note      ")


def _wrapped(text: str, start: str) -> str:
    """At most 100 characters a line; further lines begin below the text."""
    return textwrap.fill(
        text,
        100,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
        break_long_words=False,
    )


def nothing_decided(run: OpenedRun) -> str:
    """For a strategy without decisions."""
    return f"nothing: with {run.strategy.name}, {run.strategy.summary}, for every pair alike"


def decision_lines(found: PairDecisions, strategy: str) -> list[str]:
    """What was decided, one entry for each layer."""
    live = sum(found.live)
    ones = sum(d for d, alive in zip(found.decisions, found.live, strict=True) if alive)
    how = {
        "argmax": "the policy's likelier decision",
        "sample": "drawn from the policy's probabilities",
        "global": "one decision for all pairs",
    }[found.how]
    whole = not any(found.components)
    dead = f", {len(found.live) - live} dead" if live < len(found.live) else ""
    lines = [
        f"decided   {strategy}, {how}: {ones} of {live} {'layers' if whole else 'parts'} "
        f"{found.words[1]}{dead}"
    ]
    if whole:
        cells = [layer_cell(found, place) for place in range(len(found.layers))]
        width = max(map(len, cells)) + 3
        columns = max(1, 90 // width)
        rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
        return lines + [
            "          " + "".join(f"{c:{width}}" for c in row).rstrip() for row in rows
        ]
    layers = list(dict.fromkeys(found.layers))
    width = max(map(len, layers))
    return lines + [
        _wrapped(layer_parts(found, layer), f"{'':10}{layer:{width}}  ") for layer in layers
    ]


def layer_cell(found: PairDecisions, place: int) -> str:
    """`lang.1 finetuned 0.83`: a layer about which one decision is made."""
    if not found.live[place]:
        return f"{found.layers[place]} dead"
    chance = "" if found.probabilities is None else f" {found.probabilities[place]:.2f}"
    return f"{found.layers[place]} {found.words[found.decisions[place]]}{chance}"


def layer_parts(found: PairDecisions, layer: str) -> str:
    """`3 of 6 finetuned: heads 2/4, output`: a layer with several decisions."""
    heads: dict[str, list[int]] = {}
    chosen: list[str] = []
    dead = 0
    ones = []
    for place in (i for i, name in enumerate(found.layers) if name == layer):
        component, decision = found.components[place], found.decisions[place]
        if not found.live[place]:
            dead += 1
            continue
        ones.append(decision)
        if head_number(component) is not None:
            heads.setdefault(component_kind(component), []).append(decision)
        elif decision:
            chosen.append(component)
    parts = [f"{kind} {sum(group)}/{len(group)}" for kind, group in heads.items()] + chosen
    text = f"{sum(ones)} of {len(ones)} {found.words[1]}" + (f" ({dead} dead)" if dead else "")
    return f"{text}: {', '.join(parts)}" if parts else text


def image_document(image: AskedImage) -> dict[str, Any]:
    """An image and its regions, for machines; `object` and `attribute` where names are known."""
    regions = image.regions
    given = {
        name: getattr(regions, name).tolist()
        for name in OPTIONAL
        if getattr(regions, name) is not None
    }
    boxes = []
    for place, box in enumerate(regions.boxes.tolist()):
        numbers = {name: of[place] for name, of in given.items()}
        names = {
            kind: image.names.of(kind, numbers[f"{kind}_ids"])
            for kind in ("object", "attribute")
            if f"{kind}_ids" in numbers
        }
        boxes.append({"number": place + 1, "box": box, **numbers, **names})
    return {
        "name": image.name,
        "file": None if image.file is None else str(image.file),
        "width": regions.width,
        "height": regions.height,
        "boxes": boxes,
        "detector": image.detector,
        "notes": image.notes,
    }


def run_document(run: OpenedRun) -> dict[str, Any]:
    """Which model answers, for machines."""
    return {
        "run": str(run.folder),
        "checkpoint": str(run.checkpoint),
        "backbone": run.meta["backbone"],
        "strategy": run.strategy.name,
        "policy": run.meta["policy"],
        "dataset": run.dataset,
    }
