"""`make evidence`: which runs, what is skipped and resumed, tables and paired differences."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from scipy import stats

from common.errors import ConfigError
from common.evidence.command import main
from common.evidence.figure import draw_kept_shares
from common.evidence.plan import SEEDS, plan, studies
from common.evidence.report import (
    overview,
    paired_difference,
    read_study,
    study_table,
    write_overviews,
)
from common.runs.backbones import backbones
from tests.common.fake_repository import Repository, make_repository
from tests.common.result_examples import make_result

STUDY = "dialect_lxmert"


@pytest.fixture
def repository(tmp_path, easy_vqa_root, monkeypatch) -> Repository:
    """The data are there already."""
    monkeypatch.setattr("common.evidence.command.embedded", lambda run: None)
    return make_repository(tmp_path, easy_vqa_root, monkeypatch, main, "evidence")


def flags_of(repository: Repository) -> dict[str, list[str]]:
    """What the scripts were called with, by the run's row and seed."""
    calls = [line.split() for line in repository.calls() if line.startswith("train ")]
    return {"/".join(words[2].split("/")[2:]): words[3:] for words in calls}


def test_all_backbones_are_compared_on_the_dialect_with_seeds_that_chose_nothing():
    runs = plan(None, quick=False)
    assert len({run.name + run.study.backbone for run in runs}) == len(runs)
    assert not {run.seed for run in runs} & {9595, 9596, 9597}
    main_part = [run for run in runs if run.study.group == "dialect"]
    assert {run.study.backbone for run in main_part} == set(backbones())
    counts = Counter((run.study.backbone, run.row.name) for run in main_part)
    assert set(counts.values()) == {len(SEEDS)}
    rows = {name for _, name in counts}
    assert {"standard", "frozen", "last_2", "random", "published", "shared", "started"} <= rows
    assert "oracle" in rows
    with pytest.raises(ConfigError, match="unknown study"):
        plan(["dialekt"], quick=False)


def test_rows_differ_in_strategy_and_policy_alone():
    (study,) = (s for s in studies().values() if s.name == STUDY)
    runs = plan([study.name], quick=False)
    own = ("--strategy", "--seed", "--policy", "--policy-training")

    def rest(flags):
        return tuple(
            word for i, word in enumerate(flags) if word not in own and flags[i - 1] not in own
        )

    assert len({rest(run.flags()) for run in runs}) == 1


def test_a_kept_result_is_not_made_again(repository, capsys):
    assert repository.command("--only", STUDY) == 0
    first = flags_of(repository)
    assert len(first) == 8 * len(SEEDS)
    assert not list(repository.root.rglob("*.safetensors")), "checkpoints take space"
    assert (repository.out / "summary.md").is_file() and (repository.out / "evidence.png").is_file()
    capsys.readouterr()
    # What counts is what is kept, not the runs' own folders.
    shutil.rmtree(repository.root / "LXMERT" / "snap")
    assert repository.command("--only", STUDY) == 0
    assert flags_of(repository) == {}
    assert capsys.readouterr().out.count("is there: validation") == len(first)


def test_a_random_control_has_the_share_of_the_policy_beside_it(repository):
    assert repository.command("--only", STUDY) == 0
    flags = flags_of(repository)
    for seed in SEEDS:
        started = json.loads((repository.out / STUDY / "started" / f"seed_{seed}.json").read_text())
        shares = [epoch["train_share"] for epoch in started["epochs"]]
        given = flags[f"random/seed_{seed}"]
        assert given[given.index("--policy") + 1] == f"random:{sum(shares) / len(shares):.3f}"


def test_another_recipe_is_run_again_and_a_failed_one_goes_on(repository, capsys):
    repository.breaks("/standard/seed_101")
    assert repository.command("--only", STUDY) == 1
    assert "standard, seed 101: exit status 2" in capsys.readouterr().err
    flags_of(repository)
    path = repository.out / STUDY / "frozen" / "seed_102.json"
    changed = json.loads(path.read_text())
    path.write_text(json.dumps(changed | {"flags": [*changed["flags"], "--lr", "1"]}))
    shutil.rmtree(repository.folder(f"{STUDY}/frozen/seed_102"))
    (repository.root / "broken.txt").unlink()
    assert repository.command("--only", STUDY) == 0
    again = flags_of(repository)
    assert set(again) == {"standard/seed_101", "frozen/seed_102"}
    assert again["standard/seed_101"][-1] == "--resume"


def test_differences_are_paired_by_seed():
    ours = {1: 80.0, 2: 84.0, 3: 81.0, 9: 10.0}
    theirs = {1: 70.0, 2: 75.5, 3: 70.0, 4: 99.0}
    mean, half = paired_difference(ours, theirs)
    a, b = ([side[seed] for seed in (1, 2, 3)] for side in (ours, theirs))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert paired_difference({1: 3.0}, {1: 1.0}) == (2.0, None)
    with pytest.raises(ValueError, match="no seed"):
        paired_difference({1: 3.0}, {2: 1.0})


