"""What is known of the installed backbones without loading them.

A backbone's package says it by an entry point of the group `GROUP` that names a `Project`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from common.installed import offered

GROUP = "adaptive_finetuning.projects"


@dataclass(frozen=True)
class Project:
    """The project folder of a backbone.

    Attributes:
        title: the backbone's name as its paper writes it.
        folder: with its scripts, README and results; relative to the repository.
        vqa_data: where the official files of VQA are looked for, relative to the repository; None:
            this project says nothing about it.
    """

    title: str
    folder: str
    vqa_data: str | None = None


@cache
def projects() -> dict[str, Project]:
    """The projects of all installed backbones by the backbone's name."""
    return {point.name: point.load() for point in offered(GROUP)}


def title_of(backbone: str) -> str:
    """A backbone's name as its paper writes it; the name itself if it is not installed."""
    project = projects().get(backbone)
    return backbone if project is None else project.title


def vqa_data() -> str:
    """Where the official files of VQA are looked for, relative to the repository."""
    return next((found.vqa_data for found in projects().values() if found.vqa_data), "data")
