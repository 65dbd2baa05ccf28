"""The page itself, made with gradio. Nothing on it comes from another machine."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from common.web.handlers import AUTOMATIC, NO_RUN, Handlers
from common.web.runs import ExamplePicture, Runs
from common.web.uploads import Limits

TITLE = "Ask a finetuned model"
LEAD = (
    "Give a picture and a question. Of each run you see the answers, the regions of the picture, "
    "where it looks, and which parts of it were finetuned, frozen or skipped for this pair, beside "
    "what is decided on average."
)
WAITING = "<p class='waiting'>Answers will be here.</p>"
CLEANED_EVERY, KEPT_FOR = 600, 3600  # seconds: uploads are deleted when they are older
NARROWEST = 280  # pixels
MODEL = "model"  # everything that asks a model waits for the same one
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
MONOSPACED = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
CSS = """
.gradio-container { max-width: 1400px !important; width: 100% !important; margin: 0 auto; }
.gradio-container, .gradio-container main { min-width: 0; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
#left, #right { min-width: min(100%, 280px) !important; overflow: hidden; }
.lead { max-width: 62em; margin: 0; }
h1.title { font-size: 1.6em; margin: .2em 0; }
.wrong { background: #fdecea; color: #7a1f14; border-left: 4px solid #c0392b; padding: .7em 1em;
         overflow-wrap: anywhere; }
.waiting { opacity: .75; padding: 1em 0; }
#first input, #second input { text-overflow: ellipsis; }
#first .secondary-wrap, #second .secondary-wrap { padding-right: 1.8em; }
.reply h2 { font-size: 1.15em; margin: .2em 0 0; overflow-wrap: anywhere; }
.reply .folder { opacity: .75; font-size: .85em; overflow-wrap: anywhere; }
.reply h3 { font-size: 1.02em; margin: 1.4em 0 .4em; border-bottom: 1px solid #d5d5d5; }
.reply p { margin: .3em 0; }
.reply .warning { background: #fff4e0; color: #5b3a00; border-left: 4px solid #d17c00;
                  padding: .4em .8em; overflow-wrap: anywhere; }
.reply table.answers { width: 100%; max-width: 680px; border-collapse: collapse; margin: .8em 0;
                       font-variant-numeric: tabular-nums; }
.reply .answers *, .reply table.answers { border: 0 !important; }
.reply .answers caption { caption-side: bottom; text-align: left; font-size: .82em;
                          opacity: .75; }
.reply .answers th, .reply .answers td { padding: .2em .5em .2em 0; text-align: left; }
.reply .answers th { font-weight: 500; width: 1%; white-space: nowrap; max-width: 12em;
                     overflow: hidden; text-overflow: ellipsis; }
.reply .answers tr:first-child th, .reply .answers tr:first-child .number { font-weight: 700; }
.reply .answers .bar span { display: block; height: 1em; border-radius: 2px;
                            background: #9ab8cf; min-width: 1px; }
.reply .answers tr:first-child .bar span { background: #0072b2; }
.reply .answers .number { width: 3.5em; text-align: right; }
.reply figure { margin: .4em 0; background: white; border-radius: 6px; }
.reply figure img { max-width: 100%; height: auto; display: block; margin: 0; }
.reply figcaption { font-size: .82em; color: #555; padding: .2em .6em .4em; }
.reply .wide { overflow-x: auto; min-width: 0; }
.reply .wide img { min-width: 520px; width: 100%; max-width: 820px; }
.reply .pair { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start; }
.reply .pair figure { flex: 1 1 260px; max-width: 420px; }
.reply .pair ol { flex: 1 1 200px; list-style: none; margin: .4em 0; padding: 0; font-size: .86em;
                  columns: 15em; max-height: 22em; overflow-y: auto; }
.reply .pair li { border-left: .8em solid var(--colour); padding-left: .5em; margin: 0 0 .2em;
                  break-inside: avoid; }
.reply .maps { display: grid; gap: .8em;
               grid-template-columns: repeat(auto-fit, minmax(min(100%, 540px), 1fr)); }
"""


@dataclass
class _Widgets:
    """What the page consists of, as it is found by its handlers."""

    picture: gr.Image
    looked: gr.HTML
    examples: gr.Dataset
    question: gr.Textbox
    runs: list[gr.Dropdown]
    layers: list[gr.Dropdown]
    head: gr.Number
    word: gr.Textbox
    button: gr.Button
    replies: list[gr.HTML]


def make_page(
    runs: Runs, limits: Limits, examples: Sequence[ExamplePicture], notes: Sequence[str] = ()
) -> gr.Blocks:
    """The page on which runs are asked.

    Args:
        runs: that can be chosen; the first is, and where there are several the second as well.
        limits: of what is taken from the browser.
        examples: pictures with questions that can be chosen.
        notes: what is said above everything.
    """
    kept = (CLEANED_EVERY, KEPT_FOR)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=kept) as page:
        gr.HTML(_head(notes))
        widgets = _lay_out(runs.labels, limits, examples)
        _connect(page, widgets, Handlers(runs, limits), examples)
    return page


def _head(notes: Sequence[str]) -> str:
    said_above = "".join(f"<p class='lead'>{html.escape(note)}</p>" for note in notes)
    return f"<h1 class='title'>{TITLE}</h1><p class='lead'>{LEAD}</p>{said_above}"


def _lay_out(labels: list[str], limits: Limits, examples: Sequence[ExamplePicture]) -> _Widgets:
    with gr.Row():
        with gr.Column(min_width=NARROWEST):
            picture, looked, shown = _picture_column(examples)
        with gr.Column(min_width=NARROWEST):
            question = gr.Textbox(
                label="Question",
                placeholder="What color is the shape?",
                max_length=limits.characters,
                elem_id="question",
            )
            chosen = [_choice("Run", labels, 0, "first")]
            others = [NO_RUN, *labels]
            chosen.append(_choice("Beside it", others, 2 if len(labels) > 1 else 0, "second"))
            with gr.Accordion("Attention", open=False):
                layers = [
                    _choice("Layer of the run", [AUTOMATIC], 0, "layer-first"),
                    _choice("Layer of the run beside it", [AUTOMATIC], 0, "layer-second"),
                ]
                head = gr.Number(
                    label="Head, from 1 (0: the mean of all)", value=0, minimum=0, precision=0
                )
                word = gr.Textbox(label="Of which word (empty: the mean of all)", max_length=60)
            button = gr.Button("Ask", variant="primary", elem_id="ask")
    with gr.Row(equal_height=False):
        replies = [
            gr.HTML(WAITING, elem_id="left", min_width=NARROWEST),
            gr.HTML(visible=False, elem_id="right", min_width=NARROWEST),
        ]
    return _Widgets(picture, looked, shown, question, chosen, layers, head, word, button, replies)


def _picture_column(examples: Sequence[ExamplePicture]) -> tuple[gr.Image, gr.HTML, gr.Dataset]:
    picture = gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=280,
        buttons=[],
        elem_id="picture",
    )
    looked = gr.HTML(visible=False, elem_id="looked")
    shown = gr.Dataset(
        components=[gr.Image(visible=False)],
        samples=[[str(each.file)] for each in examples],
        samples_per_page=max(1, len(examples)),
        label="Pictures of the run's data set",
        layout="gallery",
        type="index",
        visible=bool(examples),
        elem_id="examples",
    )
    return picture, looked, shown


def _choice(label: str, choices: list[str], chosen: int, name: str) -> gr.Dropdown:
    value, many = choices[chosen], len(choices) > 8
    return gr.Dropdown(choices, value=value, label=label, filterable=many, elem_id=name)


def _connect(
    page: gr.Blocks, widgets: _Widgets, handlers: Handlers, examples: Sequence[ExamplePicture]
) -> None:
    # Without gradio's own reading of what was sent: a file that is no picture is said here.
    alone: dict[str, Any] = {
        "preprocess": False,
        "concurrency_id": MODEL,
        "concurrency_limit": 1,
        "api_visibility": "private",
    }
    silent = alone | {"show_progress": "hidden"}

    def layers(label: object) -> gr.Dropdown:
        return gr.Dropdown(choices=[AUTOMATIC, *handlers.layers(label)], value=AUTOMATIC)

    for run, layer in zip(widgets.runs, widgets.layers, strict=True):
        gr.on([run.change, page.load], layers, [run], [layer], **silent)
    picture, looked = widgets.picture, widgets.looked
    picture.change(lambda file: _shown(handlers.check(file)), [picture], [looked], **silent)
    widgets.examples.click(
        lambda place: (str(examples[place].file), examples[place].question),
        [widgets.examples],
        [picture, widgets.question],
        show_progress="hidden",
        api_visibility="private",
    )
    asked = [picture, widgets.question, *widgets.runs, *widgets.layers, widgets.head, widgets.word]
    gr.on(
        [widgets.button.click, widgets.question.submit],
        lambda *given: [_shown(reply) for reply in handlers.ask(*given)],
        asked,
        widgets.replies,
        **alone,
    )


def _shown(content: str) -> gr.HTML:
    """Where there is nothing to show there is no place for it."""
    return gr.HTML(value=content, visible=bool(content))
