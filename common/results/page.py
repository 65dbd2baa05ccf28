"""Pieces of self-contained HTML pages: pictures are inlined, every text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.results.plot_style import Target

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


def html_page(title: str, lead: str, body: Sequence[str]) -> bytes:
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


def html_section(title: str, content: str) -> list[str]:
    """Heading and content, or nothing where there is no content."""
    return [f"<h2>{html.escape(title)}</h2>", content] if content else []


def html_figure(plot: Callable[[Any, Target], None], data: Any, caption: str) -> str:
    """A plot as an inlined picture; the caption is its alternative text as well."""
    buffer = io.BytesIO()
    plot(data, buffer)
    picture = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{picture}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def html_table(
    headings: Sequence[Sequence[str]], rows: Iterable[tuple[Sequence[str], bool]]
) -> str:
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


def html_warnings(messages: Iterable[str]) -> str:
    return "\n".join(f"<p class='warning'>{html.escape(str(message))}</p>" for message in messages)
