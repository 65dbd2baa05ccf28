"""VL-BERT's feature files: imported into a store, read in place, from a folder or an archive."""

from __future__ import annotations

import base64
import json
import multiprocessing
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.command import main
from common.errors import DataError
from common.features.archives import Archive, open_files, read_path
from common.features.sources import FeatureSources
from common.features.store import RegionBatch, RegionFeatures
from common.features.vlbert_json import JsonFeatures, import_json
from common.features.writer import RegionFeatureWriter
from tests.vlbert.coco_files import SIZES, WIDTH, encode, key, record, write_features, zip_folder
from vlbert.data_features import ByNumber, open_features

IMAGES = (9, 25, 42, 73)


def decoded(value: dict[str, object], field: str, *shape: int) -> torch.Tensor:
    data = bytearray(base64.b64decode(str(value[field])))
    return torch.frombuffer(data, dtype=torch.float32).view(*shape)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole = encode(np.arange(WIDTH))
    return write_features(
        tmp_path / "f",
        {
            9: record(9, 4, classes=3),
            25: record(25, 1, classes=3, image_box_feature=whole),
            42: record(42, 2, classes=3),
            73: record(73, 3, classes=3),
        },
    )


def test_import_keeps_every_number_and_the_order_of_the_images(folder: Path) -> None:
    store = import_json(folder, folder.with_name("s"), WIDTH, "float32", progress=False)
    assert store.ids() == ["9", "25", "42", "73"]
    for image in IMAGES:
        value = json.loads((folder / f"{image}.json").read_text())
        regions, count = store.get(str(image)), value["num_boxes"]
        assert (regions.width, regions.height) == SIZES[image]
        assert torch.equal(regions.boxes, decoded(value, "boxes", count, 4))
        assert torch.equal(regions.features, decoded(value, "features", count, WIDTH))
        classes = decoded(value, "classes", count, 3)
        assert torch.allclose(regions.class_probabilities, classes, rtol=2**-11, atol=1e-7)
    assert torch.equal(store.get("25").image_features, torch.arange(float(WIDTH)))
    assert torch.equal(store.get("9").image_features, store.get("9").features.mean(0))
    store.verify()


def same(a: RegionBatch, b: RegionBatch) -> bool:
    """Class probabilities are float16 in a store."""
    return torch.allclose(a.class_probabilities, b.class_probabilities, atol=2**-11) and all(
        torch.equal(getattr(a, n), getattr(b, n))
        for n in ("features", "boxes", "mask", "sizes", "image_features")
    )


@pytest.mark.parametrize(
    "pack",
    [
        None,
        lambda folder: zip_folder(folder),
        lambda folder: zip_folder(folder, zipfile.ZIP_DEFLATED),
        lambda folder: zip_folder(folder, top=False),
    ],
    ids=["folder", "stored", "deflated", "no top folder"],
)
def test_reading_in_place_is_reading_the_store(
    folder: Path, pack: Callable[[Path], Path] | None
) -> None:
    source = folder if pack is None else pack(folder)
    files = JsonFeatures(source, WIDTH)
    store = import_json(source, folder.with_name("s"), None, "float32", progress=False)
    assert files.ids() == store.ids() and files.width == store.width and len(files) == 4
    asked = ["73", "9", "25", "9"]
    for limit in (None, 2):
        assert same(files.read(asked, limit, classes=True), store.read(asked, limit, classes=True))
    assert files.missing(["9", "10"]) == store.missing(["9", "10"]) == ["10"]
    with pytest.raises(DataError, match="no file of image '10'"):
        files.read(["10"])


def test_class_probabilities_are_read_only_where_they_are_asked_for(folder: Path) -> None:
    store = import_json(folder, folder.with_name("s"), WIDTH, progress=False)
    assert store.read(["9"]).class_probabilities is None
    batch = store.read(["9", "25"], classes=True)
    assert batch.class_probabilities.shape == (2, 4, 3)
    assert not batch.class_probabilities[1, 1:].any()


