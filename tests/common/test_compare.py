"""Tables have the right numbers; corrupt results are errors that name the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.adapt.strategies import STRATEGIES
from common.compare import main
from common.errors import DataError
from common.results.comparison import copy_decision_maps, write_comparison
from common.results.files import find_results, group_results, load_result
from common.results.plots import draw_comparison
from common.results.table import format_markdown, format_table, make_tables
from tests.common.result_examples import lxmert_layout, make_result, write_result

SMALL = lxmert_layout("SpotTune", (2, 2, 2), 4)


def cells(results: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Markdown table as label → heading → cell."""
    lines = [line for line in format_markdown(results).splitlines() if line.startswith("|")]
    head, _, *rows = (
        [cell.strip().replace("\\", "").strip("*") for cell in line.strip("|").split(" | ")]
        for line in lines
    )
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_table_has_the_numbers_of_the_result() -> None:
    result = make_result("SpotTune_Block", val=81.25)
    row = cells([result])["SpotTune_Block"]
    mean_live = sum(result["decisions"]["share"]) / 19
    assert row == {
        "strategy": "SpotTune_Block",
        "runs n": "1",
        "train % overall": "86.2",
        "val % overall": "81.2",
        "val % yes/no": "84.2",
        "val % other": "72.2",
        "gen. error points": "5.0",
        "trainable M param.": "2.50",
        "frozen M param.": "1.25",
        "policy M param.": "0.30",
        "finetuned or kept": f"{mean_live:.2f}",
        "time per step ms": "125",
        "peak mem. MB": "812",
    }


def test_several_seeds_are_mean_and_sample_deviation() -> None:
    values = (70.0, 74.0, 81.0)
    results = [
        make_result("SpotTune", seed=seed, val=value, layout=SMALL)
        for seed, value in enumerate(values)
    ]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    row = cells(results)["SpotTune"]
    assert row["runs n"] == "3"
    assert row["val % overall"] == f"{mean:.1f} ± {deviation:.1f}" == "75.0 ± 5.6"
    assert row["gen. error points"] == "5.0 ± 0.0"


def test_baselines_are_rows_of_validation_accuracy() -> None:
    table = cells([make_result("standard"), make_result("Frozen")])
    assert list(table)[-2:] == ["majority answer", "question only"]
    row = table["majority answer"]
    assert (row["val % overall"], row["val % yes/no"], row["val % other"]) == (
        "51.0",
        "64.5",
        "11.5",
    )
    assert row["train % overall"] == row["gen. error points"] == row["runs n"] == "–"


def test_missing_answer_type_is_a_dash_and_number_only_shown_where_it_occurs() -> None:
    plain, counting = make_result("standard"), make_result("Frozen")
    plain["accuracy"]["val"]["other"] = None
    assert cells([plain])["standard"]["val % other"] == "–"
    assert "val % number" not in cells([plain])["standard"]
    counting["accuracy"]["val"]["number"] = 33.0
    table = cells([plain, counting])
    assert table["standard"]["val % number"] == "–"
    assert table["Frozen"]["val % number"] == "33.0"


def test_strategy_without_decisions_has_a_dash_for_their_share() -> None:
    assert cells([make_result("standard")])["standard"]["finetuned or kept"] == "–"


def test_generalization_error_is_computed_where_the_run_did_not_write_it() -> None:
    result = make_result("standard", generalization_error=None)
    result["accuracy"]["train"]["overall"] = 78.5
    assert cells([result])["standard"]["gen. error points"] == "-1.5"


def test_rows_are_in_the_order_of_the_table_of_strategies() -> None:
    results = [make_result(name) for name in reversed(STRATEGIES)]
    assert list(cells(results))[:-2] == list(STRATEGIES)


def test_policies_of_one_strategy_are_rows_of_their_own() -> None:
    results = [make_result("BlockDrop", policy=policy) for policy in ("small", "published")]
    assert {"BlockDrop (small)", "BlockDrop (published)"} <= set(cells(results))


