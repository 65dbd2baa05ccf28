"""What VL-BERT offers: found by `common.runs.backbones` through the package entry point."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from common.runs.backbones import Backbone, BenchSizes
from common.runs.run_script import RunScript
from vlbert import PROJECT
from vlbert.bench import bench_model
from vlbert.building import make_inputs, make_model, reads_pictures
from vlbert.exporting import EXPORTING
from vlbert.parity import PARITY
from vlbert.places import find_places


def run_vqa_data(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Kind `vqa_data`; the readers of raw data are imported only for it."""
    from vlbert import data_parity

    return data_parity.run_vqa_data(config, weights, inputs, wanted)


@dataclass(frozen=True)
class VLBertScript(RunScript):
    """A config says data and model; runs have a folder for the image sets in that of their name.

    Attributes:
        config: of the runs.
        image_sets: the last folder.
    """

    config: str = "cfgs/easy_vqa/base.yaml"
    image_sets: str = "train+nominival_train"

    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        return [
            "bash",
            "scripts/nondist_run.sh",
            "vqa/train_end2end.py",
            self.config,
            ".",
            "--name",
            name,
            "--gpus",
            gpu,
            *flags,
        ]

    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        folder = f"{self.runs}/{name}/{self.image_sets}"
        return [
            sys.executable,
            "vqa/test.py",
            "--cfg",
            self.config,
            "--ckpt",
            f"{folder}/{snapshot}",
            "--gpus",
            gpu,
            "--split",
            "minival",
            "--result-path",
            folder,
            *flags,
        ]

    def data(self, dataset: str) -> tuple[str, ...]:
        return "--set", f"DATASET.DATASET={dataset}"

    def run_folder(self, name: str) -> Path:
        return super().run_folder(name) / self.image_sets


VLBERT = Backbone(
    name="vlbert",
    project=PROJECT,
    script=VLBertScript(PROJECT.folder, "output/vl-bert/easy_vqa"),
    make_model=make_model,
    make_inputs=make_inputs,
    reads_pictures=reads_pictures,
    places=find_places,
    exporting=EXPORTING,
    parity=PARITY | {"vqa_data": run_vqa_data},
    bench=bench_model,
    # A single stream has one stack, and its last layer is cheap: one of its positions is read.
    bench_sizes=BenchSizes(layers=4, quick_layers=2, quick_reference_layers=None, quick_batch=8),
)
