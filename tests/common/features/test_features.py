"""The region-feature store, its writer and its importers."""

import base64
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.errors import AdaptiveError, DataError
from common.features.command import main
from common.features.lxmert_tsv import COLUMNS, import_tsv
from common.features.npz import import_npz
from common.features.store import RegionFeatures, normalise_boxes
from common.features.writer import RegionFeatureWriter
from common.files import sha256

WIDTH = 6
COUNTS = {"img_a": 3, "img_b": 1, "img_c": 5}
GOLDEN_TSV = "lxmert/tiny_obj36.tsv"


def make_regions(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in a 64 x 48 image and features, exact in float16."""
    draw = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=draw).sort(1).values
    features = torch.randint(-99, 99, (count, WIDTH), generator=draw) / 8
    return (corners * torch.tensor([64.0, 48.0])).flatten(1), features


def fill(writer: RegionFeatureWriter, ids: list[str]) -> None:
    for image_id in ids:
        boxes, features = make_regions(COUNTS[image_id], len(image_id) + ord(image_id[-1]))
        writer.add(image_id, 64, 48, boxes, features, object_ids=torch.arange(len(boxes)))


def new_writer(path: Path, **changes: object) -> RegionFeatureWriter:
    return RegionFeatureWriter(path, WIDTH, optional=["object_ids"], **changes)


@pytest.fixture
def store(tmp_path: Path) -> RegionFeatures:
    with new_writer(tmp_path / "store") as writer:
        fill(writer, list(COUNTS))
        return writer.finish()


def test_what_is_written_is_read_back(store: RegionFeatures) -> None:
    assert store.ids() == list(COUNTS) and len(store) == 3 and store.width == WIDTH
    for image_id, count in COUNTS.items():
        boxes, features = make_regions(count, len(image_id) + ord(image_id[-1]))
        regions = store.get(image_id)
        assert torch.equal(regions.features, features) and torch.equal(regions.boxes, boxes)
        assert regions.object_ids.tolist() == list(range(count))
        assert (regions.width, regions.height, regions.object_conf) == (64, 48, None)
    assert "img_a" in store and "img_z" not in store and 3 not in store


def test_batch_is_padded_with_zeros_and_masked(store: RegionFeatures) -> None:
    batch = store.read(["img_b", "img_c", "img_b"])
    assert batch.features.shape == (3, 5, WIDTH) and batch.features.dtype == torch.float32
    assert batch.mask.tolist() == [[True] + 4 * [False], 5 * [True], [True] + 4 * [False]]
    assert not batch.features[~batch.mask].any() and not batch.boxes[~batch.mask].any()
    assert torch.equal(batch.features[1], store.get("img_c").features)
    assert batch.sizes.tolist() == 3 * [[64, 48]]
    assert batch.object_ids.dtype == torch.int64 and batch.object_ids[1].tolist() == [0, 1, 2, 3, 4]


def test_max_regions_keeps_the_first(store: RegionFeatures) -> None:
    batch = store.read(["img_b", "img_c"], max_regions=2)
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert torch.equal(batch.features[1], store.get("img_c").features[:2])
    with pytest.raises(DataError, match="at most 0 regions"):
        store.read(["img_a"], max_regions=0)


def test_half_precision_is_rounded_and_float32_is_exact(tmp_path: Path) -> None:
    values = torch.rand(4, WIDTH)
    for dtype, expected in (("float16", values.half().float()), ("float32", values)):
        with RegionFeatureWriter(tmp_path / dtype, WIDTH, dtype) as writer:
            writer.add("a", 9, 9, torch.zeros(4, 4), values)
            assert torch.equal(writer.finish().get("a").features, expected)


def test_normalised_boxes_are_shares_of_the_image() -> None:
    boxes = torch.tensor([[[0.0, 12.0, 64.0, 48.0]], [[1.0, 2.0, 3.0, 4.0]]])
    found = normalise_boxes(boxes, torch.tensor([[64.0, 48.0], [10.0, 20.0]]), ["a", "b"])
    assert torch.allclose(found, torch.tensor([[[0, 0.25, 1, 1]], [[0.1, 0.1, 0.3, 0.2]]]))


@pytest.mark.parametrize("bad", [64.01, -0.01, float("nan")])
def test_box_outside_its_image_is_named(bad: float) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, bad, 1.0]]])
    with pytest.raises(DataError, match=r"image 'b': box 0 = .* outside the image of 64 x 48"):
        normalise_boxes(boxes, torch.tensor([[64.0, 48.0]] * 2), ["a", "b"])


def test_box_within_rounding_of_the_edge_is_accepted() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 64 * (1 + 9e-6), 48.0]]])
    assert normalise_boxes(boxes, torch.tensor([[64.0, 48.0]]), ["a"]).max() > 1


def test_store_survives_pickling_to_a_worker(store: RegionFeatures) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.get("img_a").features, store.get("img_a").features)


def test_reading_does_not_copy_the_file_into_memory(tmp_path: Path) -> None:
    with RegionFeatureWriter(tmp_path / "big", 2048) as writer:
        for i in range(400):
            writer.add(f"{i}", 9, 9, torch.zeros(36, 4), torch.ones(36, 2048))
        store = writer.finish()

    def anonymous_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    store.read(["0"])
    before = anonymous_kib()
    for start in range(0, 400, 8):
        store.read([f"{i}" for i in range(start, start + 8)])
    assert os.path.getsize(store.path / "features.npy") > 58_000_000
    assert anonymous_kib() - before < 20_000


def test_missing_record_is_named(store: RegionFeatures) -> None:
    with pytest.raises(DataError, match=r"store: no record of image 'img_x' \(2 of 3 asked for"):
        store.read(["img_a", "img_x", "img_y"])
    assert store.missing(["img_y", "img_a", "img_x"]) == ["img_y", "img_x"]


@pytest.mark.parametrize("name", ["features.npy", "boxes.npy", "object_ids.npy"])
def test_truncated_array_is_named_with_its_sizes(store: RegionFeatures, name: str) -> None:
    path = store.path / name
    size = path.stat().st_size
    os.truncate(path, size - 3)
    with pytest.raises(DataError, match=rf"{name}: {size - 3} bytes, the index calls for {size}"):
        RegionFeatures.open(store.path)


def test_wrong_width_is_named(store: RegionFeatures) -> None:
    with pytest.raises(DataError, match="features are 6 numbers wide .* the model expects 2048"):
        RegionFeatures.open(store.path, expect_width=2048)


def test_missing_files_are_named(store: RegionFeatures) -> None:
    for name in ("index.npz", "boxes.npy", "meta.json"):
        (store.path / name).rename(store.path / "away")
        with pytest.raises(DataError, match=f"{name}: no such file"):
            RegionFeatures.open(store.path)
        (store.path / "away").rename(store.path / name)


def test_damaged_meta_and_index_are_named(store: RegionFeatures) -> None:
    meta = store.path / "meta.json"
    good = meta.read_text()
    for text, message in (
        (good[:-20], r"meta.json: line \d+, column \d+: not valid JSON"),
        (good.replace('"version": 1', '"version": 7'), "format version 7, this code reads 1"),
        ("{}", "not a region-feature store"),
        (good.replace('"images": 3', '"images": 4'), "'ids' is ..,. of .*, meta.json says 4"),
    ):
        meta.write_text(text)
        with pytest.raises(DataError, match=message):
            RegionFeatures.open(store.path)
    meta.write_text(good)
    os.truncate(store.path / "index.npz", 100)
    with pytest.raises(DataError, match="index.npz: corrupt index"):
        RegionFeatures.open(store.path)


def test_verify_finds_a_flipped_bit(store: RegionFeatures) -> None:
    store.verify()
    data = bytearray((store.path / "features.npy").read_bytes())
    data[-1] ^= 1
    (store.path / "features.npy").write_bytes(data)
    with pytest.raises(DataError, match="features.npy: SHA-256 is .* meta.json says"):
        RegionFeatures.open(store.path).verify()


def test_record_that_became_nan_is_named_when_read(store: RegionFeatures) -> None:
    data = bytearray((store.path / "features.npy").read_bytes())
    data[-2:] = np.float16("nan").tobytes()
    (store.path / "features.npy").write_bytes(data)
    damaged = RegionFeatures.open(store.path)
    damaged.read(["img_a", "img_b"])
    with pytest.raises(DataError, match="record of image 'img_c' is not what was written"):
        damaged.read(["img_a", "img_c"])
    without_checksums(store.path)
    with pytest.raises(DataError, match="record of image 'img_c' holds values that are not finite"):
        RegionFeatures.open(store.path).read(["img_a", "img_c"])


def without_checksums(store: Path) -> None:
    """Make it a store of an earlier version, which had none for every image."""
    with np.load(store / "index.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "crc"}
    np.savez(store / "index.npz", **arrays)
    meta = json.loads((store / "meta.json").read_text())
    meta["checksums"]["index.npz"] = sha256(store / "index.npz")
    (store / "meta.json").write_text(json.dumps(meta))


def test_a_store_of_an_earlier_version_without_checksums_is_read(store: RegionFeatures) -> None:
    wanted = store.get("img_c").features
    without_checksums(store.path)
    assert torch.equal(RegionFeatures.open(store.path).get("img_c").features, wanted)


@pytest.mark.parametrize("name", ["features", "boxes", "object_ids"])
def test_damage_anywhere_in_a_record_is_noticed_when_it_is_read(store, name: str) -> None:
    """Also in regions beyond those that are asked for, and once only in a process."""
    path = store.path / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of img_c, the last one; still a number
    path.write_bytes(data)
    damaged = RegionFeatures.open(store.path)
    damaged.read(["img_a", "img_b"])
    for _ in range(2):
        with pytest.raises(DataError, match="record of image 'img_c' is not what was written"):
            damaged.read(["img_a", "img_c"], max_regions=1)


def test_stopped_writer_goes_on_and_gives_the_same_store(tmp_path: Path, store) -> None:
    path = tmp_path / "again"
    with new_writer(path) as writer:
        fill(writer, ["img_a"])
    partial = tmp_path / "again.partial"
    with open(partial / "features.npy", "ab") as file:
        file.write(b"half a record")
    with open(partial / "journal.jsonl", "ab") as file:
        file.write(b'["img_b", 1, 6')
    with new_writer(path) as writer:
        assert writer.ids() == ["img_a"] and "img_b" not in writer
        fill(writer, ["img_b", "img_c"])
        again = writer.finish()
    assert again.meta["checksums"] == store.meta["checksums"]
    assert not partial.exists() and not (path / "journal.jsonl").exists()


def test_journal_line_without_its_rows_is_dropped(tmp_path: Path) -> None:
    with new_writer(tmp_path / "s") as writer:
        fill(writer, ["img_a", "img_c"])
    features = tmp_path / "s.partial" / "features.npy"
    os.truncate(features, features.stat().st_size - 1)
    with new_writer(tmp_path / "s") as writer:
        assert writer.ids() == ["img_a"]


def test_writer_refuses_what_would_not_fit(tmp_path: Path) -> None:
    boxes, features = make_regions(3, 0)
    ids = {"object_ids": torch.arange(3)}
    with new_writer(tmp_path / "s") as writer:
        with pytest.raises(DataError, match=r"image 'a': array 'features' has shape \(3, 5\)"):
            writer.add("a", 64, 48, boxes, features[:, :5], **ids)
        with pytest.raises(DataError, match=r"'features' holds 1e\+30, which is not a finite"):
            writer.add("a", 64, 48, boxes, torch.full((3, WIDTH), 1e30), **ids)
        with pytest.raises(DataError, match=r"image 'a': size 0 x 48"):
            writer.add("a", 0, 48, boxes, features, **ids)
        with pytest.raises(DataError, match=r"optional arrays \[\], the store has"):
            writer.add("a", 64, 48, boxes, features)
        with pytest.raises(DataError, match="no image was written"):
            writer.finish()
        writer.add("a", 64, 48, boxes, features, **ids)
        with pytest.raises(DataError, match="image 'a' is there already"):
            writer.add("a", 64, 48, boxes, features, **ids)
    with pytest.raises(DataError, match="was started with dtype = 'float16', now 'float32'"):
        new_writer(tmp_path / "s", dtype="float32")
    with new_writer(tmp_path / "s") as writer:
        writer.finish()
    with pytest.raises(DataError, match="is there already: delete it"):
        new_writer(tmp_path / "s")


def test_tsv_import_gives_the_arrays_that_the_original_reader_gives(
    tmp_path: Path, goldens: Path
) -> None:
    expected = load_file(goldens / "lxmert" / "tiny_obj36_expected.safetensors")
    store = import_tsv(goldens / GOLDEN_TSV, tmp_path / "s", width=5, dtype="float32")
    assert store.ids() == ["COCO_val2014_000000000100", "COCO_val2014_000000000101"]
    for i, image_id in enumerate(store.ids()):
        regions = store.get(image_id)
        found = {
            "features": regions.features,
            "boxes": regions.boxes,
            "boxes_normalised": regions.normalised_boxes(),
            "objects_id": regions.object_ids,
            "objects_conf": regions.object_conf,
            "attrs_id": regions.attribute_ids,
            "attrs_conf": regions.attribute_conf,
            "hw_num": torch.tensor([regions.height, regions.width, len(regions.boxes)]),
        }
        for name, value in found.items():
            assert torch.equal(value, expected[f"{i}.{name}"]), name


def encode(array: np.ndarray) -> bytes:
    return base64.b64encode(array.tobytes())


def tsv_row(image_id: str, count: int = 2, **changes: bytes) -> dict[str, bytes]:
    """One good row of an LXMERT TSV with features of width 6."""
    boxes, features = make_regions(count, 1)
    row = {
        "img_id": image_id.encode(),
        "img_h": b"48",
        "img_w": b"64",
        "objects_id": encode(np.arange(count)),
        "objects_conf": encode(np.ones(count, "f4")),
        "attrs_id": encode(np.arange(count)),
        "attrs_conf": encode(np.ones(count, "f4")),
        "num_boxes": str(count).encode(),
        "boxes": encode(boxes.numpy()),
        "features": encode(features.float().numpy()),
    }
    return row | changes


def write_tsv(path: Path, rows: list[dict[str, bytes]]) -> Path:
    path.write_bytes(b"".join(b"\t".join(row[c] for c in COLUMNS) + b"\r\n" for row in rows))
    return path


BAD_ROWS = {
    "features": (encode(np.ones(7, "f4")), r"column 'features' holds 7 numbers, expected 2 x 6"),
    "boxes": (encode(np.full(8, 99, "f4")), r"column 'boxes': \[99.0, .* 64 x 48 pixels"),
    "objects_conf": (b"?notbase64?", r"column 'objects_conf': not base64"),
    "num_boxes": (b"two", r"column 'num_boxes': 'two' is not a count"),
    "img_id": (b"one", r"column 'img_id': an earlier row has it too"),
    "attrs_conf": (encode(np.full(2, np.nan, "f4")), r"array 'attribute_conf' holds nan"),
}


@pytest.mark.parametrize("column", BAD_ROWS)
def test_bad_row_is_named_or_skipped_and_counted(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value, message = BAD_ROWS[column]
    bad = tsv_row("two", **{column: value})
    path = write_tsv(tmp_path / "f.tsv", [tsv_row("one"), bad, tsv_row("three")])
    name = "one" if column == "img_id" else "two"
    with pytest.raises(DataError, match=rf"f\.tsv: row 2: image '{name}': {message}"):
        import_tsv(path, tmp_path / "s", WIDTH)
    store = import_tsv(path, tmp_path / "s", WIDTH, skip_bad=True)
    assert store.ids() == ["one", "three"] and store.meta["skipped_rows"] == 1
    assert "skipped 1 bad rows of 3" in capsys.readouterr().out


def test_truncated_tsv_is_named(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "f.tsv", [tsv_row("one"), tsv_row("two")])
    os.truncate(path, path.stat().st_size // 2 + 20)
    with pytest.raises(DataError, match=r"f\.tsv: row 2: image 'two': \d columns, expected 10"):
        import_tsv(path, tmp_path / "s", WIDTH)


def test_stopped_import_goes_on(tmp_path: Path) -> None:
    rows = [tsv_row("one"), tsv_row("two", boxes=b"!"), tsv_row("three")]
    path = write_tsv(tmp_path / "f.tsv", rows)
    with pytest.raises(DataError):
        import_tsv(path, tmp_path / "s", WIDTH)
    write_tsv(path, [tsv_row("one"), tsv_row("two"), tsv_row("three")])
    assert import_tsv(path, tmp_path / "s", WIDTH).ids() == ["one", "two", "three"]
    assert import_tsv(path, tmp_path / "first", WIDTH, limit=2).ids() == ["one", "two"]


def test_npz_folder_is_imported(tmp_path: Path) -> None:
    boxes, features = make_regions(3, 2)
    (tmp_path / "npz").mkdir()
    arrays = {"x": features.numpy(), "bbox": boxes.numpy(), "image_w": 64, "image_h": 48}
    np.savez(tmp_path / "npz" / "42.npz", **arrays)
    store = import_npz(tmp_path / "npz", tmp_path / "s", WIDTH)
    assert torch.equal(store.get("42").features, features)
    np.savez(tmp_path / "npz" / "43.npz", **{k: arrays[k] for k in ("x", "image_w", "image_h")})
    with pytest.raises(DataError, match=r"43\.npz: an array is missing.* boxes or bbox"):
        import_npz(tmp_path / "npz", tmp_path / "t", WIDTH)


def test_npz_with_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "npz").mkdir()
    arrays = {"x": np.array([{}], dtype=object), "bbox": 0, "image_w": 1, "image_h": 1}
    np.savez(tmp_path / "npz" / "1.npz", **arrays)
    with pytest.raises(DataError, match=r"1\.npz: array .x.npy.: .*pickled objects are not read"):
        import_npz(tmp_path / "npz", tmp_path / "s", WIDTH)


def test_command_line_imports_and_prints_errors_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tsv(tmp_path / "f.tsv", [tsv_row("one")])
    assert main(["--tsv", str(path), "--width", "6"]) == 0
    assert "1 images, 2 regions x 6" in capsys.readouterr().out
    assert json.loads((tmp_path / "f" / "meta.json").read_text())["source"] == "f.tsv"
    assert main(["--tsv", str(tmp_path / "g.tsv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "g.tsv: no such file" in error
    assert error.count("\n") == 1 and issubclass(DataError, AdaptiveError)


def test_ids_in_any_order_have_their_own_records(tmp_path: Path) -> None:
    """The order of the rows is that of writing, not of the alphabet."""
    names = ["c", "10", "a", "9", "B", "ab"]
    with RegionFeatureWriter(tmp_path / "s", WIDTH) as writer:
        for number, name in enumerate(names):
            writer.add(name, 9, 9, torch.zeros(1, 4), torch.full((1, WIDTH), float(number)))
        store = writer.finish()
    assert store.ids() == names
    found = store.read(names[::-1]).features[:, 0, 0].tolist()
    assert found == [5, 4, 3, 2, 1, 0]
    assert store.missing(["a", "b", "9", "99"]) == ["b", "99"]


@pytest.mark.parametrize("name", ["features", "boxes"])
def test_numbers_that_are_none_are_not_written(tmp_path: Path, name: str) -> None:
    for bad in (float("nan"), float("inf"), 1e6 if name == "features" else float("-inf")):
        given = {"features": torch.ones(2, WIDTH), "boxes": torch.tensor([[0.0, 0, 5, 5]] * 2)}
        given[name][1, 2] = bad
        with new_writer(tmp_path / "s") as writer, pytest.raises(DataError, match="not a finite"):
            writer.add("a", 9, 9, **given, object_ids=torch.tensor([0, 1]))
