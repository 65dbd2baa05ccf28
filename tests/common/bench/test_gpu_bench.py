"""The bench of a GPU: its parts, how it goes on, and its table; run here on the CPU.

What records a step is stood in for by something that calls it again.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from common.adapt.adapting import adaptive_part
from common.adapt.strategies import STRATEGIES
from common.bench import card, command, gpu, parts
from common.bench.card import count_kernels, demands, matrix_rate
from common.bench.cases import COMPILE_MODE, Case
from common.bench.command import list_parts, main, open_for, write_gpu_report
from common.bench.gpu import Work, cases_of, measure_parts, missing, run_parts
from common.bench.gpu_report import format_gpu_report, gpu_targets, gpu_verdicts
from common.bench.loop import measure_loop
from common.bench.measure import Bench, shorter_products
from common.bench.parts import PARTS, LoopCase, find_parts
from common.bench.results import BenchFile
from common.errors import AdaptiveError, ConfigError
from common.files import repository_root
from common.modules.losses import first_answer_loss
from common.modules.shapes import AsksDevice
from common.runs.backbones import BenchModel, BenchSettings, BenchSizes
from common.training.bert_adam import BertAdam
from tests.common.recording import Repeating
from tests.common.tiny_models import SingleStream, single_inputs

SETTINGS = BenchSettings(
    "tiny", precisions=("fp32", "tf32", "bf16"), layers=2, batch=4, rounds=1, shares=(0.5,)
)
BLOCK = Case(
    "train",
    "SpotTune_Block",
    "grouped",
    0.5,
    "small",
    "bf16",
    "graph",
    batch=4,
    graph=True,
    policy_precision="low",
)
BARE = ("lmdb", "entmax", "easy_vqa", "tensorboardX", "pytorch_pretrained_bert", "transformers")


def supply(settings: BenchSettings) -> BenchModel:
    return BenchModel(
        "tiny encoder",
        lambda: SingleStream(settings.layers, dropout=0.1),
        single_inputs(settings.batch),
        first_answer_loss,
        lambda: SingleStream(settings.layers),
        "elsewhere",
        single_inputs(settings.batch),
    )


class Recording(Repeating):
    """For any device; `heard` is told how many recordings came before."""

    heard: Callable[[int], None] = staticmethod(lambda number: None)

    def __init__(self, device: torch.device) -> None:
        super().__init__()

    def record(self, work):
        self.heard(self.recordings)
        return super().record(work)


@pytest.fixture
def small(monkeypatch):
    """Small products and batches, a short loop, no processes for the memory."""
    monkeypatch.setattr(parts, "LARGER", 2)
    monkeypatch.setattr(gpu, "matrix_rate", partial(matrix_rate, side=16))
    monkeypatch.setattr(gpu, "measure_loop", partial(measure_loop, steps=12))
    monkeypatch.setattr(
        gpu, "measure_memory", lambda *_: {"peak_rss_bytes": 10**9, "peak_cuda_bytes": None}
    )


def work(tmp_path, **options) -> Work:
    """With a file that is there."""
    made = Work(supply, SETTINGS, tmp_path / "cuda.json", recorder=Recording, **options)
    open_for(made, overwrite=False, retry=False).write()
    return made


def test_every_part_takes_four_minutes_at_most_and_the_quick_ones_three_together():
    assert all(0 < part.seconds <= 240 for part in PARTS.values())
    quick = find_parts(None, quick=True)
    assert sum(part.quick_seconds for part in quick) <= 180
    assert [part.name for part in find_parts(["loop", "plain"], False)] == ["plain", "loop"]
    with pytest.raises(ConfigError, match="unknown part heds; valid: plain, block, res, heads,"):
        find_parts(["heds"], False)
    with pytest.raises(ConfigError, match="part compiled has no short version"):
        find_parts(["compiled"], True)


def test_every_case_has_one_name_and_a_baseline_of_its_own_kind_that_is_measured(tmp_path):
    cases = [c for part in PARTS.values() for c in cases_of(part, work(tmp_path)).timed]
    assert len({c.key for c in cases}) == len(set(cases)) == len(cases)
    plain = set(cases_of(PARTS["plain"], work(tmp_path)).timed)
    for case in cases:
        base = case.baseline()
        assert (base.batch, base.precision, base.mode) == (case.batch, case.precision, case.mode)
        assert base.optimizer == case.optimizer and base.graph and base in plain
        assert not (case.graph and case.executor in ("exact", "gathered", "sampled"))
    for strategy in ("SpotTune_Block", "SpotTune_Res", "SpotTune", "BlockDrop"):
        steps = [c for c in cases if c.strategy == strategy and c.mode == "train"]
        assert {c.executor for c in steps} == {"grouped", "exact", "dense"}
        assert {(c.precision, c.batch) for c in steps} == {
            (p, b) for p in ("fp32", "tf32", "bf16") for b in (4, 32)
        }
        assert {c.optimizer for c in steps} == {"adamw", "bert"}
        assert {c.graph for c in steps} == {True, False}
        if STRATEGIES[strategy].other == "twin":
            low = {replace(c, policy_precision="high") for c in steps if c.precision == "bf16"}
            again = [c for c in low if c in steps]
            assert len(again) >= len([c for c in low if c.optimizer == "adamw" and c.graph])
    assert all(c.share == 0.5 and c.policy == "small" for c in cases if c.executor)


def test_every_target_is_measured_by_the_quick_version_but_for_what_takes_long(tmp_path):
    short = work(tmp_path, quick=True)
    quick = {c for part in short.find_parts() for c in cases_of(part, short).timed}
    wanted = {target.case for target in gpu_targets(4, "elsewhere")}
    assert {c for c in wanted if not c.compiled} <= quick
    assert {c for c in wanted if c.compiled} < set(
        cases_of(PARTS["compiled"], work(tmp_path)).timed
    )


@pytest.mark.long
def test_a_run_writes_figures_and_table_and_a_second_one_measures_nothing(
    small, tmp_path, monkeypatch, capsys
):
    short = work(tmp_path, quick=True, parts=("block", "reference", "loop"))
    assert measure_parts(short) is False
    assert "part reference: the other library's model; 2 cases" in capsys.readouterr().out
    file = BenchFile.read(short.path)
    assert all(len(missing(part, short, file)) == 0 for part in short.find_parts())
    case = replace(BLOCK, batch=8)
    record = file.get(case)
    assert record["low"] <= record["ratio"] <= record["high"] and record["rounds"] == 1
    assert record["limit_seconds"] == pytest.approx(record["flops"] / file.rates["bf16"], rel=1e-3)
    assert record["kernels"] is None and record["step_bytes"] is None, "of a GPU only"
    assert file.loop[LoopCase("standard", 64).key]["samples_per_second"] > 0
    write_gpu_report(file)
    table = short.path.with_suffix(".md").read_text()
    assert "| step, SpotTune_Block, grouped, graph, policy precision low | bf16 | 8 |" in table
    assert "| step, elsewhere | bf16 | 4 |" in table and "| standard, batch 64 | bf16 |" in table
    before = short.path.read_bytes()
    for name in ("measure_cases", "measure_loop", "measure_memory", "matrix_rate", "Bench"):
        monkeypatch.setattr(gpu, name, None)
    assert measure_parts(short) is False and short.path.read_bytes() == before
    left = {line.split()[0]: line for line in list_parts(short, file)}
    assert left["block"].split("about")[0].split() == [*("block", "4", "cases,", "0", "missing,")]
    longer = work(tmp_path)
    assert " 24 cases,  20 missing" in next(
        line for line in list_parts(longer, file) if line.startswith("block")
    )


def test_what_failed_is_a_row_and_another_process_goes_on_with_the_rest(small, tmp_path, capsys):
    class Failing(Recording):
        @staticmethod
        def heard(number):
            if number == 1:  # the first is the baseline's
                raise RuntimeError("operation not permitted | when stream\nis capturing")

    given = work(tmp_path, parts=("heads",), quick=True, only="batch 4")
    given = replace(given, recorder=Failing)
    assert measure_parts(given) is True, "nothing else is to be measured in this process"
    assert "operation not permitted | when stream is capturing" in capsys.readouterr().out
    file = BenchFile.read(given.path)
    (failed,) = file.cases.values()
    assert failed["error"].startswith("RuntimeError: ") and len(file.cases) == 1
    assert file.get(replace(BLOCK, strategy="SpotTune")) is None
    assert measure_parts(replace(given, recorder=Recording)) is False
    file = BenchFile.read(given.path)
    assert [("error" in r) for r in file.cases.values()] == [True, False]
    table = format_gpu_report(file)
    assert "failed: RuntimeError: operation not permitted / when stream is capturing |" in table
    assert "| step, SpotTune, batch 4 | ≤ 1.60 | – | failed |" in table
    kept = open_for(given, overwrite=False, retry=True)
    assert len(kept.cases) == 1 and not any("error" in r for r in kept.cases.values())


def test_without_their_baseline_all_cases_fail(small, tmp_path):
    class Never(Recording):
        @staticmethod
        def heard(number):
            raise RuntimeError("no graphs here")

    given = work(tmp_path, parts=("blockdrop",), quick=True, only="batch 8")
    assert measure_parts(replace(given, recorder=Never)) is True
    file = BenchFile.read(given.path)
    assert {r["executor"] for r in file.cases.values()} == {"grouped", "exact"}
    assert all(r["error"] == "RuntimeError: no graphs here" for r in file.cases.values())
    assert measure_parts(given) is False


def test_processes_follow_each_other_until_one_ends_well(monkeypatch, tmp_path):
    answers, calls = [True, True, False], []

    def started(died, call, given):
        calls.append((died, call, given))
        return answers.pop(0)

    monkeypatch.setattr(gpu, "in_own_process", started)
    given = work(tmp_path)
    run_parts(given)
    assert [call[1:] for call in calls] == [(measure_parts, given)] * 3
    assert str(given.path) in calls[0][0]


def test_nothing_new_is_begun_when_time_is_up(small, tmp_path, capsys):
    given = work(tmp_path, deadline=0.0)
    before = given.path.read_bytes()
    assert measure_parts(given) is False and given.path.read_bytes() == before
    assert "time is up before part plain" in capsys.readouterr().out


def test_without_the_other_library_its_parts_are_left_out(small, tmp_path, capsys):
    def without(settings):
        def reference():
            raise ModuleNotFoundError("No module named 'elsewhere'")

        return replace(supply(settings), reference=reference)

    given = work(tmp_path, parts=("reference", "loop"), quick=True)
    assert measure_parts(replace(given, supply=without)) is False
    said = capsys.readouterr().out
    assert said.count("part reference is left out: No module named 'elsewhere'\n") == 1
    file = BenchFile.read(given.path)
    assert not file.cases and len(file.loop) == 1
    none = replace(given, supply=lambda s: replace(supply(s), reference=None))
    assert [part.name for part in none.find_parts()] == ["loop"]


def bench(case=BLOCK, recorder=None, settings=SETTINGS, **options) -> Bench:
    cases = [replace(case, **options)]
    return Bench(supply(settings), settings, cases, recorder=recorder)


def test_a_case_is_recorded_once_and_repeated():
    recorder = Repeating()
    models = bench(recorder=recorder)
    part = adaptive_part(models._models["SpotTune_Block"])
    first = models.run(BLOCK)
    assert models.run(BLOCK) is first and (recorder.recordings, recorder.repeats) == (1, 0)
    before = [p.detach().clone() for p in part.policy.parameters()]
    first()
    assert (recorder.recordings, recorder.repeats) == (1, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, part.policy.parameters(), strict=True))
    assert part.options.executor == "grouped" and part.options.full_precision is False
    models.run(replace(BLOCK, policy_precision="high", graph=False))
    assert part.options.full_precision is True
    with pytest.raises(ValueError, match="nothing here records steps"):
        bench().run(BLOCK)


def test_nodes_of_an_earlier_pass_are_gone_when_a_step_is_recorded():
    models, seen = bench(recorder=Repeating()), []
    part = adaptive_part(models._models["SpotTune_Block"])
    models.step(BLOCK)()
    assert part.last is not None
    begins = models._models["SpotTune_Block"].register_forward_pre_hook(
        lambda *_: seen.append(part.last)
    )
    models.run(BLOCK)()
    begins.remove()
    assert seen == [None, None] and part.last is not None


def test_a_step_whose_shapes_depend_on_decisions_is_not_recorded():
    with pytest.raises(AsksDevice, match="--executor exact takes samples apart"):
        bench(recorder=Repeating()).run(replace(BLOCK, executor="exact"))


def test_shorter_products_are_allowed_within_the_whole_step_alone(monkeypatch):
    seen = []
    models = bench(precision="tf32", policy_precision="high", graph=False)
    case = replace(BLOCK, precision="tf32", policy_precision="high", graph=False)
    monkeypatch.setattr(
        models.optimizer, "step", lambda: seen.append(torch.get_float32_matmul_precision())
    )
    before = torch.get_float32_matmul_precision()
    models.step(case)()
    assert seen == ["high"] and torch.get_float32_matmul_precision() == before == "highest"
    with pytest.raises(RuntimeError), shorter_products(True):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == before


def test_the_recipes_optimiser_updates_what_the_other_one_would():
    models = bench(optimizer="bert", graph=False)
    case = replace(BLOCK, optimizer="bert", graph=False)
    used = models.optimizer_of("bert")
    assert isinstance(used, BertAdam) and models.optimizer_of("adamw") is models.optimizer
    before = [p.detach().clone() for p in models._trainable]
    models.step(case)()
    moved = [not torch.equal(a, b) for a, b in zip(before, models._trainable, strict=True)]
    assert sum(moved) > len(moved) / 2 and not models.optimizer.state


def test_the_reference_is_compiled_in_the_mode_that_replays(monkeypatch):
    modes, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append("begins"))
    case = Case("train", "reference", precision="bf16", against="graph", batch=4, compiled=True)
    models = Bench(supply(SETTINGS), SETTINGS, [case], recorder=Repeating())
    found = demands(models, case)
    assert modes == [COMPILE_MODE] and found["flops"] is None and len(marks) == 2


def test_without_dropout_no_model_has_any():
    settings = replace(SETTINGS, dropout=False)
    models = bench(settings=settings, recorder=Repeating())
    rates = {m.p for x in models._models.values() for m in x.modules() if hasattr(m, "p")}
    assert rates == {0.0} and settings.digest() != SETTINGS.digest()
    assert SETTINGS.digest() == "fde3ebb3b9f9", (
        "of files that were written before there was a choice"
    )


def test_the_rate_is_that_of_a_product_and_kernels_are_a_gpus():
    clock = SimpleNamespace(measure=lambda call: (call(), {"seconds": 0.5})[1])
    assert matrix_rate(torch.device("cpu"), "bf16", clock, side=8) == 2 * 8**3 / 0.5
    assert count_kernels(lambda: None, torch.device("cpu")) is None


def test_kernels_are_counted_without_copies(monkeypatch):
    def event(key, count, kind):
        return SimpleNamespace(key=key, count=count, device_type=kind)

    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        event("gemm", 3, cuda),
        event("Memcpy HtoD", 5, cuda),
        event("Memset", 7, cuda),
        event("softmax", 2, cuda),
        event("cudaLaunchKernel", 5, cpu),
    ]
    within = SimpleNamespace(
        __enter__=lambda: None, __exit__=lambda *_: None, key_averages=lambda: events
    )

    class Profile:
        def __init__(self, activities):
            pass

        def __enter__(self):
            return within

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(card, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    called = []
    assert count_kernels(lambda: called.append(1), torch.device("cuda")) == 5 and called == [1]
    events.clear()
    assert count_kernels(lambda: None, torch.device("cuda")) is None


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_the_loop_trains_with_the_recipe_and_counts_its_updates(strategy, monkeypatch):
    supplied = supply(replace(SETTINGS, batch=10))
    case = LoopCase(strategy, 4, "fp32")
    found = measure_loop(supplied, SETTINGS, case, steps=12)
    assert found["steps"] == 12 - 1 - 2
    assert found["samples_per_second"] == pytest.approx(4 / found["seconds"])
    monkeypatch.setattr("common.bench.loop.Marks.__len__", lambda self: 3)
    with pytest.raises(AdaptiveError, match="3 updates were seen in 12 steps"):
        measure_loop(supplied, SETTINGS, case, steps=12)


def made_file(tmp_path) -> BenchFile:
    """Figures by hand: ratios of the targets' cases, and a loop."""
    settings = replace(SETTINGS, batch=32, rounds=20)
    given = Work(supply, settings, tmp_path / "made.json")
    file = open_for(given, overwrite=False, retry=False)
    file.rates = {"bf16": 800e12}

    def add(case, ratio):
        file.add_case(
            case,
            {
                "ratio": ratio,
                "low": ratio * 0.9,
                "high": ratio * 1.2,
                "seconds": 0.012,
                "kernels": 1234,
                "step_bytes": 2_500_000_000,
                "limit_seconds": 0.004,
            },
        )

    low = {"precision": "bf16", "against": "graph", "batch": 32}
    add(Case("train", "reference", **low), 5.0)
    add(Case("train", "reference", compiled=True, **low), 1.0)
    add(replace(BLOCK, batch=32), 1.32)
    add(replace(BLOCK, batch=256), 1.25)
    add(replace(BLOCK, batch=256, policy_precision="high"), 2.4)
    file.loop[LoopCase("standard", 64).key] = {
        "samples_per_second": 2600.0,
        "seconds": 0.0246,
        "peak_cuda_bytes": 9e9,
        "graph": "on",
    }
    file.loop[LoopCase("standard", 32).key] = {
        "samples_per_second": 1250.0,
        "seconds": 0.0256,
        "peak_cuda_bytes": None,
        "graph": "off",
    }
    return file


