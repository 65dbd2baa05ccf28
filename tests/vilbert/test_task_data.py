"""The data classes of the tasks: what a sample shows, parts, wrong pairs, a task of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError, DataError
from tests.lxmert.runs import strict_json
from tests.vilbert.other_tasks import IMAGES, OtherFiles, captions_of, write_other_files
from tests.vilbert.runs import refused
from tests.vilbert.task_files import write_captions
from vilbert.finetuning import evaluate, train
from vilbert.samples import Pair, Sample, TaskData
from vilbert.sizes import HOME
from vilbert.task_data import RetrievalData, data_class, read_split
from vilbert.tasks import TaskEntry, chosen_tasks


def entry(files: OtherFiles, name: str) -> TaskEntry:
    return chosen_tasks(name, files.tasks)[0]


def test_vcr_shows_four_pairs_with_a_second_text(others):
    answers = read_split(entry(others, "6"), "val", seed=1)
    rationales = read_split(entry(others, "7"), "val", seed=1)
    assert len(answers) == len(rationales) == 2 * len(IMAGES["val"])
    for place in range(len(answers)):
        first, then = answers.sample(place, 0), rationales.sample(place, 0)
        assert len({pair.second for pair in first.pairs}) == len(first.pairs) == 4
        assert {pair.image_id for pair in first.pairs} == {answers.image(place)}
        assert first.pairs[first.right].second in then.pairs[0].text.split("[SEP]")[1]
        assert all(pair.second.startswith("it is a") for pair in then.pairs)


def test_annotated_regions_are_shown_in_training_alone_for_referring_expressions(others):
    data = read_split(entry(others, "11"), "train", seed=1)
    train_part, held = data.part([0, 1], training=True), data.part([2], training=False)
    assert train_part.second_features and not held.second_features
    assert len(train_part) == 2 and held.sample(0, 0) == data.sample(2, 0)
    answers = read_split(entry(others, "6"), "train", seed=1)
    assert answers.part([0], training=False).second_features, "VCR is asked with them"


def retrieval(others: OtherFiles, split: str = "train") -> RetrievalData:
    data = read_split(entry(others, "9"), split, seed=4)
    assert isinstance(data, RetrievalData)
    return data


def test_wrong_pairs_are_a_caption_an_image_and_one_that_is_alike(others):
    data = retrieval(others)
    own = {str(n): set(captions_of(n)) for n in IMAGES["train"]}
    assert len(data) == 2 * len(own)
    alike = set()
    for place in range(len(data)):
        for epoch in range(3):
            sample = data.sample(place, epoch)
            right, caption, image, near = sample.pairs
            assert sample.right == 0 and right.text in own[right.image_id]
            assert caption.image_id == near.image_id == right.image_id != image.image_id
            assert image.text == right.text and right.text not in own[image.image_id]
            assert caption.text not in own[right.image_id]
            assert near.text not in own[right.image_id]
            number = int(right.image_id)
            alike.add(next((int(n) - number) % 20 for n in own if near.text in own[n]))
    assert alike <= {1, 2, 3, 17, 18, 19, 16, 4, *range(5, 16)}
    drawn = [data.sample(3, epoch).pairs for epoch in range(6)]
    assert len(set(drawn)) > 3, "drawn anew in every epoch"
    assert data.sample(3, 5) == retrieval(others).sample(3, 5), "the same in every process"


def test_hard_negatives_come_from_the_pool_in_training(others):
    data = retrieval(others)
    of_caption = {captions_of(n)[1]: n for n in IMAGES["train"]}
    near = []
    for place in range(len(data)):
        pair = data.sample(place, 0).pairs[3]
        if pair.text in of_caption:
            near.append((of_caption[pair.text] - int(pair.image_id)) % 20)
    assert near and set(near) <= {1, 2, 3}, "neighbours of the pool"
    held = data.part(range(len(data)), training=False)
    far = [
        (of_caption[p.text] - int(p.image_id)) % 20
        for p in (held.sample(n, -1).pairs[3] for n in range(len(held)))
        if p.text in of_caption
    ]
    assert set(far) - {1, 2, 3}, "any image"


def test_images_that_are_held_out_are_never_shown_in_training(others):
    data = retrieval(others)
    places = [n for n in range(len(data)) if int(data.image(n)) < 15]
    part = data.part(places, training=True)
    own = {str(n) for n in range(15)}
    pairs = [p for n in range(len(part)) for e in range(4) for p in part.sample(n, e).pairs]
    assert {p.image_id for p in pairs} <= own and set(part.images()) == own
    assert "it is 17" not in {p.text for p in pairs}
    alone = data.part([0], training=False)
    assert len(alone) == 1 and len(set(alone.sample(0, -1).pairs)) == 4


def test_images_with_the_same_captions_are_no_wrong_pairs(tmp_path):
    """Where many images look alike, what is drawn as wrong is wrong."""
    files = write_other_files(tmp_path)
    lines = [{"img_path": f"{n}.jpg", "sentences": [f"kind {n % 3}"]} for n in IMAGES["train"]]
    write_captions(tmp_path / "retrieval" / "train.jsonline", *lines)
    data = retrieval(files)
    for place in range(len(data)):
        for epoch in range(5):
            right, caption, image, near = data.sample(place, epoch).pairs
            assert right.text not in (caption.text, near.text)
            assert int(image.image_id) % 3 != int(right.image_id) % 3
    lines = [{"img_path": "0.jpg", "sentences": ["a", "b"]}]
    lines += [{"img_path": f"{n}.jpg", "sentences": ["b"]} for n in list(IMAGES["train"])[1:]]
    write_captions(tmp_path / "retrieval" / "train.jsonline", *lines)
    with pytest.raises(DataError, match="caption 0 of image 0: all 20 images have the same"):
        retrieval(files).sample(0, 0)
    lines = [{"img_path": f"{n}.jpg", "sentences": ["one"]} for n in IMAGES["train"]]
    write_captions(tmp_path / "retrieval" / "train.jsonline", *lines)
    with pytest.raises(DataError, match="20 images with the same captions"):
        retrieval(files)


# A task of one's own


PAIRS = Pair("a ball", "1"), Pair("a box", "2")
OWN = """
from vilbert.samples import Pair, Sample, TaskData

