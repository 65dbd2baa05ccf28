"""A finetuning run from pretrained weights to result.json, plots and report; for all backbones.

Shape legend: D decisions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.adapt.adapting import (
    adaptive_part,
    deciding_part,
    named_parameter_groups,
    parameter_counts,
    parameter_groups,
    set_global_decisions,
)
from common.adapt.attention import without_attention
from common.adapt.encoder import Adaptive
from common.adapt.families import find_encoder
from common.adapt.policy import OraclePolicy
from common.adapt.strategies import Strategy
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.files import write_bytes, write_json
from common.results.files import mean_of_live, things_of
from common.runs.opened_run import save_answers
from common.runs.strategy_record import ATTENTION, KEY
from common.tasks.evaluation import Evaluation, FinetuneTask, counted
from common.tasks.measuring import measure_work
from common.tasks.options import FinetuneOptions
from common.tasks.permuting import noting, permuted_evaluation
from common.tasks.problems import find_problems
from common.tasks.settling import settle_executor, settled_warmup
from common.training.batch_order import BatchOrder, Order
from common.training.checkpoint import load_checkpoint, save_checkpoint
from common.training.loop import Trainer
from common.training.optim import OptimizerWithSchedule, make_optimizer
from common.training.policy_lessons import PolicyTraining
from common.training.policy_report import policy_line
from common.training.run_folder import SnapshotNames
from common.training.runtime import Runtime, peak_memory, versions
from common.training.tracking import Tracker
from common.training.weights import load_into

Optimizers = tuple[OptimizerWithSchedule, OptimizerWithSchedule | None]


@dataclass
class Run:
    """Everything a finetuning run needs.

    Attributes:
        model: pretrained and adapted, on the runtime's device.
        task: training and held-out samples.
        val: the samples that are reported.
        strategy: of the model.
        options: how to train, decide and report.
        out_dir: folder of the run.
        runtime, tracker: device and precision; log and curves.
        identity: backbone, task, dataset, strategy, policy, size, seed: the head of result.json;
            and `variant`, where the model is not as its size says.
        meta: what checkpoints of this run must agree on.
        command: as it was typed.
        tokenizer: its vocabulary is kept in the folder.
        answers: kept there as well; empty for a task without an answer head.
        keep: keeps more there; called after the check for an earlier run.
        names: of the checkpoints.
        order: which samples make up which batch; None: `BatchOrder`.
        optimizers: makes the optimisers of the model and the policy from the run and the number of
            updates; default `make_optimizers`.
        epoch_lines: what is logged after an epoch, from its record; default `epoch_lines`.
        warnings: put into result.json.
        start: when the run began, seconds of `time.perf_counter`.
    """

    model: nn.Module
    task: FinetuneTask
    val: Any
    strategy: Strategy
    options: FinetuneOptions
    out_dir: Path
    runtime: Runtime
    tracker: Tracker
    identity: dict[str, Any]
    meta: dict[str, Any]
    command: str
    tokenizer: Tokenizer
    answers: Sequence[str] = ()
    keep: Callable[[], None] = field(default=lambda: None)
    names: SnapshotNames = field(default_factory=SnapshotNames)
    order: Order | None = None
    optimizers: MakeOptimizers | None = None
    epoch_lines: Callable[[dict[str, Any]], str] | None = None
    warnings: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)


MakeOptimizers = Callable[[Run, int], Optimizers]


def identity(
    meta: Mapping[str, Any], dataset: str, seed: int, name: str, **more: Any
) -> dict[str, Any]:
    """The head of result.json.

    Args:
        meta: of the run's checkpoints, see `finetuned_meta`.
        dataset, seed, name: of the run.
        more: e.g. `variant`.
    """
    same = {key: meta[key] for key in ("backbone", "task", "strategy", "policy", "size")}
    return same | {"dataset": dataset, "seed": seed, "name": name} | more


def make_optimizers(run: Run, total_steps: int) -> Optimizers:
    """The optimiser of the model and, where there is a policy, its own."""
    groups, options = parameter_groups(run.model), run.options
    recipe = options.recipe
    rest, of_attention = without_attention(
        named_parameter_groups(run.model)["trainable"], options.loop.attention_lr
    )
    weights = [parameter for _, parameter in rest]
    main = make_optimizer(
        recipe.optim,
        [{"params": weights}, *of_attention] if of_attention else weights,
        recipe.lr,
        total_steps,
        weight_decay=recipe.weight_decay,
        **recipe.schedule,
    )
    if not groups["policy"]:
        return main, None
    schedule = options.policy_schedule
    policy = make_optimizer(
        options.policy_optim,
        groups["policy"],
        recipe.policy_lr,
        total_steps,
        warmup=recipe.warmup if schedule == "linear" else 0.0,
        schedule=schedule,
    )
    return main, policy


def training_settings(run: Run) -> dict[str, Any]:
    """What a run must have in common with the one that it resumes, beside the model."""
    free = ("eval_batch_size", "workers", "log_every", "save_every", "max_steps", "progress")
    options = run.options
    settings = vars(options.recipe) | asdict(options.loop)
    if options.loop.policy == PolicyTraining(warmup=0.0):
        settings["policy"] = None  # as in runs from before there was a choice
    part = adaptive_part(run.model)
    adaptive = asdict(part.options) if part is not None else {}
    adaptive.pop("eval_executor", None)  # which does not matter for what is learned
    adaptive |= {
        "temperature": options.adaptive.temperature,
        "initial_share": options.initial_share,
        "policy_eval": options.adaptive.policy_eval,
    }
    return {
        "dataset": run.identity["dataset"],
        "precision": run.runtime.precision,
        **run.task.settings(),
        "adaptive": adaptive,
        **{key: value for key, value in settings.items() if key not in free},
    }


def finetune(run: Run) -> dict[str, Any]:
    """Train, take the best epoch, evaluate, and write result.json, plots and report."""
    loop = settled_warmup(run.model, run.options.loop, run.tracker)
    run.options = replace(run.options, loop=loop)
    last = run.out_dir / f"{run.names.last}.safetensors" if run.options.resume else None
    order = run.order or BatchOrder(len(run.task), loop.batch_size, loop.seed)
    settle_executor(run.model, run.task, order, loop, run.runtime, run.tracker, last)
    options = run.options
    main, policy = (run.optimizers or make_optimizers)(run, order.total(loop.epochs))
    meta = run.meta | {"training": training_settings(run)}
    trainer = Trainer(
        run.model,
        run.task,
        main,
        policy,
        run.runtime,
        loop,
        run.out_dir,
        run.tracker,
        meta,
        run.names,
        lambda: keep_files(run),
        order,
    )
    part = adaptive_part(run.model)
    if part is not None and part.options.policy_eval == "global":
        part.options.policy_eval = "argmax"  # until the best epoch is known, see fix_global_policy
    if options.global_k is not None:
        check_global_k(part, options.global_k)
    check_constrain_k(part, loop.budget.constrain_k)
    check_oracle(part, run.task)
    trainer.begin(options.resume, options.overwrite)
    trainer.fit(lambda record: _after_epoch(run, record, trainer.step))
    if trainer.epoch < loop.epochs:
        run.tracker.log(
            f"stopped after {trainer.step} of {trainer.total_steps} steps; go on with "
            "--resume and without --max-steps"
        )
        return {}
    result = report(run, trainer)
    run.tracker.log(summary_lines(result))
    return result


def keep_files(run: Run) -> None:
    """Write what `ask` needs beside a checkpoint."""
    write_bytes(run.out_dir / "vocab.txt", run.tokenizer.text().encode())
    if run.answers:
        save_answers(run.out_dir, list(run.answers))
    run.keep()


def epoch_lines(values: dict[str, Any]) -> str:
    """LXMERT's format; `Valid` is measured on what was held out of the training split."""
    return (
        f"\nEpoch {values['epoch']}: Train {values['train_accuracy']:.2f}\n"
        f"Epoch {values['epoch']}: Valid {values['heldout_score']:.2f}\n"
        f"Epoch {values['epoch']}: Best {values['best_score']:.2f}"
    )


