"""Export a run as a plain model: `python -m common.export --run DIR --out DIR`.

One decision per site for the whole data set turns an adaptive model into one without twins and
without policy (`common.adapt.merging`). It is written in our own checkpoint format, which `--load`
takes as a `standard` model, and as a folder of `transformers` where that library knows the
backbone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.adapt.adapting import deciding_part, set_global_decisions
from common.adapt.families import find_encoder
from common.adapt.merging import Merged, merge
from common.adapt.strategies import STRATEGIES
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError
from common.files import write_bytes, write_json
from common.modules.attention import has_mechanism
from common.reading import read_json
from common.results.files import things_of
from common.runs.backbones import Exporting, OpenedRun, backbones
from common.runs.opened_run import VQA, find_exporting, open_run, save_answers, training_questions
from common.runs.pruning import model_config
from common.runs.strategy_record import KEY, StrategyRecord
from common.tasks.evaluation import FinetuneTask
from common.tasks.vqa import VQATask
from common.training.checkpoint import load_meta, save_checkpoint
from common.training.options import command_line
from common.training.runtime import Runtime, make_runtime, set_threads, versions
from common.training.weights import SUFFIXES, resolve_checkpoint
from common.voice import spoken

FORMATS = ("ours", "transformers", "both")
MODEL, TRANSFORMERS, RECORD = "model.safetensors", "transformers", "export.json"
EVAL_BATCH = 256


@dataclass
class Source:
    """What is exported.

    Attributes:
        path: checkpoint that the weights are from.
        meta: of the checkpoint.
        model: in evaluation mode.
        vocabulary: content of vocab.txt.
        answers: in the order of the answer head.
        run: the finetuning run; None for a pretraining snapshot.
        exporting: what the backbone offers.
    """

    path: Path
    meta: dict[str, Any]
    model: nn.Module
    vocabulary: str
    answers: list[str]
    run: OpenedRun | None
    exporting: Exporting


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m common.export",
        description="Export a finetuned run as a plain model without twins and policy: SpotTune* "
        "merge into one standard model, BlockDrop into a shorter one. Each site takes "
        "the decision of the majority of the training questions, which are evaluated "
        "for it unless the run was evaluated with --policy-eval global.",
        epilog="Writes model.safetensors (for --load DIR/model), transformers/ (for "
        "from_pretrained), vocab.txt, answers.json and export.json. Exit status: 0, or 2 "
        "when nothing could be exported.",
    )
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of a finetuning run; or a pretraining snapshot "
        "file, which becomes a folder of transformers",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder that is made"
    )
    parser.add_argument(
        "--global-k",
        type=int,
        metavar="K",
        help="use the K most used sites instead of those of the majority",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="both",
        help="ours, a folder of transformers, or both (default)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the data's files (default: where the run had them)",
    )
    parser.add_argument(
        "--gpus", default="0", help="GPU number, or cpu (default 0; the CPU if there is no GPU)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = make_parser().parse_args(arguments)
    command = command_line("python -m common.export", arguments)
    print(export(args, command))
    return 0


def export(args: argparse.Namespace, command: str) -> str:
    """Do what the command line says; returns what was done, for the user to read."""
    check_target(args.out, args.overwrite)
    source = open_source(args.run)
    wanted = wanted_formats(args.format, source)
    decisions, merged = None, None
    if source.run is not None and source.run.adaptive is not None:
        decisions = decide(source.run, args)
        merged = merge(source.model)
    elif args.global_k is not None:
        raise ConfigError(f"--global-k {args.global_k}: {args.run} decides nothing")
    meta = plain_meta(source)
    with replaced_folder(args.out) as folder:
        write_model(source, meta, folder, wanted)
        record = {
            "run": str(args.run),
            "checkpoint": source.path.name,
            "command": command,
            "strategy": source.meta.get("strategy"),
            "step": source.meta.get("step"),
            "decisions": decisions,
            "merged": merged and asdict(merged),
            "layers": layer_counts(source.model),
            "config": meta["config"],
            "parameters": sum(p.numel() for p in source.model.parameters()),
            "versions": versions(),
        }
        write_json(folder / RECORD, record, indent=1)
    return summary(args, source, decisions, merged)


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier export.

    Raises:
        ConfigError: something is there, and it is no export or `overwrite` is not set.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise ConfigError(
            f"{out} exists and is not an earlier export (it has no {RECORD}); choose another folder"
        )
    if not overwrite:
        raise ConfigError(
            f"{out} holds an export already: add --overwrite to replace it, or "
            "choose another folder"
        )


def open_source(path: Path) -> Source:
    """Open a run, or a pretraining snapshot.

    Raises:
        CheckpointError: it is neither.
    """
    if path.is_dir():
        run = open_run(path, any_task=True)
        return Source(
            run.checkpoint,
            run.meta,
            run.model,
            run.tokenizer.text(),
            run.answers,
            run,
            find_exporting(run.meta["backbone"], path),
        )
    try:
        file = resolve_checkpoint(path, snapshot_suffixes())
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is neither the folder of a run nor a pretraining snapshot ({error})"
        ) from None
    meta = load_meta(file) if file.suffix == ".safetensors" else {}
    if meta.get("task") != "pretraining":
        raise CheckpointError(
            f"{file} is no pretraining snapshot of this code (its task is "
            f"{meta.get('task')!r}); of a finetuning run give the folder"
        )
    exporting = find_exporting(meta["backbone"], file)
    vocabulary = Tokenizer(file.parent).text()
    return Source(
        file,
        meta,
        exporting.open_snapshot(file, meta),
        vocabulary,
        list(meta["answers"]),
        None,
        exporting,
    )


def snapshot_suffixes() -> list[str]:
    """What the name of a pretraining snapshot of any backbone may leave out."""
    offered = [found.exporting for found in backbones().values() if found.exporting is not None]
    return [end for exporting in offered for end in exporting.snapshot_suffixes] + [*SUFFIXES]


def wanted_formats(chosen: str, source: Source) -> tuple[str, ...]:
    """The formats to write: those of the command line that make sense.

    Raises:
        ConfigError: the one that was asked for does not.
    """
    known = source.exporting.save_transformers is not None
    own_attention = known and has_mechanism(source.model)
    possible = [
        name
        for name, there in (
            ("ours", source.run is not None),  # a snapshot is a plain model of ours already
            ("transformers", known and not own_attention),
        )
        if there
    ]
    wanted = tuple(name for name in possible if chosen in (name, "both"))
    if not wanted:
        raise ConfigError(
            f"--format {chosen}: {source.path} can be exported as {', '.join(possible)} only"
            + (" (transformers knows softmax over all keys alone)" if own_attention else "")
        )
    return wanted


def decide(run: OpenedRun, args: argparse.Namespace) -> dict[str, Any]:
    """Fix one decision per site: the run's own if it has them, else from its training questions.

    Returns:
        Which decisions, D of them, the shares that they come from, and where these are from.
    """
    part = deciding_part(run.model)
    shares: list[float] | None = None
    origin = run.checkpoint.name
    if args.global_k is not None or (part.global_decisions[part.live] < 0).any():
        shares, count = training_shares(run, args)
        origin = f"{count} training {things_of(run.meta['task'], decided=True)}"
        set_global_decisions(part, torch.tensor(shares), args.global_k)
    return {
        "from": origin,
        "global_k": args.global_k,
        "names": part.decision_names,
        "live": part.live.tolist(),
        "share": shares,
        "global": [int(d) for d in part.global_decisions.tolist()],
    }


def training_shares(run: OpenedRun, args: argparse.Namespace) -> tuple[list[float], int]:
    """Share of the training questions with decision 1, D numbers, and how many they are."""
    part = deciding_part(run.model)
    live = int(part.live.sum())
    if args.global_k is not None and not 0 <= args.global_k <= live:
        raise ConfigError(f"--global-k {args.global_k}: the model has {live} live decisions")
    runtime = make_runtime(args.gpus)
    set_threads(None, run.meta.get("size") == "small")
    task = training_task(run, args.data, runtime, not args.quiet)
    part.options.policy_eval = "argmax"
    run.model.to(runtime.device)
    name = f"decisions on training {task.things}"
    counts = task.evaluate(run.model, task.measured, name).decisions
    run.model.cpu()
    assert counts.share is not None  # of a model that decides
    return list(counts.share), counts.count


def training_task(
    run: OpenedRun, data_root: Path | None, runtime: Runtime, progress: bool
) -> FinetuneTask:
    """The task of a finished run with what it was finetuned on.

    Raises:
        ConfigError: a task of which the backbone cannot find that.
    """
    recipe = (run.result or {}).get("recipe") or {}
    batch = recipe.get("eval_batch_size", EVAL_BATCH)
    if run.meta["task"] != VQA:
        make = find_exporting(run.meta["backbone"], run.folder).training_task
        if make is None:
            raise ConfigError(f"{run.folder}: decisions of {run.meta['task']} cannot be counted")
        task: FinetuneTask = make(run, data_root, runtime, batch, progress)
        return task
    data = training_questions(run, data_root)
    assert run.result is not None  # else its training questions were not known
    seed = run.result["seed"]
    return VQATask(data, data, run.make_inputs, runtime, batch, seed, progress=progress)


def plain_meta(source: Source) -> dict[str, Any]:
    """The meta of the exported checkpoint: that of a `standard` model."""
    meta = source.meta | {"config": model_config(source.model)}
    if source.run is None:
        return meta
    exported = {
        "run": source.run.folder.resolve().name,
        "strategy": meta["strategy"],
        "policy": meta["policy"],
    }
    return meta | {
        "strategy": "standard",
        "policy": None,
        KEY: StrategyRecord.from_meta(meta).plain().to_meta(),
        "exported": exported,
    }


def write_model(source: Source, meta: dict[str, Any], folder: Path, formats: Sequence[str]) -> None:
    """Write the plain model in the wanted formats, with vocabulary and answers beside it."""
    write_bytes(folder / "vocab.txt", source.vocabulary.encode())
    if source.answers:
        save_answers(folder, source.answers)
    if "ours" in formats:
        save_checkpoint(folder / MODEL, {"model": dict(source.model.state_dict())}, meta)
    save = source.exporting.save_transformers
    if "transformers" in formats and save is not None:
        kept: dict[str, Any] = {
            key: meta[key]
            for key in ("backbone", "task", "size", "features", "vocabulary", "exported")
            if key in meta
        }
        save(source.model, folder / TRANSFORMERS, source.vocabulary, source.answers, kept)


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that takes the name `out` once everything is in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.exporting-{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def layer_counts(model: nn.Module) -> dict[str, int]:
    """Layers of each stack, by the first part of their names."""
    return dict(Counter(layer.name.split(".")[0] for layer in find_encoder(model).layers()))


def summary(
    args: argparse.Namespace,
    source: Source,
    decisions: dict[str, Any] | None,
    merged: Merged | None,
) -> str:
    """What was exported, how large it is, and how it is used."""
    counts = layer_counts(source.model)
    stacks = ", ".join(f"{count} {name}" for name, count in counts.items())
    lines = [
        f"{args.out}: exported from {source.path}",
        *decision_lines(decisions, merged),
        f"  {sum(counts.values())} layers ({stacks}), "
        f"{sum(p.numel() for p in source.model.parameters()) / 1e6:.2f} million parameters",
    ]
    if (file := args.out / MODEL).exists() and source.run is not None:
        task = source.meta["task"]
        usage = source.exporting.usage if task == VQA else source.exporting.usage_of_tasks
        model = args.out.resolve() / "model"
        lines += [
            f"  {file} ({file.stat().st_size / 1e6:.1f} MB)",
            "    " + usage.format(model=model, dataset=source.run.dataset, task=task),
        ]
    if (folder := args.out / TRANSFORMERS).exists():
        size = sum(file.stat().st_size for file in folder.iterdir())
        lines += [
            f"  {folder}/ ({size / 1e6:.1f} MB)",
            f'    {saved_class(folder)}.from_pretrained("{folder}")',
        ]
    return "\n".join(lines)


def decision_lines(decisions: dict[str, Any] | None, merged: Merged | None) -> list[str]:
    """What was decided, in words."""
    if decisions is None or merged is None:
        return ["  nothing was decided: all weights are those of the checkpoint"]
    strategy = STRATEGIES[merged.strategy]
    rule = (
        f"the {decisions['global_k']} most used"
        if decisions["global_k"] is not None
        else "the majority"
    )
    other = {"twin": "keep their pretrained weights", "skip": "dropped"}.get(
        strategy.other or "", ""
    )
    lines = [
        f"  {len(merged.ones)} of {len(merged.ones) + len(merged.zeros)} decisions "
        f"{strategy.decision_word}, {len(merged.zeros)} {other or 'replaced'} "
        f"({rule}, from {decisions['from']})"
    ]
    return lines + ([f"  dropped: {', '.join(merged.dropped)}"] if merged.dropped else [])


def saved_class(folder: Path) -> str:
    """The class of `transformers` that loads a folder."""
    return read_json(folder / "config.json")["architectures"][0]


if __name__ == "__main__":
    sys.exit(main())