def test_variants_of_one_strategy_are_rows_of_their_own() -> None:
    runs = [make_result("BlockDrop") | {"variant": variant} for variant in (None, "K = 2")]
    assert list(cells(runs))[:2] == ["BlockDrop", "BlockDrop (K = 2)"]
    both = [
        make_result("BlockDrop") | {"variant": "K = 2", "policy": policy}
        for policy in ("small", "published")
    ]
    assert list(cells(both))[:2] == ["BlockDrop (published, K = 2)", "BlockDrop (small, K = 2)"]


def test_backbone_size_and_dataset_are_never_mixed() -> None:
    results = [
        make_result("standard"),
        make_result("standard", size="base"),
        make_result("standard", dataset="easy_vqa_cp"),
        make_result("standard", backbone="vlbert"),
    ]
    assert len(group_results(results)) == 4


def test_backbones_of_one_size_and_dataset_are_one_below_the_other_in_one_table() -> None:
    results = [
        make_result(name, backbone=backbone, val=val)
        for name in ("standard", "Frozen")
        for backbone, val in (("vlbert", 71.0), ("lxmert", 82.0))
    ]
    (table,) = make_tables([*results])
    assert table.title == (
        "LXMERT and VL-BERT (small) on easy_vqa: 4,000 train questions, 500 validation questions"
    )
    assert [heading for heading, _ in table.headings[:3]] == ["strategy", "backbone", "runs"]
    assert [(row[:3], row[4]) for row in table.rows] == [
        (("standard", "LXMERT", "1"), "82.0"),
        (("Frozen", "LXMERT", "1"), "82.0"),
        (("standard", "VL-BERT", "1"), "71.0"),
        (("Frozen", "VL-BERT", "1"), "71.0"),
    ]
    assert [row[:3] for row in table.baseline_rows] == [
        ("majority answer", "–", "–"),
        ("question only", "–", "–"),
    ], "the same for both: once"
    assert all(len(row) == len(table.headings) for row in (*table.rows, *table.baseline_rows))
    others = [make_result("standard", size="base"), make_result("standard", dataset="easy_vqa_cp")]
    tables = make_tables([*results, *others])
    assert len(tables) == 3
    assert all(
        "backbone" not in dict(found.headings)
        for found in tables
        if "(base)" in found.title or "_cp" in found.title
    )


def test_backbones_on_one_dataset_have_one_scale_in_the_plot() -> None:
    figure = draw_comparison(
        [
            make_result("standard", val=90.0),
            make_result("standard", backbone="vlbert", val=60.0),
            make_result("standard", dataset="easy_vqa_cp", val=30.0),
        ]
    )
    first, _, other, _, third, _ = (axes.get_xlim() for axes in figure.axes)
    titles = [axes.get_title(loc="left") for axes in figure.axes[::2]]
    scales = dict(zip(titles, (first, other, third), strict=True))
    ours, theirs = scales["LXMERT (small) on easy_vqa"], scales["VL-BERT (small) on easy_vqa"]
    assert ours == theirs and ours[0] < 60 and ours[1] > 95
    assert scales["LXMERT (small) on easy_vqa_cp"] != ours


def test_baselines_and_numbers_of_questions_that_differ_between_backbones_name_them() -> None:
    ours, other = make_result("standard"), make_result("standard", backbone="vlbert")
    other["baselines"]["majority"]["overall"] = 49.0
    other["accuracy"]["train"]["count"] = 3999
    (table,) = make_tables([ours, other])
    assert [row[:2] for row in table.baseline_rows] == [
        ("majority answer", "LXMERT"),
        ("majority answer", "VL-BERT"),
        ("question only", "–"),
    ]
    assert [row[4] for row in table.baseline_rows] == ["51.0", "49.0", "55.0"]
    assert "train questions (LXMERT: 4,000, VL-BERT: 3,999), 500 validation" in table.title
    del other["baselines"]
    (table,) = make_tables([ours, other])
    assert [row[1] for row in table.baseline_rows] == ["LXMERT", "LXMERT"]


