"""`make demo`: every strategy on every backbone, then one table; run scripts that end at once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from common import demo
from common.demo import Demo, DemoRun, default_jobs, main
from common.experiments.plan import STRATEGIES
from common.files import repository_root
from common.runs.backbones import find_backbone

FAKE = Path(__file__).with_name("fake_runs.py")
# Called as `train_tasks.py --tasks 1 --save_name NAME --gpus GPU [flags …]`.
TRAIN_TASKS = f"""import os, sys
name, gpu, flags = sys.argv[4], sys.argv[6], sys.argv[7:]
os.execv(sys.executable, [sys.executable, "-S", {str(FAKE)!r}, "vilbert", gpu, name, *flags])
"""
MODES = ("train", "vlbert", "vilbert")


class Repository:
    """A folder with run scripts that write results at once."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root, root / "out"

    def command(self, *arguments: str) -> int:
        return main(
            [*arguments, "--out", str(self.out), "--visualizations", str(self.root / "maps")]
        )

    def calls(self) -> list[list[str]]:
        path = self.root / "calls.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def repository(tmp_path, easy_vqa_root, monkeypatch) -> Repository:
    for name, line in (
        ("LXMERT/run/vqa_finetune.bash", 'train "$@"'),
        ("VLBERT/scripts/nondist_run.sh", 'vlbert "$7" "$5" "${@:8}"'),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f'exec "$PYTHON" -S {FAKE} {line}\n')
    (tmp_path / "ViLBERT").mkdir()
    (tmp_path / "ViLBERT" / "train_tasks.py").write_text(TRAIN_TASKS)
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(repository_root()))
    monkeypatch.delenv("GPU", raising=False)
    monkeypatch.setattr("common.runs.run_script.repository_root", lambda: tmp_path)
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    for name in ("plot_comparison", "write_comparison_report", "plot_decisions"):
        monkeypatch.setattr(
            f"common.results.comparison.{name}", lambda *_: None
        )  # they take seconds
    return Repository(tmp_path)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_every_strategy_runs_on_every_backbone_and_ends_in_one_table(repository, capfd, jobs):
    assert repository.command("--jobs", jobs) == 0
    calls = repository.calls()
    names = [
        f"demo_{strategy}{training}"
        for strategy in STRATEGIES
        for training in (("_published", "_started") if "Tune" in strategy else ("",))
    ]
    assert len(names) == 7
    assert sorted((mode, name) for mode, _, name, *_ in calls) == sorted(
        (mode, name) for mode in MODES for name in names
    )
    assert all(
        "--policy-training" not in flags
        or flags[flags.index("--policy-training") + 1] == name.rpartition("_")[2]
        for _, _, name, *flags in calls
    )
    table = capfd.readouterr().out.split("made in")[1]
    assert "LXMERT, ViLBERT and VL-BERT (small) on easy_vqa_dialect" in table
    rows = [line.split()[:2] for line in table.splitlines()]
    places = [rows.index(["standard", name]) for name in ("LXMERT", "ViLBERT", "VL-BERT")]
    assert places == sorted(places)
    found = json.loads((repository.out / "runs/vlbert/demo_Frozen/result.json").read_text())
    assert found["backbone"] == "vlbert"
    assert (repository.out / "runs/lxmert/demo_Frozen/result.json").is_file()
    text = " ".join((repository.out / "comparison.md").read_text().split())
    assert ("3 at a time with one thread each" in text) == (jobs == "3")
    assert all(
        (flags[flags.index("--threads") + 1] == "1" if jobs == "3" else "--threads" not in flags)
        for _, _, _, *flags in calls
    )


