"""What `make bench` measures and how it goes on; no figure of time is asserted anywhere."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.bench import command as bench
from common.bench.cases import ADAPTIVE, MECHANISMS, Case, all_cases, memory_cases
from common.bench.command import bench_parser, describe_machine, main, make_settings, run_bench
from common.bench.detector import random_image, random_network, times_of_forms
from common.bench.features import measure_features, write_tsv
from common.bench.measure import ActivationBytes, Bench, measure_group
from common.bench.memory import measure_memory
from common.bench.plot import draw_bench, plot_bench
from common.bench.report import format_report, format_summary, verdicts
from common.bench.results import BenchFile
from common.detector.faster_rcnn import DetectorOptions, prepared
from common.detector.settings import parse_settings
from common.errors import ConfigError, DataError
from common.features.lxmert_tsv import import_tsv
from common.runs.backbones import BenchModel, BenchSettings, BenchSizes
from common.training.flops import FlopCounter
from common.training.timing import CpuClock, CudaClock, summarise
from tests.common.detector.files import config as detector_config
from tests.common.tiny_models import SingleStream, single_inputs

BATCH = 6
SETTINGS = BenchSettings(
    backbone="tiny", layers=2, reference_layers=3, batch=BATCH, rounds=1, shares=(0.5,)
)
EXACT = Case("train", "SpotTune_Block", "exact", 0.5)


def tiny_supply(settings):
    layers = settings.layers or 3
    return BenchModel(
        f"tiny encoder, {layers} layers",
        lambda: SingleStream(layers, dropout=0.1),
        single_inputs(settings.batch),
        lambda logits: logits.square().mean(),
        lambda: SingleStream(layers),
        "elsewhere",
        single_inputs(settings.batch),
    )


def fatal_supply(settings):
    os._exit(7)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny models on the command line, and no processes of their own for the memory."""
    offered = SimpleNamespace(bench=tiny_supply, bench_sizes=BenchSizes())
    monkeypatch.setattr(bench, "find_backbone", lambda name: offered)
    monkeypatch.setattr(bench, "measurable", lambda: ["tiny"])
    monkeypatch.setattr(
        bench, "measure_memory", lambda *_: {"peak_rss_bytes": 10**9, "peak_cuda_bytes": None}
    )
    monkeypatch.setattr(bench, "FEATURES", {"quick": (4, 2)})
    monkeypatch.setattr(bench, "DETECTOR", {"quick": (1, 4, (64, 80))})


def quick(path, settings=SETTINGS, **options):
    return run_bench(settings, path, quick=True, quiet=True, **options)


def test_every_strategy_and_executor_is_measured_with_and_without_policy():
    cases = all_cases(BenchSettings("lxmert"), quick=False, reference=True)
    assert len({case.key for case in cases}) == len(cases)
    steps = {(c.strategy, c.executor, c.share, c.policy) for c in cases if c.mode == "train"}
    for strategy in ADAPTIVE:
        for share in (0.1, 0.5, 0.9):
            assert {
                (strategy, "exact", share, "none"),
                (strategy, "sampled", share, "none"),
                (strategy, "exact", share, "small"),
            } <= steps
            assert Case("eval", strategy, "gathered", share) in cases
        assert (strategy, "dense", 0.5, "none") in steps
        assert (strategy, "exact", 0.5, "published") in steps
        assert Case("eval", strategy, "dense", 0.5) in cases
    assert Case("train", "standard", against="reference") in cases
    assert Case("train", "SpotTune_Block", "exact", 0.5, "small", against="reference") in cases
    both = all_cases(replace(BenchSettings("lxmert"), precisions=("fp32", "bf16")), False, True)
    assert len(both) == 2 * len(cases) + 2, "bf16 adds the reference itself in bf16"
    assert {c.baseline().precision for c in both if c.against == "reference"} == {"fp32"}


@pytest.mark.long
def test_a_run_writes_figures_table_and_chart_and_a_second_one_measures_nothing(
    tiny, tmp_path, monkeypatch
):
    path = tmp_path / "bench.json"
    file = quick(path)
    assert set(file.cases) == {c.key for c in all_cases(SETTINGS, True, True)}
    assert set(file.memory) == {c.key for c in memory_cases(SETTINGS, True)}
    for record in file.cases.values():
        assert record["low"] <= record["ratio"] <= record["high"] and record["seconds"] > 0
    table = path.with_suffix(".md").read_text()
    assert "SpotTune_Res, exact / gathered | none |" in table and "elsewhere in fp32 = 1" in table
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    before = path.read_bytes()
    monkeypatch.setattr(bench, "measure_group", None)
    monkeypatch.setattr(bench, "measure_memory", None)
    monkeypatch.setattr(bench, "measure_features", None)
    assert quick(path).cases == file.cases and path.read_bytes() == before


