"""Plots show the right values on a fixed scale, for every layout of layers and heads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from common.adapt.strategies import STRATEGIES
from common.errors import DataError
from common.results import plots
from common.results.decision_grid import make_panels
from common.results.decision_plots import draw_decisions, plot_decisions
from common.results.decision_trends import (
    draw_decision_history,
    draw_decisions_by_type,
    plot_decision_history,
    plot_decisions_by_type,
)
from common.results.plot_style import DEAD_COLOUR, STRATEGY_COLOURS, share_colours
from tests.common.result_examples import (
    STATIC_STRATEGIES,
    Layout,
    lxmert_layout,
    make_result,
    single_stream_layout,
)

LAYOUTS = {
    "lxmert_9_5_5": lxmert_layout("SpotTune"),
    "lxmert_2_2_2": lxmert_layout("SpotTune", (2, 2, 2), 4),
    "lxmert_res": lxmert_layout("SpotTune_Res"),
    "single_stream": single_stream_layout("SpotTune"),
    "single_stream_large": single_stream_layout("SpotTune", 24, 16),
    "other_streams": [
        (f"{stream}.{n}", part, True)
        for stream in ("text", "connection")
        for n in (1, 2)
        for part in ("head.1", "head.2", "output")
    ],
}


def images(figure: Figure) -> list[AxesImage]:
    """Heat maps of a figure."""
    return [image for axes in figure.axes for image in axes.get_images()]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(item.get_text() for item in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_decision_is_drawn_once_with_its_share(layout: Layout) -> None:
    result = make_result("SpotTune", layout=layout)
    decisions = result["decisions"]
    drawn = np.sort(
        np.concatenate([image.get_array().compressed() for image in images(draw_decisions(result))])
    )
    live = [
        share for share, alive in zip(decisions["share"], decisions["live"], strict=True) if alive
    ]
    np.testing.assert_allclose(drawn, np.sort(live))


def test_cell_of_the_map_is_the_share_of_its_layer_and_component() -> None:
    result = make_result("SpotTune")
    decisions = result["decisions"]
    cross = next(panel for panel in make_panels(decisions) if panel.stream == "cross")
    assert cross.columns.shape == (5, 43)
    image = images(draw_decisions(result))[2]
    row, column = 2, cross.components.index("lang.head.7")
    place = decisions["names"].index("cross.3.lang.head.7")
    assert image.get_array()[row, column] == decisions["share"][place]


def test_lxmert_streams_are_shown_apart() -> None:
    figure = draw_decisions(make_result("SpotTune"))
    shapes = [image.get_array().shape for image in images(figure)]
    assert shapes == [(9, 15), (5, 15), (5, 43)]


@pytest.mark.parametrize("share", [0.4, 0.0, 1.0])
def test_colour_scale_is_zero_to_one_whatever_the_data(share: float) -> None:
    result = make_result("SpotTune")
    result["decisions"]["share"] = [share] * len(result["decisions"]["names"])
    for figure in (draw_decisions(result), draw_decision_history(result)):
        assert {image.get_clim() for image in images(figure)} == {(0, 1)}


@pytest.mark.parametrize("strategy", ["SpotTune_Block", "BlockDrop", "BlockReplace"])
def test_block_strategies_are_bars_from_zero_to_one(strategy: str) -> None:
    result = make_result(strategy)
    (axes,) = draw_decisions(result).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == result["decisions"]["share"]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] >= 1
    assert [tick.get_text() for tick in axes.get_xticklabels()] == result["decisions"]["layers"]


def test_dead_cells_are_masked_grey_and_explained() -> None:
    result = make_result("SpotTune")
    figure = draw_decisions(result)
    cross = images(figure)[2]
    masked = np.ma.getmaskarray(cross.get_array())
    assert masked.sum() == result["decisions"]["live"].count(False) == 15
    assert not masked[:-1].any()
    colours = cross.to_rgba(cross.get_array())[masked]
    np.testing.assert_allclose(colours, np.tile(to_rgba(DEAD_COLOUR), (15, 1)), atol=0.01)
    assert "dead" in words(figure)
    assert "dead" not in words(draw_decisions(make_result("SpotTune", backbone="vlbert")))


def test_dead_layer_of_a_block_strategy_is_grey() -> None:
    layout = lxmert_layout("BlockDrop", (2, 2, 2))
    layout[3] = (*layout[3][:2], False)
    figure = draw_decisions(make_result("BlockDrop", layout=layout))
    grey = [to_rgba(DEAD_COLOUR) == bar.get_facecolor() for bar in figure.axes[0].patches]
    assert grey == [False, False, False, True, False, False]
    assert "dead" in words(figure)


@pytest.mark.parametrize("strategy", ["SpotTune", "SpotTune_Res", "SpotTune_Block", "BlockDrop"])
def test_title_names_strategy_dataset_split_and_sample_count(strategy: str) -> None:
    result = make_result(strategy)
    result["decisions"]["count"] = 9673
    for figure in (draw_decisions(result), draw_decisions_by_type(result)):
        for part in (strategy, "easy_vqa", "9,673 validation questions"):
            assert part in words(figure)


def test_title_of_a_plot_while_training_names_its_split_and_epoch() -> None:
    for strategy in ("SpotTune", "SpotTune_Block"):
        figure = draw_decisions(make_result(strategy), split="held-out", epoch=3)
        assert "epoch 3: share of 500 held-out questions" in words(figure)


def test_kept_is_the_word_for_block_strategies_and_finetuned_for_twins() -> None:
    assert "kept" in words(draw_decisions(make_result("BlockDrop")))
    assert "finetuned" in words(draw_decisions(make_result("SpotTune")))


def test_decisions_by_type_show_the_mean_of_live_decisions_of_each_layer() -> None:
    result = make_result("SpotTune")
    decisions = result["decisions"]
    figure = draw_decisions_by_type(result)
    layers_axes = figure.axes[1]
    for container, kind in zip(layers_axes.containers, ("yes/no", "other"), strict=True):
        share = decisions["share_by_type"][kind]["share"]
        last = [
            value
            for value, layer, alive in zip(
                share, decisions["layers"], decisions["live"], strict=True
            )
            if layer == "cross.5" and alive
        ]
        assert container[-1].get_height() == pytest.approx(sum(last) / len(last))
        assert len(container) == 19


def test_question_type_without_questions_is_left_out() -> None:
    result = make_result("BlockDrop")
    result["decisions"]["share_by_type"]["number"] = {"count": 0, "share": [0.0] * 19}
    assert "number" not in words(draw_decisions_by_type(result))


def test_history_has_a_column_per_epoch_and_a_row_per_layer() -> None:
    result = make_result("SpotTune", epochs=6)
    (image,) = images(draw_decision_history(result))
    assert image.get_array().shape == (19, 6)
    share = result["epochs"][2]["decisions"]["share"]
    first = [
        value
        for value, layer in zip(share, result["decisions"]["layers"], strict=True)
        if layer == "lang.1"
    ]
    assert image.get_array()[0, 2] == pytest.approx(sum(first) / len(first))


def test_training_curves_use_recorded_epochs_and_omit_temperature_without_policy() -> None:
    figure = plots.draw_training(make_result("SpotTune", epochs=3))
    assert [list(line.get_xdata()) for line in figure.axes[0].get_lines()] == [[0, 1, 2]]
    assert len(figure.axes) == 3
    assert len(plots.draw_training(make_result("standard")).axes) == 2


def test_training_curves_mark_the_epoch_that_was_kept() -> None:
    figure = plots.draw_training(make_result("standard", best_epoch=2))
    assert all(list(axes.get_lines()[-1].get_xdata()) == [2, 2] for axes in figure.axes)
    assert "kept (2)" in words(figure)


def test_comparison_draws_accuracies_errors_and_baselines() -> None:
    results = [
        make_result("standard", seed=1, val=80.0),
        make_result("standard", seed=2, val=84.0),
        make_result("SpotTune", val=70.0),
    ]
    left, right = plots.draw_comparison(results).axes
    xs = {float(line.get_xdata()[0]) for line in left.get_lines()}
    assert {51.0, 55.0, 82.0, 87.0, 70.0, 75.0} <= xs
    assert [bar.get_width() for bar in right.patches] == [5.0, 5.0]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["standard (n=2)", "SpotTune"]


def test_a_long_row_is_labelled_in_several_lines_beside_its_plot() -> None:
    layers = ",".join(f"lang.{number}" for number in range(1, 15))
    figure = plots.draw_comparison(
        [make_result("standard", variant=f"LayerDrop 0.2, pruned {layers}")]
    )
    (label,) = (text.get_text() for text in figure.axes[0].get_yticklabels())
    assert len(label.splitlines()) > 1 and "lang.14" in label
    assert figure.axes[0].get_position().width > 0.2


def test_comparison_has_a_row_of_plots_per_dataset() -> None:
    results = [make_result("standard"), make_result("standard", dataset="easy_vqa_cp")]
    assert len(plots.draw_comparison(results).axes) == 4


@pytest.mark.parametrize("plot", [plot_decisions, plot_decisions_by_type, plot_decision_history])
@pytest.mark.parametrize("strategy", STATIC_STRATEGIES)
def test_drawing_decisions_of_a_static_strategy_is_an_error(plot: Any, strategy: str) -> None:
    with pytest.raises(DataError, match=f"{strategy}.*decides nothing"):
        plot(make_result(strategy), io.BytesIO())


def test_plots_without_data_say_what_is_missing() -> None:
    result = make_result("BlockDrop", epochs=0)
    result["decisions"]["share_by_type"] = {}
    for draw, missing in (
        (plots.draw_training, "epochs"),
        (draw_decision_history, "epoch"),
        (draw_decisions_by_type, "share_by_type"),
    ):
        with pytest.raises(DataError, match=missing):
            draw(result)
    with pytest.raises(DataError, match="no results"):
        plots.draw_comparison([])


def test_plots_are_png_files_in_folders_made_for_them(tmp_path: Path) -> None:
    result = make_result("SpotTune", layout=LAYOUTS["lxmert_2_2_2"])
    for plot in (
        plot_decisions,
        plot_decisions_by_type,
        plot_decision_history,
        plots.plot_training,
    ):
        path = tmp_path / "new" / f"{plot.__name__}.png"
        plot(result, path)
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.width == 1280


def test_plots_leave_the_global_matplotlib_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    plot_decisions(make_result("BlockDrop"), io.BytesIO())
    assert dict(matplotlib.rcParams) == before


def test_every_strategy_has_a_colour_of_its_own() -> None:
    assert set(STRATEGY_COLOURS) == set(STRATEGIES)
    assert len(set(STRATEGY_COLOURS.values())) == len(STRATEGIES)


def test_colour_map_darkens_monotonically() -> None:
    red, green, blue, _ = share_colours()(np.linspace(0, 1, 32)).T
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    assert (np.diff(luminance) < 0).all()
