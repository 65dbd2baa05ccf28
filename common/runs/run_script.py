"""How a backbone's own scripts start a finetuning run, for what starts many of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import repository_root


@dataclass(frozen=True)
class RunScript(ABC):
    """How a backbone finetunes on VQA.

    Attributes:
        folder: of the backbone; its commands run there.
        runs: where runs go in it.
    """

    folder: str
    runs: str

    @abstractmethod
    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        """What starts the run `name`, in the backbone's folder."""

    @abstractmethod
    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        """What evaluates a snapshot (`BEST`, `LAST`) of the run `name` on minival."""

    def data(self, dataset: str) -> tuple[str, ...]:
        """Flags that choose an embedded data set, and the small model with it."""
        return "--dataset", dataset

    @property
    def home(self) -> Path:
        """The backbone's folder."""
        return repository_root() / self.folder

    def run_folder(self, name: str) -> Path:
        """Where the run `name` writes to."""
        return self.home / self.runs / name
