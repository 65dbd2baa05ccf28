"""Importing features: memory, going on after a stop, bad records and their report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.command import main
from common.errors import DataError
from common.features import importing as feature_import
from common.features import lxmert_tsv as tsv_rows
from common.features.lxmert_tsv import TSV_DETECTOR, import_tsv
from common.features.npz import import_npz
from common.features.sources import features_there, open_store
from common.features.store import RegionFeatures
from tests.common.data_files import encode, npz_of, plain_row, write_tsv

WIDTH = 6
RUN = """
import resource, sys
from common.data import main
from common.training.runtime import peak_memory
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
status = main(sys.argv[1:])
print("peak", peak_memory()["peak_rss_bytes"])
raise SystemExit(status)
"""


def run_alone(*arguments: str, largest_file: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m common.data` in a process of its own, which also tells its peak memory."""
    return subprocess.run(
        [sys.executable, "-c", RUN, str(largest_file), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def small_rows(names: str, **bad: dict[str, bytes]) -> list[dict[str, bytes]]:
    """Rows named by letters; `bad` changes columns of some."""
    return [plain_row(name, WIDTH, **bad.get(name, {})) for name in names]


def files_of(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_size_of_the_tsv(tmp_path: Path) -> None:
    peaks = {}
    for rows in (20, 260):
        tsv = write_tsv(
            tmp_path / f"{rows}.tsv", (plain_row(f"COCO_{i}", count=36) for i in range(rows))
        )
        found = run_alone("import", "--tsv", str(tsv), "--quiet")
        assert found.returncode == 0, found.stderr
        peaks[rows] = int(found.stdout.split("peak")[1])
    assert (tmp_path / "260.tsv").stat().st_size > 100_000_000
    assert peaks[260] - peaks[20] < 24_000_000
    assert peaks[260] < 1_000_000_000


def test_full_disk_is_explained_and_the_same_command_goes_on(tmp_path: Path) -> None:
    names = [f"image {number}" for number in range(60)]
    tsv = write_tsv(tmp_path / "f.tsv", (plain_row(name, WIDTH) for name in names))
    arguments = ["import", "--tsv", str(tsv), "--width", str(WIDTH), "--quiet"]
    stopped = run_alone(*arguments, largest_file=800)
    assert stopped.returncode == 2 and stopped.stderr.count("\n") == 1
    assert "the import stopped" in stopped.stderr and "goes on where it stopped" in stopped.stderr
    partial = tmp_path / "f.partial"
    left = len((partial / "journal.jsonl").read_text().splitlines())
    assert 0 < left < 60 and not (tmp_path / "f").exists()
    assert main(arguments) == 0
    assert not partial.exists()
    import_tsv(tsv, tmp_path / "whole", WIDTH, progress=False)
    assert files_of(tmp_path / "f") == files_of(tmp_path / "whole")


def test_going_on_is_said_and_gives_the_same_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"b": {"boxes": b"!"}}
    rows = small_rows("abcd", **bad)
    tsv = write_tsv(tmp_path / "f.tsv", [*rows[:3], plain_row("d", WIDTH, features=b"!")])
    with pytest.raises(DataError, match=r"row 2: image 'b': column 'boxes': not base64"):
        import_tsv(tsv, tmp_path / "s", WIDTH, progress=False)
    write_tsv(tsv, rows)
    store = import_tsv(tsv, tmp_path / "s", WIDTH, skip_bad=True, progress=False)
    assert "going on with 1 images" in capsys.readouterr().out
    assert store.ids() == ["a", "c", "d"]
    assert [b["row"] for b in store.meta["skipped"]] == [2] and store.meta["rows"] == 4


def test_report_names_every_skipped_row_and_the_screen_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {name: {"num_boxes": b"none"} for name in "bcdefgh"}
    tsv = write_tsv(tmp_path / "f.tsv", small_rows("abcdefghi", **bad))
    arguments = ["import", "--tsv", str(tsv), "--width", str(WIDTH), "--quiet", "--skip-bad"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    report = tmp_path / "f_skipped.txt"
    assert f"skipped 7 bad rows of 9 (all of them in {report})" in shown
    assert "row 2: image 'b': column 'num_boxes': 'none' is not a count" in shown
    assert "row 7" not in shown and "and 2 more" in shown
    lines = [line.split("\t") for line in report.read_text().splitlines()]
    assert lines[0] == ["row", "image", "reason"]
    assert [(row, image) for row, image, _ in lines[1:]] == list(
        zip("2345678", "bcdefgh", strict=False)
    )
    assert all("is not a count" in reason for *_, reason in lines[1:])
    meta = json.loads((tmp_path / "f" / "meta.json").read_text())
    assert meta["skipped_rows"] == 7 and meta["skipped"][0]["image_id"] == "b"


def test_whole_import_takes_an_earlier_report_away(tmp_path: Path) -> None:
    (tmp_path / "f_skipped.txt").write_text("row\timage\treason\n")
    tsv = write_tsv(tmp_path / "f.tsv", small_rows("ab"))
    import_tsv(tsv, tmp_path / "f", WIDTH, skip_bad=True, progress=False)
    assert not (tmp_path / "f_skipped.txt").exists()


def test_file_of_another_format_is_given_up_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_import, "HOPELESS_ROWS", 3)
    (tmp_path / "f.tsv").write_text("a line of text\n" * 9)
    with pytest.raises(DataError, match=r"row 3: .* all of the first 3 rows: another format"):
        import_tsv(tmp_path / "f.tsv", tmp_path / "s", WIDTH, skip_bad=True, progress=False)


def test_endless_row_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsv_rows, "MAX_ROW_BYTES", 1 << 12)
    tsv = write_tsv(tmp_path / "f.tsv", small_rows("abc", b={"objects_conf": b"x" * 9000}))
    store = import_tsv(tsv, tmp_path / "s", WIDTH, skip_bad=True, progress=False)
    assert store.ids() == ["a", "c"]
    (bad,) = store.meta["skipped"]
    assert bad["row"] == 2 and "longer than" in bad["reason"]


def make_store(path: Path) -> RegionFeatures:
    tsv = write_tsv(path.with_suffix(".tsv"), small_rows("abc"))
    return import_tsv(tsv, path, WIDTH, progress=False)


def test_npz_folder_in_the_place_of_a_store_is_imported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "s")
    path = npz_of(store, {"x": "a", "y": "c"}, tmp_path / "val2014_obj36")
    assert features_there(path)
    for expected in (1, 0):
        found = open_store(path, WIDTH, progress=False)
        assert found.path == tmp_path / "val2014_obj36_features" and found.ids() == ["x", "y"]
        assert torch.equal(found.get("y").features, store.get("c").features)
        assert capsys.readouterr().out.count("importing the NPZ files") == expected
    write_tsv(tmp_path / "val2014_obj36.tsv", small_rows("xy"))
    with pytest.raises(DataError, match="are both there: move one of them away"):
        open_store(path, WIDTH)


