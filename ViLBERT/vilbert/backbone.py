"""What ViLBERT offers: found by `common.runs.backbones` through the package entry point."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.runs.backbones import Backbone, BenchSizes
from common.runs.run_script import RunScript
from vilbert import PROJECT
from vilbert.bench import bench_model
from vilbert.building import make_inputs, make_model
from vilbert.exporting import EXPORTING, run_dataset
from vilbert.inputs import find_places
from vilbert.parity import PARITY
from vilbert.sizes import SMALL_CONFIG


@dataclass(frozen=True)
class ViLBertScript(RunScript):
    """Task, data and name are flags; the folder of a run has the names of task and config too.

    Attributes:
        prefix: of the folders of runs.
    """

    prefix: str = f"VQA_{SMALL_CONFIG.stem}-"

    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        start = [sys.executable, "train_tasks.py", "--tasks", "1", "--save_name", name]
        return [*start, "--gpus", gpu, *flags]

    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        folder = f"{self.runs}/{self.prefix}{name}"
        return [
            sys.executable,
            "eval_tasks.py",
            "--task",
            "1",
            "--from_pretrained",
            f"{folder}/{snapshot}",
            "--output",
            folder,
            "--gpus",
            gpu,
            "--split",
            "minival",
            *flags,
        ]

    def run_folder(self, name: str) -> Path:
        return self.home / self.runs / f"{self.prefix}{name}"


VILBERT = Backbone(
    name="vilbert",
    project=PROJECT,
    script=ViLBertScript(PROJECT.folder, "save"),
    make_model=make_model,
    make_inputs=make_inputs,
    places=find_places,
    exporting=EXPORTING,
    dataset=run_dataset,
    parity=PARITY,
    bench=bench_model,
    bench_sizes=BenchSizes(quick_reference_layers=None),
)
