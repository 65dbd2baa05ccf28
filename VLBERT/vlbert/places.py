"""What stands at the places of VL-BERT's one stream while its layers run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from common.runs.backbones import OpenedRun
from common.runs.places import TEXT, Place, Places, region_place
from vlbert.boxes import box_mask
from vlbert.modeling import front_order
from vlbert.packing import pack
from vlbert.vqa_network import ResNetVLBERT

END = "[END]"


def find_places(run: OpenedRun, inputs: Mapping[str, Tensor | None]) -> list[Places]:
    """For each of B questions: text, objects and end, with the place of [MASK] first.

    Its row alone is read after the last layer, so it has changed places with [CLS].
    """
    model = run.model
    assert isinstance(model, ResNetVLBERT)
    question, boxes = inputs["question"], inputs["boxes"]
    assert question is not None and boxes is not None
    text = model.assemble(question)
    packing = pack(text.mask, box_mask(boxes))
    order = front_order(text.answer, packing.mask.shape[1])
    sources = packing.source.gather(1, order).tolist()
    tokens, objects = text.ids.shape[1], boxes.shape[1]
    whole = bool(run.meta["transform"]["whole_image"])
    names = [run.tokenizer.names(row) for row in text.ids.tolist()]

    def place(sample: int, source: int) -> Place | None:
        if source < tokens:
            return Place(TEXT, names[sample][source])
        if source < tokens + objects:
            return region_place(source - tokens, whole)
        return Place(TEXT, END) if source == tokens + objects else None

    return [{"hidden": [place(b, source) for source in row]} for b, row in enumerate(sources)]
