"""Opening a finished run: its model in evaluation mode, with what is needed to ask it something.

    run = open_run("LXMERT/snap/vqa/v1")
    logits = run.model(**run.make_inputs(batch))      # (B, A), the answers are run.answers

Everything comes from the run's folder, so that no data set has to be at hand; only runs from before
`answers.json` was kept there look their answers up in their data set.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from common.data.annotations import answer_digest
from common.data.datasets import resolve_dataset
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset, question_digest
from common.errors import AdaptiveError, CheckpointError, ConfigError, DataError, named
from common.files import write_json
from common.reading import read_json, short
from common.results.files import load_result
from common.runs.backbones import Backbone, Exporting, OpenedRun, dataset_name, find_backbone
from common.runs.strategy_record import StrategyRecord, checked_meta
from common.training.checkpoint import check_compatible, load_meta
from common.training.checkpoint_codec import MALFORMED
from common.training.run_folder import SnapshotNames
from common.training.weights import load_into, load_weights, open_checkpoint

Options = TypeVar("Options")
ANSWERS = "answers.json"
VQA = "vqa"  # the task of runs that answer questions alone


def open_run(
    folder: Path | str, data_root: Path | None = None, any_task: bool = False
) -> OpenedRun:
    """Rebuild the model of a run from its best checkpoint.

    Args:
        folder: of the run, with BEST.safetensors and the vocabulary.
        data_root: folder of VQA v2's files, for a run whose folder has no answers.json.
        any_task: open runs of other tasks than answering questions as well.

    Raises:
        CheckpointError: no run in the folder, no best checkpoint yet, one of another task, or
            answers or a vocabulary that are not those of the checkpoint.
        ConfigError: no vocabulary in the folder, or a model that cannot be opened.
        DataError: the answers are not in the folder, and the data set is not there either.
    """
    folder = Path(folder)
    checkpoint = find_best(folder)
    meta = load_meta(checkpoint)
    task = meta.get("task")
    if "backbone" not in meta or task in (None, "pretraining") or (task != VQA and not any_task):
        raise CheckpointError(
            f"{checkpoint} is not the checkpoint of a visual-question-answering "
            f"run of this code (its task is {task!r})"
        )
    checked_meta(meta, checkpoint)
    with named(checkpoint):
        backbone = find_backbone(meta["backbone"])
    answers = find_answers(folder, meta, data_root)
    tokenizer = Tokenizer(folder)
    check_compatible(meta, {"vocabulary": tokenizer.digest()}, checkpoint)
    with named(checkpoint):
        model = make_model(backbone, meta, checkpoint)
        StrategyRecord.from_meta(meta).adapt(model)
    with named(checkpoint, CheckpointError):
        make_inputs = backbone.make_inputs(tokenizer, meta)
    load_into(model, load_weights(checkpoint), what=str(checkpoint))
    model.eval()
    result = folder / "result.json"
    return OpenedRun(
        folder,
        checkpoint,
        meta,
        load_result(result) if result.exists() else None,
        model,
        make_inputs,
        tokenizer,
        answers,
    )


def make_model(backbone: Backbone, meta: dict[str, Any], checkpoint: Path) -> nn.Module:
    """The model that the meta of a checkpoint describes, with random weights and not adapted.

    It is made without memory first, so that damaged sizes cannot take it.

    Raises:
        ConfigError: a model that cannot be opened.
        CheckpointError: sizes that make no model, or one with more numbers than the file has.
    """
    try:
        with torch.device("meta"):
            needed = sum(p.numel() for p in backbone.make_model(meta).parameters())
        with open_checkpoint(checkpoint) as file:
            found = file.count()
        if needed > found:
            raise CheckpointError(
                f"{checkpoint}: its meta describes a model of {needed:,} numbers, the file has "
                f"{found:,}"
            )
        return backbone.make_model(meta)
    except MALFORMED as error:
        if isinstance(error, AdaptiveError):
            raise
        raise CheckpointError(
            f"{checkpoint}: its meta describes no model ({type(error).__name__}: "
            f"{short(str(error))}): use another checkpoint"
        ) from error


def find_best(folder: Path) -> Path:
    """The best checkpoint of a run's folder.

    Raises:
        CheckpointError: it is not there; says what is.
    """
    names = SnapshotNames()
    best, last = (folder / f"{name}.safetensors" for name in (names.best, names.last))
    if best.is_file():
        return best
    if not folder.is_dir():
        what = "is a file: give the folder of the run" if folder.exists() else "is no folder"
        raise CheckpointError(f"run {folder} {what}")
    if last.is_file():
        raise CheckpointError(
            f"{best} is missing: the run has not finished its first epoch; go on "
            "with the same command and --resume"
        )
    if (folder / "result.json").is_file():
        raise CheckpointError(
            f"{best} is missing: only the result of this run is here; its "
            "command is in result.json (`command`), run it again"
        )
    runs = sorted({path.parent.name for path in folder.glob(f"*/{best.name}")})
    there = f"; it holds the runs {', '.join(runs[:8])}" if runs else ""
    raise CheckpointError(f"{best} is missing: {folder} is not the folder of a run{there}")


def save_answers(folder: Path, answers: list[str]) -> None:
    """Keep the answers of a run in its folder, in the order of the answer head."""
    write_json(folder / ANSWERS, answers)


def options_of(run: OpenedRun, parse: Callable[[Sequence[str]], Options]) -> Options:
    """The options of a finished run: its command line, parsed again by its backbone.

    Raises:
        DataError: the run has no result yet, or this version does not understand its command.
    """
    if run.result is None or not run.result.get("command"):
        raise DataError(
            f"{run.folder} has no result.json with its command, so its training questions are not "
            "known: finish the run (the same command with --resume)"
        )
    try:
        return parse(shlex.split(run.result["command"])[2:])
    except (SystemExit, ValueError) as error:
        if isinstance(error, AdaptiveError):
            raise
        raise DataError(
            f"{run.folder / 'result.json'}: its command is not understood by this "
            f"version: {run.result['command']}"
        ) from None


def training_questions(run: OpenedRun, data_root: Path | None = None) -> VQADataset:
    """The questions that a run was finetuned on, found again.

    Args:
        run: finished.
        data_root: folder of the data's files; default: where the run had them.

    Raises:
        DataError: the run has no result yet, or these are not the questions that it was
            finetuned on.
        CheckpointError: the features are not those that it was finetuned on.
    """
    data, folder = find_exporting(run.meta["backbone"], run.folder).training_questions(
        run, data_root
    )
    check_compatible(run.meta, {"features": data.features.described()}, run.checkpoint)
    expected, found = run.meta["training"]["questions"], question_digest(data)
    if found != expected:
        raise DataError(
            f"{folder}: {found['count']} training questions were found, which "
            f"are not the {expected['count']} that {run.folder} was finetuned on; give "
            "the folder of the data that it was finetuned on with --data"
        )
    return data


def find_exporting(backbone: str, path: Path) -> Exporting:
    """What is needed to export the models of a backbone, such as the one at `path`.

    Raises:
        ConfigError: they cannot be exported.
    """
    exporting = find_backbone(backbone).exporting
    if exporting is None:
        raise ConfigError(f"{path}: this version cannot export models of {backbone}")
    return exporting


def find_answers(folder: Path, meta: dict[str, Any], data_root: Path | None = None) -> list[str]:
    """The answers of a run, from its folder or else from its data set.

    Raises:
        CheckpointError: they are not those of the checkpoint.
        DataError: neither is there.
    """
    path = folder / ANSWERS
    if not meta["answers"]["count"]:
        return []
    if path.exists():
        answers, where = read_json(path), str(path)
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise DataError(f"{path}: expected a list of texts")
    else:
        name = dataset_name(meta, folder)
        where = f"data set {name}"
        try:
            with redirect_stdout(sys.stderr):
                answers = resolve_dataset(name, data_root=data_root).vocabulary().answers
        except DataError as error:
            raise DataError(
                f"{path} is missing, and {where} cannot say what the answers are: {error}"
            ) from error
    if answer_digest(answers) != meta["answers"]:
        raise CheckpointError(
            f"{where}: has {len(answers)} answers which are not the "
            f"{meta['answers']['count']} that the checkpoint in {folder} was "
            "trained with"
        )
    return answers
