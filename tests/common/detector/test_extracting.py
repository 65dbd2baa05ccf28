"""`python -m common.features extract`: every format, every way to stop, every kind of picture."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.easy_vqa.build import DETECTOR
from common.data.easy_vqa.regions import extract_regions
from common.detector.command import main as extract
from common.detector.extracting import Doubts, image_id, is_picture, picture_names
from common.detector.faster_rcnn import DetectorOptions, FasterRCNNDetector
from common.errors import DataError
from common.features.archives import Folder, open_files
from common.features.command import main as import_features
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures
from common.features.vlbert_json import JsonFeatures, import_json, read_record
from tests.common.detector.files import picture, write_detector, write_pictures
from tests.common.refusals import error_of

COUNT = 5
ARRAYS = ("features", "boxes", "object_ids", "object_conf", "attribute_ids", "attribute_conf")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "files")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures") / "photos", COUNT)


def words(pictures: Path, detector: Path | str, out: Path, *more: str) -> list[str]:
    return [
        *("--images", str(pictures), "--detector", str(detector), "--out", str(out)),
        *("--quiet", *more),
    ]


@pytest.fixture(scope="module")
def store(pictures: Path, detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, with class probabilities."""
    out = tmp_path_factory.mktemp("out") / "store"
    assert extract(words(pictures, detector, out, "--dtype", "float32", "--classes")) == 0
    return out


def test_a_store_holds_what_the_detector_finds(store: Path, pictures: Path, detector: Path) -> None:
    found, loaded = RegionFeatures.open(store), FasterRCNNDetector.open(detector, DetectorOptions())
    found.verify(progress=False)
    assert found.ids() == [f"picture_{number:02}" for number in range(COUNT)]
    for name in found.ids():
        regions, shown = found.get(name), Image.open(pictures / f"{name}.png").convert("RGB")
        expected = loaded.detect(shown)
        assert (regions.width, regions.height) == shown.size
        for array in ARRAYS:
            assert torch.equal(getattr(regions, array).float(), getattr(expected, array).float())
        assert regions.class_probabilities is not None
        assert expected.class_probabilities is not None
        torch.testing.assert_close(
            regions.class_probabilities, expected.class_probabilities, rtol=1e-3, atol=1e-6
        )
        regions.normalised_boxes()
    assert found.meta["detector"] == loaded.name
    assert found.meta["extraction"]["sha256"] == loaded.files.sha256
    assert found.meta["extraction"]["digest"] == loaded.files.digest


def test_class_probabilities_have_the_background_first(detector: Path) -> None:
    loaded = FasterRCNNDetector.open(detector, DetectorOptions())
    found = loaded.detect(picture(1))
    for shares, ids, conf in (
        (found.class_probabilities, found.object_ids, found.object_conf),
        (found.attribute_probabilities, found.attribute_ids, None),
    ):
        assert shares is not None
        torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))
        assert torch.equal(shares[:, 1:].argmax(1), ids)
        if conf is not None:
            torch.testing.assert_close(shares[:, 1:].amax(1), conf)


def test_a_tsv_is_imported_as_the_same_store(
    store: Path, pictures: Path, detector: Path, tmp_path: Path
) -> None:
    assert extract(words(pictures, detector, tmp_path / "f.tsv", "--format", "tsv")) == 0
    made = tmp_path / "imported"
    given = ["--tsv", str(tmp_path / "f.tsv"), "--out", str(made), "--dtype", "float32"]
    assert import_features([*given, "--width", "128", "--quiet"]) == 0
    same_regions(RegionFeatures.open(made), RegionFeatures.open(store), ARRAYS)
    same_detector(RegionFeatures.open(made), RegionFeatures.open(store))
    given = ["--tsv", str(tmp_path / "f.tsv"), "--out", str(tmp_path / "n"), "--detector", "n"]
    assert import_features([*given, "--width", "128", "--quiet"]) == 0
    assert RegionFeatures.open(tmp_path / "n").meta["detector"] == "n"
    told = json.loads((tmp_path / "f.tsv_extraction.json").read_text())
    assert told["images"] == COUNT and "pytorch_model.bin" in told["extraction"]["sha256"]