def test_an_interrupted_run_goes_on_with_the_groups_that_are_missing(tiny, tmp_path, monkeypatch):
    path, real, groups = tmp_path / "bench.json", bench.measure_group, []

    def interrupted(models, cases, *rest):
        groups.append(cases[0].group)
        if len(groups) == 3:
            raise KeyboardInterrupt
        return real(models, cases, *rest)

    monkeypatch.setattr(bench, "measure_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(path, only="eval/S")
    first = json.loads(path.read_text())["cases"]
    everything = {c.key: c for c in all_cases(SETTINGS, True, True) if "eval/S" in c.key}
    assert {everything[key].group for key in first} == set(groups[:2])
    done = quick(path, only="eval/S")
    assert set(done.cases) == set(everything) and done.cases.items() >= first.items()
    assert len(groups) == 3 + len({c.group for c in everything.values()}) - 2
    assert groups[2] == groups[3], "the interrupted group is measured again"


def test_figures_of_other_settings_are_never_mixed(tiny, tmp_path):
    path = tmp_path / "bench.json"
    quick(path, only="eval/SpotTune_Block")
    assert len(quick(path, replace(SETTINGS, shares=(0.25,)), only="eval/BlockDrop").cases) > 3
    with pytest.raises(ConfigError, match=r"otherwise \(batch: 6 there, 4 now\).*overwrite"):
        quick(path, replace(SETTINGS, batch=4))
    found = quick(path, replace(SETTINGS, batch=4), overwrite=True, only="eval/BlockDrop")
    assert {r["strategy"] for r in found.cases.values()} == {"BlockDrop"}
    path.write_text('{"format": 0}')
    with pytest.raises(DataError, match="no results file of this version"):
        quick(path)


def test_saved_activations_are_counted_once_and_without_parameters():
    x = torch.randn(5, 8)
    layer = torch.nn.Linear(8, 16)
    with ActivationBytes(list(layer.parameters())) as counter:
        y = layer(x)  # keeps x for the weight's gradient, and the weight
        z = y.tanh()  # keeps its result
        (z * z).sum()  # keeps z, twice: the same storage
    assert counter.total == 4 * (5 * 8 + 5 * 16)
    with ActivationBytes([]) as counter:
        layer(x)
    assert counter.total == 4 * 5 * 8 + 4 * 8 * 16 * 0, "x; the weight is kept only if x learns"
    with ActivationBytes(list(layer.parameters())) as counter:
        (layer(x).view(-1)[:3] * layer(x).view(-1)[3:6]).sum()
    assert counter.total == 4 * (5 * 8 + 2 * 5 * 16), "views count as the storage that they hold"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_given_decisions_have_the_wanted_share_and_differ_between_columns(share):
    models = Bench(tiny_supply(SETTINGS), SETTINGS, [replace(EXACT, strategy="SpotTune")])
    part = adaptive_part(models._models["SpotTune"])
    decisions = models.decisions(part, share)
    assert decisions.shape == (BATCH, len(part.live))
    assert abs(decisions.mean().item() - share) <= 0.5 / decisions.numel() + 1e-6
    assert set(decisions.unique().tolist()) == {0.0, 1.0}
    counts = decisions.sum(0)
    assert counts.max() - counts.min() <= 1
    assert len(decisions.unique(dim=1).T) > 3, "the same samples in every column"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_steered_policy_runs_and_learns_but_decides_what_is_wanted(mode):
    case = Case(mode, "SpotTune_Block", "exact" if mode == "train" else "gathered", 0.5, "small")
    models = Bench(tiny_supply(SETTINGS), SETTINGS, [case])
    call = models.run(case)
    part = adaptive_part(models._models["SpotTune_Block"])
    call()
    assert part.last.logits is not None and torch.equal(
        part.last.decisions.detach(), part.policy.wanted
    )
    moved = [p.grad is not None for p in part.policy.parameters()]
    assert all(moved) if mode == "train" else not any(moved)


def test_models_of_a_group_share_their_parameters_and_one_optimiser():
    models = Bench(
        tiny_supply(SETTINGS), SETTINGS, [EXACT, Case("train", "standard", against="reference")]
    )
    standard, adapted, reference = (
        models._models[name] for name in ("standard", "SpotTune_Block", "reference")
    )
    ours = dict(standard.named_parameters())
    assert all(p is ours[n] for n, p in adapted.named_parameters() if ".adaptive." not in n)
    assert not {id(p) for p in ours.values()} & {id(p) for p in reference.parameters()}
    before = [p.detach().clone() for p in ours.values()]
    models.run(EXACT)()
    assert any(not torch.equal(a, b) for a, b in zip(before, ours.values(), strict=True))
    optimised = [p for group in models.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in optimised}) == len(optimised)


