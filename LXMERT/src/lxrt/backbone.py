"""What LXMERT offers: found by `common.runs.backbones` through the package entry point."""

from __future__ import annotations

from collections.abc import Sequence

from common.runs.backbones import Backbone, BenchSizes
from common.runs.run_script import RunScript
from lxrt import PROJECT
from lxrt.bench import bench_model
from lxrt.building import make_inputs, make_model
from lxrt.exporting import EXPORTING
from lxrt.inputs import find_places
from lxrt.parity import run_adaptive, run_pretraining, run_vqa


class LxmertScript(RunScript):
    """GPU and name come first, data and model are flags."""

    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        return ["bash", "run/vqa_finetune.bash", gpu, name, *flags]

    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        return [
            "bash",
            "run/vqa_test.bash",
            gpu,
            name,
            "--load",
            f"{self.runs}/{name}/{snapshot}",
            "--test",
            "minival",
            *flags,
        ]


LXMERT = Backbone(
    name="lxmert",
    project=PROJECT,
    script=LxmertScript(PROJECT.folder, "snap/vqa"),
    make_model=make_model,
    make_inputs=make_inputs,
    places=find_places,
    exporting=EXPORTING,
    parity={
        "lxmert_vqa": run_vqa,
        "lxmert_pretrain": run_pretraining,
        "lxmert_adaptive": run_adaptive,
    },
    bench=bench_model,
    bench_sizes=BenchSizes(folder=""),
)
