"""Kinds of questions: what runs count for each, and the oracle that decides by them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from common.adapt.encoder import Adaptive
from common.ask.command import main as ask
from common.attention.command import main as attention
from common.compare import main as compare
from common.export import main as export
from common.training.checkpoint import load_meta
from lxrt.finetuning import main
from tests.lxmert.runs import ADAPTIVE, refused, same_state, score_of_predictions, strict_json

ORACLE = ["--policy", "oracle:learned"]


def kind_of(data: Path) -> dict[int, str]:
    rows = [r for s in ("train", "nominival", "minival")
            for r in json.loads((data / "vqa" / f"{s}.json").read_text())]  # fmt: skip
    return {row["question_id"]: row["kind"] for row in rows}


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int, list[float]]]:
    """(whether in training, question id, its decisions) of all forward passes of a run."""
    seen: list[tuple[bool, int, list[float]]] = []
    decide = Adaptive.decide

    def watch(part: Adaptive, state: dict) -> torch.Tensor:
        samples = part._noise_key[2]
        found = decide(part, state)
        seen.extend((part.training, q, d) for q, d in zip(samples, found.tolist(), strict=True))
        return found

    monkeypatch.setattr(Adaptive, "decide", watch)
    return seen


def test_accuracies_and_decisions_are_recorded_by_kind(dialect, dialect_data, tmp_path, capsys):
    run = [flag for flag in dialect if flag != "--no-plots"]
    # Random weights answer nothing rightly: a policy that learned from that would collapse.
    taught = ["--strategy", "SpotTune_Block", "--policy-start", "1", "--policy-lr", "1e-9"]
    assert main([*run, *taught, "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "kept " in lines[-3]
    result = strict_json(tmp_path / "result.json")
    exchanged = result["accuracy"]["val_permuted"]
    assert lines[-2].endswith(f"decisions of other questions: {exchanged['overall']:.2f}")
    assert exchanged["count"] == 60
    (policy,) = [line for line in lines if line.startswith("policy: p ")]
    assert (
        "kind" in policy and "pretrained" in policy and policy in (tmp_path / "log.log").read_text()
    )
    assert result["epochs"][0]["policy"]["information"].keys() == {"type", "kind", "pretrained"}
    assert (tmp_path / "visualizations" / "policy.png").stat().st_size > 10_000
    kinds = {"kept", "learned"}
    for figures in (*result["accuracy"].values(), *result["baselines"].values()):
        assert kinds <= figures.keys()
    val, by_type = result["accuracy"]["val"], result["decisions"]["share_by_type"]
    assert val["overall"] == pytest.approx((val["kept"] + val["learned"]) / 2)
    assert {by_type[kind]["count"] for kind in kinds} == {30} and "yes/no" in by_type
    shares = torch.tensor([by_type[kind]["share"] for kind in sorted(kinds)])
    torch.testing.assert_close(shares.mean(0), torch.tensor(result["decisions"]["share"]))
    assert kinds & result["epochs"][0]["heldout"].keys()
    test = [*dialect[: dialect.index("--loadLXMERTQA")], "--test", "minival", "--quiet",
            "--load", str(tmp_path / "BEST"), "--output", str(tmp_path / "test")]  # fmt: skip
    assert main(test) == 0
    found = score_of_predictions(tmp_path / "test" / "minival_predict.json", dialect_data)
    assert {kind: found[kind] for kind in kinds} == {kind: val[kind] for kind in kinds}
    assert f"kept {val['kept']:.2f}" in capsys.readouterr().out
    assert "kept (%)" in (tmp_path / "report.html").read_text()
    assert compare([str(tmp_path), "--out", str(tmp_path / "compared")]) == 0
    assert "val % kept | val % learned" in (tmp_path / "compared" / "comparison.md").read_text()
    rows = strict_json(tmp_path / "compared" / "comparison.json")["sections"][0]
    assert rows["rows"][0]["figures"]["accuracy.val.kept"]["mean"] == val["kept"]
    assert rows["baselines"]["question_only"].keys() >= kinds


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_the_oracle_decides_exactly_by_kind_in_training_and_evaluation(
    dialect, dialect_data, decided, tmp_path, strategy
):
    run = [*dialect, "--strategy", strategy, *ORACLE, "--accumulate", "2"]
    assert main([*run, "--output", str(tmp_path)]) == 0
    kinds = kind_of(dialect_data)
    counts = Counter((training, kinds[q]) for training, q, _ in decided)
    assert counts.keys() == {(t, k) for t in (True, False) for k in ("kept", "learned")}
    for training, question, decisions in decided:
        wanted = float(kinds[question] == "learned")
        assert decisions == len(decisions) * [wanted], (training, question)
    result = strict_json(tmp_path / "result.json")
    assert result["policy"] == "oracle:learned" and result["parameters"]["policy"] == 0
    by_type = result["decisions"]["share_by_type"]
    assert set(by_type["learned"]["share"]) == {1.0} and set(by_type["kept"]["share"]) == {0.0}
    assert result["decisions"]["mean_live"] == 0.5
    assert not any("collapsed" in warning for warning in result["warnings"])


def test_a_shared_policy_decides_the_same_for_all_and_is_warned_of_nothing(
    dialect, tmp_path, capsys
):
    """It is no policy network: it is not taught, and permuting its decisions changes nothing."""
    run = [*dialect, "--strategy", "SpotTune", "--policy", "shared", "--policy-init", "0.7"]
    assert main([*run, "--output", str(tmp_path / "run")]) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    sites = len(result["decisions"]["names"])
    assert result["policy"] == "shared" and result["parameters"]["policy"] == 2 * sites
    assert set(result["decisions"]["share"]) <= {0.0, 1.0}
    assert not any("collapsed" in warning for warning in result["warnings"])
    assert "val_permuted" not in result["accuracy"]
    assert result["epochs"][0]["policy"]["spread"] < 1e-6
    assert result["epochs"][0]["policy"]["gradient"]["norm"] > 0
    out = ["--output", str(tmp_path / "refused"), "--policy-start", "8"]
    shown = refused(capsys, *run, *out)
    assert "policy shared decides the same for all samples" in shown
    assert not (tmp_path / "refused" / "LAST.safetensors").exists()
    plain = ["--run", str(tmp_path / "run"), "--data", str(dialect[dialect.index("--data") + 1])]
    assert export([*plain, "--out", str(tmp_path / "exported"), "--quiet"]) == 0


def test_a_resumed_oracle_is_bit_identical_to_one_without_interruption(dialect, tmp_path):
    run = [*dialect, "--strategy", "SpotTune_Block", *ORACLE, "--epochs", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*run, "--output", str(whole)]) == 0
    assert main([*run, "--max-steps", "3", "--output", str(parts)]) == 0
    assert main([*run, "--resume", "--output", str(parts)]) == 0
    assert same_state(whole / "LAST.safetensors", parts / "LAST.safetensors") > 100
    assert load_meta(parts / "BEST.safetensors")["strategy_flags"]["policy"] == "oracle:learned"


def test_an_oracle_of_unknown_kinds_is_refused_before_training(flags, dialect, tmp_path, capsys):
    run = ["--strategy", "BlockDrop", "--output", str(tmp_path / "run"), "--policy"]
    shown = refused(capsys, *dialect, *run, "oracle:learnt")
    assert "--policy oracle:learnt: the training questions are of kind kept, learned" in shown
    shown = refused(capsys, *flags, *run, "oracle:learned")
    assert "--policy oracle:learned: the training questions have no kinds" in shown
    shown = refused(capsys, *dialect, *run, "oracle:")
    assert "policy 'oracle:': the oracle needs a kind of samples; use e.g. oracle:learned" in shown
    assert not (tmp_path / "run" / "LAST.safetensors").exists()


def test_an_oracle_s_run_is_tested_and_looked_at_where_kinds_are_known(
    flags, dialect, dialect_data, vqa_data, easy_vqa_root, tmp_path, capsys
):
    out = tmp_path / "run"
    assert main([*dialect, "--strategy", "SpotTune_Block", *ORACLE, "--output", str(out)]) == 0
    where = ["--samples", "20", "--out", str(tmp_path / "seen"), "--run", str(out), "--data"]
    assert attention([*where, str(dialect_data)]) == 0
    unknown = "policy oracle:learned decides by the kind of a sample, which is not known here"
    capsys.readouterr()
    assert attention([*where, str(vqa_data)]) == 2 and unknown in capsys.readouterr().err
    test = [*flags[: flags.index("--loadLXMERTQA")], "--test", "minival", "--quiet",
            "--load", str(out / "BEST"), "--output", str(tmp_path / "test")]  # fmt: skip
    assert unknown in refused(capsys, *test)
    image = next((easy_vqa_root / "data/easy_vqa/images/test").iterdir())
    asked = ["--run", str(out), "--image", str(image), "--question", "is there a circle?"]
    assert ask([*asked, "--out", str(tmp_path / "asked.png")]) == 2
    assert unknown in capsys.readouterr().err
    plain = ["--run", str(out), "--data", str(dialect_data), "--out", str(tmp_path / "exported")]
    assert export([*plain, "--quiet"]) == 0
    shares = strict_json(tmp_path / "exported" / "export.json")["decisions"]["share"]
    assert len(set(shares)) == 1 and 0.3 < shares[0] < 0.7
