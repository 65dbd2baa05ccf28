"""Answering the questions of a split with a finetuned model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from common.data.vqa_dataset import VQADataset
from common.data.vqa_metric import write_predictions
from common.files import write_json
from common.tasks.evaluation import Evaluation
from common.tasks.measuring import measure_work
from common.tasks.vqa import VQATask

BEST_ANSWERS = 8


def predict(
    model: nn.Module,
    task: VQATask,
    data: VQADataset,
    split: str,
    path: Path,
    model_name: str,
    say: Callable[[str], None],
    origin: str = "",
    others: Path | None = None,
) -> Evaluation:
    """Write the predictions in the EvalAI form; say the accuracy, where the answers are public, and
    what a question costs.

    Args:
        model: on the task's device.
        task: makes the model's inputs.
        data: the questions.
        split: their name.
        path: of the predictions; the first process writes them.
        model_name: for the line about the accuracy, e.g. data set and strategy.
        say: where to report to.
        origin: the model's file, where that is not plain to the user.
        others: file of the `BEST_ANSWERS` likeliest answers to every question; None: none.
    """
    found = task.evaluate(model, data, split, BEST_ANSWERS if others else 0)
    if task.runtime.world.main:
        write_predictions(path, found.predictions)
        if others is not None:
            rows = [{"question_id": asked, "answer": best} for asked, best in found.best.items()]
            write_json(others, rows)
    of = f" of {origin}" if origin else ""
    say(f"{len(found.predictions)} predictions{of} in {path}")
    if found.scores is not None:
        scores = ", ".join(
            f"{kind} {value:.2f}" for kind, value in found.scores.items() if value is not None
        )
        say(f"{split} of {model_name}: {scores}")
    say(str(measure_work(model, task, data)))
    return found