class Mine(TaskData):
    options = {options}

    def __init__(self, task, split):
        pairs = Pair("a ball", "1"), Pair("a box", "2")
        super().__init__([Sample(n, pairs, right=n % 2) for n in range({count})])

class Other:
    pass
"""


@pytest.mark.parametrize(
    ("data", "options", "count", "message"),
    [
        ("", 2, 4, "nothing is known of its data: give key data, module:Class"),
        ("nowhere_{n}:Mine", 2, 4, "cannot be imported (No module named"),
        ("own_{n}:Nobody", 2, 4, "cannot be imported (module"),
        ("own_{n}", 2, 4, "cannot be imported ("),
        ("own_{n}:Other", 2, 4, "is no subclass of vilbert.samples.TaskData"),
        ("own_{n}:Mine", 2, 0, "split train has no samples"),
        ("own_{n}:Mine", 3, 4, "sample 0 has 2 pairs, expected 3"),
    ],
)
def test_a_class_that_is_none_is_refused_by_name(
    others, tmp_path, monkeypatch, data, options, count, message
):
    number = abs(hash((data, options, count)))
    (tmp_path / f"own_{number}.py").write_text(OWN.format(options=options, count=count))
    monkeypatch.syspath_prepend(tmp_path)
    values = vars(entry(others, "6")) | {"name": "Mine", "data": data.format(n=number)}
    with pytest.raises((ConfigError, DataError)) as caught:
        read_split(TaskEntry(**values), "train", 1)
    assert message in str(caught.value) and "task Mine" in str(caught.value)


@pytest.mark.slow
def test_the_worked_example_learns(tmp_path, capsys, easy_vqa_root):
    """The class and the section of ViLBERT/example_task, with the tests' data; sixty lines."""
    files = [HOME / "example_task" / name for name in ("colours.py", "tasks.yml")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 60
    tasks = tmp_path / "tasks.yml"
    tasks.write_text(files[1].read_text().replace("../data", str(easy_vqa_root / "data")))
    where = ["--tasks_file", str(tasks), "--tasks", "Colours", "--gpus", "cpu", "--quiet"]
    run = [*where, "--config_file", str(HOME / "config" / "easy_vqa_small.json"), "--tiny"]
    run += ["--no-plots", "--no-tensorboard", "--strategy", "SpotTune_Block", "--epochs", "8"]
    run += ["--batchSize", "8"]
    assert train([*run, "--output", str(tmp_path / "run")]) == 0
    result = strict_json(tmp_path / "run" / "result.json")
    assert (result["task"], result["baselines"]["chance"]["overall"]) == (
        "Colours",
        pytest.approx(100 / 3),
    )
    assert result["accuracy"]["val"]["overall"] > 60
    capsys.readouterr()
    load = str(tmp_path / "run" / "BEST")
    assert evaluate([*where, "--from_pretrained", load, "--output", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "minival_result.json").read_text())
    assert len(rows[0]["answer"]) == 3


def test_a_task_of_ones_own_has_no_embedded_version(capsys, tmp_path):
    tasks = str(HOME / "example_task" / "tasks.yml")
    words = ["--tasks_file", tasks, "--tasks", "Colours", "--dataset", "easy_vqa"]
    shown = refused(capsys, [*words, "--output", str(tmp_path / "run")])
    assert "task Colours: there is no embedded version of it" in shown


def test_classes_of_the_tasks_are_found_by_name(others):
    assert data_class(entry(others, "9")) is RetrievalData
    assert isinstance(Path(entry(others, "6").dataroot), Path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([Sample(1, PAIRS, 0), Sample(1, PAIRS, 1)], "sample 1 is there twice"),
        ([Sample(1, PAIRS, 0), Sample(2, PAIRS[:1], 0), Sample(3, PAIRS, 0)], "sample 2 has 1 pa"),
        ([Sample(1, PAIRS, 2)], "sample 1: right is 2: expected a number from 0 to 1"),
        ([Sample(1, (PAIRS[0], Pair("a", "2", "b")), 0)], "a second text in some pairs and not"),
    ],
)
def test_samples_that_no_task_can_have_are_refused(others, monkeypatch, samples, message):
    class Mine(TaskData):
        options = 2

        def __init__(self, task: TaskEntry, split: str) -> None:
            super().__init__(samples)

    monkeypatch.setattr("vilbert.task_data.data_class", lambda task: Mine)
    with pytest.raises(DataError) as caught:
        read_split(entry(others, "6"), "train", 1)
    assert message in str(caught.value) and "task VCR_Q-A: split train" in str(caught.value)
