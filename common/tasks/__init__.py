"""What runs do: finetuning on visual question answering, and the shared end of pretraining."""

from common.tasks.command import Command
from common.tasks.finetuning import Optimizers, Run, finetune
from common.tasks.masking import Draws, blank_or_replace, mask_pieces
from common.tasks.options import (
    FinetuneOptions,
    Recipe,
    finetune_options,
    flag_texts,
    log_options,
    run_options,
)
from common.tasks.pretraining import VALIDATION, PretrainingRun, heldout_means, pretrain
from common.tasks.starting import LogOptions, RunOptions, Started, join, started
from common.tasks.vqa import EVALUATION, VQATask, vqa_loss

__all__ = [
    "EVALUATION",
    "VALIDATION",
    "Command",
    "Draws",
    "FinetuneOptions",
    "LogOptions",
    "Optimizers",
    "PretrainingRun",
    "Recipe",
    "Run",
    "RunOptions",
    "Started",
    "VQATask",
    "blank_or_replace",
    "finetune",
    "finetune_options",
    "flag_texts",
    "heldout_means",
    "join",
    "log_options",
    "mask_pieces",
    "pretrain",
    "run_options",
    "started",
    "vqa_loss",
]
