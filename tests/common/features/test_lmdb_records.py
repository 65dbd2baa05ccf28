"""LMDBs of pickled features: both forms, imports that go on, and everything that is refused."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from common.data.command import main
from common.errors import ConfigError, DataError
from common.features.lmdb_pages import check_pages
from common.features.lmdb_records import LMDB_DETECTOR, import_lmdb, lmdb_store
from common.features.sources import features_there, open_store
from common.features.store import RegionFeatures
from tests.common.data_files import npz_of, plain_row, write_tsv
from tests.common.lmdb_files import SIZE, WIDTH, arrays, texts, write_lmdb, write_values
from tests.common.test_pickles import Hostile

FORMS: dict[str, Callable[..., dict[str, Any]]] = {"texts": texts, "arrays": arrays}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def read(path: Path, out: Path | None = None, **options: Any) -> RegionFeatures:
    out = lmdb_store(path) if out is None else out
    return import_lmdb(path, out, WIDTH, "float32", progress=False, **options)


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.mark.parametrize("name", ["features_beta", "features_12in1"])
def test_the_store_has_what_the_original_reader_read(goldens: Path, tmp_path: Path, name: str):
    """Row 0 of the original is the mean of the regions, and its boxes are shares of the image."""
    golden = load_file(goldens / "vilbert" / "reader.safetensors")
    path = Path(shutil.copytree(goldens / "vilbert" / f"{name}.lmdb", tmp_path / f"{name}.lmdb"))
    store = import_lmdb(path, tmp_path / "s", dtype="float32", progress=False)
    assert store.ids() == ["42", "1000007"] and store.meta["detector"] == LMDB_DETECTOR
    for image in store.ids():
        found = store.get(image)
        assert torch.equal(found.features, golden[f"{image}/raw_features"])
        assert torch.equal(found.boxes, golden[f"{image}/raw_boxes"])
        assert [found.width, found.height] == golden[f"{image}/w_h"].tolist()
        assert torch.equal(found.features, golden[f"{image}/features"][1:])
        location = golden[f"{image}/image_location"][1:, :4].float()
        assert torch.allclose(found.normalised_boxes(), location, atol=1e-6)
    assert os.listdir(path) == ["data.mdb"], "nothing is written beside the data"


@forms
@pytest.mark.parametrize("subdir", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_both_forms_give_the_same_store(tmp_path: Path, form, subdir: bool, protocol: int) -> None:
    names = ["b", "a", "10"]
    records = {name: form(name, classes=5) for name in names}
    path = write_lmdb(tmp_path / "f.lmdb", records, protocol=protocol, subdir=subdir)
    store = read(path)
    assert store.path == tmp_path / "f_features" and store.ids() == names
    for name in names:
        found, real = store.get(name), arrays(name, classes=5)
        assert np.array_equal(found.features.numpy(), real["features"])
        assert np.array_equal(found.boxes.numpy(), real["boxes"])
        assert found.class_probabilities is not None
        assert np.allclose(found.class_probabilities.numpy(), real["cls_prob"], atol=1e-3)
        assert (found.width, found.height) == SIZE


def test_sizes_may_have_the_other_names_and_types(tmp_path: Path) -> None:
    record = arrays("7", image_id=7, num_boxes=np.int64(3))
    record |= {"img_w": np.float32(64), "img_h": "48"}
    for name in ("image_w", "image_h"):
        del record[name]
    renamed = texts("8")
    renamed["img_id"] = renamed.pop("image_id")
    store = read(write_lmdb(tmp_path / "f.lmdb", {"7": record, "8": renamed}))
    assert [(store.get(i).width, store.get(i).height) for i in "78"] == [SIZE, SIZE]


def test_rows_of_python_2_are_read(tmp_path: Path) -> None:
    """All of their texts are byte strings."""
    data = b"\x80\x02}(" + b"".join(
        b"T" + len(word).to_bytes(4, "little") + word
        for item in texts("a").items()
        for word in (part.encode() for part in item)
    )
    listed = b"\x80\x02]U\x01aa."
    store = read(write_lmdb(tmp_path / "f.lmdb", {"a": data + b"u."}, keys=listed))
    assert np.array_equal(store.get("a").features.numpy(), arrays("a")["features"])


def test_the_order_is_that_of_the_list_or_else_of_the_tree(tmp_path: Path) -> None:
    records = {name: arrays(name) for name in "cab"}
    assert read(write_lmdb(tmp_path / "x.lmdb", records)).ids() == list("cab")
    assert read(write_lmdb(tmp_path / "y.lmdb", records, keys=False)).ids() == list("abc")
    twice = [b"b", b"c", b"b", b"a"]
    assert read(write_lmdb(tmp_path / "z.lmdb", records, keys=twice)).ids() == list("bca")
    assert read(tmp_path / "x.lmdb", tmp_path / "limited", limit=2).ids() == list("ca")


BOXES = arrays("b")["boxes"]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"image_id": "c"}, "field 'image_id': 'c': expected the entry's key"),
    ({"image_id": None}, "field 'image_id': None: expected the entry's key"),
    ({"num_boxes": "2"}, r"field 'boxes' holds 12 numbers: .* 2 boxes|has shape \(\d, \d\)"),
    ({"num_boxes": 4}, r"field 'boxes' has shape \(., .\), expected 4 x 4"),
    ({"num_boxes": "no"}, "field 'num_boxes': 'no': expected a whole number"),
    ({"num_boxes": 0}, "field 'num_boxes': 0: expected a whole number, 1"),
    ({"num_boxes": True}, "field 'num_boxes': True: expected a whole number"),
    ({"image_w": "64px"}, "field 'image_w': '64px': expected a whole number"),
    ({"image_w": 64.5}, "field 'image_w': 64.5: expected a whole number"),
    ({"image_h": float("nan")}, "field 'image_h': nan: expected a whole number"),
    ({"image_h": 10**9}, "field 'image_h': 1000000000: expected a whole number"),
    ({"image_h": [48]}, r"field 'image_h': \[48\]: expected a whole number"),
    ({"boxes": "a*b"}, "field 'boxes': not base64"),
    ({"boxes": "é"}, "field 'boxes': not base64"),
    ({"boxes": ""}, "field 'boxes' holds 0 numbers"),
    ({"boxes": None}, "field 'boxes' is None: expected numbers, or base64"),
    ({"boxes": BOXES * 9}, "field 'boxes': .* lies outside the image of 64 x 48 pixels"),
    ({"boxes": BOXES / 64}, "they are shares"),
    ({"boxes": BOXES[:, [2, 3, 0, 1]]}, "has no area"),
    ({"boxes": np.full((3, 4), np.nan)}, "array 'boxes' holds nan"),
    ({"boxes": np.ones(12)}, r"field 'boxes' has shape \(12,\), expected 3 x 4"),
    ({"features": np.ones((3, 7))}, r"field 'features' has shape \(3, 7\), expected 3 x 6"),
    ({"features": np.ones((3, 6), bool)}, "field 'features' is bool: expected numbers"),
    ({"features": np.full((3, 6), np.inf)}, "array 'features' holds inf"),
    ({"cls_prob": np.ones((3, 2)) / 2}, "field 'cls_prob': 2 class .* first record has none"),
    ({"features": Hostile(os.system, ("exit",))}, "wants to run or build `.*system`, not plain"),
]


@forms
@pytest.mark.parametrize(("changes", "reason"), BAD)
def test_a_bad_record_is_named_or_left_out(tmp_path: Path, form, changes, reason) -> None:
    records = {"a": form("a"), "b": form("b", **changes), "c": form("c")}
    path = write_lmdb(tmp_path / "f.lmdb", records)
    with pytest.raises(DataError, match=f"^{path}: record 2: entry 'b': .*{reason}") as error:
        read(path)
    assert str(error.value).count(str(path)) == 1 and len(str(error.value)) < 500
    store = read(path, skip_bad=True)
    assert store.ids() == ["a", "c"] and [b["row"] for b in store.meta["skipped"]] == [2]
    assert "entry 'b'" in (tmp_path / "f_features_skipped.txt").read_text()


@pytest.mark.parametrize("field", list(arrays("a")))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    record = texts("a")
    del record[field]
    with pytest.raises(DataError, match=f"record 1: entry 'a': field '{field}' is missing"):
        read(write_lmdb(tmp_path / "f.lmdb", {"a": record}))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "cannot be read as a pickle"),
        (pickle.dumps(texts("b"))[:-40], "cannot be read as a pickle"),
        (pickle.dumps([1]), r"is \[1\]: expected a record"),
        (pickle.dumps([0] * 30_000), "more than 10,000 instructions"),
        (pickle.dumps(texts("b") | {"features": np.zeros(3, object)}), "dtype..O8"),
    ],
)
def test_a_value_that_is_no_record_is_named(tmp_path: Path, value: bytes, reason: str) -> None:
    path = write_lmdb(tmp_path / "f.lmdb", {"a": texts("a"), "b": value})
    with pytest.raises(DataError, match=f"^{path}: record 2: entry 'b': .*{reason}"):
        read(path)


def test_class_probabilities_are_of_all_or_of_none(tmp_path: Path) -> None:
    for second, reason in (
        (arrays("b"), "'cls_prob': no class probabilities per box, the first record has 5"),
        (arrays("b", classes=4), "'cls_prob': 4 class probabilities per box, the first record has"),
        (arrays("b", cls_prob=np.full((3, 5), 1.5)), "'class_probabilities' holds 1.5, expected 0"),
        (arrays("b", cls_prob=np.full((3, 5), -0.5)), "'class_probabilities' holds -0.5"),
        (arrays("b", cls_prob=np.ones((2, 5))), r"'cls_prob' has shape \(2, 5\), expected 3 x cla"),
    ):
        shutil.rmtree(tmp_path)
        path = write_lmdb(tmp_path / "f" / "f.lmdb", {"a": arrays("a", classes=5), "b": second})
        with pytest.raises(DataError, match=f"record 2: entry 'b': .*{reason}"):
            read(path)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([b"a"], "entry 'keys': lists 1 images, but 1 others are there, such as 'b'"),
        ([b"a", b"b", b"x"], "record 3: entry 'x': is in 'keys', but not there itself"),
        ({b"a": 1}, r"entry 'keys': is \{b'a': 1\}: expected the list of all keys"),
        ([b"a", 7], "entry 'keys': 7 in it is no key"),
        (b"cos\nsystem\n(S'true'\ntR.", "entry 'keys': refused, .* `os.system`"),
        (b"\x80\x03]", "entry 'keys': cannot be read as a pickle"),
    ],
)
def test_a_list_of_keys_that_is_wrong_is_refused(tmp_path: Path, keys, reason: str) -> None:
    records = {name: arrays(name) for name in "ab"}
    with pytest.raises(DataError, match=reason):
        read(write_lmdb(tmp_path / "f.lmdb", records, keys=keys))


def test_a_key_that_is_no_text_is_refused(tmp_path: Path) -> None:
    record = pickle.dumps(arrays("a", image_id="\ufffd"))
    with pytest.raises(DataError, match="record 1: entry '\ufffd': field 'image_id'"):
        read(write_values(tmp_path / "f.lmdb", {b"\xff": record}))


# The file


def big(path: Path) -> Path:
    """An LMDB with branches, two pages of leaves and more, and values on pages of their own."""
    records = {f"{number:03}": arrays(f"{number:03}", 60) for number in range(150)}
    return write_lmdb(path, records)


def test_what_is_no_lmdb_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="f.lmdb: no such file or folder"):
        read(tmp_path / "f.lmdb")
    (tmp_path / "d.lmdb").mkdir()
    with pytest.raises(DataError, match="d.lmdb: no data.mdb in it: an LMDB is a folder"):
        read(tmp_path / "d.lmdb")
    for content in (b"", b"a text\n" * 4000, bytes(9000)):
        (tmp_path / "t.lmdb").write_bytes(content)
        with pytest.raises(DataError, match="t.lmdb: not an LMDB file, or"):
            read(tmp_path / "t.lmdb")
    for name, values in (("e", {}), ("k", {b"keys": pickle.dumps([])})):
        with pytest.raises(DataError, match=f"{name}.lmdb: no image in it"):
            read(write_values(tmp_path / f"{name}.lmdb", values))
    with lmdb.open(str(tmp_path / "s.lmdb"), max_dbs=2, map_size=1 << 20) as environment:
        environment.open_db(b"one")
    with pytest.raises(DataError, match="s.lmdb/data.mdb: damaged .an entry with flags 0x2"):
        read(tmp_path / "s.lmdb")


def test_a_file_that_is_cut_off_is_refused_at_every_length(tmp_path: Path) -> None:
    path = big(tmp_path / "f.lmdb")
    check_pages(path / "data.mdb")
    content = (path / "data.mdb").read_bytes()
    for length in (100, 4096, 5000, 8192, 50_000, len(content) - 4096, len(content) - 1):
        (path / "data.mdb").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"data\.mdb: .*(cut off|not an LMDB)"):
            read(path)


def test_a_second_reading_of_an_open_lmdb_is_one_error(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "f.lmdb", {"a": arrays("a")})
    with (
        lmdb.open(str(path), readonly=True, lock=False),
        pytest.raises(DataError, match="f.lmdb: cannot be read as an LMDB .*already open"),
    ):
        read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big(tmp_path_factory.mktemp("whole") / "f.lmdb") / "data.mdb"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_pages_are_refused_or_harmless(whole: Path, data: st.DataObject) -> None:
    """Whatever the check lets through is read by the C library without a crash."""
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        page = data.draw(st.integers(0, len(content) // 4096 - 1))
        place = 4096 * page + data.draw(st.one_of(st.integers(0, 160), st.integers(0, 4095)))
        content[place] = data.draw(st.sampled_from((0, 1, 2, 8, 127, 255, content[place] ^ 1)))
    path = whole.with_name("damaged.mdb")
    path.write_bytes(content)
    try:
        check_pages(path)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
        return
    with (
        suppress(lmdb.Error),  # which an import says as its own
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        for key, value in transaction.cursor():
            transaction.get(key)
            assert len(value) < len(content)


# Going on


@forms
def test_an_import_that_was_stopped_goes_on_and_gives_the_same_files(tmp_path: Path, form) -> None:
    names = "dbace"
    records = {name: form(name, classes=4) for name in names}
    reference = read(write_lmdb(tmp_path / "whole.lmdb", records), tmp_path / "whole")
    for stopped in range(len(names)):
        folder = tmp_path / f"{stopped}"
        folder.mkdir()
        path = write_lmdb(folder / "whole.lmdb", records | {names[stopped]: b"\x80\x03"})
        with pytest.raises(DataError, match=f"record {stopped + 1}: entry"):
            read(path, folder / "s")
        shutil.rmtree(path)
        write_lmdb(path, records)
        if stopped:  # a kill in the middle of a record
            with open(folder / "s.partial" / "features.npy", "ab") as file:
                file.write(b"half")
            with open(folder / "s.partial" / "journal.jsonl", "ab") as file:
                file.write(b'["x", 3')
        read(path, folder / "s")
        assert files_of(folder / "s") == files_of(reference.path)


def test_an_lmdb_that_was_exchanged_is_not_mixed_with_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "f.lmdb"
    good = {name: arrays(name) for name in "abc"}
    for changed, what in (
        ({"a": arrays("a", image_w=65), "b": good["b"]}, "image 'a' has another content now"),
        ({"x": arrays("x"), **good}, "image 'x' was not in this place, where 'a' was"),
        ({"a": good["a"]}, "image 'b' is not in it any more"),
    ):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        write_lmdb(path, good | {"c": b""})
        with pytest.raises(DataError, match="record 3"):
            read(path)
        shutil.rmtree(path)
        write_lmdb(path, changed)
        with pytest.raises(ConfigError, match=f"^{path}: was changed or exchanged .*{what}"):
            read(path, skip_bad=True)


# Commands and tables of data sets


def test_the_command_imports_an_lmdb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lmdb(tmp_path / "f.lmdb", {"a": arrays("a"), "b": texts("b"), "c": b"x"})
    flags = ["import", "--lmdb", str(path), "--width", "6", "--quiet"]
    assert main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*flags, "--skip-bad", "--detector", "mine", "--out", str(tmp_path / "o")]) == 0
    store = RegionFeatures.open(tmp_path / "o")
    assert store.ids() == ["a", "b"] and store.meta["detector"] == "mine"
    assert main([*flags, "--limit", "1", "--out", str(tmp_path / "p")]) == 0
    assert RegionFeatures.open(tmp_path / "p").ids() == ["a"]


def test_an_lmdb_in_the_place_of_a_store_is_imported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / "val_obj36"
    assert not features_there(name)
    path = write_lmdb(tmp_path / "val_obj36.lmdb", {"a": arrays("a")})
    assert features_there(name)
    for expected in (1, 0):
        found = open_store(name, WIDTH, progress=False)
        assert found.path == tmp_path / "val_obj36_features" and found.ids() == ["a"]
        assert capsys.readouterr().out.count("importing val_obj36.lmdb (once)") == expected
    npz_of(found, {"x": "a"}, name)
    with pytest.raises(DataError, match=f"NPZ files {name} and {path} are both there: move one"):
        open_store(name, WIDTH)
    shutil.rmtree(name)
    write_tsv(tmp_path / "val_obj36.tsv", [plain_row("a", WIDTH)])
    with pytest.raises(DataError, match=f"obj36.tsv and {path} are both there: move one"):
        open_store(name, WIDTH)
    shutil.rmtree(path)
    (tmp_path / "val_obj36.tsv").unlink()
    assert features_there(name) and open_store(name, WIDTH).ids() == ["a"]
