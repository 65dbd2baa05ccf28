"""Runs that pages are about, and pictures that are none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.ask import Answerer, AnswererOptions
from common.web import Limits, Runs
from lxrt.finetuning import main as lxmert
from tests.conftest import EARLIER
from tests.lxmert.conftest import answers, measured_at_once, pretrained
from tests.lxmert.runs import small_run

__all__ = ["answers", "measured_at_once", "pretrained"]

LIMITS = Limits(megabytes=0.25, megapixels=0.5, characters=200)
WRONG = {
    "text.png": "text.png: not a picture in a known format",
    "cut.jpg": "cut.jpg: the picture cannot be read: ",
    "wide.png": "wide.png: 1001 x 1000 pixels are 1.0 megapixels; at most 0.5 are taken",
}


@pytest.fixture(scope="session")
def data_root(
    vqa_data: Path, easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as `vqa_data`, with the pictures beside the features."""
    root = tmp_path_factory.mktemp("data_with_pictures")
    (root / "vqa").symlink_to(vqa_data / "vqa")
    features = root / "mscoco_imgfeat"
    features.mkdir()
    for store in (vqa_data / "mscoco_imgfeat").iterdir():
        (features / store.name).symlink_to(store)
    (features / "images").symlink_to(easy_vqa_root / "data" / "easy_vqa" / "images")
    return root


@pytest.fixture(scope="session")
def run(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SpotTune_Res, with dead decisions and an average of the others."""
    out = tmp_path_factory.mktemp("runs") / "res"
    flags = ["--strategy", "SpotTune_Res", "--policy-init", "0.6", "--output", str(out)]
    assert lxmert([*small_run(vqa_data, pretrained), *flags]) == 0
    return out


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has no result.json."""
    folder = tmp_path_factory.mktemp("runs") / "block"
    shutil.copytree(EARLIER / "lxmert", folder)
    return folder


@pytest.fixture(scope="session")
def runs(run: Path, other: Path, data_root: Path) -> Runs:
    return Runs([run, other], AnswererOptions(data_root=data_root))


@pytest.fixture(scope="session")
def answerer(run: Path, data_root: Path) -> Answerer:
    """What the page has to answer as."""
    return Answerer.open(run, AnswererOptions(data_root=data_root))


@pytest.fixture(scope="session")
def pictures(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture of another size than the data set's, and files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    first = next((easy_vqa_root / "data" / "easy_vqa" / "images" / "test").glob("*.png"))
    Image.open(first).convert("RGB").resize((96, 96)).save(folder / "shape.png")
    (folder / "text.png").write_text("this is no picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1001, 1000)).save(folder / "wide.png")
    (folder / "heavy.png").write_bytes(whole + bytes(LIMITS.bytes))
    return folder
