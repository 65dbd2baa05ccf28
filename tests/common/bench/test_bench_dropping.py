"""Evaluation with dropped blocks: it computes less, and is shown beside the straight line."""

from __future__ import annotations

import itertools
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.bench import command as bench
from common.bench.cases import Case, all_cases, dropping_cases
from common.bench.command import bench_parser, main, make_settings, run_bench
from common.bench.dropping import ROWS, dropping
from common.bench.measure import Bench
from common.bench.plot import draw_bench, plot_bench
from common.bench.report import format_report, format_summary, verdicts
from common.bench.results import BenchFile
from common.runs.backbones import BenchModel, BenchSettings, BenchSizes
from common.training.flops import FlopCounter
from tests.common.tiny_models import SingleStream, single_inputs

LAYERS, BATCH = 4, 8
SETTINGS = BenchSettings(
    backbone="tiny", layers=2, reference_layers=LAYERS, batch=BATCH, rounds=1, shares=(0.5,)
)
KEPT = (1.0, 0.75, 0.5, 0.25, 0.0)


def supply(settings):
    return BenchModel(
        f"tiny encoder, {settings.layers} layers",
        lambda: SingleStream(settings.layers, dropout=0.1),
        single_inputs(settings.batch),
        lambda logits: logits.square().mean(),
        kept=KEPT,
    )


def work(models, case):
    """Floating-point operations of the case."""
    call = models.run(case)
    with FlopCounter() as counter:
        call()
    return counter.total


@pytest.mark.parametrize("decided", ["sample", "global"])
def test_the_work_of_evaluation_falls_in_proportion_to_the_dropped_blocks(decided):
    cases = [replace(dropping_cases(share, "fp32")[0], decided=decided) for share in KEPT]
    models = Bench(supply(SETTINGS.of_reference()), SETTINGS.of_reference(), cases)
    found = [work(models, case) for case in cases]
    full = work(models, cases[0].baseline())
    assert found[0] == full, "with all blocks kept it is the plain model's work"
    steps = [a - b for a, b in itertools.pairwise(found)]
    assert min(steps) > 0 and found[-1] < full / 10
    if decided == "sample":
        assert set(steps) == {(full - found[-1]) / LAYERS}
    else:  # all blocks cost the same but the last, of which one position is read
        assert len(set(steps)) == 2
    dense = replace(cases[-1], executor="dense")
    assert work(models, dense) >= full, "the dense executor saves nothing"


def test_one_decision_for_all_is_the_same_row_and_keeps_the_share():
    models = Bench(
        supply(SETTINGS.of_reference()), SETTINGS.of_reference(), dropping_cases(0.5, "fp32")
    )
    part = adaptive_part(models._models["BlockDrop"])
    for share in KEPT:
        chosen = models.decisions(part, share, "global")
        assert chosen.shape == (BATCH, LAYERS) and torch.equal(chosen, chosen[:1].expand(BATCH, -1))
        assert chosen[0].sum() == share * LAYERS


def test_the_cases_are_those_of_the_whole_model_and_fewer_in_the_quick_version():
    found = [c for c in all_cases(SETTINGS, False, False, KEPT) if c.against == "whole"]
    assert {c.share for c in found} == set(KEPT) and len(found) == 3 * len(KEPT)
    assert {c.baseline() for c in found} == {Case("eval", "standard", against="whole")}
    assert len({c.group for c in found}) == 1, "measured beside one another"
    quick = [c for c in all_cases(SETTINGS, True, False, KEPT) if c.against == "whole"]
    assert {c.share for c in quick} == {1.0, 0.5, 0.0} and {c.policy for c in quick} == {"none"}
    assert not [c for c in all_cases(SETTINGS, False, True) if c.against == "whole"]


def test_a_run_measures_the_whole_model_and_writes_table_sentence_and_chart(tmp_path):
    path = tmp_path / "x.json"
    file = run_bench(SETTINGS, path, only=": whole", quiet=True, supply=supply)
    assert {r["decisions"] for r in file.cases.values()} == {LAYERS}, "not the 2 of the other cases"
    table = path.with_suffix(".md").read_text()
    assert "| 4 kept | 3 kept | 2 kept | 1 kept | 0 kept |" in table
    for name in ROWS:
        assert f"| BlockDrop, {name} |" in table
    assert "Here: tiny encoder, 4 layers." in table
    summary = path.with_suffix(".summary.md").read_text()
    assert "(4 blocks), by the number of blocks kept: " in summary
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def made(tmp_path, ratios, **more):
    """A file with these ratios by share, decided for every sample."""
    file = BenchFile.open(
        tmp_path / "y.json",
        SETTINGS,
        supply(SETTINGS),
        "the whole model",
        {
            "device": "a processor",
            "cores": 2,
            "threads": 1,
            "clock": "x",
            "versions": {"torch": "9"},
        },
        True,
    )
    for share, ratio in ratios.items():
        case = replace(dropping_cases(share, "fp32")[0], **more)
        file.add_case(
            case,
            {
                "ratio": ratio,
                "low": ratio - 0.01,
                "high": ratio + 0.02,
                "decisions": 4,
                "baseline_seconds": 0.8,
            },
        )
    return file


