"""Visual question answering with VL-BERT's data, for the training loop."""

from __future__ import annotations

from collections.abc import Sequence

from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.vqa import VQATask
from common.training.runtime import Runtime
from common.training.task import TaskBatch
from vlbert.vqa_dataset import VLBertData, VLBertInputs


class VLBertTask(VQATask):
    """`VQATask` whose training samples may be mirrored, in each epoch anew."""

    train: VLBertData

    def __init__(
        self,
        train: VLBertData,
        heldout: VLBertData,
        runtime: Runtime,
        eval_batch_size: int | EvaluationBatches,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Put data together; arguments as of `VQATask`."""
        super().__init__(
            train,
            heldout,
            VLBertInputs(train.tokenizer, train.transform, train.longest),
            runtime,
            eval_batch_size,
            seed,
            progress,
        )

    def read(self, indices: Sequence[int], epoch: int) -> TaskBatch:
        """The training questions at some places, as they look in this epoch."""
        batch = self.train.read(indices, epoch, self.half)
        # It has what is used of a `VQABatch`.
        return self._convert(batch, self.train)  # type: ignore[arg-type]