def test_backbones_differ_only_in_what_their_scripts_need(repository):
    assert repository.command("--quick") == 0
    scripts = [find_backbone(name).script for name in ("lxmert", "vlbert", "vilbert")]
    data = [word for script in scripts for word in script.data("easy_vqa_dialect")]
    flags = {
        mode: [word for word in rest if word not in data]
        for mode, gpu, name, *rest in repository.calls()
        if name == "demo_SpotTune_started"
    }
    assert flags["train"] == flags["vlbert"] == flags["vilbert"]
    assert {"--tiny", "--overwrite", "SpotTune"} <= set(flags["train"])
    assert {gpu for _, gpu, *_ in repository.calls()} == {"cpu"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_fails_is_named_with_its_message(repository, capfd, jobs):
    (repository.root / "broken.txt").write_text("demo_standard")
    assert (
        repository.command("--jobs", jobs, "--backbones", "vlbert", "--strategies", "standard") == 2
    )
    said = capfd.readouterr().err
    assert "error: VL-BERT, standard: the run demo_standard failed: " in said
    assert "error: no memory left on the moon" in said
    assert "VLBERT/output/vl-bert/easy_vqa/demo_standard/train+nominival_train" in said
    assert not (repository.out / "comparison.md").exists()


def test_after_a_failure_no_further_run_is_started(repository):
    (repository.root / "broken.txt").write_text("demo_")
    assert repository.command("--jobs", "2") == 2
    assert len(repository.calls()) < len(MODES) * 7


def test_bad_flags_are_refused_before_anything_starts(repository, capsys):
    for flags, message in (
        (("--backbones", "moon"), "--backbones moon: valid are lxmert, vilbert, vlbert"),
        (("--strategies", "moon"), "moon"),
        (("--jobs", "0"), "--jobs 0"),
    ):
        assert repository.command(*flags) == 2
        assert message in capsys.readouterr().err
    assert repository.calls() == []


def test_two_runs_at_a_time_only_on_a_cpu_with_two_cores(monkeypatch):
    for cores, gpu, jobs in (({0, 1}, "cpu", 2), ({0}, "cpu", 1), ({0, 1, 2}, "0", 1)):
        monkeypatch.setattr(
            demo.os, "sched_getaffinity", lambda _, cores=cores: cores, raising=False
        )
        assert default_jobs(gpu) == jobs


def test_times_of_runs_that_shared_the_machine_are_remarked():
    runs = [DemoRun("lxmert", "Frozen")]
    assert Demo(runs, "cpu", (), 1).remarks() == []
    assert "2 at a time" in Demo(runs, "cpu", (), 2).remarks()[0]


def test_the_commands_of_all_backbones_are_understood_by_their_scripts():
    from lxrt.finetuning import PROGRAM
    from vilbert.finetuning import EVALUATE, TRAIN
    from vlbert.options import train_parser
    from vlbert.testing import parser as prediction_parser

    vilbert = find_backbone("vilbert").script
    lxmert, vlbert = find_backbone("lxmert").script, find_backbone("vlbert").script
    for script in (lxmert, vlbert):
        for word in script.train("cpu", "x", [])[1:2]:
            assert (script.home / word).is_file()
    flags = ["--strategy", "SpotTune", "--overwrite", *demo.FULL, *demo.THREADS]
    assert PROGRAM.parser().parse_args(
        [*lxmert.train("cpu", "x", [*lxmert.data("easy_vqa"), *flags])[4:]]
    )
    bash, _, script, config, folder, *rest = vlbert.train(
        "cpu", "x", [*vlbert.data("easy_vqa"), *flags]
    )
    assert bash == "bash" and (vlbert.home / script).is_file()
    given = train_parser(script, None).parse_args(["--cfg", config, "--model-dir", folder, *rest])
    assert (given.name, given.gpus, given.strategy) == ("x", "cpu", "SpotTune")
    _, script, *rest = vlbert.test("cpu", "x", "BEST", ["--quiet"])
    given = prediction_parser().parse_args(rest)
    assert (vlbert.home / script).is_file() and (vlbert.home / given.cfg).is_file()
    assert vlbert.run_folder("x") == vlbert.home / given.result_path
    assert given.ckpt.parent == given.result_path and given.split == "minival"
    _, script, *rest = vilbert.train("cpu", "x", [*vilbert.data("easy_vqa"), *flags])
    assert (vilbert.home / script).is_file()
    options = TRAIN.options(TRAIN.parser().parse_args(rest), "")
    assert (options.gpus, options.model.strategy) == ("cpu", "SpotTune")
    assert vilbert.home / options.run.folder == vilbert.run_folder("x")
    _, script, *rest = vilbert.test("cpu", "x", "BEST", ["--quiet"])
    tested = EVALUATE.options(EVALUATE.parser().parse_args(rest), "")
    assert (vilbert.home / script).is_file() and tested.test == "minival"
    assert vilbert.home / tested.run.folder == vilbert.run_folder("x")
    assert shlex.join(lxmert.test("cpu", "x", "LAST", [])) == (
        "bash run/vqa_test.bash cpu x --load snap/vqa/x/LAST --test minival"
    )


def test_the_folder_of_a_run_is_the_one_that_vlbert_writes_to(tmp_path):
    from vlbert.config import load_config
    from vlbert.outputs import output_folder

    script = find_backbone("vlbert").script
    config = load_config(script.home / script.config)
    found = output_folder(config, tmp_path, "x")
    assert found.relative_to(tmp_path) == script.run_folder("x").relative_to(script.home)