def test_every_case_runs_as_often_as_its_baseline_and_the_first_round_is_not_counted():
    cases = [EXACT, replace(EXACT, share=0.1), replace(EXACT, executor="dense")]
    settings = replace(SETTINGS, rounds=4)
    models = Bench(tiny_supply(settings), settings, cases)
    runs, timed = [], []
    clock = SimpleNamespace(
        measure=lambda call: (call(), timed.append(0), {"seconds": float(len(timed)), "wall": 1.0})[
            2
        ]
    )
    records = measure_group(models, cases, clock, 4, runs.append)
    assert all(runs.count(case) == 5 for case in [*cases, EXACT.baseline()])
    assert len(timed) == 4 * 4 and all(r["rounds"] == 4 for r in records.values())
    rounds = [tuple(runs[4 * i : 4 * i + 4]) for i in range(1, 5)]
    assert all(len(set(r)) == 4 for r in rounds), "every round runs every case once"
    assert len(set(rounds)) > 1, "always in the same order"
    assert records[EXACT]["activation_bytes"] > 0
    assert records[replace(EXACT, executor="dense")]["activation_ratio"] > 1.3


def test_the_ratio_is_the_median_of_the_rounds_ratios_not_of_the_times():
    mine = [{"seconds": s, "wall": 2 * s} for s in (2.0, 30.0, 4.0, 5.0, 9.0)]
    its = [{"seconds": s, "wall": s} for s in (1.0, 10.0, 4.0, 2.0, 3.0)]
    found = summarise(mine, its)
    ratios = sorted([2.0, 3.0, 1.0, 2.5, 3.0])
    assert found["ratio"] == ratios[2] and found["wall_ratio"] == 2 * ratios[2]
    assert (found["low"], found["high"]) == (2.0, 3.0)
    assert found["seconds"] == 5.0 and found["baseline_seconds"] == statistics.median(
        [1, 2, 3, 4, 10]
    )


def test_a_gpu_is_timed_between_events_after_it_has_finished():
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            self.at = None

        def record(self):
            self.at = len(log)
            log.append("record")

        def elapsed_time(self, end):
            assert log[-1] == "synchronize" and self.at < end.at
            return 1500.0

    cuda = SimpleNamespace(Event=Event, synchronize=lambda: log.append("synchronize"))
    found = CudaClock(cuda).measure(lambda: log.append("work"))
    assert log == ["synchronize", "record", "work", "record", "synchronize"]
    assert found["seconds"] == 1.5
    assert CpuClock().measure(lambda: sum(range(1000)))["seconds"] >= 0


@pytest.mark.slow
def test_low_precision_runs_beside_the_reference_in_full_precision(tiny, tmp_path):
    both = replace(SETTINGS, precisions=("fp32", "bf16"))
    file = quick(tmp_path / "x.json", both, only="bf16/train/S")
    quick(tmp_path / "x.json", both, only="bf16/train/standard")
    file = BenchFile.read(tmp_path / "x.json")
    assert {r["precision"] for r in file.cases.values()} == {"bf16"}
    table = (tmp_path / "x.md").read_text()
    assert "| SpotTune, exact / gathered | none |" in table
    assert "elsewhere in fp32 = 1; ours in bf16" in table and "step, standard bf16 /" in table


