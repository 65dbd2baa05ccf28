"""What attention looks at, by the real commands, on runs with entmax and spans."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.adapt.attention_capture import capture
from common.ask.answering import make_batch
from common.ask.attention import Choice, parse_choice
from common.ask.command import main as ask_command
from common.ask.image import find_image
from common.attention import main as attention
from common.errors import ConfigError
from common.runs.backbones import find_backbone
from common.runs.opened_run import open_run
from lxrt.finetuning import main
from tests.common.attended import check_places
from tests.lxmert.runs import small_run, strict_json

IMAGE, QUESTION = "EASY_test_000000004003", "What color is the shape?"
WORDS = ["[CLS]", "what", "color", "is", "the", "shape", "?", "[SEP]"]
ON = (
    "--attention",
    "entmax",
    "--alpha-init",
    "1.6",
    "--span-over",
    "distance",
    "--span-init",
    "0.4",
)


@pytest.fixture(scope="module")
def finetuned(vqa_data, pretrained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "run"
    flags = [f for f in small_run(vqa_data, pretrained) if f != "--no-plots"]
    assert main([*flags, *ON, "--strategy", "SpotTune_Block", "--output", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def skipping(vqa_data, pretrained, tmp_path_factory) -> Path:
    """A run of BlockDrop that skips every layer."""
    out = tmp_path_factory.mktemp("skipping") / "run"
    flags = ["--strategy", "BlockDrop", "--policy", "random:0.000001", "--output", str(out)]
    assert main([*small_run(vqa_data, pretrained), *flags]) == 0
    return out


@pytest.fixture
def picture(easy_vqa_root: Path) -> list[str]:
    folder = easy_vqa_root / "data" / "easy_vqa" / "images" / "test"
    return ["--image", str(folder / f"{IMAGE}.png")]


def test_the_run_draws_its_spans_and_alphas(finetuned):
    for name in ("spans", "alphas"):
        assert Image.open(finetuned / "visualizations" / f"{name}.png").width > 1000
    assert (finetuned / "report.html").read_text().count("of every head after each") == 4


def test_the_pictures_and_figures_are_those_of_the_models_own_weights(
    finetuned, vqa_data, tmp_path, capsys
):
    words = ["--run", str(finetuned), "--data", str(vqa_data), "--out", str(tmp_path)]
    assert attention([*words, "--samples", "7", "--threshold", "0.1"]) == 0
    shown = capsys.readouterr().out
    found = strict_json(tmp_path / "attention.json")
    entries = {(e["layer"], e["from"], e["to"]): e for e in found["attention"]}
    assert set(entries) == {
        *((f"lang.{n}", "text", "text") for n in (1, 2)),
        *((f"vision.{n}", "region", "region") for n in (1, 2)),
        *(("cross.1", a, b) for a in ("text", "region") for b in ("text", "region")),
        ("cross.2", "text", "region"),
        ("cross.2", "text", "text"),
    }
    assert all(f"{layer} " in shown for layer, _, _ in entries)
    for name in ("zeros", "above", "entropy"):
        assert Image.open(tmp_path / f"{name}.png").width > 1000
    assert not (tmp_path / "mass.png").exists(), "each stream holds words or regions alone"
    assert (tmp_path / "attention.html").read_text().count("<img") == 3
    heads = entries["cross.1", "text", "region"]
    assert heads["mass"] == pytest.approx([1.0] * 4, abs=1e-5)
    assert all(0 < z < 1 for z in heads["zeros"]) and all(0 <= e <= 1 for e in heads["entropy"])
    expected = by_hand(finetuned, vqa_data, 7)
    for name, values in expected.items():
        assert heads[name] == pytest.approx(values, rel=1e-5)


def by_hand(folder: Path, data: Path, count: int) -> dict[str, list[float]]:
    """The measures of cross.1, words to regions, one sample after the other."""
    from common.attention.command import validation

    run = open_run(folder)
    questions, _ = validation(run, data, False)
    zeros, above, entropy = [], [], []
    for n in np.linspace(0, len(questions) - 1, count).round().astype(int):
        with capture(run.model) as found, torch.no_grad():
            run.model(**run.make_inputs(questions.read([int(n)])))
        one = next(f for f in found if (f.layer, f.keys) == ("cross.1", "vision"))
        weights = one.weights[0].double()
        zeros.append((weights == 0).double().mean((1, 2)))
        above.append(((weights >= 0.1).double().sum(-1), len(weights[0])))
        logs = torch.where(weights > 0, weights.log(), 0.0)
        entropy.append(-(weights * logs).sum(-1) / np.log(weights.shape[-1]))
    sizes = [a[0].shape[1] for a in above]
    keys = [weights.shape[-1]] * len(sizes)
    total = sum(s * k for s, k in zip(sizes, keys, strict=True))
    return {
        "above": (torch.cat([a[0] for a in above], 1).mean(1)).tolist(),
        "entropy": torch.cat(entropy, 1).mean(1).tolist(),
        "zeros": (
            sum(z * s * k for z, s, k in zip(zeros, sizes, keys, strict=True)) / total
        ).tolist(),
    }


def test_it_is_said_rightly_what_stands_where(finetuned, picture):
    run = open_run(finetuned)
    regions = find_image(run, Path(picture[1]), None).regions
    check_places(run, regions, QUESTION.lower(), "color", "circle")


def test_an_example_shows_the_table_of_the_chosen_head(finetuned, picture, tmp_path, capsys):
    words = ["--run", str(finetuned), *picture, "--question", QUESTION, "--out", str(tmp_path)]
    assert attention([*words, "--layer", "cross.1:2", "--word", "color"]) == 0
    assert "attention of cross.1, head 2: text → region" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    found = strict_json(path)
    assert found["queries"] == WORDS and found["keys"] == [str(n) for n in range(1, 8)]
    run = open_run(finetuned)
    regions = find_image(run, Path(picture[1]), None).regions
    with capture(run.model) as captured, torch.no_grad():
        run.model(**run.make_inputs(make_batch(regions, QUESTION)))
    one = next(c for c in captured if (c.layer, c.keys) == ("cross.1", "vision"))
    torch.testing.assert_close(torch.tensor(found["weights"]), one.weights[0, 1])
    page = next(tmp_path.glob("*.html")).read_text()
    assert "<img" in page and page.count("<tr") == 1 + 5 + 1 + len(WORDS)
    assert next(tmp_path.glob("*.png")).stat().st_size > 10_000


def test_the_layer_that_is_shown_by_itself_goes_from_words_to_regions(finetuned, picture, tmp_path):
    words = ["--run", str(finetuned), *picture, "--question", QUESTION, "--out", str(tmp_path)]
    assert attention(words) == 0
    assert attention([*words, "--direction", "region-text"]) == 0
    found = sorted((strict_json(p) for p in tmp_path.glob("*.json")), key=lambda f: f["layer"])
    assert [(f["layer"], f["from"], f["to"], f["head"]) for f in found] == [
        ("cross.1", "region", "text", None),
        ("cross.2", "text", "region", None),
    ]


def test_ask_draws_attention_without_a_change_of_the_answers(finetuned, picture, tmp_path, capsys):
    words = ["--run", str(finetuned), *picture, "--json", "-"]
    asked = ["--question", QUESTION, "--question", "Is there a circle?"]
    assert ask_command([*words, *asked, "--no-plots"]) == 0
    plain = json.loads(capsys.readouterr().out)
    more = ["--attention", "cross.2:1", "--word", "circle", "--out", str(tmp_path)]
    assert ask_command([*words, *asked, *more]) == 0
    drawn = json.loads(capsys.readouterr().out)
    for before, after in zip(plain["questions"], drawn["questions"], strict=True):
        assert before["answers"] == after["answers"] and before["attention"] is None
        shown = after["attention"]
        assert (shown["layer"], shown["head"], shown["to"]) == ("cross.2", 1, "region")
        table = np.array(shown["weights"])
        assert table.shape == (len(shown["queries"]), len(shown["keys"]))
        np.testing.assert_allclose(table.sum(1), 1, atol=1e-5)
        assert Image.open(after["picture"]).height > 1200
    no_circle, circle = (entry["attention"]["notes"] for entry in drawn["questions"])
    assert "no word 'circle' attends here" in no_circle[0] and not circle


def test_ask_says_what_is_attended_to_while_questions_come_in(
    finetuned, picture, capsys, monkeypatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\nIs there a circle?\n"))
    words = ["--run", str(finetuned), *picture, "--interactive", "--no-plots"]
    assert ask_command([*words, "--attention", "cross.1"]) == 0
    assert capsys.readouterr().out.count("attended  attention of cross.1, mean of all heads") == 2


def test_a_skipped_layer_is_said_and_none_at_all_is_an_error(
    skipping, picture, vqa_data, tmp_path, capsys
):
    words = ["--run", str(skipping), *picture, "--question", QUESTION]
    assert ask_command([*words, "--attention", "cross.1", "--out", str(tmp_path)]) == 0
    assert "note      cross.1 was skipped for this pair" in capsys.readouterr().out
    samples = ["--run", str(skipping), "--data", str(vqa_data), "--samples", "3"]
    for command in ([*words], [*samples]):
        assert attention([*command, "--out", str(tmp_path)]) == 2
        assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--layer", "cros.1"], "no such layer. Did you mean cross.1?.*lang.1, lang.2, vision.1"),
        (["--layer", "cross.1:5"], "it has the heads 1 to 4"),
        (["--layer", "cross.1:x"], "it has the heads 1 to 4"),
        (["--layer", "lang.1", "--direction", "text-region"], "it has text → text"),
        (["--samples", "0"], "--samples 0"),
        (["--threshold", "0"], "--threshold 0.0: give a weight"),
    ],
)
def test_wrong_choices_are_refused_with_what_there_is(
    finetuned, picture, tmp_path, capsys, more, message
):
    words = ["--run", str(finetuned), *picture, "--question", QUESTION, "--out", str(tmp_path)]
    assert attention([*words, *more]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_half_an_example_is_refused(finetuned, picture, capsys):
    assert attention(["--run", str(finetuned), *picture]) == 2
    assert "give its --question" in capsys.readouterr().err
    assert ask_command(["--run", str(finetuned), *picture, "--question", "?", "--word", "a"]) == 2
    assert "--attention LAYER" in capsys.readouterr().err


def test_a_backbone_that_does_not_say_what_stands_where_is_refused_by_name(finetuned, monkeypatch):
    run = open_run(finetuned)
    assert parse_choice(run, "cross.1:2") == Choice("cross.1", 2)
    silent = replace(find_backbone("lxmert"), places=None)
    monkeypatch.setattr("common.runs.attention_blocks.find_backbone", lambda name: silent)
    with pytest.raises(ConfigError, match="attention of lxmert cannot be shown"):
        parse_choice(run, "cross.1:2")
