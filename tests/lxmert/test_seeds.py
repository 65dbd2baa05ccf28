"""`--seeds N`: each seed is a run of its own, and the summary is theirs."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.runs.backbones import find_backbone
from lxrt.finetuning import main
from tests.lxmert.runs import refused, same_state, small_run, strict_json

SEEDS = (9595, 9596)


@pytest.fixture(scope="module")
def in_process() -> Iterator[None]:
    """Train every seed in this process, since a new one takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "common.tasks.seeds.Launcher.run", lambda self, command, folder: main(command[2:])
        )
        yield


@pytest.fixture(scope="module")
def two(in_process, vqa_data, pretrained, tmp_path_factory) -> tuple[Path, list[str]]:
    """A command with two seeds that has run, stopped on its way once, and its words."""
    out = tmp_path_factory.mktemp("seeds") / "v1"
    command = [
        *small_run(vqa_data, pretrained),
        "--strategy",
        "SpotTune_Block",
        "--seeds",
        "2",
        "--output",
        str(out),
    ]
    assert main([*command, "--max-steps", "2"]) == 0
    assert not (out / "seeds.json").exists() and not list(out.rglob("result.json"))
    assert main([*command, "--resume"]) == 0
    return out, command


def test_a_seed_that_fails_is_named_and_nothing_follows_it(flags, tmp_path, capsys):
    out = tmp_path / "run"
    shown = refused(
        capsys, *flags, "--output", str(out), "--seeds", "2", "--loadLXMERTQA", "nowhere"
    )
    assert "training with seed 9595 failed with exit status 2" in shown and "--resume" in shown
    assert not (out / "seed_9596").exists()


@pytest.mark.long
def test_each_seed_is_the_run_that_it_would_be_alone(two, flags, tmp_path):
    out, _ = two
    alone = tmp_path / "alone"
    assert (
        main([*flags, "--strategy", "SpotTune_Block", "--seed", "9596", "--output", str(alone)])
        == 0
    )
    assert same_state(alone / "LAST.safetensors", out / "seed_9596" / "LAST.safetensors") > 100
    first, second = (strict_json(out / f"seed_{seed}" / "result.json") for seed in SEEDS)
    assert (first["seed"], second["seed"]) == SEEDS
    assert first["epochs"][0]["train_loss"] != second["epochs"][0]["train_loss"]
    assert (first["name"], second["name"]) == ("v1/seed_9595", "v1/seed_9596")
    assert "--seeds" not in second["command"]
    assert second["command"].endswith(f"--output {out}/seed_9596 --version v1/seed_9596")


def test_the_summary_is_mean_and_sample_deviation(two):
    out, _ = two
    summary = strict_json(out / "seeds.json")
    assert summary["seeds"] == list(SEEDS)
    assert summary["runs"] == [f"seed_{seed}/result.json" for seed in SEEDS]
    results = [strict_json(out / path) for path in summary["runs"]]
    for key, values in (
        ("generalization_error", [r["generalization_error"] for r in results]),
        ("accuracy.train.overall", [r["accuracy"]["train"]["overall"] for r in results]),
        ("accuracy.val.overall", [r["accuracy"]["val"]["overall"] for r in results]),
    ):
        found = summary["figures"][key]
        assert found["count"] == 2
        assert found["mean"] == pytest.approx(statistics.fmean(values))
        assert found["sd"] == pytest.approx(statistics.stdev(values))
    table = (out / "seeds.md").read_text()
    assert "SpotTune\\_Block (started) | 2 |" in table and "±" in table


def test_finished_seeds_are_kept_and_more_can_be_added(two, capsys):
    out, command = two
    before = {path: path.stat().st_mtime_ns for path in out.glob("seed_*/result.json")}
    assert len(before) == 2
    assert main([*command, "--resume", "--seeds", "3"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shown = capsys.readouterr().out
    assert f"seed 9596 (2 of 3): kept, {out}/seed_9596 has a result" in shown
    assert strict_json(out / "seeds.json")["seeds"] == [*SEEDS, 9597]
    assert strict_json(out / "seeds.json")["figures"]["generalization_error"]["count"] == 3


def test_seeds_of_other_settings_are_not_put_together(two, capsys):
    out, command = two
    shown = refused(capsys, *command, "--resume", "--lr", "0.1")
    assert f"{out}/settings.json: the earlier seeds were trained with lr None (now 0.1)" in shown
    for more in ([], ["--quiet"]):
        shown = refused(capsys, *command, *more)
        assert "--resume" in shown and "--overwrite" in shown


def test_refusals(flags, tmp_path, capsys, monkeypatch):
    command = [*flags, "--output", str(tmp_path / "run"), "--seeds"]
    assert "--seeds 0: give a number of at least 1" in refused(capsys, *command, "0")
    assert "nothing to resume" in refused(capsys, *command, "2", "--resume")
    assert "--seeds is for training" in refused(capsys, *command, "2", "--test", "minival")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun" in refused(capsys, *command, "2")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_run_script_trains_every_seed_in_a_process_of_its_own(flags):
    script = find_backbone("lxmert").script
    out = script.run_folder("seeds_test")
    command = script.train("cpu", "seeds_test", [*flags, "--seeds", "2", "--strategy", "standard"])
    try:
        subprocess.run(command, cwd=script.home, check=True)
        assert strict_json(out / "seeds.json")["figures"]["accuracy.val.overall"]["count"] == 2
        code = (out / "src" / "lxrt" / "finetuning.py").stat().st_ino
        subprocess.run([*command, "--resume"], cwd=script.home, check=True)
        assert (out / "src" / "lxrt" / "finetuning.py").stat().st_ino == code, (
            "the code that ran is kept"
        )
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_overwriting_leaves_nothing_of_the_earlier_seeds(in_process, flags, tmp_path, capsys):
    out = tmp_path / "run"
    stale = out / "seed_1"
    stale.mkdir(parents=True)
    for name in ("result.json", "LAST.safetensors"):
        (stale / name).touch()
    command = [*flags, "--output", str(out), "--seeds", "2", "--loadLXMERTQA", "nowhere"]
    assert f"{stale}/LAST.safetensors exists" in refused(capsys, *command)
    assert main([*command, "--overwrite"]) == 2
    assert not any(path.is_file() for path in stale.iterdir())
