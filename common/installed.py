"""What is offered by entry points: those of installed packages, or of a checkout that is none.

On a machine where nothing may be installed, a checkout on the path offers what its pyproject.toml
says it would.
"""

from __future__ import annotations

import importlib.metadata
import tomllib
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path

PACKAGE = "adaptive-finetuning"


@cache
def installed_version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def offered(group: str) -> list[EntryPoint]:
    """The entry points of a group, by name."""
    found = list(importlib.metadata.entry_points(group=group))
    if installed_version(PACKAGE) is None:
        found += _of_checkout(group)
    return sorted(found)


def _of_checkout(group: str) -> list[EntryPoint]:
    path = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not path.is_file():
        return []
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    points = project.get("entry-points", {}).get(group, {})
    return [EntryPoint(name, value, group) for name, value in points.items()]
