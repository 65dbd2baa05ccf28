"""Finetuning and evaluating ViLBERT: what train_tasks.py and eval_tasks.py run."""

from __future__ import annotations

from dataclasses import replace

from common.data.datasets import Dataset
from common.tasks.questions import QuestionOptions
from common.training.run_folder import SnapshotNames
from vilbert.building import build, chosen_size, make_inputs
from vilbert.options import (
    DATA_HELP,
    RECIPES,
    TINY,
    ModelOptions,
    add_eval_options,
    add_train_options,
    model_options,
    settle_eval,
    settle_train,
)
from vilbert.recipe import optimizers_of
from vilbert.sizes import HOME
from vilbert.task_program import ViLBertProgram
from vilbert.vqa_data import task_dataset


def dataset_of(model: ModelOptions, data: QuestionOptions) -> Dataset:
    """The data of the task that was chosen."""
    return task_dataset(model.task, data.dataset, data.data)


TRAIN = ViLBertProgram(
    home=HOME,
    script="train_tasks.py",
    description="Finetune ViLBERT on a task of vlbert_tasks.yml, plainly or adaptively. Starts in "
    "several processes under torchrun or python -m torch.distributed.launch.",
    add_options=add_train_options,
    model_options=model_options,
    size=chosen_size,
    build=build,
    make_inputs=make_inputs,
    recipes=RECIPES,
    tiny=TINY,
    settle=settle_train,
    dataset=dataset_of,
    optimizers=lambda options, size: optimizers_of(options.model, size),
    data_help=DATA_HELP,
    names=SnapshotNames(epoch="pytorch_model_{}", first=0, keep=1),
)
EVALUATE = replace(
    TRAIN,
    script="eval_tasks.py",
    description="Answer a split with a finetuned ViLBERT; writes SPLIT_result.json, as EvalAI "
    "takes it, and SPLIT_others.json with the eight likeliest answers to every question.",
    add_options=add_eval_options,
    settle=settle_eval,
    predictions="{}_result.json",
    others="{}_others.json",
)
train = TRAIN.main()
evaluate = EVALUATE.main()
