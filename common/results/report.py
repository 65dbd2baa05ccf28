"""Self-contained HTML reports: of one run, and of a comparison of strategies.

A report is a single file: pictures are inlined as PNG data, the style sheet is inside, and nothing
refers to the network or to another file. Every text that comes from a result is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import write_bytes
from common.projects import title_of
from common.results.attention_plots import plot_alphas, plot_spans, records_attention
from common.results.decision_plots import plot_decisions
from common.results.decision_trends import plot_decision_history, plot_decisions_by_type
from common.results.files import (
    ANSWER_TYPES,
    BASELINES,
    Result,
    comparison_notes,
    group_results,
    load_result,
    lookup,
    sort_results,
)
from common.results.page import html_figure, html_page, html_section, html_table, html_warnings
from common.results.plot_style import decision_word
from common.results.plots import plot_comparison, plot_training
from common.results.policy_plots import plot_policy, policy_table, records_policy
from common.results.table import LEGEND, NONE, make_tables

REPORT_NAME = "report.html"


def write_run_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run's folder, from its `result.json`; returns the file.

    Raises:
        DataError: `result.json` is missing or corrupt.
    """
    result = load_result(Path(run_dir))
    path = Path(run_dir) / REPORT_NAME
    title = f"{result['strategy']} · {title_of(result['backbone'])} · {result['dataset']}"
    facts = [
        f"{name} {result[name]}"
        for name in ("policy", "size", "seed", "device", "precision", "name")
        if result.get(name) is not None
    ]
    body = [
        html_warnings(result.get("warnings") or []),
        _headline(result),
        "<h2>Accuracy</h2>",
        _accuracy_table(result),
        _decisions(result),
        *html_section(
            "Training",
            html_figure(plot_training, result, "Loss, accuracy and temperature of every epoch.")
            if result.get("epochs")
            else "",
        ),
        _epoch_table(result.get("epochs") or []),
        *html_section("The policy while it was trained", _policy(result)),
        *html_section("Attention", _attention(result)),
        "<h2>Parameters, time and memory</h2>",
        _costs(result),
        "<h2>How to run it again</h2>",
        f"<pre>{html.escape(str(result.get('command') or NONE))}</pre>",
        _versions(result),
    ]
    write_bytes(path, html_page(title, ", ".join(facts), body))
    return path


def write_comparison_report(
    results: Iterable[Result], path: Path | str, problems: Sequence[str] = ()
) -> None:
    """Write the comparison of results as one HTML file.

    Args:
        results: runs as `find_results` returns them.
        path: the file; its folder is made.
        problems: messages about results that could not be read, shown at the top.

    Raises:
        DataError: there are no results.
    """
    results = sort_results(results)
    if not results:
        raise DataError("no results to report on")
    notes = [*problems, *comparison_notes(results)]
    body = [html_warnings(notes)]
    for table in make_tables(results):
        rows = [(row, False) for row in table.rows] + [(row, True) for row in table.baseline_rows]
        body += [f"<h2>{html.escape(table.title)}</h2>", html_table(table.headings, rows)]
    body += [
        f"<p class='legend'>{html.escape(LEGEND)}</p>",
        *html_section(
            "Accuracy and generalization error",
            html_figure(
                plot_comparison,
                results,
                "Validation (filled) and train (hollow) accuracy, with the baselines.",
            ),
        ),
    ]
    decided = [
        group
        for section in group_results(results)
        for group in section.groups
        if group.results[0].get("decisions")
    ]
    body += html_section(
        "What the policies decided",
        "".join(
            html_figure(
                plot_decisions, group.results[0], _caption(group.results[0], len(group.results))
            )
            for group in decided
        ),
    )
    commands = "\n".join(str(result.get("command") or NONE) for result in results)
    body += ["<h2>Commands of the runs</h2>", f"<pre>{html.escape(commands)}</pre>"]
    write_bytes(
        Path(path), html_page("Comparison of finetuning strategies", f"{len(results)} runs", body)
    )


def _number(value: Any, decimals: int = 1, factor: float = 1.0, unit: str = "") -> str:
    """A number with thousands separators and its unit; a dash for None and NaN."""
    missing = value is None or math.isnan(value)
    return NONE if missing else f"{value * factor:,.{decimals}f}{unit}"


def _headline(result: Result) -> str:
    figures = [
        ("validation accuracy", _number(lookup(result, "accuracy.val.overall"), unit=" %")),
        ("train accuracy", _number(lookup(result, "accuracy.train.overall"), unit=" %")),
        ("generalization error", _number(lookup(result, "generalization_error"), unit=" points")),
    ]
    if result.get("decisions"):
        figures.append(
            (
                f"mean share {decision_word(result)}",
                _number(lookup(result, "decisions.mean_live"), 2),
            )
        )
    boxes = "".join(
        f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in figures
    )
    return f"<div class='numbers'>{boxes}</div>"


