"""A fourth backbone of its shortest form goes through everything that the others go through."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

from common.ask import main as ask
from common.bench import main as bench
from common.data.datasets import load_split, resolve_dataset
from common.data.tokenizer import small_vocabulary
from common.data.vqa_metric import score
from common.export import main as export
from common.runs import backbones as table
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from tests.common import tiny_backbone
from tests.common.tiny_backbone import TINY, main
from tests.common.tiny_models import ADAPTIVE
from tests.lxmert.runs import same_state

QUESTIONS = 40


@pytest.fixture
def flags(easy_vqa_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbone is installed, and a run of two epochs of five steps on the embedded data."""
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    installed = table.backbones() | {"tiny": TINY}
    monkeypatch.setattr(table, "backbones", lambda: installed)
    asked = load_split(resolve_dataset("easy_vqa"), "train")
    words = "\n".join(small_vocabulary(example.question for example in asked)) + "\n"
    (tmp_path / "vocab.txt").write_text(words)
    data = ["--dataset", "easy_vqa", "--questions", str(QUESTIONS), "--words", str(tmp_path)]
    return [*data, "--epochs", "2", "--gpus", "cpu", "--quiet", "--no-plots"]


@pytest.mark.parametrize(
    "strategy",
    [
        "standard",
        *(pytest.param(s, marks=[] if s == "SpotTune" else pytest.mark.slow) for s in ADAPTIVE),
    ],
)
def test_every_strategy_trains_and_is_tested_with_its_own_accuracy(flags, strategy, tmp_path):
    run = [*flags, "--strategy", strategy, "--output", str(tmp_path / "run")]
    assert main(run) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["backbone"] == "tiny" and result["strategy"] == strategy
    assert main([*run, "--load", str(tmp_path / "run" / "BEST"), "--test", "minival"]) == 0
    rows = json.loads((tmp_path / "run" / "minival_predict.json").read_text())
    found = {row["question_id"]: row["answer"] for row in rows}
    examples = load_split(resolve_dataset("easy_vqa"), "minival")
    assert score(found, examples)["overall"] == result["accuracy"]["val"]["overall"]


def test_it_resumes_bit_for_bit_and_refuses_in_one_line(flags, tmp_path, capsys):
    run = [*flags, "--strategy", "SpotTune"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*run, "--output", str(whole)]) == 0
    assert main([*run, "--output", str(parts), "--max-steps", "7"]) == 0
    assert main([*run, "--output", str(parts), "--resume"]) == 0
    assert same_state(whole / "LAST.safetensors", parts / "LAST.safetensors") > 100
    capsys.readouterr()
    assert main([*run, "--output", str(parts)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and "--resume" in shown and shown.count("\n") == 1


def test_it_answers_and_is_exported_as_the_plain_model_that_it_decided_for(
    flags, easy_vqa_root, tmp_path, capsys
):
    folder = tmp_path / "run"
    assert main([*flags, "--strategy", "BlockDrop", "--output", str(folder)]) == 0
    image = load_split(resolve_dataset("easy_vqa"), "minival")[0].image_id
    question = ["--image-id", image, "--question", "what color is the shape?"]
    assert ask(["--run", str(folder), *question]) == 0
    assert "layer.1" in capsys.readouterr().out
    out = tmp_path / "plain"
    assert export(["--run", str(folder), "--out", str(out), "--global-k", "1"]) == 0
    state, meta = load_checkpoint(out / "model.safetensors")
    assert meta["strategy"] == "standard" and meta["config"]["layers"] == 1
    plain = TINY.make_model(meta)
    plain.load_state_dict(state["model"])
    run = open_run(folder)
    decided = json.loads((out / "export.json").read_text())["decisions"]["global"]
    data = tiny_backbone.training_questions(run, None)[0]
    inputs = run.make_inputs(data.read(range(6)))
    with torch.no_grad(), run.adaptive.force(torch.tensor(decided, dtype=torch.float32)):
        torch.testing.assert_close(plain.eval()(**inputs), run.model(**inputs))


def test_it_is_measured(flags, tmp_path, capsys):
    command = ["--backbone", "tiny", "--quick", "--quiet", "--rounds", "1", "--batch", "4"]
    out = ["--out", str(tmp_path / "cpu.json"), "--only", "fp32/eval/BlockDrop/gathered"]
    assert bench([*command, *out]) == 0
    cases = json.loads((tmp_path / "cpu.json").read_text())["cases"]
    assert cases and "tiny" in capsys.readouterr().out


def test_it_is_short():
    """What a backbone must write, imports and blank lines left out: at most 125 lines."""
    text = Path(tiny_backbone.__file__).read_text()
    imports = [n for n in ast.parse(text).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    of_imports = {line for node in imports for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    assert 100 < sum(bool(line) and number not in of_imports for number, line in lines) <= 125