def test_the_line_runs_from_what_is_outside_the_blocks_to_plain_finetuning(tmp_path):
    file = made(tmp_path, {1.0: 1.02, 0.5: 0.56, 0.0: 0.1})
    found = dropping(file, "fp32")
    assert found.kept == (4, 2, 0) and found.line == pytest.approx((1.0, 0.55, 0.1))
    assert found.distance() == pytest.approx(0.02) and found.seconds == pytest.approx(0.1)
    (verdict,) = (v for v in verdicts(file) if "straight line" in v.quantity)
    assert (verdict.measured, verdict.words) == ("0.02", "reached")
    slow = made(tmp_path, {1.0: 1.0, 0.5: 0.95, 0.0: 0.1})
    (verdict,) = (v for v in verdicts(slow) if "straight line" in v.quantity)
    assert verdict.words == "missed by 0.37", "a model that computes what it drops"
    assert "100.0 ms per sample = 1 | 4 kept | 2 kept | 0 kept |" in format_report(file)
    assert "1.02 with 4, 0.56 with 2, 0.10 with 0." in format_summary(file)


def test_without_both_ends_there_is_no_line_and_nothing_is_shown(tmp_path):
    file = made(tmp_path, {1.0: 1.0, 0.5: 0.5})
    assert dropping(file, "fp32") is None and "kept |" not in format_report(file)
    assert not verdicts(file) and "blocks" not in format_summary(file)


def test_the_chart_has_a_panel_for_it_only_where_it_was_measured(tmp_path):
    file = made(tmp_path, {1.0: 1.0, 0.5: 0.52, 0.0: 0.05})
    panels = draw_bench(file).axes
    assert [t.get_text() for t in panels[-1].get_xticklabels()] == ["4", "2", "0"]
    assert panels[-1].get_xlabel() == "blocks kept of 4"
    legend = [t.get_text() for t in panels[-1].get_legend().get_texts()]
    assert ROWS[0] in legend and ROWS[1] not in legend
    picture = BytesIO()
    plot_bench(file, picture)
    assert len(picture.getvalue()) > 10_000
    assert len(draw_bench(made(tmp_path, {})).axes) == 2


def test_a_single_stream_is_measured_with_more_layers_and_dropping_in_the_whole_model():
    options = bench_parser().parse_args(["--quick"])
    ours, other = make_settings(options, "vlbert"), make_settings(options, "lxmert")
    assert (ours.layers, ours.reference_layers) == (2, None)
    assert (other.layers, other.reference_layers, other.batch) == (1, 1, 16)
    full = bench_parser().parse_args([])
    assert make_settings(full, "vlbert").layers == 4 and make_settings(full, "lxmert").layers == 2


def test_every_backbone_has_a_file_of_its_own_and_features_belong_to_the_first(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "repository_root", lambda: tmp_path)
    monkeypatch.setattr(bench, "measurable", lambda: ["lxmert", "vlbert"])
    offered = {
        "lxmert": SimpleNamespace(bench=supply, bench_sizes=BenchSizes(folder="")),
        "vlbert": SimpleNamespace(bench=supply, bench_sizes=BenchSizes()),
    }
    monkeypatch.setattr(bench, "find_backbone", offered.__getitem__)
    monkeypatch.setattr(bench, "measure_features", lambda *_: {"read_per_s": 30_000.0})
    command = ["--quick", "--quiet", "--rounds", "1", "--batch", "4", "--only"]
    assert main([*command, "eval/BlockDrop/gathered/0.5 : standard"]) == 0
    assert main([*command, "features"]) == 0
    first, second = (
        BenchFile.read(tmp_path / "results/quick/bench" / name)
        for name in ("cpu.json", "vlbert/cpu.json")
    )
    assert first.settings["backbone"] == "lxmert" and second.settings["backbone"] == "vlbert"
    assert first.cases and second.cases and first.features and not second.features
    assert main([*command, "none", "--out", str(tmp_path / "z.json")]) == 2
    assert "lxmert, vlbert are measured: name one with --backbone" in capsys.readouterr().err
    assert main([*command, "none", "--out", str(tmp_path / "z.json"), "--backbone", "vlbert"]) == 0