def _accuracy_table(result: Result) -> str:
    sources = [
        ("train (eval mode)", lookup(result, "accuracy.train") or {}, False),
        ("validation", lookup(result, "accuracy.val"), False),
    ]
    if exchanged := lookup(result, "accuracy.val_permuted"):
        label = "validation, each with the decisions of another"
        sources.append((label, exchanged, False))
    sources += [
        (f"baseline: {title}", lookup(result, f"baselines.{name}"), True)
        for name, title in BASELINES.items()
        if lookup(result, f"baselines.{name}")
    ]
    names = list(
        dict.fromkeys(
            [
                *ANSWER_TYPES,
                *(key for _, figures, _ in sources for key in figures if key != "count"),
            ]
        )
    )
    headings = [("",), *((f"{name} (%)",) for name in names), ("questions",)]
    rows = [
        (
            [
                label,
                *(_number(figures.get(name)) for name in names),
                _number(figures.get("count"), 0),
            ],
            baseline,
        )
        for label, figures, baseline in sources
    ]
    selection = html.escape(str(result.get("selection") or "not recorded"))
    best = "" if result.get("best_epoch") is None else f" ({result['best_epoch']})"
    return html_table(headings, rows) + (
        f"<p class='legend'>Best epoch{html.escape(best)} chosen on: {selection}.</p>"
    )


def _decisions(result: Result) -> str:
    """The decision plots, as far as the run recorded what they show."""
    decisions = result.get("decisions")
    if not decisions:
        return ""
    parts = [html_figure(plot_decisions, result, _caption(result))]
    if any(entry.get("count") for entry in (decisions.get("share_by_type") or {}).values()):
        parts.append(html_figure(plot_decisions_by_type, result, "The same by type."))
    if any(epoch.get("decisions") for epoch in result.get("epochs") or []):
        parts.append(
            html_figure(plot_decision_history, result, "How the decisions moved while training.")
        )
    return "\n".join(html_section("What the policy decided", "".join(parts)))


def _policy(result: Result) -> str:
    """Probabilities, what they tell, and the gradient, where they were recorded."""
    if not records_policy(result):
        return ""
    return html_figure(plot_policy, result, "The policy in every epoch.") + policy_table(result)


def _attention(result: Result) -> str:
    """Spans and α, as far as they were learned."""
    parts = []
    if records_attention(result, "span"):
        parts.append(
            html_figure(plot_spans, result, "Span of every head after each epoch; dashed: mean.")
        )
    if records_attention(result, "alpha"):
        parts.append(
            html_figure(plot_alphas, result, "α of every head after each epoch; dashed: mean.")
        )
    return "\n".join(parts)


def _caption(result: Result, seeds: int = 1) -> str:
    """What a map shows; of several seeds it is the first one's."""
    live = result["decisions"]["live"]
    dead = len(live) - sum(live)
    seed = f" with seed {result.get('seed')}, the first of {seeds}" if seeds > 1 else ""
    text = f"{result['strategy']}{seed}: {len(live)} decisions"
    return text + (f", {dead} of them without effect on the answer." if dead else ".")


def _epoch_table(epochs: Sequence[dict[str, Any]]) -> str:
    if not epochs:
        return ""
    columns = (
        ("train loss", "train_loss", 4),
        ("train accuracy % (running)", "train_accuracy", 1),
        ("held-out accuracy %", "heldout.overall", 1),
        ("policy temperature", "policy_temperature", 2),
        ("seconds", "seconds", 1),
    )
    headings = [("epoch",), *((title,) for title, _, _ in columns)]
    rows = [
        (
            [
                str(epoch["epoch"]),
                *(_number(lookup(epoch, key), decimals) for _, key, decimals in columns),
            ],
            False,
        )
        for epoch in epochs
    ]
    return html_table(headings, rows)


def _costs(result: Result) -> str:
    rows = [
        (f"parameters, {kind}", _number(lookup(result, f"parameters.{kind}"), 0))
        for kind in ("trainable", "frozen", "policy")
    ]
    rows += [
        ("training step", _number(lookup(result, "time.train_step_s"), 1, 1e3, " ms")),
        ("evaluation of a question", _number(lookup(result, "time.eval_sample_s"), 2, 1e3, " ms")),
        ("whole run", _number(lookup(result, "time.total_s"), 0, 1, " s")),
        ("peak memory", _number(lookup(result, "memory.peak_rss_bytes"), 0, 1e-6, " MB")),
        ("peak GPU memory", _number(lookup(result, "memory.peak_cuda_bytes"), 0, 1e-6, " MB")),
    ]
    return html_table([("",), ("",)], [(row, False) for row in rows])


def _versions(result: Result) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in (result.get("versions") or {}).items()
    )
    return f"<p class='legend'>Versions: {html.escape(versions or 'not recorded')}.</p>"
