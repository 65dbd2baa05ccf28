"""What runs do: finetuning on visual question answering, and the shared end of pretraining."""

from common.tasks.command import Command
from common.tasks.evaluation import EVALUATION, Evaluation, FinetuneTask
from common.tasks.finetuning import Optimizers, Run, finetune, identity
from common.tasks.masking import Draws, blank_or_replace, mask_pieces
from common.tasks.options import (
    FinetuneOptions,
    Recipe,
    add_recipe_options,
    finetune_options,
    flag_texts,
    log_options,
    recipe_changes,
    run_options,
)
from common.tasks.predicting import predict
from common.tasks.pretraining import VALIDATION, PretrainingRun, heldout_means, pretrain
from common.tasks.questions import (
    QuestionOptions,
    add_question_options,
    find_features,
    find_questions,
    trained_on,
    training_examples,
)
from common.tasks.seeds import SeedRuns, run_seeds
from common.tasks.starting import LogOptions, RunOptions, Started, join, started
from common.tasks.vqa import VQATask, vqa_loss
from common.tasks.vqa_command import Built, Say, VQAOptions, VQAProgram

__all__ = [
    "EVALUATION",
    "VALIDATION",
    "Built",
    "Command",
    "Draws",
    "Evaluation",
    "FinetuneOptions",
    "FinetuneTask",
    "LogOptions",
    "Optimizers",
    "PretrainingRun",
    "QuestionOptions",
    "Recipe",
    "Run",
    "RunOptions",
    "Say",
    "SeedRuns",
    "Started",
    "VQAOptions",
    "VQAProgram",
    "VQATask",
    "add_question_options",
    "add_recipe_options",
    "blank_or_replace",
    "find_features",
    "find_questions",
    "finetune",
    "finetune_options",
    "flag_texts",
    "heldout_means",
    "identity",
    "join",
    "log_options",
    "mask_pieces",
    "predict",
    "pretrain",
    "recipe_changes",
    "run_options",
    "run_seeds",
    "started",
    "trained_on",
    "training_examples",
    "vqa_loss",
]
