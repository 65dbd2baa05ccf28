"""Plot and table of what was recorded of the policy."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.errors import DataError
from common.results.files import load_result
from common.results.policy_plots import draw_policy, plot_policy, policy_table, records_policy
from common.results.report import write_run_report
from tests.common.result_examples import lxmert_layout, make_result, write_result

LAYOUT = lxmert_layout("SpotTune_Block", (2, 1, 2))


def told(most: float, of: float) -> dict[str, Any]:
    return {"most": most, "mean": most / 2, "of": of, "each": [most] * len(LAYOUT)}


def entry(epoch: int, **changes: Any) -> dict[str, Any]:
    """What is recorded of an epoch; the policy is held in the first one."""
    each = [0.5] * len(LAYOUT)
    found = {
        "count": 400,
        "p": 0.4 + 0.1 * epoch,
        "entropy": 0.35,
        "spread": 0.31,
        "each": {"p": each, "entropy": each, "spread": each},
        "information": {"kind": told(0.21 + 0.1 * epoch, 0.69), "type": told(0.02, 1.05)},
        "gradient": {"norm": 0.012, "agreement": 0.88} if epoch else None,
        "drift": {"overall": 0.034, "layers": dict.fromkeys((d[0] for d in LAYOUT), 0.03)},
    }
    return found | changes


def result(**changes: Any) -> dict[str, Any]:
    made = make_result("SpotTune_Block", layout=LAYOUT, best_epoch=2)
    for epoch in made["epochs"]:
        epoch["policy"] = entry(epoch["epoch"], **changes)
    return made


def test_there_is_a_panel_for_all_that_was_recorded() -> None:
    figure = draw_policy(result())
    assert [axes.get_title(loc="left").split(" (")[0] for axes in figure.axes] == [
        "mean ± spread over inputs",
        "of a decision, mean",
        "tells",
        "gradient of the policy",
        "inputs pushed the same way",
        "finetuned weights moved by",
    ]
    kind = next(line for line in figure.axes[2].lines if line.get_label() == "kind of question")
    assert list(kind.get_ydata()) == pytest.approx([0.21, 0.31, 0.41, 0.51])
    norms = list(figure.axes[3].lines[0].get_ydata())
    assert math.isnan(norms[0]) and norms[1:] == [0.012] * 3
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert len(draw_policy(result(drift=None, information={}, gradient=None)).axes) == 2


def test_what_was_not_recorded_is_an_error_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no epoch records its policy"):
        plot_policy(make_result("SpotTune_Block"), io.BytesIO())
    assert not records_policy(make_result("SpotTune_Block"))
    write_result(tmp_path, make_result("SpotTune_Block"))
    assert "The policy while" not in write_run_report(tmp_path).read_text()


def test_the_report_has_plot_table_and_the_accuracy_with_exchanged_decisions(
    tmp_path: Path,
) -> None:
    made = result()
    made["accuracy"]["val_permuted"] = {"overall": 61.5, "yes/no": 70.0, "count": 500}
    write_result(tmp_path, made)
    page = write_run_report(tmp_path).read_text()
    for part in ("The policy while it was trained", "0.210 of 0.690", "0.012", "0.880", "3.40"):
        assert part in page
    assert "validation, each with the decisions of another" in page and "61.5" in page
    first, second = policy_table(made).split("<tr><td>")[1:3]
    assert first.count("–") == 2 and "–" not in second
    plot_policy(made, tmp_path / "policy.png")
    with Image.open(tmp_path / "policy.png") as picture:
        assert picture.format == "PNG" and picture.width == 1280


def test_damaged_entries_are_refused_by_name(tmp_path: Path) -> None:
    write_result(tmp_path / "a", result(spread="wide"))
    with pytest.raises(DataError, match=r"epochs\[0\]\.policy.*spread.* is 'wide'"):
        load_result(tmp_path / "a")
    made = result()
    made["accuracy"]["val_permuted"] = {"overall": float("nan")}
    write_result(tmp_path / "b", made)
    with pytest.raises(DataError, match=r"accuracy\.val_permuted"):
        load_result(tmp_path / "b")
