"""What VL-BERT offers: found by `common.runs.backbones` through the package entry point."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from common.runs.backbones import Backbone
from vlbert.bench import bench_model
from vlbert.building import make_inputs, make_model
from vlbert.exporting import EXPORTING
from vlbert.parity import PARITY


def run_vqa_data(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Kind `vqa_data`; the readers of raw data are imported only for it."""
    from vlbert import data_parity

    return data_parity.run_vqa_data(config, weights, inputs, wanted)


VLBERT = Backbone(
    name="vlbert",
    make_model=make_model,
    make_inputs=make_inputs,
    exporting=EXPORTING,
    parity=PARITY | {"vqa_data": run_vqa_data},
    bench=bench_model,
)