def test_on_a_gpu_the_whole_model_is_measured_in_both_precisions(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    settings = make_settings(bench_parser().parse_args(["--device", "cuda"]), "lxmert")
    assert (settings.layers, settings.reference_layers, settings.batch) == (None, None, 32)
    assert (
        settings.precisions == ("fp32", "tf32", "bf16") and settings.digest() != SETTINGS.digest()
    )
    machine = describe_machine(settings)
    assert machine["device"] == "a GPU" and machine["clock"] == "time between CUDA events"
    changed = make_settings(
        bench_parser().parse_args(
            [
                "--device",
                "cuda",
                "--layers",
                "3",
                "--precision",
                "bf16",
                "--shares",
                "0.2,0.8",
                "--batch",
                "8",
            ]
        ),
        "lxmert",
    )
    assert (changed.layers, changed.precisions) == (3, ("bf16",))
    assert (changed.shares, changed.batch) == ((0.2, 0.8), 8)


def result_file(tmp_path, **ratios):
    """A results file with these ratios of the exact training step, by strategy."""
    file = BenchFile.open(
        tmp_path / "made.json",
        replace(SETTINGS, shares=(0.1, 0.5)),
        tiny_supply(SETTINGS),
        "tiny encoder, 3 layers",
        {
            "device": "a processor",
            "cores": 2,
            "threads": 1,
            "clock": "CPU time",
            "versions": {"torch": "9.9"},
        },
        False,
    )
    for strategy, ratio in ratios.items():
        file.add_case(
            Case("train", strategy, "exact", 0.5),
            {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.02, "activation_ratio": 0.93},
        )
    return file


def test_figures_stand_beside_their_targets_with_a_verdict(tmp_path):
    file = result_file(tmp_path, SpotTune_Block=1.18, SpotTune_Res=1.26, SpotTune=1.43)
    words = {v.quantity: (v.target, v.words) for v in verdicts(file)}
    assert words["step, SpotTune_Block exact, 50% finetuned"] == ("1.20", "reached")
    assert words["step, SpotTune_Res exact, 50% finetuned"] == ("1.22", "reached within 0.05")
    assert words["step, SpotTune exact, 50% finetuned"] == ("1.32", "missed by 0.11")
    activations = "activations, {} exact, 50% finetuned"  # bytes, which have no noise
    assert words[activations.format("SpotTune_Block")] == ("0.90", "missed by 0.03")
    assert words[activations.format("SpotTune_Res")] == ("0.95", "reached")
    assert len(words) == 6, "only what was measured has a verdict"


def test_features_are_read_back_as_they_were_made_and_judged_in_images_a_second(tmp_path):
    found = measure_features(images=3, batches=2)
    assert found["import_per_s"] > 0 and found["read_per_s"] > 0
    write_tsv(tmp_path / "f.tsv", 2)
    batch = import_tsv(tmp_path / "f.tsv", tmp_path / "s", progress=False).read(["1", "0"])
    assert batch.features.shape == (2, 36, 2048) and 0.4 < batch.features.mean() < 0.6
    file = result_file(tmp_path)
    file.add_features({"read_per_s": 10_000.0, "import_per_s": 1_500.0, "anonymous_bytes": 10**7})
    judged = [(v.target, v.measured, v.words) for v in verdicts(file)]
    assert judged == [
        ("≥ 20,000", "10,000", "missed: 0.50 of it"),
        ("≥ 1,000", "1,500", "reached"),
        ("≤ 50", "10", "reached"),
    ]


def test_the_fast_detector_is_the_plain_one_and_bf16_is_measured_beside_it(tmp_path):
    """On a small network; features of the same boxes are equal in the fast and the plain form."""
    settings = replace(parse_settings(detector_config(), "test"), proposals=8)
    fast, plain = random_network(settings), random_network(settings, plain=True)
    prepared(fast, DetectorOptions())
    image = random_image((64, 96))
    boxes = [torch.tensor([[0.0, 0, 40, 40], [20, 10, 96, 60]])]
    ours, theirs = (net.roi_heads(net.backbone(image), boxes, 8)[0] for net in (fast, plain))
    torch.testing.assert_close(ours.features, theirs.features, rtol=1e-3, atol=1e-4)
    found = times_of_forms(1, settings, (64, 96))
    assert found["detector_pictures_per_s"] == 1 / found["detector_seconds"] > 0
    assert 1e-4 < found["detector_bf16_deviation"] < 0.1
    file = result_file(tmp_path)
    file.add_features({"detector_share": 0.75, "detector_pictures_per_s": 0.05})
    judged = [(v.target, v.measured, v.words) for v in verdicts(file)]
    assert judged == [("≤ 80", "75", "reached"), ("–", "0.05", "")]


def test_table_and_chart_come_from_the_file_alone(tmp_path):
    file = result_file(tmp_path, SpotTune_Block=1.18)
    file.add_memory(
        Case("train", "standard"), {"peak_rss_bytes": 2 * 10**9, "peak_cuda_bytes": None}
    )
    file.add_memory(EXACT, {"peak_rss_bytes": 25 * 10**8, "peak_cuda_bytes": None})
    file.write()
    table = format_report(BenchFile.read(file.path))
    assert (
        "| SpotTune_Block, exact / gathered | none | – | 1.18 (1.17–1.20) | – | – | 0.93 | "
        "1.25 |" in table
    )
    assert "tiny encoder, 2 layers. a processor, 2 cores, 1 thread, torch 9.9." in table
    assert "(standard 2.00 GB" in table and "BlockDrop" not in table
    file.add_case(
        replace(EXACT, policy="small"),
        {"ratio": 1.204, "low": 1.2, "high": 1.3, "activation_ratio": 0.95},
    )
    file.add_case(
        Case("eval", "standard", against="reference"), {"ratio": 0.8, "low": 0.8, "high": 0.8}
    )
    summary = format_summary(file)
    assert "| SpotTune_Block | – | 1.20 | – | 0.95 |" in summary
    assert summary.endswith("The same model of `elsewhere` = 1: evaluation 0.80.\n")
    picture = BytesIO()
    plot_bench(BenchFile.read(file.path), picture)
    assert len(picture.getvalue()) > 10_000
    steps, *_ = draw_bench(file).axes
    assert "SpotTune_Block, 50% finetuned" in [t.get_text() for t in steps.get_yticklabels()]


@pytest.mark.slow
def test_the_peak_memory_of_a_case_is_that_of_a_process_of_its_own():
    found = measure_memory(tiny_supply, SETTINGS, EXACT)
    assert found["peak_rss_bytes"] > 10**8


@pytest.mark.slow
def test_a_process_that_dies_is_a_clear_error():
    with pytest.raises(ConfigError, match="for want of memory: fewer --layers"):
        measure_memory(fatal_supply, SETTINGS, EXACT)


def test_the_command_reports_and_refuses(tiny, tmp_path, capsys):
    out = str(tmp_path / "x.json")
    command = ["--quick", "--quiet", "--out", out, "--batch", "6", "--rounds", "1"]
    assert main([*command, "--only", "SpotTune_Block/exact/0.5 : standard"]) == 0
    assert "step, SpotTune_Block exact, 50% finetuned" in capsys.readouterr().out
    (tmp_path / "x.md").unlink()
    assert main(["--report", "--out", out]) == 0 and (tmp_path / "x.md").is_file()
    assert main([*command, "--rounds", "0"]) == 2
    assert "rounds 0: give at least 1" in capsys.readouterr().err
    assert main(["--report", "--out", str(tmp_path / "none.json")]) == 2
    assert "no such file; make it with python -m common.bench" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*command, "--device", "cuda"]) == 2
        assert "torch sees no GPU here" in capsys.readouterr().err