def test_remarks_stand_with_the_notes_of_every_format(tmp_path: Path) -> None:
    results = [make_result("standard")]
    assert format_table(results, ["two at a time."]).endswith("\ntwo at a time.\n")
    write_comparison(results, tmp_path, remarks=["two at a *time*."])
    assert (tmp_path / "comparison.md").read_text().endswith("\n- two at a \\*time\\*.\n")
    assert "two at a *time*." in (tmp_path / "comparison.html").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["notes"] == ["two at a *time*."]


def test_gpu_memory_has_a_column_only_where_a_gpu_was_used() -> None:
    assert "peak GPU MB" not in cells([make_result("standard")])["standard"]
    result = make_result("standard", memory={"peak_rss_bytes": 1e9, "peak_cuda_bytes": 2.5e9})
    assert cells([result])["standard"]["peak GPU MB"] == "2,500"


def test_text_table_is_aligned_and_has_the_cells_of_the_markdown_table() -> None:
    results = [make_result("standard", seed=seed, val=80 + seed) for seed in (1, 2)]
    results.append(make_result("SpotTune", layout=SMALL))
    lines = format_table(results).splitlines()
    rules = [line for line in lines if line.startswith("─")]
    body = lines[lines.index(rules[0]) + 1 : lines.index(rules[0]) + 9]
    assert {len(line) for line in body} == {len(rules[0])}
    for row in cells(results).values():
        line = next(line for line in lines if line.startswith(f"{row['strategy']} "))
        assert line.split() == " ".join(row.values()).split()


def test_notes_tell_repeated_seeds_differing_questions_and_warnings() -> None:
    results = [
        make_result("standard", seed=7),
        make_result("standard", seed=7),
        make_result("Frozen", warnings=["below the majority answer"]),
    ]
    results[2]["accuracy"]["val"]["count"] = 99
    text = " ".join(format_table(results).split())
    assert "seed 7 occurs more than once" in text
    assert "number of val questions (99, 500)" in text
    assert "Frozen, seed 9595: below the majority answer" in text


def test_note_tells_settings_that_differ_within_a_row() -> None:
    results = [
        make_result("SpotTune", seed=1, layout=SMALL, policy_eval="argmax"),
        make_result("SpotTune", seed=2, layout=SMALL, policy_eval="sample"),
    ]
    assert "differ in policy_eval" in " ".join(format_table(results).split())
    assert "differ in" not in format_table(results[:1])


def test_figure_that_was_never_measured_is_a_dash() -> None:
    result = make_result("standard", time={"train_step_s": math.nan})
    assert cells([result])["standard"]["time per step ms"] == "–"


def test_copy_of_a_result_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_result(tmp_path / name, make_result("SpotTune", layout=SMALL))
    write_result(tmp_path / "c", make_result("SpotTune", layout=SMALL, name="v2"))
    assert len(find_results([tmp_path])) == 2


def test_results_are_found_below_the_roots_once_and_not_in_hidden_folders(tmp_path: Path) -> None:
    write_result(tmp_path / "a" / "b", make_result("standard"))
    write_result(tmp_path / "c", make_result("Frozen"))
    write_result(tmp_path / ".hidden", make_result("LastK"))
    found = find_results([tmp_path, tmp_path / "a", tmp_path / "c" / "result.json"])
    assert [result["strategy"] for result in found] == ["standard", "Frozen"]
    assert found[0]["path"] == str(tmp_path / "a" / "b" / "result.json")


def _drop(key: str) -> Any:
    return lambda result: result.pop(key)


