"""What LXMERT offers: found by `common.runs.backbones` through the package entry point."""

from __future__ import annotations

from common.runs.backbones import Backbone
from lxrt.bench import bench_model
from lxrt.building import make_inputs, make_model
from lxrt.exporting import EXPORTING
from lxrt.parity import run_pretraining, run_vqa

LXMERT = Backbone(
    name="lxmert",
    make_model=make_model,
    make_inputs=make_inputs,
    exporting=EXPORTING,
    parity={"lxmert_vqa": run_vqa, "lxmert_pretrain": run_pretraining},
    bench=bench_model,
)