def test_npz_files_are_imported_as_the_same_store(
    store: Path, pictures: Path, detector: Path, tmp_path: Path
) -> None:
    assert extract(words(pictures, detector, tmp_path / "npz", "--format", "npz")) == 0
    given = ["--npz", str(tmp_path / "npz"), "--out", str(tmp_path / "s"), "--dtype", "float32"]
    assert import_features([*given, "--width", "128", "--quiet"]) == 0
    same_regions(RegionFeatures.open(tmp_path / "s"), RegionFeatures.open(store), ARRAYS[:2])
    same_detector(RegionFeatures.open(tmp_path / "s"), RegionFeatures.open(store))


def test_json_files_are_read_as_the_original_writes_them(
    store: Path, pictures: Path, detector: Path, tmp_path: Path
) -> None:
    out = tmp_path / "json"
    assert extract(words(pictures, detector, out, "--format", "vlbert-json")) == 0
    same_regions(JsonFeatures(out), RegionFeatures.open(store), ARRAYS[:2])
    same_detector(JsonFeatures(out), RegionFeatures.open(store))
    import_json(out, tmp_path / "s", width=128, progress=False)
    same_detector(RegionFeatures.open(tmp_path / "s"), RegionFeatures.open(store))
    record = json.loads((out / "picture_00.json").read_text())
    assert record["image_id"] == "picture_00" and record["num_boxes"] == 6
    found = read_record(Folder(out), "picture_00.json")
    kept = RegionFeatures.open(store).get("picture_00")
    assert found.classes is not None and kept.class_probabilities is not None
    torch.testing.assert_close(found.classes, kept.class_probabilities, rtol=1e-3, atol=1e-6)
    attributes = np.frombuffer(base64.b64decode(record["attrs"]), "<f4")
    assert attributes.reshape(6, 13).argmax(1).shape == (6,)
    assert (attributes.reshape(6, 13)[:, 1:].argmax(1) == kept.attribute_ids.numpy()).all()


def same_regions(found, expected: RegionFeatures, arrays: tuple[str, ...]) -> None:
    assert found.ids() == expected.ids()
    one, other = found.read(found.ids()), expected.read(expected.ids())
    assert torch.equal(one.sizes, other.sizes)
    for name in arrays:
        assert torch.equal(getattr(one, name).float(), getattr(other, name).float()), name


def same_detector(found, expected: RegionFeatures) -> None:
    one, other = (FeatureSources([each]).described() for each in (found, expected))
    assert one == other and len(one["digest"]) == 16


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.long
def test_several_processes_and_an_archive_give_the_same(
    store: Path, pictures: Path, detector: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "photos"  # the source's name is in meta.json
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(pictures.iterdir(), reverse=True):
            file.write(path, f"photos/{path.name}")
        file.writestr("photos/.DS_Store", b"no picture")
    more = ("--dtype", "float32", "--classes", "--workers", "2", "--threads", "1")
    assert extract(words(archive, detector, tmp_path / "store", *more)) == 0
    assert content(tmp_path / "store") == content(store)


def test_pictures_in_subfolders_are_found_as_in_an_archive(
    pictures: Path, detector: Path, tmp_path: Path
) -> None:
    """A folder, and an archive of it; links back into it are not followed."""
    photos = tmp_path / "photos"
    for number, path in enumerate(sorted(pictures.iterdir())):
        inside = photos / ("", "a", "a/deep")[number % 3]
        inside.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, inside)
    (photos / ".thumbnails").mkdir()
    shutil.copy(sorted(pictures.iterdir())[0], photos / ".thumbnails")
    archive = shutil.make_archive(str(tmp_path / "packed" / "photos"), "zip", tmp_path, "photos")
    (photos / "A link to a").symlink_to(photos / "a", target_is_directory=True)
    (photos / "a" / "all").symlink_to(photos, target_is_directory=True)
    (photos / "a" / "above").symlink_to(tmp_path, target_is_directory=True)
    names = picture_names(open_files(photos, deep=True))[0]
    assert names == picture_names(open_files(archive))[0] and len(names) == len(set(names)) > 3
    assert extract(words(photos, detector, tmp_path / "one")) == 0
    assert extract(words(Path(archive), detector, tmp_path / "two")) == 0
    one, two = (RegionFeatures.open(tmp_path / name) for name in ("one", "two"))
    same_regions(one, two, ("boxes", "features"))
    assert sorted(one.ids()) == sorted(path.stem for path in pictures.iterdir())


