"""The tool that makes the pool of hard negatives."""

from __future__ import annotations

import numpy as np
import pytest

from common.features.lmdb_records import import_lmdb
from tests.common.lmdb_files import arrays, write_lmdb
from tests.vilbert.task_files import write_captions
from vilbert.caption_data import read_hard_negatives
from vilbert.hard_negatives import main

WIDTH = 2048


@pytest.fixture
def command(tmp_path) -> list[str]:
    """Four images; 2 and 4 look alike, 1 is near them."""
    places = {"1": 3.0, "2": 1.0, "3": 9.0, "4": 1.1}
    records = {
        image: arrays(image, 2) | {"features": np.full((2, WIDTH), place, np.float32)}
        for image, place in places.items()
    }
    write_lmdb(tmp_path / "f.lmdb", records)
    lines = [{"img_path": f"{image}.jpg", "sentences": ["a man"]} for image in places]
    captions = write_captions(tmp_path / "train.jsonline", *lines)
    out = tmp_path / "hard_negative.pkl"
    flags = ["--captions", str(captions), "--features", str(tmp_path / "f.lmdb"), "--quiet"]
    return [*flags, "--out", str(out)]


def test_the_nearest_images_are_written_once(command, tmp_path, capsys):
    assert main([*command, "--neighbours", "3"]) == 0
    out = tmp_path / "hard_negative.pkl"
    assert f"{out}: 4 images with 2 hard negatives each" in capsys.readouterr().out
    assert read_hard_negatives(out).of() == {
        "1": ("4", "2"),
        "2": ("4", "1"),
        "3": ("1", "4"),
        "4": ("2", "1"),
    }
    before = out.read_bytes()
    assert main(command) == 2 and out.read_bytes() == before
    assert "exists: add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert read_hard_negatives(out).pool.shape == (4, 4)


def test_features_of_other_images_and_too_few_neighbours_are_refused(command, tmp_path, capsys):
    assert main([*command, "--neighbours", "1"]) == 2
    assert "--neighbours 1: give 2 at least" in capsys.readouterr().err
    write_captions(
        tmp_path / "train.jsonline",
        *[{"img_path": f"{n}.jpg", "sentences": ["x"]} for n in (1, 7, 8)],
    )
    import_lmdb(tmp_path / "f.lmdb", tmp_path / "f_features", progress=False)
    assert main(command) == 2
    assert "no record of image 7 and 1 others" in capsys.readouterr().err
    assert not (tmp_path / "hard_negative.pkl").exists()
