"""From a batch of the VQA data set to the inputs of LXMERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.tokenizer import MAX_TOKENS, Tokenizer
from common.data.vqa_dataset import VQABatch
from common.features.carried import carried
from common.runs.backbones import OpenedRun
from common.runs.places import Places, two_streams
from common.training.padding import Range, padded, region_lengths, text_lengths


@dataclass
class LxmertInputs:
    """Callable that tokenises questions and arranges regions."""

    tokenizer: Tokenizer

    def __call__(self, batch: VQABatch) -> dict[str, Tensor | None]:
        """Inputs of `VQAModel.forward`: (B, T) ids and mask, (B, R, F) features, (B, R, 4) boxes.

        The mask of regions is None where all images have equally many, as with 36 boxes upstream.
        """
        ids, mask = self.tokenizer.encode(batch.questions)
        regions = None if bool(batch.region_mask.all()) else batch.region_mask.long()
        return {
            "input_ids": ids,
            "input_mask": mask,
            "features": carried([batch.features], 1),
            "boxes": batch.boxes,
            "region_mask": regions,
        }

    def padded(
        self, inputs: Mapping[str, Tensor | None], regions: Range | None
    ) -> dict[str, Tensor | None]:
        """See `common.tasks.vqa.MakesGpuInputs`; where all images have equally many regions, those
        stay as they are."""
        found = padded(inputs, {"input_ids": 0, "input_mask": 0}, text_lengths(MAX_TOKENS))
        if regions is not None and regions[0] == regions[1]:
            return found
        if (boxes := found["boxes"]) is not None and found["region_mask"] is None:
            found["region_mask"] = torch.ones(boxes.shape[:2], dtype=torch.int64)
        fills = {"features": 0, "boxes": 0, "region_mask": 0}
        return padded(found, fills, region_lengths(regions))


def find_places(run: OpenedRun, inputs: Mapping[str, Tensor | None]) -> list[Places]:
    """What stands at the places of both streams, for each sample of `LxmertInputs`."""
    ids, mask, features = (inputs[name] for name in ("input_ids", "input_mask", "features"))
    assert ids is not None and mask is not None and features is not None
    found = two_streams(
        run.tokenizer, ids, mask, features.shape[1], inputs["region_mask"], whole_first=False
    )
    return [{"lang": words, "vision": regions} for words, regions in found]
