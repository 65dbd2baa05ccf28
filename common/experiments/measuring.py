"""What the models of a measured experiment cost and save, after their training, side by side.

All models of one seed are opened in one process and answer the same validation questions in turn,
so that noise of the machine hits all of them alike. Rows without training of their own, whose
layers are taken out of a trained model, answer every validation question here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.adapt.adapting import parameter_counts
from common.adapt.families import find_encoder
from common.adapt.layerdrop import prune
from common.adapt.strategies import find_strategy
from common.data.datasets import TINY_IMAGES, load_split, open_features, resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.errors import DataError
from common.experiments.plan import PlannedRun, run_script
from common.experiments.rows import PrunedRow
from common.files import text_digest, write_json
from common.reading import read_json
from common.results.files import FILE_NAME, Result, load_result
from common.runs.opened_run import open_run
from common.tasks.evaluation import counted, tell_evaluation
from common.tasks.measuring import BATCH, measure_work, measured_places
from common.tasks.vqa import VQATask
from common.training.batch_order import iterate
from common.training.runtime import Runtime, make_runtime, set_threads
from common.training.timing import find_clock, interleaved, summarise

ROUNDS = 15
EVAL_BATCH = 256
# What a pruned row has in common with the run that it is taken from.
SHARED = (
    *("backbone", "task", "dataset", "strategy", "policy", "size", "seed", "versions", "device"),
    *("precision", "processes", "baselines", "recipe", "selection", "best_epoch"),
)


@dataclass
class Compared:
    """A model and what is known of it: what goes into the published result of its row."""

    model: nn.Module
    figures: Result


def measured_file(runs: Sequence[PlannedRun]) -> Path:
    """Where the figures of the runs of one seed are kept."""
    return runs[0].folder.parents[1] / "measured" / f"seed_{runs[0].seed}.json"


def measured_rows(runs: Sequence[PlannedRun]) -> dict[str, Result]:
    """Figures by the name of the row; none where they are not there, or of other runs."""
    path = measured_file(runs)
    found = read_json(path) if path.is_file() else {}
    return found["rows"] if found.get("of") == _state(runs) else {}


def keep_measured(runs: Sequence[PlannedRun], rows: dict[str, Result]) -> None:
    """Keep the figures of the runs of one seed."""
    write_json(measured_file(runs), {"of": _state(runs), "rows": rows}, indent=1)


def _state(runs: Sequence[PlannedRun]) -> dict[str, str]:
    """What the figures depend on: the results of the runs, and what is taken out of models."""
    files = ((run.row, run.folder / FILE_NAME) for run in runs)
    trained = {
        name: text_digest(path.read_text(encoding="utf-8")) for name, path in files if path.exists()
    }
    return trained | {row.name: row.rule for row in runs[0].experiment.pruned}


def measure(runs: Sequence[PlannedRun], gpu: str, rounds: int = ROUNDS) -> dict[str, Result]:
    """Open all models of one seed and measure them.

    Args:
        runs: all trained rows of an experiment with one seed, finished.
        gpu: number or cpu.
        rounds: how often every model answers the same questions to be timed.

    Returns:
        What goes into the published results, by the name of the row.

    Raises:
        CheckpointError: the best checkpoint of a run is not there.
        DataError: the questions are not those that the runs were evaluated on.
    """
    runtime = make_runtime(gpu)
    set_threads(None, small=True)
    task, data = _questions(runs[0], runtime)
    rows = {run.row: _trained(run, runtime) for run in runs}
    for row in runs[0].experiment.pruned:
        (source,) = (run for run in runs if run.row == row.source)
        rows[row.name] = _pruned(source, row, task, data)
    baseline = next(iter(rows))
    for compared in rows.values():
        compared.figures |= measure_work(compared.model, task, data).to_result()
    models = {name: row.model for name, row in rows.items()}
    for name, timed in _times(models, baseline, task, data, rounds).items():
        figures = rows[name].figures
        flops = (rows[which].figures["flops"]["per_sample"] for which in (name, baseline))
        parameters = sum(parameter_counts(rows[name].model).values())
        figures["measured"] |= timed | {"flops_ratio": next(flops) / next(flops)}
        figures["measured"]["parameters"] = parameters
    return {name: row.figures for name, row in rows.items()}


def _questions(run: PlannedRun, runtime: Runtime) -> tuple[VQATask, VQADataset]:
    """The validation questions of a run, and what asks them."""
    result, opened = load_result(run.folder), open_run(run.folder)
    dataset = resolve_dataset(result["dataset"])
    _, split = dataset.choose_splits(None, None)
    limit = TINY_IMAGES if "--tiny" in run.experiment.flags else None
    data = VQADataset(
        load_split(dataset, split, limit), open_features(dataset, split), dataset.vocabulary()
    )
    if len(data) != result["accuracy"]["val"]["count"]:
        raise DataError(
            f"{run}: its result is about {result['accuracy']['val']['count']} validation "
            f"questions, there are {len(data)}: start it again with --overwrite"
        )
    inputs = opened.make_inputs
    return VQATask(data, data, inputs, runtime, EVAL_BATCH, run.seed, progress=False), data


def _trained(run: PlannedRun, runtime: Runtime) -> Compared:
    result = load_result(run.folder)
    other, decisions = find_strategy(result["strategy"])[0].other, result["decisions"]
    shares = {
        "kept_share": decisions["mean_live"] if other == "skip" else 1.0,
        "finetuned_share": decisions["mean_live"] if other == "twin" else None,
    }
    model = open_run(run.folder).model.to(runtime.device)
    return Compared(model, {"measured": shares})


def _pruned(source: PlannedRun, row: PrunedRow, task: VQATask, data: VQADataset) -> Compared:
    """A trained model without some layers, on all questions."""
    compared = _trained(source, task.runtime)
    layers = len(find_encoder(compared.model).layers())
    gone = prune(compared.model, row.rule)
    kept = f"{layers - len(gone)} of {layers} layers"
    result = load_result(source.folder)
    flags = ["--dataset", result["dataset"], "--prune", row.rule]
    compared.figures = {key: result.get(key) for key in SHARED} | {
        "name": f"{source.name} {row.rule}",
        "variant": ", ".join(filter(None, [result.get("variant"), kept])),
        "command": " ".join(run_script().test("cpu", source.name, "BEST", flags)),
        "accuracy": {"val": counted(task.evaluate(compared.model, data, row.name), data)},
        "parameters": parameter_counts(compared.model),
        "measured": {"kept_share": 1 - len(gone) / layers, "finetuned_share": None},
    }
    return compared


def _times(
    models: dict[str, nn.Module], baseline: str, task: VQATask, data: VQADataset, rounds: int
) -> dict[str, dict[str, float]]:
    """Seconds of a sample, and its ratio to the baseline's with quartiles, by row."""
    places = measured_places(data)
    read = ([places[i] for i in batch] for batch in iterate(len(places), BATCH))
    batches = [task.runtime.move(task.read(batch, 0)) for batch in read]

    def answers(name: str) -> Callable[[], None]:
        model = models[name].eval()

        @torch.no_grad()
        def call() -> None:
            for batch in batches:
                tell_evaluation(model, task.seed, batch.samples, batch.kinds)
                task.answer(model, batch.inputs)

        return call

    for name in models:
        answers(name)()
    clock = find_clock(task.runtime.device)
    times = interleaved(list(models), answers, clock, rounds, task.seed)
    records = {name: summarise(taken, times[baseline]) for name, taken in times.items()}
    return {
        name: {
            "sample_s": record["seconds"] / len(places),
            "time_ratio": record["ratio"],
            "time_low": record["low"],
            "time_high": record["high"],
        }
        for name, record in records.items()
    }