def test_figures_of_a_gpu_stand_beside_their_targets(tmp_path):
    said = {v.quantity: (v.target, v.measured, v.words) for v in gpu_verdicts(made_file(tmp_path))}
    assert said["step, standard / elsewhere eager, batch 32"] == (
        *("≤ 0.25", "0.20 (0.17–0.22)", "reached"),
    )
    compiled = said[f"step, standard / elsewhere compiled ({COMPILE_MODE}), batch 32"]
    assert compiled == ("≤ 0.90", "1.00 (0.83–1.11)", "missed by 0.10")
    assert said["step, SpotTune_Block, batch 32"][2] == "reached within 0.05"
    assert said["step, SpotTune_Block, batch 256"][2] == "reached"
    high = said["step, SpotTune_Block, policy precision high, batch 256"]
    assert (high[0], high[2]) == ("≤ 1.90", "missed by 0.50")
    assert said["step, BlockDrop, batch 256"] == ("≤ 0.85", "–", "not measured")
    assert said["evaluation, SpotTune, batch 256"][0] == "≤ 1.35"
    loops = "training loop, standard, batch {}: samples a second"
    assert said[loops.format(64)] == ("≥ 2,500", "2,600", "reached")
    assert said[loops.format(32)] == ("≥ 2,500", "1,250", "missed: 0.50")
    assert {q for q in said if "BlockDrop" in q} == {
        *("step, BlockDrop, batch 256", "evaluation, BlockDrop, batch 256")
    }


