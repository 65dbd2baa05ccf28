"""Spans and α over the epochs: every head is a line, the epochs are the x axis."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import DataError
from common.files import write_json
from common.results.attention_plots import (
    draw_attention_history,
    module_title,
    plot_alphas,
    plot_spans,
    records_attention,
)
from common.results.report import write_run_report
from tests.common.result_examples import make_result

MODULES = (
    *(f"lang.{n}.head" for n in range(1, 10)),
    "vision.1.head",
    "cross.1.cross.head",
    "cross.1.lang.head",
)
EPOCHS, HEADS = 3, 12


def attention(epoch: int) -> dict[str, dict[str, list[float]]]:
    generator = np.random.default_rng(epoch)
    return {
        name: {
            "span": generator.uniform(0.2, 0.9, HEADS).tolist(),
            "alpha": generator.uniform(1.1, 1.9, HEADS).tolist(),
        }
        for name in MODULES
    }


def result(*kinds: str) -> dict:
    made = make_result()
    made["epochs"] = [{"epoch": n, "train_loss": 1.0} for n in range(EPOCHS)]
    for epoch in made["epochs"]:
        found = attention(epoch["epoch"])
        epoch["attention"] = {m: {k: e[k] for k in kinds} for m, e in found.items()}
    return made


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.lines]


@pytest.mark.parametrize("kind", ["span", "alpha"])
def test_each_module_is_a_panel_with_a_line_for_each_head_and_their_mean(kind):
    made = result("span", "alpha")
    figure = draw_attention_history(made, kind)
    found = panels(figure)
    assert len(found) == len(MODULES)
    for axes, module in zip(found, MODULES, strict=True):
        assert axes.get_title() == ".".join(module.split(".")[:2])
        *heads, mean = axes.lines
        for line in (*heads, mean):
            assert list(line.get_xdata()) == list(range(EPOCHS))
        values = np.array([epoch["attention"][module][kind] for epoch in made["epochs"]])
        np.testing.assert_allclose(np.transpose([line.get_ydata() for line in heads]), values)
        np.testing.assert_allclose(mean.get_ydata(), values.mean(1))
    assert len({axes.get_ylim() for axes in found}) == 1, "the panels have one scale"
    low, high = found[0].get_ylim()
    assert low <= values.min() and values.max() <= high


def test_panels_stand_in_rows_by_what_attends_and_overlap_nothing():
    figure = draw_attention_history(result("span"), "span")
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    for module in MODULES:
        assert module_title(module) in texts
    boxes = [axes.get_tightbbox() for axes in panels(figure)]
    edge = figure.get_window_extent()
    for number, box in enumerate(boxes):
        assert box.x0 >= edge.x0 and box.x1 <= edge.x1 and box.y0 >= edge.y0 and box.y1 <= edge.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


@pytest.mark.parametrize(
    ("module", "title"),
    [
        ("lang.3.head", "language stream: self"),
        ("cross.2.cross.head", "cross layers: cross"),
        ("cross.2.lang.head", "cross layers: language"),
        ("connection.1.vision.head", "connection layers: vision"),
        ("layer.4.head", "encoder: self"),
    ],
)
def test_modules_have_names_to_read(module, title):
    assert module_title(module) == title


def test_only_what_was_learned_is_drawn(tmp_path):
    made = result("span")
    assert records_attention(made, "span") and not records_attention(made, "alpha")
    plot_spans(made, tmp_path / "spans.png")
    with pytest.raises(DataError, match="no epoch records α"):
        plot_alphas(made, io.BytesIO())
    shown = []
    for kinds in ((), ("span",), ("span", "alpha")):
        write_json(tmp_path / "result.json", result(*kinds))
        shown.append(write_run_report(tmp_path).read_text().count("of every head after each"))
    assert shown == [0, 2, 4]  # as caption, and for those who do not see it
