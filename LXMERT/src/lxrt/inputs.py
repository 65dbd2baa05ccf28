"""From a batch of the VQA data set to the inputs of LXMERT."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQABatch


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
            "features": batch.features,
            "boxes": batch.boxes,
            "region_mask": regions,
        }
