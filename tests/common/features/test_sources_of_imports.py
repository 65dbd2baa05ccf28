"""Imports that go on, and values that an import must not take: what is refused, and how."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError, DataError
from common.features.archives import Archive
from common.features.lxmert_tsv import import_tsv
from common.features.npz import import_npz
from common.features.store import RegionFeatures
from common.features.vlbert_json import import_json
from common.features.writer import LONGEST_SIDE, RegionFeatureWriter
from tests.common.data_files import encode, plain_row, write_tsv
from tests.vlbert.coco_files import record, write_features

WIDTH = 6
BOXES = np.array([[1, 2, 30, 40], [5, 6, 20, 21]], np.float32)


def rows(names: str, **changes: dict[str, bytes]) -> list[dict[str, bytes]]:
    return [plain_row(name, WIDTH, **changes.get(name, {})) for name in names]


def stopped_tsv(tmp_path: Path) -> Path:
    """A TSV whose import stopped at its fourth row, after three."""
    tsv = write_tsv(tmp_path / "f.tsv", [*rows("abc"), plain_row("d", WIDTH, boxes=b"!")])
    with pytest.raises(DataError, match="row 4"):
        import_tsv(tsv, tmp_path / "store", WIDTH, progress=False)
    return tsv


OTHER = {"features": encode(np.full((3, WIDTH), 7.0, np.float32))}


@pytest.mark.parametrize(
    ("names", "changes", "what"),
    [
        ("abcde", {"b": OTHER}, "image 'b' has another content now"),
        ("xbcd", {}, "image 'x' was not in this place, where 'a' was"),
        ("abxcd", {}, "image 'x' was not in this place, where 'c' was"),
        ("ab", {}, "image 'c' is not in it any more"),
    ],
)
def test_a_tsv_that_was_exchanged_is_not_mixed_with_the_earlier_one(
    tmp_path: Path, names, changes, what
) -> None:
    tsv = stopped_tsv(tmp_path)
    write_tsv(tsv, rows(names, **changes))
    with pytest.raises(ConfigError, match=f"{tsv}: was changed or exchanged .*{what}.*delete"):
        import_tsv(tsv, tmp_path / "store", WIDTH, progress=False, skip_bad=True)
    assert not (tmp_path / "store").exists()


def test_the_bad_row_may_be_mended(tmp_path: Path) -> None:
    tsv = stopped_tsv(tmp_path)
    write_tsv(tsv, rows("abcde"))
    store = import_tsv(tsv, tmp_path / "store", WIDTH, progress=False)
    assert store.ids() == list("abcde") and store.meta["rows"] == 5
    store.verify(progress=False)


def npz(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    arrays = {"features": np.ones((2, WIDTH), np.float32), "boxes": BOXES, "width": 64}
    np.savez(folder / f"{name}.npz", **(arrays | {"height": 48} | changes))


def test_files_that_were_exchanged_are_not_mixed_with_the_earlier_ones(tmp_path: Path) -> None:
    npz(tmp_path / "npz", "a")
    npz(tmp_path / "npz", "b", width=0.5)
    write_features(tmp_path / "json", {1: record(1), 2: {"num_boxes": 1}})
    readers: dict[str, Callable[..., RegionFeatures]] = {"npz": import_npz, "json": import_json}
    for kind, read in readers.items():
        with pytest.raises(DataError, match="file 2"):
            read(tmp_path / kind, tmp_path / f"{kind}_store", WIDTH, progress=False)
    npz(tmp_path / "npz", "a", width=65)
    write_features(tmp_path / "json", {1: record(1, 4), 2: record(2)})
    for kind, read in readers.items():
        with pytest.raises(ConfigError, match="image '[a1]' has another content now"):
            read(tmp_path / kind, tmp_path / f"{kind}_store", WIDTH, progress=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"boxes": BOXES[:, [2, 3, 0, 1]]}, "has no area: expected x1, y1, x2, y2"),
        ({"boxes": BOXES[:, [0, 1, 0, 3]]}, "has no area"),
        ({"boxes": BOXES / 64}, "within one pixel .* shares"),
        ({"width": 64.5}, "'width' is .*: expected a whole number"),
        ({"width": np.inf}, "'width' is .*: expected a whole number"),
        ({"width": np.array(["64"])}, "<U2: expected numbers"),
        ({"width": 3_000_000_000}, f"expected 1 to {LONGEST_SIDE:,} pixels"),
        ({"features": np.ones((2, WIDTH), complex)}, "complex128: expected numbers"),
        ({"features": np.ones((2, WIDTH), "U8")}, "<U8: expected numbers"),
        ({"features": np.ones((2, WIDTH), bool)}, "is of bool, not numbers"),
        ({"features": np.zeros(2, [("a", "f4")])}, "expected numbers"),
        ({"boxes": np.float32(3)}, r"array 'boxes' has shape \(\)|has shape"),
        ({"boxes": np.ones((2, 5), np.float32)}, "array 'boxes' has shape"),
    ],
)
def test_arrays_of_another_kind_are_refused_with_their_file(tmp_path: Path, changes, reason):
    npz(tmp_path / "npz", "a", **changes)
    with pytest.raises(DataError, match=reason) as error:
        import_npz(tmp_path / "npz", tmp_path / "s", WIDTH, progress=False)
    assert str(tmp_path / "npz" / "a.npz") in str(error.value) and len(str(error.value)) < 600
    npz(tmp_path / "npz", "b")
    store = import_npz(tmp_path / "npz", tmp_path / "s", WIDTH, skip_bad=True, progress=False)
    assert store.ids() == ["b"]


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f2", np.longdouble, ">i4", "<u2"])
def test_numbers_in_any_type_are_read_with_their_values(tmp_path: Path, kind) -> None:
    values = np.arange(2 * WIDTH).reshape(2, WIDTH)
    npz(tmp_path / "npz", "a", features=values.astype(kind), boxes=BOXES.astype(">f4"))
    npz(tmp_path / "npz", "f", features=np.asfortranarray(values.astype(kind)))
    store = import_npz(tmp_path / "npz", tmp_path / "s", WIDTH, progress=False)
    for name in "af":
        assert torch.equal(store.get(name).features, torch.from_numpy(values).float())
        assert torch.equal(store.get(name).boxes, torch.from_numpy(BOXES))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"object_ids": torch.tensor([1, 2**31])}, "'object_ids' holds 2.14748e\\+09, expected 0"),
        ({"object_ids": torch.tensor([1, -1])}, "'object_ids' holds -1, expected 0"),
        ({"object_ids": torch.tensor([1, 0.5])}, "ids have to be whole numbers"),
        ({"object_conf": torch.tensor([1, 1.2])}, "'object_conf' holds 1.2, expected 0 to 1"),
        ({"image_id": "a\0"}, "printable"),
        ({"image_id": "\ud83d"}, "printable"),
        ({"image_id": ""}, "printable"),
    ],
)
def test_ids_and_shares_outside_their_range_are_refused(tmp_path: Path, changes, reason) -> None:
    given = {
        "image_id": "a",
        "width": 64,
        "height": 48,
        "boxes": BOXES,
        "features": torch.ones(2, WIDTH),
        "object_ids": torch.tensor([1, 2]),
        "object_conf": torch.tensor([0.5, 1.0]),
    } | changes
    optional = ["object_ids", "object_conf"]
    with RegionFeatureWriter(tmp_path / "s", WIDTH, optional=optional) as writer:
        with pytest.raises(DataError, match=reason):
            writer.add(**given)
        assert len(writer) == 0


def test_a_size_that_an_earlier_version_took_does_not_stop_the_import_for_ever(tmp_path: Path):
    tsv = write_tsv(tmp_path / "f.tsv", rows("ab", b={"img_w": b"3000000000"}))
    with pytest.raises(DataError, match="row 2: image 'b': size 3000000000 x"):
        import_tsv(tsv, tmp_path / "s", WIDTH, progress=False)
    with open(tmp_path / "s.partial" / "journal.jsonl", "a") as journal:
        journal.write('["b", 3, 3000000000, 48]\n')
    write_tsv(tsv, rows("ab"))
    assert import_tsv(tsv, tmp_path / "s", WIDTH, progress=False).ids() == ["a", "b"]


def test_archives_with_a_member_twice_encrypted_or_inflated_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.json", "{}" * 1000)
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = (2**31 - 1).to_bytes(4, "little")  # its size, inflated
    path.write_bytes(data)
    with pytest.raises(DataError, match="2,147,483,647 bytes: more than"):
        Archive(path).read("a.json")
    data[place + 24 : place + 28] = (5).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        Archive(path).read("a.json")
    data[place + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="'a.json' is encrypted"):
        Archive(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as file:
        file.writestr("a.json", "1")
        file.writestr("a.json", "2")
    with pytest.raises(DataError, match="has 'a.json' twice"):
        Archive(path)