def _after_epoch(run: Run, values: dict[str, Any], step: int) -> None:
    run.tracker.log((run.epoch_lines or epoch_lines)(values))
    if values.get("policy"):
        run.tracker.log(policy_line(values["policy"]))
    if values.get("decisions") is None or not run.options.plots or not run.runtime.world.main:
        return
    from common.results.decision_plots import plot_decisions  # see `draw`

    partial = run.identity | {
        "decisions": decision_table(
            run.model, values["decisions"]["share"], values["decisions"]["count"]
        )
    }
    name = f"{run.strategy.name}_heldout_epoch_{values['epoch']}.png"
    path = run.out_dir / "visualizations" / name
    path.parent.mkdir(exist_ok=True)
    plot_decisions(partial, path, split="held-out", epoch=values["epoch"])
    run.tracker.image("decisions/heldout", path, step)


def decision_table(
    model: nn.Module, share: Sequence[float], count: int, by_type: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The `decisions` entry of result.json for D shares over `count` samples."""
    part = deciding_part(model)
    live = part.live.tolist()
    return {
        "names": part.decision_names,
        "layers": part.decision_layers,
        "components": part.decision_components,
        "share": list(share),
        "live": live,
        "count": count,
        "share_by_type": by_type or {},
        "mean_live": mean_of_live(share, live),
    }


def report(run: Run, trainer: Trainer) -> dict[str, Any]:
    """Evaluate the best epoch and write result.json, plots and the HTML report."""
    run.runtime.world.barrier()  # until the first process has saved everything
    state, _ = load_checkpoint(run.out_dir / "BEST.safetensors")
    load_into(run.model, state["model"], what="BEST")
    if run.strategy.adaptive and run.options.adaptive.policy_eval == "global":
        fix_global_policy(run)
    with noting(run.model) as noted:
        val = run.task.evaluate(run.model, run.val, "validation")
    seed = run.options.loop.seed
    exchanged = noted and permuted_evaluation(run.model, run.task, run.val, seed, noted)
    train = run.task.evaluate(run.model, run.task.measured, f"training {run.task.things}")
    result = collect(run, trainer, train, val, exchanged or None)
    if not run.runtime.world.main:
        return result
    write_json(run.out_dir / "result.json", result, indent=1)
    if run.options.plots:
        draw(result, run.out_dir)
    return result


def draw(result: dict[str, Any], out_dir: Path) -> None:
    """The plots of a finished run, as files in visualizations/ and in the HTML report."""
    # Not at the top: matplotlib takes a third of a second, in every process of every run.
    from common.results.attention_plots import plot_alphas, plot_spans, records_attention
    from common.results.decision_plots import plot_decisions
    from common.results.decision_trends import plot_decision_history, plot_decisions_by_type
    from common.results.plots import plot_training
    from common.results.policy_plots import plot_policy, records_policy
    from common.results.report import write_run_report

    folder = out_dir / "visualizations"
    folder.mkdir(exist_ok=True)
    plot_training(result, folder / "training.png")
    if result["decisions"] is not None:
        plot_decisions(result, folder / "decisions.png")
        plot_decisions_by_type(result, folder / "decisions_by_type.png")
        plot_decision_history(result, folder / "decision_history.png")
    if records_policy(result):
        plot_policy(result, folder / "policy.png")
    if records_attention(result, "span"):
        plot_spans(result, folder / "spans.png")
    if records_attention(result, "alpha"):
        plot_alphas(result, folder / "alphas.png")
    write_run_report(out_dir)


def check_global_k(part: Adaptive | None, k: int) -> None:
    """Refuse a number of sites that the model does not have, before any training."""
    live = int(part.live.sum()) if part is not None else 0
    if not 0 <= k <= live:
        raise ConfigError(f"--global-k {k}: the model has {live} live decisions")


def check_constrain_k(part: Adaptive | None, k: float | None) -> None:
    """Refuse a budget that no decisions can meet, before any training."""
    live = int(part.live.sum()) if part is not None else 0
    if k is not None and k > live:
        raise ConfigError(f"a budget of K = {k:g} decisions: the model has {live} live ones")


def check_oracle(part: Adaptive | None, task: FinetuneTask) -> None:
    """Refuse an oracle of a kind that is not trained on, before any training."""
    if part is None or not isinstance(part.policy, OraclePolicy) or part.policy.kind in task.kinds:
        return
    there = f"are of kind {', '.join(task.kinds)}" if task.kinds else "have no kinds"
    raise ConfigError(
        f"--policy oracle:{part.policy.kind}: the training {task.things} {there}: choose one of "
        "theirs, or a data set that tells kinds apart"
    )


def fix_global_policy(run: Run) -> None:
    """One decision per site, from the shares over the training questions in evaluation mode.

    They are saved in BEST, so that it can be tested with `--policy-eval global`.
    """
    part = deciding_part(run.model)
    counts = run.task.evaluate(run.model, run.task.measured, "global policy").decisions
    set_global_decisions(part, torch.tensor(counts.share), run.options.global_k)
    part.options.policy_eval = "global"
    if run.runtime.world.main:
        path = run.out_dir / "BEST.safetensors"
        state, meta = load_checkpoint(path)
        save_checkpoint(path, state | {"model": dict(run.model.state_dict())}, meta)


def collect(
    run: Run,
    trainer: Trainer,
    train: Evaluation,
    val: Evaluation,
    exchanged: Evaluation | None = None,
) -> dict[str, Any]:
    """Everything that result.json holds.

    Args:
        run, trainer: the run, after training.
        train, val: the two evaluations.
        exchanged: `val` with decisions permuted among the samples, see `permuted_evaluation`.
    """
    baselines = run.task.baselines(run.val, val)
    decisions = None
    if val.decisions.share is not None:
        decisions = decision_table(
            run.model, val.decisions.share, val.decisions.count, val.decisions.share_by_type()
        )
    part = adaptive_part(run.model)
    warnings = run.warnings + find_problems(
        val, decisions, baselines, part, options=run.options.loop, epoch=kept_epoch(trainer)
    )
    for warning in warnings:
        run.tracker.log(f"warning: {warning}")
    seconds = [epoch["step_seconds"] for epoch in trainer.history]
    return run.identity | {
        "variant": ", ".join(filter(None, [run.identity.get("variant"), *variants(run)])) or None,
        "command": run.command,
        "versions": versions(),
        "device": str(run.runtime.device),
        "precision": run.runtime.precision,
        "processes": run.runtime.world.size,
        "accuracy": {
            "train": counted(train, run.task.measured),
            "val": counted(val, run.val),
            **({"val_permuted": counted(exchanged, run.val)} if exchanged else {}),
        },
        "generalization_error": train.overall - val.overall,
        "baselines": baselines,
        "parameters": parameter_counts(run.model),
        "decisions": decisions,
        "policy_eval": run.options.adaptive.policy_eval if run.strategy.adaptive else None,
        **measure_work(run.model, run.task, run.val).to_result(),
        "time": {
            "train_step_s": statistics.median(seconds),
            "eval_sample_s": val.seconds_per_sample,
            "total_s": trainer.earlier_seconds + time.perf_counter() - run.start,
        },
        "memory": trainer.peak_memory or peak_memory(),
        "recipe": vars(run.options.recipe),
        "selection": f"{100 * run.options.holdout:g} % of the training images held out "
        f"({len(run.task.heldout)} {run.task.things})"
        + (", decisions by argmax" if run.options.adaptive.policy_eval == "global" else ""),
        "best_epoch": trainer.best_epoch,
        "epochs": trainer.history,
        "warnings": warnings,
    }


def kept_epoch(trainer: Trainer) -> dict[str, Any]:
    """The record of the best epoch."""
    return next((e for e in trainer.history if e["epoch"] == trainer.best_epoch), {})


def variants(run: Run) -> list[str]:
    """What sets a run apart from others with its strategy and policy, in a word or two each."""
    options, found = run.options, []
    budget = options.loop.budget
    layers = find_encoder(run.model).layers()
    trained = [
        number
        for number, layer in enumerate(layers, 1)
        if any(p.requires_grad for p in layer.module.parameters())
    ]
    if run.strategy.frozen == "not_last":
        found.append(f"last {len(trained)}")
    elif run.strategy.frozen == "listed":
        frozen = sorted(set(range(1, len(layers) + 1)) - set(trained))
        found.append(f"frozen {','.join(map(str, frozen))}")
    mechanism = run.meta[KEY].get(ATTENTION) or {}
    found += [word for word in _mechanism_words(mechanism) if word]
    if options.loop.layerdrop is not None:
        drop = options.loop.layerdrop
        found.append(f"LayerDrop {drop.rate or drop.count:g}")
    if run.meta.get("pruned"):
        found.append(f"pruned {run.meta['pruned']}")
    found += [
        word for word in _training_words(options.loop.policy) if run.strategy.adaptive and word
    ]
    if budget.constrain_k is not None:
        found.append(f"K = {budget.constrain_k:g}")
    if budget.target_rate is not None:
        found.append(f"share {budget.target_rate:g}")
    if run.strategy.adaptive and options.adaptive.policy_eval != "argmax":
        found.append(options.adaptive.policy_eval)
    return found


def _training_words(policy: PolicyTraining) -> tuple[str, str]:
    """How a policy is trained beside its gradient; empty where it is not."""
    started = "started" if policy.hold >= 1 else "started, then learned"
    return started if policy.starts else "", "reviewed" if policy.review else ""


def _mechanism_words(attention: Mapping[str, Any]) -> tuple[str, str, str]:
    """The normaliser and the span of a mechanism (entry of the meta); empty where it is usual."""
    normaliser, span = (attention.get(key) for key in ("normaliser", "span"))
    return (
        "" if normaliser in (None, "softmax") else normaliser,
        "" if span in (None, "none") else f"span over {span}",
        "read from the pair" if attention.get("span_policy") else "",
    )


def summary_lines(result: dict[str, Any]) -> str:
    """What a run prints last."""
    val, train = result["accuracy"]["val"], result["accuracy"]["train"]
    types = ", ".join(
        f"{kind} {value:.2f}"
        for kind, value in val.items()
        if kind not in ("overall", "count") and value is not None
    )
    lines = [
        f"\n{result['strategy']}: train {train['overall']:.2f}, validation "
        f"{val['overall']:.2f}{f' ({types})' if types else ''}, generalization error "
        f"{result['generalization_error']:.2f}"
    ]
    if exchanged := result["accuracy"].get("val_permuted"):
        lines.append(
            f"validation with the decisions of other {things_of(result['task'], decided=True)}: "
            f"{exchanged['overall']:.2f}"
        )
    if result["decisions"]:
        lines.append(f"share of live decisions that are 1: {result['decisions']['mean_live']:.3f}")
    return "\n".join(lines)