def test_a_linked_folder_elsewhere_is_looked_into_once(pictures: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("here", "there"):
        (photos / name).symlink_to(pictures, target_is_directory=True)
    names = picture_names(open_files(photos, deep=True))[0]
    assert {Path(name).name for name in names} == {path.name for path in pictures.iterdir()}
    assert len({name.split("/")[0] for name in names}) == 1


def test_two_pictures_of_one_name_in_two_subfolders_are_refused(
    pictures: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted(pictures.iterdir())[0]
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(first, tmp_path / "photos" / name)
    error = error_of(capsys, extract, words(tmp_path / "photos", detector, tmp_path / "out"))
    assert f"a/{first.name} and b/{first.name} would both be image {first.stem!r}" in error
    assert "rename one" in error


@pytest.mark.parametrize(
    ("form", "workers"),
    [("store", "2"), *(pytest.param(form, "1", marks=pytest.mark.slow) for form in ("tsv", "npz"))],
)
def test_after_kill_nine_the_same_command_gives_the_same(
    detector: Path, tmp_path: Path, form: str, workers: str
) -> None:
    """And no worker is left behind."""
    photos = write_pictures(tmp_path / "photos", 30)
    given = words(photos, detector, tmp_path / "out", "--format", form, "--workers", workers)
    command = [sys.executable, "-m", "common.features", "extract", *given]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    until = time.monotonic() + 600
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers_of = listed.read_text().split() if listed.exists() else []
    assert len(workers_of) >= 2 or workers == "1" or not listed.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < 30, "it was stopped in the middle"
    while any(alive(int(worker)) for worker in workers_of):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.05)
    with open(journal, "ab") as file:
        file.write(b'["picture_29", 1')  # a line, and what it stands for, by half
    rows = tmp_path / "out.partial" / ("features.npy" if form == "store" else "rows")
    with open(rows, "ab") as file:
        file.write(b"half")
    assert extract(words(photos, detector, tmp_path / "out", "--format", form)) == 0
    assert extract(words(photos, detector, tmp_path / "whole", "--format", form)) == 0
    if form == "tsv":
        assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    else:
        assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_begun_otherwise_is_not_gone_on_with(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path / "photos", 3)
    (photos / "picture_02.png").write_bytes(b"damaged")
    out = tmp_path / "out"
    for form in ("store", "tsv"):
        given = words(photos, detector, out, "--format", form)
        assert extract(given) == 2
        error = capsys.readouterr().err
        assert "picture 3: " in error and "picture_02.png: not a picture" in error
        assert "--skip-bad" in error
        assert extract([*given, "--boxes", "4-8"]) == 2
        assert "was started with box_policy" in capsys.readouterr().err
        other = write_detector(tmp_path / f"other_{form}", seed=3)
        assert extract(words(photos, other, out, "--format", form)) == 2
        assert "was started with detector" in capsys.readouterr().err
        assert extract(words(photos, other, out, "--format", form, "--name", "as theirs")) == 2
        assert "was started with detector" in capsys.readouterr().err
        picture(7).save(photos / "picture_00.png")
        assert extract(given) == 2
        assert "was changed or exchanged" in capsys.readouterr().err
        picture(0).save(photos / "picture_00.png")
        shutil.rmtree(tmp_path / "out.partial")


def test_a_name_of_ones_own_does_not_hide_other_weights(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path / "photos", 2)
    (photos / "picture_01.png").write_bytes(b"damaged")
    given = ("--name", "as theirs")
    assert extract(words(photos, detector, tmp_path / "out", *given)) == 2
    other = write_detector(tmp_path / "other", seed=3)
    capsys.readouterr()
    assert extract(words(photos, other, tmp_path / "out", *given)) == 2
    assert "was started with box_policy" in capsys.readouterr().err
    assert extract(words(photos, detector, tmp_path / "out", *given, "--skip-bad")) == 0
    meta = RegionFeatures.open(tmp_path / "out").meta
    assert meta["detector"] == "as theirs" and "Faster R-CNN" in meta["extraction"]["own_name"]


def test_bad_pictures_are_left_out_counted_and_named(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path / "photos", 4)
    (photos / "picture_01.png").write_bytes((photos / "picture_01.png").read_bytes()[:150])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    assert extract(words(photos, detector, out, "--skip-bad")) == 0
    said = capsys.readouterr().out
    assert "1 files that are no pictures by their ending are left out" in said
    assert "skipped 2 bad pictures of 5" in said
    found = RegionFeatures.open(out)
    assert found.ids() == ["picture_00", "picture_02", "picture_03"]
    assert [row["image_id"] for row in found.meta["skipped"]] == ["empty", "picture_01"]
    report = (tmp_path / "out_skipped.txt").read_text().splitlines()
    assert len(report) == 3 and "damaged or cut off" in report[2]
    assert extract(words(photos, detector, out)) == 0
    assert f"{out}: is there already (delete it to extract again)" in capsys.readouterr().out


def test_nothing_but_bad_pictures_is_an_error(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    given = words(tmp_path / "photos", detector, tmp_path / "out", "--skip-bad")
    assert extract(given) == 2
    assert "no pictures in it" in capsys.readouterr().err
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    assert extract(given) == 2
    assert "no image was written" in capsys.readouterr().err


def odd_pictures() -> dict[str, tuple[bytes, Image.Image]]:
    """Content of a file, and what is shown."""
    shown = picture(5)
    grey = shown.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = 6
    turned = shown.transpose(Image.Transpose.ROTATE_90)
    palette = shown.quantize(16)
    cmyk = shown.convert("CMYK")
    clear = shown.convert("RGBA")
    clear.putalpha(255)
    frames = [picture(8).quantize(32), picture(9).quantize(32)]

    def saved(image: Image.Image, form: str, **more) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **more)
        return file.getvalue()

    first = Image.open(io.BytesIO(saved(frames[0], "GIF"))).convert("RGB")
    return {
        "grey.png": (saved(grey, "PNG"), grey.convert("RGB")),
        "sixteen.png": (saved(wide, "PNG"), grey.convert("RGB")),
        "turned.png": (saved(turned, "PNG", exif=exif.tobytes()), shown),
        "palette.png": (saved(palette, "PNG"), palette.convert("RGB")),
        "cmyk.tif": (saved(cmyk, "TIFF"), cmyk.convert("RGB")),
        "clear.png": (saved(clear, "PNG"), shown),
        "moving.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), first),
    }


def test_every_kind_of_picture_is_seen_as_it_is_shown(detector: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    odd = odd_pictures()
    for name, (data, _) in odd.items():
        (tmp_path / "photos" / name).write_bytes(data)
    given = words(tmp_path / "photos", detector, tmp_path / "out", "--dtype", "float32")
    assert extract(given) == 0
    found, loaded = (
        RegionFeatures.open(tmp_path / "out"),
        FasterRCNNDetector.open(detector, DetectorOptions()),
    )
    assert len(found) == len(odd)
    for name, (_, shown) in odd.items():
        regions = found.get(image_id(name))
        assert (regions.width, regions.height) == shown.size, name
        assert torch.equal(regions.features, loaded.detect(shown).features), name


def test_floats_are_no_picture(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(tmp_path / "photos" / "f.tif")
    assert extract(words(tmp_path / "photos", detector, tmp_path / "out")) == 2
    assert "save it with 8 bits" in capsys.readouterr().err


def test_names_that_would_be_one_image_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        picture(0).convert("RGB").save(tmp_path / name)
    with pytest.raises(DataError, match=r"a.jpg and a.png would both be image 'a'"):
        picture_names(Folder(tmp_path))


def test_pictures_are_told_by_their_ending_in_any_case() -> None:
    assert is_picture("a/B.JPEG") and is_picture("x.y.png")
    assert not any(map(is_picture, ("a.txt", "._a.jpg", "__MACOSX/a.jpg", "a/.b.png", "jpg")))
    assert image_id("a/b.c.JPG") == "b.c"


def test_boxes_say_how_many_a_picture_has(pictures: Path, detector: Path, tmp_path: Path) -> None:
    for boxes, low, high in (("4", 4, 4), ("3-9", 3, 9)):
        out = tmp_path / boxes
        assert extract(words(pictures, detector, out, "--boxes", boxes, "--limit", "2")) == 0
        found = RegionFeatures.open(out)
        assert len(found) == 2
        assert low <= min(found.meta["regions_per_image"]), found.meta
        assert max(found.meta["regions_per_image"]) <= high
    tsv = tmp_path / "rule"
    assert extract(words(pictures, detector, tsv, "--boxes", "3-9", "--rule", "tsv")) == 0
    assert RegionFeatures.open(tsv).meta["extraction"]["rule"] == "tsv"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--limit", "0"), "--limit 0"),
        (("--workers", "0"), "--workers 0"),
        (("--format", "npz", "--classes"), "--classes is for a store"),
        (("--boxes", "30"), "30 boxes"),
        (("--precision", "fp16"), "fp16 is for a GPU"),
    ],
)
def test_flags_that_make_no_sense_end_in_one_line(
    pictures: Path, detector: Path, tmp_path: Path, capsys, more: tuple[str, ...], said: str
) -> None:
    assert extract(words(pictures, detector, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_doubts_are_said_where_they_are_many() -> None:
    doubts = Doubts()
    for number in range(8):
        doubts.add({"mean of the features (usual: 1 to 2)": 9.0} if number < 2 else {})
    assert doubts.text() is None
    doubts.add({"mean of the features (usual: 1 to 2)": 9.0})
    said = doubts.text()
    assert said is not None and "outside in 3 of 9" in said and "usual: 1 to 2" in said


def test_unusual_features_are_warned_of(
    pictures: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of random weights."""
    assert extract(words(pictures, detector, tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert "warning: these are no usual features: " in said and f"of {COUNT} pictures" in said


# Pixels


def test_pixel_regions_are_a_detector_like_the_other(
    easy_vqa_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as the store of easy-VQA, which its builder makes."""
    images = easy_vqa_root / "data" / "easy_vqa" / "images" / "test"
    assert extract(words(images, "pixels", tmp_path / "out", "--limit", "8")) == 0
    found = RegionFeatures.open(tmp_path / "out")
    known = RegionFeatures.open(easy_vqa_root / "data" / "easy_vqa" / "features")
    assert found.meta["detector"] == known.meta["detector"] == DETECTOR
    one, other = found.read(found.ids()), known.read(found.ids())
    for name in ARRAYS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert "warning" not in capsys.readouterr().out


def test_pixel_regions_of_a_photograph_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_pictures(tmp_path / "photos", 2)
    assert extract(words(photos, "pixels", tmp_path / "out", "--format", "npz")) == 0
    assert "share of the picture that is foreground" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "picture_00.npz") as file:
        expected = extract_regions(picture(0))
        assert np.array_equal(file["features"], expected.features)
    assert extract(words(photos, "pixels", tmp_path / "o", "--boxes", "5")) == 2
    assert "pixels has nothing to set" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(photos / "small.png")
    assert extract(words(photos, "pixels", tmp_path / "o")) == 2
    assert "small.png: 8 x 8 pixels: the pixel detector needs 16" in capsys.readouterr().err


def test_the_help_of_features_names_extract(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_features(["--help"])
    assert "python -m common.features extract" in " ".join(capsys.readouterr().out.split())
