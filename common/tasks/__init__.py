"""What runs do: finetuning on visual question answering, and the shared end of pretraining."""

from common.tasks.finetuning import Optimizers, Recipe, Run, finetune
from common.tasks.masking import Draws, blank_or_replace, mask_pieces
from common.tasks.pretraining import export_half, pretraining_result
from common.tasks.vqa import EVALUATION, VQATask, vqa_loss

__all__ = [
    "EVALUATION",
    "Draws",
    "Optimizers",
    "Recipe",
    "Run",
    "VQATask",
    "blank_or_replace",
    "export_half",
    "finetune",
    "mask_pieces",
    "pretraining_result",
    "vqa_loss",
]
