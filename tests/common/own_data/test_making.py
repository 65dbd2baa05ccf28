"""`python -m common.data make`: what it makes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unicodedata import normalize

import matplotlib
import pytest
from PIL import Image

from common.data.annotations import Example
from common.data.command import main as data_command
from common.data.datasets import (
    Dataset,
    find_kind,
    is_small,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from common.data.easy_vqa.build import DETECTOR
from common.data.vqa_dataset import VQADataset
from common.detector.command import main as extract
from common.detector.faster_rcnn import DetectorOptions
from common.errors import AdaptiveError, ConfigError, DataError
from common.features.store import RegionFeatures
from common.own_data import making
from common.own_data.command import main as command
from common.own_data.making import make
from common.own_data.pictures import split_images
from tests.common.detector.files import write_detector
from tests.common.own_data.files import (
    drawing,
    found_in,
    options,
    questions,
    write_csv,
    write_drawings,
    write_shapes,
)

COUNT = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder with the data set `shapes`; not to be changed."""
    root = write_shapes(tmp_path_factory.mktemp("own"), COUNT)
    make(options(root, test=0.2), root)
    return root


def copy_of(made: Path, root: Path) -> Path:
    """Table and drawings alone."""
    shutil.copytree(made / "shapes", root / "shapes")
    shutil.copy(made / "shapes.csv", root)
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "images" not in p.parts
    }


def refused(root: Path, *changes: object, **more: object) -> str:
    with pytest.raises((ConfigError, DataError)) as error:
        make(options(root, *changes, **more), root)
    return str(error.value)


def test_it_is_a_data_set_like_those_of_the_table(made: Path) -> None:
    dataset = resolve_dataset("shapes", made)
    record = (dataset.folder / "dataset.json").read_text()
    assert '\n "size": "small"' in record, "where the Makefile looks for it"
    assert dataset.kind.small and dataset.choose_splits(None, None) == ("train", "valid")
    asked = {row["question"]: row for row in questions(COUNT)}
    images: dict[str, set[str]] = {}
    found = {}
    for split in dataset.kind.splits:
        examples = load_split(dataset, split)
        features = open_features(dataset, split, progress=False)
        data = VQADataset(examples, features, dataset.vocabulary(), unknown="error")
        assert data.read([0]).target is not None
        images[split] = {example.image_id for example in examples}
        found |= {(e.image_id, e.question): e for e in examples}
    assert {k: len(v) for k, v in images.items()} == {"train": 21, "valid": 3, "test": 6}
    assert len(set.union(*images.values())) == COUNT, "no image is in two splits"
    assert len(found) == 3 * COUNT and len(asked) == 3
    for number, row in enumerate(questions(COUNT), 1):
        example = found[row["image"].removesuffix(".png"), row["question"]]
        assert example.answers == {row["answer"]: 1.0} and example.question_id == number
        wanted = "yes/no" if row["answer"] in ("yes", "no") else "other"
        assert example.answer_type == wanted
    answers = Counter(a for e in load_split(dataset, "train") for a in e.answers or {})
    vocabulary = dataset.vocabulary().answers
    assert vocabulary == sorted(answers, key=lambda a: (-answers[a], a))


def test_features_are_those_that_extract_writes(made: Path, tmp_path: Path) -> None:
    given = ["--images", str(made / "shapes"), "--detector", "pixels", "--quiet"]
    assert extract([*given, "--out", str(tmp_path / "store")]) == 0
    features = made / "data" / "shapes" / "features"
    assert content(features) == content(tmp_path / "store")
    assert RegionFeatures.open(features).meta["detector"] == DETECTOR