def test_mechanisms_of_attention_are_measured_against_softmax(tmp_path):
    file = quick(tmp_path / "bench.json", only="/standard/", supply=tiny_supply, features=False)
    found = {(record["mechanism"], record["mode"]) for record in file.cases.values()}
    assert found == {(m, mode) for m in MECHANISMS for mode in ("train", "eval")} | {
        ("LayerDrop", "train")
    }
    table = format_report(file).split("softmax over all keys in fp32 = 1")[1]
    rows = [line.split(" |")[0].strip("| ") for line in table.splitlines() if " (" in line]
    assert rows == [*MECHANISMS, "LayerDrop"]
    assert "softmax over all keys" not in format_report(replace(file, cases={}))


def test_a_mechanism_shares_the_weights_of_the_plain_model_and_layerdrop_skips():
    cases = [Case("train", "standard", mechanism=name) for name in ("span", "entmax", "LayerDrop")]
    models = Bench(tiny_supply(SETTINGS), replace(SETTINGS, layers=3), cases)
    plain = Bench(tiny_supply(SETTINGS), SETTINGS, cases[:0] or [Case("train", "standard")])
    extra = len(models.parameters) - len(plain.parameters)
    assert extra == 2 * 2, "a span and an α in each of two layers; all else is shared"

    def work(case):
        call = models.run(case)
        with FlopCounter() as counter:
            call()
        return counter.total

    full = work(Case("train", "standard"))
    assert work(cases[0]) == work(cases[1]) >= full
    steps = {work(cases[2]) for _ in range(12)}
    assert len(steps) > 1 and max(steps) <= full, "each round leaves out other layers"