def test_stores_with_and_without_whole_image_features_are_read_as_one(
    folder: Path, tmp_path: Path
) -> None:
    with RegionFeatureWriter(tmp_path / "plain", WIDTH, "float32") as writer:
        writer.add(
            "5",
            10,
            10,
            torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, 9]]),
            torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH)]),
        )
        plain = writer.finish()
    assert plain.read(["5"]).image_features is None
    imported = import_json(folder, tmp_path / "s", WIDTH, "float32", progress=False)
    batch = FeatureSources([imported, plain]).read(["25", "5"])
    assert torch.equal(batch.image_features[0], torch.arange(float(WIDTH)))
    assert torch.equal(batch.image_features[1], torch.full((WIDTH,), 0.5))


def test_stopped_import_goes_on_and_gives_the_same_store(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (folder / "42.json").read_text()
    (folder / "42.json").write_text(good[:100])
    arguments = ["import", "--json", str(folder), "--width", str(WIDTH), "--quiet"]
    assert main(arguments) == 2
    assert "42.json: line 1, column " in capsys.readouterr().err
    (folder / "42.json").write_text(good)
    assert main(arguments) == 0
    assert "going on with 2 images" in capsys.readouterr().out
    whole = import_json(folder, folder.with_name("whole"), WIDTH, progress=False)
    for path in whole.path.iterdir():
        assert path.read_bytes() == (folder.with_name("f_features") / path.name).read_bytes()


def test_record_that_was_written_by_half_is_written_again(tmp_path: Path) -> None:
    def fill(writer: RegionFeatureWriter, ids: str) -> None:
        for i, image_id in enumerate(ids):
            values = torch.full((i + 1, WIDTH), float(ord(image_id)))
            writer.add(image_id, 9, 9, torch.ones(i + 1, 4), values, image_feature=values[0] + 1)

    def new(name: str) -> RegionFeatureWriter:
        return RegionFeatureWriter(tmp_path / name, WIDTH, image_features=True)

    with new("s") as writer:
        fill(writer, "abc")
    images = tmp_path / "s.partial" / "image_features.npy"
    images.write_bytes(images.read_bytes()[:-5])
    with new("s") as writer:
        assert writer.ids() == ["a", "b"]
        writer.add(
            "c",
            9,
            9,
            torch.ones(3, 4),
            torch.full((3, WIDTH), 99.0),
            image_feature=torch.full((WIDTH,), 100.0),
        )
        store = writer.finish()
    with new("whole") as writer:
        fill(writer, "abc")
        whole = writer.finish()
    for path in whole.path.iterdir():
        assert path.read_bytes() == (store.path / path.name).read_bytes()


def test_store_is_refused_whose_image_features_are_cut_off(folder: Path) -> None:
    store = import_json(folder, folder.with_name("s"), WIDTH, progress=False)
    path = store.path / "image_features.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="image_features.npy: .* truncated or corrupt"):
        RegionFeatures.open(store.path)


def test_bad_files_are_skipped_and_reported(folder: Path) -> None:
    (folder / "25.json").write_text("{")
    out = folder.with_name("s")
    arguments = ["import", "--json", str(zip_folder(folder)), "--width", str(WIDTH), "--quiet"]
    assert main([*arguments, "--skip-bad", "--out", str(out)]) == 0
    assert RegionFeatures.open(out).ids() == ["9", "42", "73"]
    report = out.with_name("s_skipped.txt").read_text().splitlines()
    assert (
        report[1].startswith("2\t25\t")
        and "f.zip@/f/25.json: line 1, column 2: not valid" in report[1]
    )


BAD_RECORDS = {
    "field 'num_boxes' is missing": lambda v: v.pop("num_boxes"),
    "field 'num_boxes': 0: expected one at least": lambda v: v.update(num_boxes=0),
    "field 'num_boxes': '3': expected a whole number": lambda v: v.update(num_boxes="3"),
    "field 'boxes' holds 8 numbers, expected 3 x 4": lambda v: v.update(boxes=encode(np.ones(8))),
    "field 'features' holds 5 numbers, expected 3 x 6": lambda v: v.update(
        features=encode(np.ones(5))
    ),
    "field 'features': not base64": lambda v: v.update(features="???"),
    "field 'features' is missing": lambda v: v.pop("features"),
    "not finite": lambda v: v.update(features=encode(np.full(18, np.nan))),
    "field 'image_box_feature', box 0, number 5: nan: not finite": lambda v: v.update(
        image_box_feature=encode(np.array([1, 2, 3, 4, 5, np.nan]))
    ),
    "field 'image_box_feature', box 0, number 0: 1e+30: not finite": lambda v: v.update(
        image_box_feature=encode(np.full(6, 1e30))
    ),
    "field 'classes', box 0, number 0: inf: not finite": lambda v: v.update(
        classes=encode(np.full(9, np.inf))
    ),
    "'image_w' and 'image_h' are needed": lambda v: v.pop("image_w"),
    "lies outside the image of 64 x 48": lambda v: v.update(
        boxes=encode(np.array([[70, 1, 80, 2.0]] * 3))
    ),
    "corners are the wrong way round": lambda v: v.update(
        boxes=encode(np.array([[5, 1, 4, 2.0]] * 3))
    ),
    "no class probabilities per box, the first file has 3": lambda v: v.pop("classes"),
}


@pytest.mark.parametrize("message", BAD_RECORDS)
def test_bad_record_is_one_clear_error(tmp_path: Path, message: str) -> None:
    value = record(9, classes=3)
    BAD_RECORDS[message](value)
    folder = write_features(tmp_path / "f", {1: record(1, classes=3), 9: value})
    with pytest.raises(DataError) as error:
        import_json(folder, tmp_path / "s", WIDTH, progress=False)
    assert "9.json" in str(error.value) and message in str(error.value)


def test_boxes_beyond_the_image_are_cut_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = encode(np.array([[-3, 2, 70, 40.0]]))
    folder = write_features(tmp_path / "f", {9: record(9, 1, boxes=boxes)})
    store = import_json(folder, tmp_path / "s", WIDTH, progress=False)
    assert store.get("9").boxes.tolist() == [[0, 2, 64, 40]]
    assert "boxes of 1 images went beyond the image" in capsys.readouterr().out


def test_missing_and_empty_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.zip: no such file"):
        JsonFeatures(tmp_path / "nowhere.zip")
    (tmp_path / "e").mkdir()
    with pytest.raises(DataError, match="e: no <image id>.json in it"):
        import_json(tmp_path / "e", tmp_path / "s")
    with pytest.raises(DataError, match="neither that folder nor x.zip"):
        open_features(tmp_path / "x", ("train2014",))


def test_images_of_other_parts_are_not_taken_for_those_of_a_store(folder: Path) -> None:
    features = ByNumber(JsonFeatures(folder), ("train2014", "val2014"))
    assert features.missing([key(9), "COCO_test2015_000000000009", key(1)]) == [
        "COCO_test2015_000000000009",
        key(1),
    ]
    assert features.read([key(42)]).image_ids == [key(42)]


def test_import_is_done_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zip_folder(folder)
    first = open_features(folder, ("train2014",), progress=False)
    assert "importing f (once" in capsys.readouterr().out
    again = open_features(folder, ("train2014",))
    assert again.path == first.path == folder.with_name("f_features")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_one_archive_at_the_same_time(folder: Path, method: str) -> None:
    archive = Archive(zip_folder(folder, zipfile.ZIP_DEFLATED))
    names = archive.names() * 8
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(archive.read, names, chunksize=1)
    assert found == [(folder / name).read_bytes() for name in names]


def test_archive_member_is_found_with_and_without_the_top_folder(folder: Path) -> None:
    path = zip_folder(folder)
    expected = (folder / "9.json").read_bytes()
    assert read_path(f"{path}@/9.json") == read_path(f"{path}@/f/9.json") == expected
    assert read_path(folder / "9.json") == expected
    with pytest.raises(DataError, match=r"f.zip@/8.json: no such file in the archive"):
        read_path(f"{path}@/8.json")


def test_damaged_archives_are_named(folder: Path) -> None:
    path = zip_folder(folder)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(DataError, match="f.zip: not a ZIP archive, or cut off"):
        open_files(path)
    place = data.index(b"num_boxes")
    path.write_bytes(data[:place] + b"NUM" + data[place + 3 :])
    with pytest.raises(DataError, match="checksum differs"):
        [open_files(path).read(name) for name in open_files(path).names()]