def test_the_table_of_a_gpu_says_time_kernels_memory_and_limit(tmp_path):
    table = format_gpu_report(made_file(tmp_path))
    assert (
        "| step, SpotTune_Block, grouped, graph, policy precision low | bf16 | 256 | "
        "1.25 (1.12–1.50) | 12.00 | 1,234 | 2.50 | 4.00 | 3.0 |" in table
    )
    assert "10¹² a second: bf16 800" in table and "medians of 20 rounds" in table
    assert "| standard, batch 64 | bf16 | 2,600 | 24.6 | 9.00 | on |" in table
    assert "| standard, batch 32 | bf16 | 1,250 | 25.6 | – | off |" in table


def test_parts_belong_to_a_gpu_on_the_command_line(monkeypatch, tmp_path, capsys):
    assert main(["--part", "plain", "--list"]) == 2
    assert "--part, --list: only with --device cuda" in capsys.readouterr().err
    offered = SimpleNamespace(bench=supply, bench_sizes=BenchSizes())
    monkeypatch.setattr(command, "find_backbone", lambda name: offered)
    monkeypatch.setattr(command, "measurable", lambda: ["tiny", "other"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    out = tmp_path / "cuda.json"
    words = ["--device", "cuda", "--out", str(out), "--layers", "2"]
    assert main([*words, "--list", "--part", "heads,loop"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["heads", "loop"] and not out.exists()
    ran = []
    monkeypatch.setattr(command, "run_parts", ran.append)
    assert main([*words, "--quick", "--minutes", "3", "--part", "plain"]) == 0
    (given,) = ran
    assert (given.parts, given.quick, given.settings.rounds) == (("plain",), True, 7)
    assert given.settings.batch == 32 and given.settings.dropout and given.deadline is not None
    assert "step, SpotTune_Block, batch 256" in capsys.readouterr().out
    assert out.with_suffix(".md").is_file()
    assert main([*words, "--report"]) == 0
    assert main([*words, "--no-dropout"]) == 2
    assert "dropout: True there, False now" in capsys.readouterr().err


@pytest.mark.long
def test_a_bare_machine_imports_and_measures_with_what_torch_needs(tmp_path):
    """Not installed, and without the packages that only other parts of the project need."""
    code = f"""
        import importlib.metadata, sys
        from pathlib import Path

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {BARE!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}")

        sys.meta_path.insert(0, Blocked())
        found = importlib.metadata.version

        def version(name):
            if name == "adaptive-finetuning":
                raise importlib.metadata.PackageNotFoundError(name)
            return found(name)

        importlib.metadata.version = version
        importlib.metadata.entry_points = lambda group: []
        from functools import partial
        from common.bench import gpu
        from common.bench.command import find_supply, measurable, open_for
        from common.bench.results import BenchFile
        from tests.common.bench import test_gpu_bench as here

        gpu.matrix_rate = partial(gpu.matrix_rate, side=16)
        assert measurable() == ["lxmert", "vilbert", "vlbert"]
        try:
            find_supply("lxmert")(here.SETTINGS).reference()
        except ModuleNotFoundError as error:
            print(error)
        given = gpu.Work(
            here.supply, here.SETTINGS, Path({str(tmp_path / "x.json")!r}), ("block",), True,
            "batch 4", recorder=here.Recording,
        )
        open_for(given, False, False).write()
        assert gpu.measure_parts(given) is False
        assert len(BenchFile.read(given.path).cases) == 2
        print("measured")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=repository_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "No module named 'transformers'"
    assert done.stdout.endswith("measured\n")