def test_bad_npz_file_is_named_or_skipped_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = npz_of(make_store(tmp_path / "s"), {"x": "a", "z": "c"}, tmp_path / "npz")
    outside = np.full((1, 4), 99.0)
    np.savez(folder / "y.npz", x=np.ones((1, WIDTH)), bbox=outside, image_w=64, image_h=48)
    with pytest.raises(DataError, match=r"file 2: .*y\.npz: image 'y': array 'boxes'.*64 x 48"):
        import_npz(folder, tmp_path / "t", WIDTH, progress=False)
    assert main(["import", "--npz", str(folder), "--width", "6", "--skip-bad", "--quiet"]) == 0
    assert "skipped 1 bad files of 3" in capsys.readouterr().out
    assert RegionFeatures.open(tmp_path / "npz_features").ids() == ["x", "z"]
    assert "y.npz" in (tmp_path / "npz_features_skipped.txt").read_text()


def test_detector_is_kept_and_bars_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tsv = write_tsv(tmp_path / "f.tsv", small_rows("ab"))
    for extra, detector in ([], TSV_DETECTOR), (["--detector", "mine"], "mine"):
        out = tmp_path / detector[:4]
        flags = ["import", "--tsv", str(tsv), "--width", "6", "--out", str(out), *extra]
        assert main([*flags, "--quiet"]) == 0
        assert RegionFeatures.open(out).meta["detector"] == detector
    assert capsys.readouterr().err == ""


def test_nan_in_a_row_is_named(tmp_path: Path) -> None:
    bad = {"b": {"features": encode(np.full(WIDTH, np.nan, "f4"))}}
    tsv = write_tsv(tmp_path / "f.tsv", small_rows("ab", **bad))
    with pytest.raises(DataError, match=r"f\.tsv: row 2: image 'b': array 'features' holds nan"):
        import_tsv(tsv, tmp_path / "s", WIDTH, progress=False)
