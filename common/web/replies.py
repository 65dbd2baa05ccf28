"""What a run answered, as a piece of a page: every text is escaped, every picture is inlined."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from common.ask.answering import Answer, Answered, PairDecisions
from common.ask.attention import attention_lines
from common.ask.attention_picture import plot_attention
from common.ask.canvas import BOX_COLOURS, plot_boxes
from common.ask.image import AskedImage
from common.ask.picture import box_label, plot_pair_decisions
from common.ask.report import nothing_decided, title
from common.ask.unusual import Unusual, unusual_decisions
from common.results.decision_plots import plot_decisions
from common.results.page import html_figure, html_warnings
from common.runs.backbones import OpenedRun
from common.web.runs import shown_folder

SHOWN_PARTS = 6


@dataclass(frozen=True)
class Reply:
    """Everything that is shown of one answer.

    Attributes:
        run: that was asked.
        image: about which.
        answered: what it answered.
        average: how often each decision is 1 over the evaluated questions, see
            `Answerer.average_decisions`; None where that is not known.
    """

    run: OpenedRun
    image: AskedImage
    answered: Answered
    average: dict[str, Any] | None


def reply_html(reply: Reply) -> str:
    """The whole reply of a run."""
    image, answered = reply.image, reply.answered
    parts = [
        f"<h2>{html.escape(title(reply.run))}</h2>",
        f"<p class='folder'>{html.escape(shown_folder(reply.run.folder))}</p>",
        html_warnings([*image.notes, *answered.notes]),
        _answers(answered.answers),
        _regions(image),
        _attention(reply),
        _decisions(reply),
    ]
    return f"<article class='reply'>{''.join(filter(None, parts))}</article>"


def wrong_html(message: str) -> str:
    """What is shown in place of a reply where something is wrong; screen readers say it at once."""
    return f"<div class='wrong' role='alert'>{html.escape(message)}</div>"


def _answers(answers: Sequence[Answer]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(answer.text)}</th>"
        f"<td class='bar'><span style='width:{100 * answer.probability:.1f}%'></span></td>"
        f"<td class='number'>{answer.probability:.3f}</td></tr>"
        for answer in answers
    )
    return (
        "<table class='answers'><caption>probability of each answer by itself; they need not add "
        f"up to 1</caption><tbody>{rows}</tbody></table>"
    )


def _regions(image: AskedImage) -> str:
    regions = image.regions
    labels = [box_label(regions, place, image.names) for place in range(len(regions.boxes))]
    items = "".join(
        f"<li style='--colour:{BOX_COLOURS[place % len(BOX_COLOURS)]}'>{html.escape(label)}</li>"
        for place, label in enumerate(labels)
    )
    caption = f"{len(labels)} regions, by {image.detector}"
    return (
        "<section class='regions'><h3>What the model sees</h3><div class='pair'>"
        f"{html_figure(plot_boxes, image, caption)}<ol>{items}</ol></div></section>"
    )


def _attention(reply: Reply) -> str:
    found = reply.answered.attention
    if found is None:
        return ""
    said = "; ".join(attention_lines(found))

    def plot(image: AskedImage, target: Any) -> None:
        plot_attention(image, found, reply.answered.question, target)

    figure = html_figure(plot, reply.image, said)
    return f"<section><h3>What it attends to</h3><div class='wide'>{figure}</div></section>"


def _decisions(reply: Reply) -> str:
    found, average = reply.answered.decisions, reply.average
    heading = "<h3>What was decided</h3>"
    if found is None:
        return f"<section>{heading}<p>{html.escape(nothing_decided(reply.run))}</p></section>"
    unusual = None if average is None else unusual_decisions(found, average)

    def plot_pair(marked: list[Unusual] | None, target: Any) -> None:
        plot_pair_decisions(found, target, None if marked is None else [u.place for u in marked])

    pair = html_figure(plot_pair, unusual, "this pair of picture and question")
    parts = [f"<p>{html.escape(said)}</p>" for said in _said(found, unusual)]
    usual = ""
    if average is not None:
        count = average.get("count")
        asked = "the validation questions" if count is None else f"{count:,} validation questions"
        usual = html_figure(plot_decisions, reply.run.result, f"average over {asked}")
    return (
        f"<section class='decisions'>{heading}{''.join(parts)}"
        f"<div class='maps'><div class='wide'>{pair}</div><div class='wide'>{usual}</div></div>"
        "</section>"
    )


def _said(found: PairDecisions, unusual: Sequence[Unusual] | None) -> Iterable[str]:
    live = sum(found.live)
    ones = sum(d for d, alive in zip(found.decisions, found.live, strict=True) if alive)
    unit = "parts" if any(found.components) else "layers"
    yield f"{ones} of {live} {unit} {found.words[1]}."
    if unusual is None:
        yield "The run has no result.json yet, so its average decisions are not known."
    elif not unusual:
        yield "Every decision is that of most questions."
    else:
        named = [f"{each.name} {each.word} ({each.share:.0%})" for each in unusual[:SHOWN_PARTS]]
        more = len(unusual) - len(named)
        rest = f", and {more} more" if more else ""
        yield (
            f"Other than for most questions: {len(unusual)} of {live}, the rarest first, with the "
            f"share of questions for which it is the same: {', '.join(named)}{rest}."
        )