def test_commands_find_check_and_list_it(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found_in(monkeypatch, made)
    assert data_command(["check", "shapes", "--quiet"]) == 0
    assert "train           21 images       63 questions" in capsys.readouterr().out
    assert data_command(["list", "--root", str(made)]) == 0
    listed = capsys.readouterr().out.split("\nshapes: ")[1]
    assert "made of shapes.csv, 8 answers" in listed and "MISSING" not in listed
    assert data_command(["check", "shape"]) == 2
    said = capsys.readouterr().err
    assert "unknown data set 'shape'" in said and "of your own: shapes" in said
    assert "common.data make NAME" in said
    assert is_small("shapes") and not is_small("shape") and is_small("easy_vqa_cp")


def test_missing_files_and_damaged_records_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "data", tmp_path / "data", symlinks=True)
    folder = tmp_path / "data" / "shapes"
    (folder / "train.json").unlink()
    with pytest.raises(DataError, match=r"train\.json .*(\n.*)*make it again"):
        resolve_dataset("shapes", tmp_path)
    record = json.loads((folder / "dataset.json").read_text())
    for damage in ({"version": 9}, {"splits": {"train": {"images": 1, "questions": 1}}}):
        (folder / "dataset.json").write_text(json.dumps(record | damage))
        with pytest.raises(DataError, match=r"dataset\.json: version"):
            find_kind("shapes", tmp_path)
    shutil.copytree(made / "data" / "shapes", tmp_path / "data" / "whole", symlinks=True)
    assert data_command(["list", "--root", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "\nshapes: CANNOT BE USED: " in listed and "dataset.json: version" in listed
    assert "\nwhole: made of shapes.csv" in listed
    (folder / "dataset.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match=r"dataset\.json: \w+: field required"):
        find_kind("shapes", tmp_path)
    with pytest.raises(ConfigError, match="unknown data set"):
        find_kind("../data/shapes", tmp_path)


def test_the_same_command_again_does_nothing(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made / "data" / "shapes"
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert make(options(made, test=0.2), made) == folder
    assert capsys.readouterr().out == f"{folder}: is there and complete\n"
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": None}, "--test was 0.2 and is 0.0 now"),
        ({"seed": 3}, "--seed was 0 and is 3 now"),
        ({"minimum": 2}, "--min-count was 1 and is 2 now"),
        ({"detector": "frcnn"}, "--detector was 'pixels' and is "),
        ({"images": Path("elsewhere")}, "--images was "),
    ],
)
def test_other_arguments_are_refused(made: Path, changes: dict[str, object], said: str) -> None:
    before = content(made / "data" / "shapes")
    error = refused(made, **({"test": 0.2} | changes))
    assert said in error and "another name" in error and "--features" in error
    assert content(made / "data" / "shapes") == before


def test_another_table_is_refused(made: Path, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "shapes.csv", questions(COUNT - 1))
    assert "the table was another one" in refused(made, test=0.2, table=table)


def test_after_kill_nine_the_same_command_gives_the_same(made: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path)
    slow = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from common.detector.pixels import PixelDetector\n"
        "from common.own_data.making import make\n"
        "from tests.common.own_data.files import options\n"
        "detect = PixelDetector.detect\n"
        "def slowly(self, picture):\n"
        "    time.sleep(0.1)\n"
        "    return detect(self, picture)\n"
        "PixelDetector.detect = slowly\n"
        "root = Path(sys.argv[1])\n"
        "make(options(root, test=0.2), root)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(root)])
    folder = root / "data" / "shapes"
    journal = folder / "features.partial" / "journal.jsonl"
    until = time.monotonic() + 300
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= journal.read_bytes().count(b"\n") < COUNT
    with pytest.raises(DataError, match=r"is not finished: the same .*make shapes"):
        resolve_dataset("shapes", root)
    assert "--detector was 'pixels'" in refused(root, test=0.2, detector="frcnn")
    make(options(root, test=0.2), root)
    same_but_for_the_place(root, made)


def same_but_for_the_place(root: Path, made: Path) -> None:
    ours, theirs = (
        {
            name: data.replace(str(place).encode(), b"")
            for name, data in content(place / "data" / "shapes").items()
        }
        for place in (root, made)
    )
    assert ours == theirs


@pytest.mark.parametrize("file", ["valid.json", "dataset.json"])
def test_stopped_after_the_features_it_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    root, write = copy_of(made, tmp_path), making.write_json

    def stopped(path: Path, *values: object, **more: object) -> None:
        if path.name == file:
            raise KeyboardInterrupt
        write(path, *values, **more)

    with monkeypatch.context() as patch:
        patch.setattr(making, "write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(options(root, test=0.2), root)
    with pytest.raises(DataError, match="is not finished"):
        resolve_dataset("shapes", root)
    make(options(root, test=0.2), root)
    same_but_for_the_place(root, made)


@pytest.mark.parametrize(
    "wrong",
    [
        {"detector": "/nope"},
        {"how": DetectorOptions(fewest=2, most=5)},
        {"workers": 0},
        {"threads": 0},
        {"table": "no.csv"},
        {"minimum": 99},
    ],
)
def test_a_slip_leaves_nothing_behind(made: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    root = copy_of(made, tmp_path)
    (root / "no.csv").write_text("image,question,answer\nnone.png,What?,yes\n")
    if "table" in wrong:
        wrong = {"table": root / wrong["table"]}
    with pytest.raises(AdaptiveError):
        make(options(root, test=0.2, **wrong), root)
    assert not (root / "data").exists()
    make(options(root, test=0.2), root)
    same_but_for_the_place(root, made)


def test_workers_open_a_detector_of_their_own(made: Path, tmp_path: Path) -> None:
    root = copy_of(made, tmp_path)
    make(options(root, test=0.2, workers=2), root)
    same_but_for_the_place(root, made)


def test_splits_are_by_content_and_leave_a_holdout(tmp_path: Path) -> None:
    """The hash of `split_holdout` among the training images would hold out none."""
    contents = {f"image {n}": f"{n // 2}" for n in range(400)}
    found = split_images(contents, {"valid": 0.2, "test": 0.1}, 0)
    assert Counter(found.values()) == {"train": 280, "valid": 80, "test": 40}
    assert all(found[f"image {n}"] == found[f"image {n + 1}"] for n in range(0, 400, 2))
    assert found != split_images(contents, {"valid": 0.2, "test": 0.1}, 1)
    single = split_images({f"{n}": f"{n}" for n in range(400)}, {"valid": 0.2}, 0)
    root = write_shapes(tmp_path, 2)
    with pytest.raises(DataError, match="2 different images: 3 splits need one each"):
        split_images({"a": "1", "b": "2"}, {"valid": 0.2, "test": 0.1}, 0)
    train = [Example(n, image, "?") for n, (image, s) in enumerate(single.items()) if s == "train"]
    kept, held = split_holdout(train, 0.1)
    assert 16 <= len(held) <= 48 and len(kept) + len(held) == 320
    for shares in ({"valid": 0.0}, {"valid": 0.6, "test": 0.4}, {"valid": 1.5}):
        assert "--valid" in refused(root, **shares)


def test_copies_of_a_picture_are_in_one_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = questions(12)
    folder = write_drawings(tmp_path / "shapes", 12)
    for number in range(12):
        shutil.copy(folder / f"shape {number:02}.png", folder / f"copy {number:02}.png")
    rows += [row | {"image": row["image"].replace("shape", "copy")} for row in rows]
    write_csv(tmp_path / "shapes.csv", rows)
    make(options(tmp_path, valid=0.4), tmp_path)
    dataset = resolve_dataset("shapes", tmp_path)
    numbers = [
        {e.image_id[-2:] for e in load_split(dataset, split)} for split in ("train", "valid")
    ]
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 12
    splits = [row | {"split": "valid" if "copy" in row["image"] else "train"} for row in rows]
    write_csv(tmp_path / "shapes.csv", splits)
    capsys.readouterr()
    make(options(tmp_path, "given"), tmp_path)
    assert "12 pictures are in another split than one of the same content" in (
        capsys.readouterr().out
    )


def test_the_splits_of_the_table_are_kept_and_checked(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, 6)
    rows = [
        row | {"split": ("train", "valid", "test")[number // 3 % 3]}
        for number, row in enumerate(questions(6))
    ]
    write_csv(root / "shapes.csv", rows)
    assert "--valid: " in refused(root, valid=0.1)
    make(options(root), root)
    dataset = resolve_dataset("shapes", root)
    for number, split in enumerate(dataset.kind.splits):
        images = {example.image_id for example in load_split(dataset, split)}
        assert images == {f"shape {number:02}", f"shape {number + 3:02}"}
    assert dataset.kind.reported_only == ("test",)
    rows[1]["split"] = "test"
    write_csv(root / "shapes.csv", rows)
    error = refused(root, "other")
    assert "line 3: 'split' is test, that of line 2 about the same image 'shape 00' is train" in (
        error
    )
    write_csv(root / "shapes.csv", [row | {"split": "train"} for row in rows])
    assert "no row is in split valid" in refused(root, "other")


NAMES = [
    ("../shape 00.png", "leads out of"),
    ("sub/../../x.png", "leads out of"),
    ("/etc/passwd", "leads out of"),
    ("C:\\photos\\x.png", "leads out of"),
    ("..\\x.png", "leads out of"),
    ("shape 0.png", "is not in {folder} (nearest: shape 0"),
    ("sub/shape 00.png", "is not in"),
    ("notes.txt", "is no picture by its ending"),
    ("twice", "can be twice.jpg or twice.png: give the ending"),
]


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_a_picture_that_cannot_be_meant_is_named(tmp_path: Path, name: str, said: str) -> None:
    root = write_shapes(tmp_path, 4)
    for file in ("notes.txt", "twice.jpg", "twice.png"):
        shutil.copy(root / "shapes" / "shape 00.png", root / "shapes" / file)
    write_csv(root / "shapes.csv", [*questions(4), *[{**questions(1)[0], "image": name}] * 2])
    error = refused(root)
    assert "2 rows cannot be used" in error and "line 14: 'image' " in error
    assert said.format(folder=root / "shapes") in error, error
    assert not (root / "data" / "shapes").exists(), "nothing is written"
    folder = make(options(root, skip_bad=True), root)
    lines = (folder / "skipped.txt").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("14\t'image' ")
    assert RegionFeatures.open(folder / "features").ids() == [f"shape {n:02}" for n in range(4)]


def test_names_may_lack_the_ending_and_only_pictures_of_the_table_are_looked_at(
    tmp_path: Path,
) -> None:
    root = write_shapes(tmp_path, 6)
    rows = [row | {"image": f"./{row['image'][:-4]}"} for row in questions(4)]
    rows[0]["image"] = "shape 00.png"
    write_csv(root / "shapes.csv", rows)
    folder = make(options(root), root)
    assert len(RegionFeatures.open(folder / "features")) == 4
    assert Image.open(folder / "images" / "shape 00.png").tobytes() == drawing(0).tobytes()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_and_their_marks_may_be_written_apart(
    tmp_path: Path, forms: tuple[str, str]
) -> None:
    root = write_shapes(tmp_path, 6)
    on_disk, in_table = (normalize(form, "Blüte é") for form in forms)
    (root / "shapes" / "shape 00.png").rename(root / "shapes" / f"{on_disk}.png")
    rows = questions(6)
    for row, name in zip(rows, (f"{in_table}.png", in_table, f"{on_disk}.png"), strict=False):
        row["image"] = name
    write_csv(root / "shapes.csv", rows)
    folder = make(options(root), root)
    store = RegionFeatures.open(folder / "features")
    assert on_disk in store.ids() and len(store) == 6
    make(options(root, "again", features=folder / "features", images=None, detector=None), root)
    for name in ("shapes", "again"):
        examples = load_split(resolve_dataset(name, root), "train,valid")
        assert sum(e.image_id == on_disk for e in examples) == 3


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_in_subfolders_of_an_archive_and_of_a_folder(
    tmp_path: Path, made: Path, packed: bool
) -> None:
    images = tmp_path / "all"
    for number in range(COUNT):
        path = made / "shapes" / f"shape {number:02}.png"
        (images / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, images / "ab"[number % 2])
    if packed:
        images = Path(shutil.make_archive(str(tmp_path / "shapes"), "zip", tmp_path, "all"))
    rows = [
        row | {"image": f"{('a', 'b')[number // 3 % 2]}/{row['image']}"}
        for number, row in enumerate(questions(COUNT))
    ]
    write_csv(tmp_path / "shapes.csv", rows)
    folder = make(options(tmp_path, images=images), tmp_path)
    found = RegionFeatures.open(folder / "features")
    theirs = RegionFeatures.open(made / "data" / "shapes" / "features")
    assert sorted(found.ids()) == sorted(theirs.ids())
    for image in found.ids():
        assert found.get(image).features.equal(theirs.get(image).features)


def test_a_picture_that_is_none_stops_or_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path, 8)
    broken = root / "shapes" / "shape 05.png"
    broken.write_text("no picture")
    error = refused(root)
    assert f"{broken}: not a picture" in error and "--skip-bad" in error
    journal = root / "data" / "shapes" / "features.partial" / "journal.jsonl"
    assert journal.read_bytes().count(b"\n") == 5, "what was done is kept"
    folder = make(options(root, skip_bad=True), root)
    said = capsys.readouterr().out
    assert "going on with 5 images" in said and "3 of 24 rows are left out" in said
    lines = (folder / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["17", "18", "19"]
    assert all(str(broken) in line for line in lines[1:])
    assert sum(c["questions"] for c in find_record(folder)["splits"].values()) == 21
    make(options(root), root)  # is there and complete, with and without the flag


def test_a_picture_that_was_mended_is_where_it_goes_on(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, 8)
    (root / "shapes" / "shape 05.png").write_text("no picture")
    assert "not a picture" in refused(root)
    drawing(5).save(root / "shapes" / "shape 05.png")
    folder = make(options(root), root)
    assert len(RegionFeatures.open(folder / "features")) == 8
    assert not (folder / "skipped.txt").exists()


def find_record(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_a_picture_is_only_left_out_where_that_is_wanted(tmp_path: Path) -> None:
    """Features without it were made earlier, with --skip-bad, and the run stopped then."""
    root = write_shapes(tmp_path, 8)
    (root / "shapes" / "shape 05.png").write_text("no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "_write", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(options(root, skip_bad=True), root)
    assert "3 rows cannot be used" in refused(root)


def test_features_that_are_there(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made / "data" / "shapes" / "features"
    rows = [*questions(COUNT), {**questions(1)[0], "image": "shape 99.png"}]
    write_csv(tmp_path / "shapes.csv", rows)
    given = {"features": store, "images": None, "detector": None}
    assert "'shape 99.png' has no features in" in refused(tmp_path, **given)
    assert "leave --detector" in refused(tmp_path, **(given | {"detector": "pixels"}))
    assert "give the pictures with --images" in refused(tmp_path, images=None)
    make(options(tmp_path, **given, skip_bad=True), tmp_path)
    dataset = resolve_dataset("shapes", tmp_path)
    assert dataset.kind.small
    assert open_features(dataset, "train").stores[0].path == store
    assert len(load_split(dataset, "train,valid")) == 3 * COUNT
    assert "--images" not in capsys.readouterr().out
    pictures = made / "shapes"
    folder = make(options(tmp_path, "b", **(given | {"images": pictures}), skip_bad=True), tmp_path)
    assert f"--images {pictures}: is not looked at" in capsys.readouterr().out
    assert (folder / "images").resolve() == pictures


def test_a_folder_elsewhere_is_found_by_its_name(tmp_path: Path) -> None:
    root = write_shapes(tmp_path, 6)
    folder = make(options(root, out=root / "big disk" / "shapes"), root)
    assert (root / "data" / "shapes").is_symlink() and not folder.is_symlink()
    assert len(load_split(resolve_dataset("shapes", root), "train,valid")) == 18
    assert make(options(root, out=root / "big disk" / "shapes"), root) == folder
    make(options(root), root)
    assert "is there already" in refused(root, out=root / "third")
    shutil.move(root / "big disk", root / "away")
    for out in (None, root / "third"):
        assert "big disk/shapes, which is not there: bring it back" in refused(root, out=out)
    (root / "data" / "notes").mkdir()
    (root / "data" / "notes" / "mine.txt").write_text("keep")
    assert "not made by this command" in refused(root, "notes")
    assert (root / "data" / "notes" / "mine.txt").read_text() == "keep"
    for name in ("vqa", "easy_vqa", "../x", "", ".x", "a b", 101 * "a"):
        assert "give letters, digits" in refused(root, name)


def test_rare_answers_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path, 12)
    rows = [row | {"split": "valid" if n > 26 else "train"} for n, row in enumerate(questions(12))]
    rows[0]["answer"], rows[-1]["answer"] = "mauve", "mauve"
    write_csv(root / "shapes.csv", rows)
    assert "--min-count 0: give a whole number" in refused(root, minimum=0)
    assert "--min-count 99: no answer is the best one" in refused(root, minimum=99)
    make(options(root, minimum=2), root)
    dataset = resolve_dataset("shapes", root)
    assert "mauve" not in dataset.vocabulary() and "red" in dataset.vocabulary()
    shown = capsys.readouterr().out
    assert "1 have only answers outside the vocabulary: no model can score more than 96.3 %" in (
        shown
    )
    assert "1 have only answers outside the vocabulary: no model can score more than 88.9 %" in (
        shown
    )


def test_answers_that_become_one_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path, 8)
    make(options(root, "plain"), root)
    assert "spellings" not in capsys.readouterr().out
    rows = [row | {"split": "valid" if n > 20 else "train"} for n, row in enumerate(questions(8))]
    spellings = ["-3", "3", "red", "Red", " a red", "C++", "2,5", "25", "rare", "the rare"]
    for row, answer in zip(rows, [*spellings, "red", "3"], strict=False):
        row["answer"] = answer
    rows[12]["answer"], rows[-1]["answer"] = "zz-top", "zz top"  # too rare to be known
    write_csv(root / "shapes.csv", rows)
    make(options(root, minimum=2), root)
    said = capsys.readouterr().out
    assert (
        "  8 spellings of answers are 4 known answers, as VQA's metric compares them: "
        "'-3' and '3' are '3'; '2,5' and '25' are '25'\n"
    ) in said
    vocabulary = resolve_dataset("shapes", root).vocabulary()
    assert {"3", "25", "red", "rare"} <= set(vocabulary.answers)


def test_photographs_and_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command; the store says which detector it was, as `extract` does."""
    photo = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        turned = photo.rotate(90 * number, expand=True).resize((96, 72))
        turned.save(tmp_path / "photos" / f"{number}.jpg")
    rows = [
        {"image": f"{n}.jpg", "question": "Which side is up?", "answer": str(n)} for n in range(4)
    ]
    write_csv(tmp_path / "photos.csv", rows)
    detector = write_detector(tmp_path / "frcnn")
    given = ["--table", str(tmp_path / "photos.csv"), "--images", str(tmp_path / "photos")]
    given += ["--detector", str(detector), "--boxes", "2-5", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.own_data.command.repository_root", lambda: tmp_path)
        assert command(["faces", *given]) == 0
        assert "use it with --dataset faces" in capsys.readouterr().out
        assert command(["faces", *given, "--boxes", "2-6"]) == 2
        assert "--boxes was [2, 5] and is [2, 6] now" in capsys.readouterr().err
    store = RegionFeatures.open(tmp_path / "data" / "faces" / "features")
    name = store.meta["detector"]
    assert name.startswith("Faster R-CNN") and name.endswith(
        f"({store.meta['extraction']['digest']})"
    )
    assert "2" in store.meta["box_policy"] and store.counts is not None
    dataset = resolve_dataset("faces", tmp_path)
    assert isinstance(dataset, Dataset) and not dataset.kind.small
    assert find_record(dataset.folder)["detector"] == name
