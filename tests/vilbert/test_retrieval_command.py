"""eval_retrieval.py: scores that are kept, ranks, zero-shot, what is computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.lxmert.runs import strict_json
from tests.vilbert.other_tasks import IMAGES, OtherFiles, captions_of
from tests.vilbert.runs import refused, without
from vilbert.finetuning import train
from vilbert.retrieval_command import main

FIGURES = {"R@1", "R@5", "R@10", "median rank", "mean rank"}


@pytest.fixture(scope="module")
def runs(others, tmp_path_factory) -> Path:
    """Finetuned models: plain, deciding for every pair, deciding for all pairs alike."""
    out = tmp_path_factory.mktemp("runs")
    for name, more in {
        "standard": ["--strategy", "standard"],
        "each": ["--strategy", "SpotTune"],
        "all": ["--strategy", "SpotTune_Block", "--policy-eval", "global"],
    }.items():
        run = others.train("9", out / name, *more, "--lr", "1e-2")
        assert train([*without(run, "--epochs"), "--epochs", "1"]) == 0
    return out


def scores(folder: Path) -> np.ndarray:
    return np.load(folder / "val_scores" / "scores.npy")


def run(others: OtherFiles, load: Path | str, out: Path, *more: str) -> list[str]:
    return [*others.test(load, out), *more]


def test_ranks_in_both_directions(others, runs, tmp_path, capsys):
    assert main(run(others, runs / "standard" / "BEST", tmp_path)) == 0
    result = strict_json(tmp_path / "val_retrieval.json")
    numbers = list(IMAGES["val"])
    texts = [text for n in numbers for text in captions_of(n)]
    assert (result["captions"], result["images"]) == (len(set(texts)), len(numbers))
    assert (result["strategy"], result["zero_shot"], result["computed_once"]) == (
        "standard",
        False,
        True,
    )
    found = scores(tmp_path)
    ranks = []
    distinct = list(dict.fromkeys(texts))
    for row, text in zip(found, distinct, strict=True):
        own = [k for k, n in enumerate(numbers) if text in captions_of(n)]
        best = max(row[k] for k in own)
        ranks.append(1 + sum(row[k] >= best for k in range(len(numbers)) if k not in own))
    assert result["text_to_image"].keys() == result["image_to_text"].keys() == FIGURES
    assert result["text_to_image"]["mean rank"] == pytest.approx(np.mean(ranks))
    assert result["text_to_image"]["R@5"] == pytest.approx(100 * np.mean(np.array(ranks) <= 5))
    shown = capsys.readouterr().out
    assert "text → image: R@1" in shown and "pairs per second (layers before the first" in shown
    best = strict_json(tmp_path / "val_best_images.json")
    assert [row["caption"] for row in best] == distinct
    for row, line in zip(found, best, strict=True):
        assert line["images"][0] == str(numbers[int(row.argmax())])
        assert sorted(line["images"]) == sorted(map(str, numbers))


@pytest.mark.parametrize("name", ["standard", "each", "all"])
def test_what_is_computed_once_and_in_which_blocks_changes_nothing(others, runs, tmp_path, name):
    load = runs / name / "BEST"
    assert main(run(others, load, tmp_path / "a")) == 0
    small = ["--captions_at_once", "3", "--images_at_once", "5", "--every_pair"]
    assert main(run(others, load, tmp_path / "b", *small)) == 0
    once = [strict_json(tmp_path / n / "val_retrieval.json")["computed_once"] for n in ("a", "b")]
    assert once == [name != "each", False], "decisions for every pair leave nothing to reuse"
    np.testing.assert_allclose(scores(tmp_path / "a"), scores(tmp_path / "b"), rtol=1e-4, atol=1e-5)
    assert len(np.unique(scores(tmp_path / "a").round(3))) > 8


def test_scores_that_are_there_are_not_computed_again(others, runs, tmp_path, capsys, monkeypatch):
    words = run(others, runs / "standard" / "BEST", tmp_path)
    assert main(words) == 0
    whole = scores(tmp_path)
    done = np.load(tmp_path / "val_scores" / "done.npy", mmap_mode="r+")
    values = np.load(tmp_path / "val_scores" / "scores.npy", mmap_mode="r+")
    done[3:7], values[3:7], values[0] = False, 0.0, whole[0] + 1
    done.flush()
    values.flush()
    assert main(words) == 0
    assert "goes on with 4 of" in capsys.readouterr().out
    np.testing.assert_allclose(scores(tmp_path)[1:], whole[1:], rtol=1e-4, atol=1e-6)
    assert np.array_equal(scores(tmp_path)[0], whole[0] + 1), "this one was there"
    assert main(words) == 0
    shown = refused(capsys, run(others, runs / "each" / "BEST", tmp_path), main)
    assert "holds scores of other settings: model is" in shown
    shorter = tmp_path / "tasks.yml"
    shorter.write_text(others.tasks.read_text().replace("max_region_num: 6", "max_region_num: 3"))
    other = [str(shorter) if word == str(others.tasks) else word for word in words]
    assert "settings: limits is" in refused(capsys, other, main)
    shown = refused(capsys, [*words, "--images", "3"], main)
    assert "holds scores of other settings" in shown


def test_zero_shot_scores_are_the_alignment_of_the_pretrained_model(others, tmp_path):
    words = without(run(others, "x", tmp_path), "--from_pretrained")
    words += ["--zero_shot", "--from_pretrained", str(others.pretrained)]
    words += ["--config_file", str(others.config)]
    assert main(words) == 0
    result = strict_json(tmp_path / "val_retrieval.json")
    assert result["zero_shot"] and "strategy" not in result
    found = scores(tmp_path)
    assert (found > 0).all() and (found < 1).all() and found.std() > 1e-4


def test_part_of_the_images_with_their_captions(others, runs, tmp_path):
    words = run(others, runs / "standard" / "BEST", tmp_path, "--images", "3")
    assert main(words) == 0
    result = strict_json(tmp_path / "val_retrieval.json")
    assert (result["images"], result["captions"]) == (3, 6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "6"], "--task VCR_Q-A: no task of retrieval; give RetrievalFlickr30k (9)"),
        (["--tasks", "9,6"], "one task of retrieval at a time"),
        (["--captions_at_once", "0"], "--captions_at_once 0: give 1 at least"),
        (["--images", "-1"], "--images -1: give a number of images, or 0 for all"),
        (["--split", "test"], "all_data_final_test_set0_2014.jsonline"),
        (["--split", "train"], "--split train: these samples are trained on"),
    ],
)
def test_what_cannot_be_retrieved_is_refused(others, runs, tmp_path, capsys, more, message):
    words = run(others, runs / "standard" / "BEST", tmp_path, *more)
    assert message in refused(capsys, words, main)
