"""The embedded versions of the tasks: they are what they say, and the texts alone do not tell."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from common.data.datasets import load_split, resolve_dataset, split_holdout
from common.data.easy_vqa.build import COLOURS, SHAPES
from common.data.easy_vqa.regions import LAYOUT
from common.features.store import RegionFeatures
from tests.lxmert.runs import strict_json
from vilbert.easy_tasks import (
    GRID,
    SIDE,
    build_easy_tasks,
    easy_entry,
    mosaic_regions,
    original_key,
)
from vilbert.finetuning import evaluate, train
from vilbert.task_data import read_split
from vilbert.tasks import chosen_tasks

PICTURES = 12


@pytest.fixture(scope="module")
def folder(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the images that the tests have."""
    out = tmp_path_factory.mktemp("easy") / "tasks"
    dataset = resolve_dataset("easy_vqa", easy_vqa_root)
    build_easy_tasks(out, dataset, PICTURES, progress=False)
    return out


@pytest.fixture
def embedded(folder: Path, easy_vqa_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commands' embedded data."""
    monkeypatch.setattr("vilbert.easy_tasks.PLACE", str(folder))
    monkeypatch.setattr("vilbert.easy_tasks.repository_root", lambda: Path("/"))
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("part", ["train", "val"])
def test_questions_and_answers_do_not_tell_the_rationale(folder, part):
    """Of a shape the four rationales name that shape; of a colour three of them that colour."""
    found = lines(folder / "VCR" / f"{part}.jsonl")
    assert len(found) > 20
    places = Counter()
    for line in found:
        question = " ".join(line["question"])
        answers = [" ".join(words) for words in line["answer_choices"]]
        reasons = [" ".join(words) for words in line["rationale_choices"]]
        assert len(set(answers)) == len(set(reasons)) == 4
        answer, reason = answers[line["answer_label"]], reasons[line["rationale_label"]]
        assert answer in reason.split()
        fitting = [r for r in reasons if answer in r.split()]
        assert len(fitting) == (4 if answer in SHAPES else 3)
        asked = set(question.split()) & {*COLOURS, *SHAPES}
        assert not asked & set(reason.split()), question
        places[line["answer_label"]] += 1
        places[4 + line["rationale_label"]] += 1
    assert len(places) == 8 and max(places.values()) < len(found) / 2


def test_captions_are_true_and_of_every_description_there_are_as_many(folder):
    images = [line["img_path"] for line in lines(folder / "retrieval" / "val.jsonline")]
    captions = [line["sentences"][0] for line in lines(folder / "retrieval" / "val.jsonline")]
    assert len(set(images)) == len(images)
    counts = Counter(captions)
    assert max(counts.values()) <= 8 and len(counts) > 10
    answers = defaultdict(set)
    for line in lines(folder / "VCR" / "val.jsonl"):
        number = 1_000_000 + int(line["img_id"].removeprefix("val-"))
        answers[f"{number}.png"].add(" ".join(line["answer_choices"][line["answer_label"]]))
    for image, caption in zip(images, captions, strict=True):
        assert answers[image] <= set(caption.split())


def test_pictures_of_four_have_four_descriptions_and_one_is_meant(folder, embedded):
    (task,) = chosen_tasks("11")
    entry = easy_entry(task)
    for part in ("train", "val"):
        data = read_split(entry, part, seed=1)
        assert len(data) == 2 * PICTURES
        store = RegionFeatures.open(folder / "mosaics")
        for place in range(len(data)):
            sample = data.sample(place, 0)
            regions = store.get(data.image(place))
            assert (regions.width, regions.height) == (GRID * SIDE, GRID * SIDE)
            own = torch.tensor(sample.box)
            equal = (regions.boxes - own).abs().amax(1) < 1e-3
            assert int(equal.sum()) == 1, "the meant shape is one of the regions"


def test_geometry_of_a_picture_is_that_of_its_pixels(folder, easy_vqa_root):
    """Places and sizes as shares of the picture; the foreground of all four is one."""
    from common.data.easy_vqa.regions import WIDTH

    store = RegionFeatures.open(folder / "features")
    tiles = [store.get(name) for name in store.ids()[:4]]
    boxes, features, first = mosaic_regions(tiles)
    numbers = features[:, LAYOUT["geometry"]] / 4
    side = GRID * SIDE
    torch.testing.assert_close(numbers[:, :4], boxes / side, atol=1e-6, rtol=0)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) / side**2
    torch.testing.assert_close(numbers[:, 6], areas, atol=1e-6, rtol=0)
    assert float(numbers[first, 8].sum()) == pytest.approx(1.0, abs=0.02)
    pixels = numbers[first, 7] * areas[first]
    torch.testing.assert_close(numbers[first, 8], pixels / pixels.sum(), atol=0.02, rtol=0)
    assert features.shape == (12, WIDTH) and first == [0, 3, 6, 9]


def test_the_tasks_hold_out_the_images_that_are_held_out_for_questions(embedded, easy_vqa_root):
    """Whatever they call them."""
    asked = load_split(resolve_dataset("easy_vqa", easy_vqa_root), "train,nominival")
    data = read_split(easy_entry(chosen_tasks("9")[0]), "train", seed=1)
    images = {original_key(data.image(n)) for n in range(len(data))}
    held = {example.image_id for example in split_holdout(asked, 0.1)[1]}
    assert images <= {example.image_id for example in asked} and images & held


def test_parts_share_no_image(embedded):
    for name in ("6", "9", "11"):
        entry = easy_entry(chosen_tasks(name)[0])
        train_part, val = (read_split(entry, part, seed=1) for part in ("train", "val"))
        assert not set(train_part.images()) & set(val.images())


@pytest.mark.parametrize(
    "tasks", [*(pytest.param(t, marks=pytest.mark.slow) for t in ("6-7", "11")), "1,9"]
)
def test_a_tiny_run_of_the_embedded_tasks(embedded, tmp_path, capsys, tasks):
    words = ["--tasks", tasks, "--dataset", "easy_vqa", "--gpus", "cpu", "--quiet"]
    run = [*words, "--tiny", "--epochs", "1", "--no-plots", "--no-tensorboard"]
    run += ["--questions", "20", "--strategy", "SpotTune_Block"]
    assert train([*run, "--output", str(tmp_path / "run")]) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert (result["dataset"], result["size"]) == ("easy_vqa", "small")
    load = str(tmp_path / "run" / "BEST")
    assert evaluate([*words, "--from_pretrained", load, "--output", str(tmp_path / "out")]) == 0
    assert "SpotTune_Block: overall" in capsys.readouterr().out
