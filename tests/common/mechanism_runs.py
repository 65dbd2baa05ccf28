"""What every backbone's own commands do with mechanisms of attention and with LayerDrop.

A backbone's test files say how its runs are started, as `Commands`, and inherit the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from common.export import main as export
from common.training.checkpoint import load_checkpoint, load_meta
from tests.common.refusals import Command, error_of
from tests.lxmert.runs import same_state, strict_json

OVER = "--span-over"  # keys or distance
DROPPED = ("--layerdrop", "0.4")


def mechanism(over: str, read: bool) -> list[str]:
    """Flags of a run whose spans and alphas are learned; `read`: spans from the pair."""
    of_span = [OVER, over, "--span-init", "0.6", "--span-loss", "0.5"]
    of_span += ["--span-policy"] if read else []
    return ["--attention", "entmax", *of_span, "--strategy", "SpotTune_Block", "--epochs", "2"]


@dataclass(frozen=True)
class Commands:
    """How a backbone is trained and tested on tiny data.

    Attributes:
        train, evaluate: its commands.
        of_run: the words of a run into a folder.
        of_test: the words of a test of a checkpoint, into a folder.
        files: where a run into a folder leaves its files.
        inside: words of a mechanism of attention that is not the run's, for a test.
    """

    train: Command
    evaluate: Command
    of_run: Callable[[Path], list[str]]
    of_test: Callable[[Path, Path], list[str]]
    files: Callable[[Path], Path] = lambda out: out
    inside: Sequence[str] = ("--attention", "sparsemax")

    def run(self, out: Path, *more: str) -> Path:
        """Train; returns where the files are."""
        assert self.train([*self.of_run(out), *more]) == 0
        return self.files(out)


def accuracy(run: Path) -> str:
    """On the validation part, as the test of the same split has to say it."""
    return f"overall {strict_json(run / 'result.json')['accuracy']['val']['overall']:.2f}"


def goes_on(
    commands: Commands,
    whole: Path,
    out: Path,
    flags: Sequence[str],
    steps: int,
    other: Sequence[str],
    capsys: pytest.CaptureFixture[str],
) -> str:
    """A run that is stopped after some steps ends as the whole one; refused with other flags."""
    words = [*commands.of_run(out), *flags]
    assert commands.train([*words, "--max-steps", str(steps)]) == 0
    shown = error_of(capsys, commands.train, [*words, *other, "--resume"])
    assert commands.train([*words, "--resume"]) == 0
    for name in ("BEST", "LAST"):
        same_state(whole / f"{name}.safetensors", commands.files(out) / f"{name}.safetensors")
    return shown


class AttentionRuns:
    """Trained, stopped, tested, exported; a backbone has the fixture `commands`."""

    over: ClassVar[str]
    layers: ClassVar[int]
    """Sites of attention, each with a span and an alpha per head."""
    dead: ClassVar[int] = 0
    """Those of them that reach no answer, which are not recorded."""
    read: ClassVar[bool] = False
    """Spans are read from the pair: each site has weight and bias of what moves them as well."""

    @pytest.fixture(scope="class")
    def whole(self, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run that nothing interrupted."""
        return commands.run(tmp_path_factory.mktemp("attention"), *mechanism(self.over, self.read))

    def test_spans_and_alpha_are_learned_and_recorded(self, whole):
        epochs = strict_json(whole / "result.json")["epochs"]
        assert "span" in epochs[0]["train_losses"]
        first, last = (epoch["attention"] for epoch in epochs)
        assert set(first) == set(last) and len(first) == self.layers - self.dead
        # Where no sample went through the finetuned branch, nothing was read.
        assert any("span_sd" in entry for entry in last.values()) is self.read
        spans = [torch.tensor([e["span"] for e in epoch.values()]) for epoch in (first, last)]
        assert float(spans[1].mean()) < float(spans[0].mean()) < 0.6
        assert all(1.01 <= alpha <= 2 for entry in last.values() for alpha in entry["alpha"])

    def test_a_checkpoint_holds_the_mechanism_and_its_twins(self, whole):
        saved = load_meta(whole / "BEST.safetensors")["strategy_flags"]["attention"]
        assert saved == {
            "normaliser": "entmax",
            "span": self.over,
            "ramp": 0.25,
            "initial_span": 0.6,
            "initial_alpha": 1.1,
        } | ({"span_policy": True} if self.read else {})
        state = load_checkpoint(whole / "BEST.safetensors")[0]["model"]
        assert sum("weighting" in name and "twins" in name for name in state) == self.tensors

    @property
    def tensors(self) -> int:
        """Of a mechanism, in all sites."""
        return (4 if self.read else 2) * self.layers

    def test_a_stopped_run_goes_on_bit_for_bit(self, commands, whole, tmp_path, capsys):
        other = ["--alpha-init", "1.5"]
        shown = goes_on(
            commands, whole, tmp_path, mechanism(self.over, self.read), 2, other, capsys
        )
        assert "attention" in shown.lower()

    def test_a_checkpoint_brings_its_mechanism(self, commands, whole, tmp_path, capsys):
        words = commands.of_test(whole / "BEST.safetensors", tmp_path)
        capsys.readouterr()
        assert commands.evaluate(words) == 0
        assert accuracy(whole) in capsys.readouterr().out
        shown = error_of(capsys, commands.evaluate, [*words, *commands.inside])
        assert "strategy_flags.attention" in shown

    def test_an_exported_run_keeps_its_mechanism(self, whole, tmp_path):
        words = ["--run", str(whole), "--out", str(tmp_path / "out"), "--gpus", "cpu", "--quiet"]
        assert export(words) == 0
        state = load_checkpoint(tmp_path / "out" / "model.safetensors")[0]["model"]
        assert sum("weighting" in name for name in state) == self.tensors
        assert any("span_policy" in name for name in state) is self.read


class LayerDropRuns:
    """Trained, stopped, pruned; a backbone has the fixture `commands`."""

    stopped_after: ClassVar[int] = 2
    pruned: ClassVar[str] = "1"
    """What a run that starts pruned is given."""
    unknown: ClassVar[str] = "lang.77"

    @pytest.fixture(scope="class")
    def whole(self, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run that nothing interrupted."""
        return commands.run(tmp_path_factory.mktemp("layerdrop"), *DROPPED)

    def test_a_stopped_run_goes_on_bit_for_bit(self, commands, whole, tmp_path, capsys):
        other = ["--layerdrop", "0.1"]
        shown = goes_on(commands, whole, tmp_path, DROPPED, self.stopped_after, other, capsys)
        assert "layerdrop" in shown.lower()

    def test_a_full_checkpoint_is_tested_whole_and_pruned(self, commands, whole, tmp_path, capsys):
        words = commands.of_test(whole / "BEST.safetensors", tmp_path)
        capsys.readouterr()
        assert commands.evaluate(words) == 0
        assert accuracy(whole) in capsys.readouterr().out
        assert commands.evaluate([*words, "--prune", "1"]) == 0
        assert "--prune 1: without the layers" in capsys.readouterr().out
        shown = error_of(capsys, commands.evaluate, [*words, "--prune", self.unknown])
        assert "is no layer" in shown

    def test_a_model_that_starts_pruned_is_tested_as_it_is(self, commands, tmp_path, capsys):
        run = commands.run(tmp_path / "run", "--prune", self.pruned)
        assert load_meta(run / "BEST.safetensors")["pruned"] == self.pruned
        capsys.readouterr()
        words = commands.of_test(run / "BEST.safetensors", tmp_path / "test")
        assert commands.evaluate(words) == 0
        assert accuracy(run) in capsys.readouterr().out