def test_the_table_has_kinds_shares_and_the_permuted_row(tmp_path):
    study = studies()[STUDY]
    for name, kept, permuted in (("standard", 60.0, None), ("started", 90.0, 70.0)):
        for seed in SEEDS[:2]:
            strategy = "standard" if name == "standard" else "SpotTune_Block"
            result = make_result(strategy, seed=seed)
            val = {"overall": kept, "kept": kept, "learned": 80.0, "count": 10}
            result["accuracy"]["val"] = val
            if permuted is not None:
                result["accuracy"]["val_permuted"] = val | {"overall": permuted, "kept": 50.0}
                share = [float(alive) for alive in result["decisions"]["live"]]
                result["decisions"]["share_by_type"] = {
                    "kept": {"count": 5, "share": [0.0] * len(share)},
                    "learned": {"count": 5, "share": share},
                }
            path = tmp_path / STUDY / name / f"seed_{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result))
    rows = {row[0]: row[1:] for row in study_table(study, read_study(study, tmp_path)).rows}
    assert rows["policy, started"][:4] == ("2", "90.0 ± 0.0", "90.0 ± 0.0", "80.0 ± 0.0")
    assert rows["policy, started"][4:6] == ("0.00 ± 0.00", "1.00 ± 0.00")
    assert rows["policy, started"][6] == "+30.0 (30.0 to 30.0)"
    assert rows["policy, started, permuted"][1] == "70.0 ± 0.0"
    assert rows["plain finetuning"][-1] == "–"


def test_layers_are_taken_out_of_a_trained_model_before_it_is_tidied_away(repository):
    assert repository.command("--only", "blocks") == 0
    calls = repository.calls()
    tests = [line.split() for line in calls if line.startswith("test ")]
    rules = [words[words.index("--prune") + 1] for words in tests]
    assert len(tests) == 3 * 3 and len(set(rules)) == 3
    assert all("/layerdrop/seed_" in words[2] for words in tests)
    pruned = json.loads((repository.out / "blocks" / "layerdrop_3" / "seed_101.json").read_text())
    whole = json.loads((repository.out / "blocks" / "layerdrop" / "seed_101.json").read_text())
    # The fake answers "yes" to everything when it is tested.
    assert 0 < pruned["accuracy"]["val"]["overall"] < 50 < whole["accuracy"]["val"]["overall"]
    assert not list(repository.root.rglob("*.safetensors"))
    assert (repository.out / "blocks" / "kept_shares.png").stat().st_size > 5000
    text = (repository.out / "blocks" / "summary.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| LayerDrop, pruned, 3 of 6"))
    assert "0.50 ± 0.00" in row and "kept share" in text
    assert repository.command("--only", "blocks") == 0
    assert repository.calls() == []
    # A lost result of a pruned row needs the model again.
    (repository.out / "blocks" / "layerdrop_3" / "seed_101.json").unlink()
    assert repository.command("--only", "blocks") == 0
    assert [line.split()[0] for line in repository.calls()] == ["train", "test", "test", "test"]


def test_kept_shares_are_drawn_by_the_way_they_came_about():
    def results(share, *values):
        return {
            seed: {"decisions": {"mean_live": share}, "accuracy": {"val": {"overall": value}}}
            for seed, value in enumerate(values)
        }

    found = {
        "standard": results(1.0, 94.0, 92.0),
        "blockdrop_4": results(0.67, 93.0, 94.0),
        "blockdrop_4_permuted": results(0.67, 10.0, 10.0),
        "static_4": results(0.67, 80.0, 90.0),
        "static_3": results(0.5, 70.0, 72.0),
    }
    (axes,) = draw_kept_shares(studies()["blocks"], found).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["BlockDrop, learned"] == [[pytest.approx(0.67), pytest.approx(93.5)]]
    assert lines["finetuned without them"] == [
        [pytest.approx(0.5), pytest.approx(71.0)],
        [pytest.approx(0.67), pytest.approx(85.0)],
    ]
    assert lines["all layers"][0][1] == pytest.approx(93.0)


def test_the_overview_has_all_backbones_side_by_side(tmp_path):
    def results(strategy: str, backbone: str, val: float) -> dict:
        return {
            seed: make_result(strategy, backbone=backbone, seed=seed, val=val + seed % 2)
            for seed in SEEDS
        }

    found = [
        (studies()[f"dialect_{name}"], {"standard": results("standard", name, 70.0)} | more)
        for name, more in (
            ("lxmert", {"started": results("SpotTune_Block", "lxmert", 85.0)}),
            ("vlbert", {}),
        )
    ]
    table = overview(found)
    assert table.headings[1:3] == (("LXMERT", "val %"), ("LXMERT", "difference"))
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["plain finetuning"][1::2] == ("–", "–")
    assert rows["policy, started"] == ("85.6 ± 0.5", "+15.0 (15.0 to 15.0)", "–", "–")
    write_overviews(found, tmp_path)
    assert "| policy, started | 85.6 ± 0.5 |" in (tmp_path / "dialect.md").read_text()
    write_overviews(found[:1], tmp_path / "one")
    assert not (tmp_path / "one").exists(), "there is nothing to put side by side"