CORRUPTIONS = {
    "backbone": _drop("backbone"),
    "accuracy.val": lambda result: result["accuracy"].pop("val"),
    "accuracy.val.overall": lambda result: result["accuracy"]["val"].update(overall="high"),
    "accuracy.train.other": lambda result: result["accuracy"]["train"].update(other=math.nan),
    "parameters": _drop("parameters"),
    "decisions.share": lambda result: result["decisions"]["share"].pop(),
    "decisions.live": lambda result: result["decisions"].pop("live"),
    "1.5": lambda result: result["decisions"]["share"].__setitem__(0, 1.5),
    "share_by_type.other": lambda result: result["decisions"]["share_by_type"]["other"].clear(),
    "epochs": lambda result: result["epochs"].append({}),
    "memory": lambda result: result.update(memory=[1]),
}


@pytest.mark.parametrize("key", CORRUPTIONS)
def test_result_with_a_bad_value_is_an_error_naming_file_and_key(key: str, tmp_path: Path) -> None:
    result = make_result("BlockDrop")
    CORRUPTIONS[key](result)
    path = write_result(tmp_path / "run", result)
    with pytest.raises(DataError) as caught:
        find_results([tmp_path])
    assert str(path) in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"backbone": "lxm', b"[1, 2]", b"\xff\xfe"])
def test_result_that_is_no_json_object_is_an_error_naming_the_file(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="result.json.*run that training again"):
        load_result(path)


def test_missing_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_results([tmp_path / "nowhere"])


def test_write_comparison_writes_four_files_that_agree(tmp_path: Path) -> None:
    for seed, value in ((1, 70.125), (2, 72.375)):
        write_result(tmp_path / f"run{seed}", make_result("standard", seed=seed, val=value))
    results = find_results([tmp_path])
    write_comparison(results, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"comparison.{end}" for end in ("md", "json", "png", "html")
    }
    assert (tmp_path / "out" / "comparison.md").read_text() == format_markdown(results)
    summary = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (section,) = summary["sections"]
    (row,) = section["rows"]
    figure = row["figures"]["accuracy.val.overall"]
    assert figure == {"mean": 71.25, "sd": pytest.approx(2.25 / math.sqrt(2)), "count": 2}
    assert row["seeds"] == [1, 2]
    assert row["runs"] == ["../run1/result.json", "../run2/result.json"]
    assert section["baselines"]["question_only"]["yes/no"] == 65.25


def test_decision_maps_are_named_after_their_runs(tmp_path: Path) -> None:
    results = [
        make_result("SpotTune", layout=SMALL),
        make_result("standard"),
        make_result("SpotTune", layout=SMALL, seed=1, name="a/b"),
        make_result("SpotTune", layout=SMALL, seed=1, name="a/b"),
    ]
    names = sorted(path.name for path in copy_decision_maps(results, tmp_path))
    assert names == [
        "lxmert_easy_vqa_SpotTune_seed9595_decisions.png",
        "lxmert_easy_vqa_SpotTune_small_small_a-b_seed1_2_decisions.png",
        "lxmert_easy_vqa_SpotTune_small_small_a-b_seed1_decisions.png",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_command_compares_what_it_can_and_reports_the_corrupt_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "good", make_result("BlockDrop", val=66.5))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{")
    status = main(
        [str(tmp_path), "--out", str(tmp_path / "out"), "--visualizations", str(tmp_path / "maps")]
    )
    out, err = capsys.readouterr()
    assert status == 1
    assert "66.5" in out and str(tmp_path / "bad" / "result.json") in err
    assert "bad/result.json" in (tmp_path / "out" / "comparison.html").read_text()
    assert (tmp_path / "maps" / "lxmert_easy_vqa_BlockDrop_seed9595_decisions.png").is_file()


def test_command_without_any_result_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path) in message and "make lxmert-train" in message
    assert not (tmp_path / "out").exists()


def test_command_that_cannot_write_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path / "run", make_result("standard"))
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_help_explains_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for part in ("ROOT", "--out", "--visualizations", "Exit status"):
        assert part in shown
