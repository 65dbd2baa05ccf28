"""Self-contained HTML reports: of one run, and of a comparison of strategies.

A report is a single file: pictures are inlined as PNG data, the style sheet is inside, and nothing
refers to the network or to another file. Every text that comes from a result is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
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
from common.results.plot_style import Target, decision_word
from common.results.plots import plot_comparison, plot_training
from common.results.table import LEGEND, NONE, make_tables

REPORT_NAME = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; max-width: 1180px;
       margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.2em; margin: 1.8em 0 .4em; }
.lead { color: #555; margin-top: .2em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0; }
th, td { padding: .25em .7em; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #444; font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid #e2e2e2; }
th:first-child, td:first-child { text-align: left; }
tr.baseline td { color: #666; font-style: italic; }
.numbers { display: flex; flex-wrap: wrap; gap: .8em; margin: 1em 0; padding: 0; }
.numbers div { border: 1px solid #d5d5d5; border-radius: 6px; padding: .5em 1em; }
.numbers b { display: block; font-size: 1.45em; }
.warning { background: #fff4e0; border-left: 4px solid #d17c00; padding: .5em 1em; }
pre { background: #f4f4f4; padding: .7em 1em; overflow-x: auto; white-space: pre-wrap; }
img { max-width: 100%; height: auto; } figure { margin: 1em 0; }
figcaption, .legend { color: #555; font-size: .9em; }
"""


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
        _warnings(result.get("warnings") or []),
        _headline(result),
        "<h2>Accuracy</h2>",
        _accuracy_table(result),
        _decisions(result),
        *_section(
            "Training",
            _figure(plot_training, result, "Loss, accuracy and temperature of every epoch.")
            if result.get("epochs")
            else "",
        ),
        _epoch_table(result.get("epochs") or []),
        *_section("Attention", _attention(result)),
        "<h2>Parameters, time and memory</h2>",
        _costs(result),
        "<h2>How to run it again</h2>",
        f"<pre>{html.escape(str(result.get('command') or NONE))}</pre>",
        _versions(result),
    ]
    write_bytes(path, _page(title, ", ".join(facts), body))
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
    body = [_warnings(notes)]
    for table in make_tables(results):
        rows = [(row, False) for row in table.rows] + [(row, True) for row in table.baseline_rows]
        body += [f"<h2>{html.escape(table.title)}</h2>", _table(table.headings, rows)]
    body += [
        f"<p class='legend'>{html.escape(LEGEND)}</p>",
        *_section(
            "Accuracy and generalization error",
            _figure(
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
    body += _section(
        "What the policies decided",
        "".join(
            _figure(
                plot_decisions, group.results[0], _caption(group.results[0], len(group.results))
            )
            for group in decided
        ),
    )
    commands = "\n".join(str(result.get("command") or NONE) for result in results)
    body += ["<h2>Commands of the runs</h2>", f"<pre>{html.escape(commands)}</pre>"]
    write_bytes(
        Path(path), _page("Comparison of finetuning strategies", f"{len(results)} runs", body)
    )


def _page(title: str, lead: str, body: Sequence[str]) -> bytes:
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>",
            *filter(None, body),
            "</body></html>",
            "",
        ]
    ).encode()


def _section(title: str, content: str) -> list[str]:
    """Heading and content, or nothing where there is no content."""
    return [f"<h2>{html.escape(title)}</h2>", content] if content else []


def _figure(plot: Callable[[Any, Target], None], data: Any, caption: str) -> str:
    """A plot as an inlined picture; the caption is its alternative text as well."""
    buffer = io.BytesIO()
    plot(data, buffer)
    picture = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(headings: Sequence[Sequence[str]], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    """Table from two-line headings and (cells, is a baseline) rows."""
    head = "".join(
        f"<th>{'<br>'.join(map(html.escape, filter(None, heading)))}</th>" for heading in headings
    )
    lines = [
        f"<tr{' class=baseline' if baseline else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, baseline in rows
    ]
    return (
        f"<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _warnings(messages: Iterable[str]) -> str:
    return "\n".join(f"<p class='warning'>{html.escape(str(message))}</p>" for message in messages)


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
    return _table(headings, rows) + (
        f"<p class='legend'>Best epoch{html.escape(best)} chosen on: {selection}.</p>"
    )


def _decisions(result: Result) -> str:
    """The decision plots, as far as the run recorded what they show."""
    decisions = result.get("decisions")
    if not decisions:
        return ""
    parts = [_figure(plot_decisions, result, _caption(result))]
    if any(entry.get("count") for entry in (decisions.get("share_by_type") or {}).values()):
        parts.append(_figure(plot_decisions_by_type, result, "The same by type."))
    if any(epoch.get("decisions") for epoch in result.get("epochs") or []):
        parts.append(
            _figure(plot_decision_history, result, "How the decisions moved while training.")
        )
    return "\n".join(_section("What the policy decided", "".join(parts)))


def _attention(result: Result) -> str:
    """Spans and α, as far as they were learned."""
    parts = []
    if records_attention(result, "span"):
        parts.append(
            _figure(plot_spans, result, "Span of every head after each epoch; dashed: the mean.")
        )
    if records_attention(result, "alpha"):
        parts.append(
            _figure(plot_alphas, result, "α of every head after each epoch; dashed: the mean.")
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
    return _table(headings, rows)


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
    return _table([("",), ("",)], [(row, False) for row in rows])


def _versions(result: Result) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in (result.get("versions") or {}).items()
    )
    return f"<p class='legend'>Versions: {html.escape(versions or 'not recorded')}.</p>"
