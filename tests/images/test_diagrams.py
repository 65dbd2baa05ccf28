"""The diagrams can be drawn, and the committed ones are all there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

FOLDER = Path(__file__).resolve().parents[2] / "images"
NAMES = {
    "overview",
    "encoder",
    "vilbert_encoder",
    "layer",
    "spottune_block",
    "spottune_res",
    "spottune",
    "blockdrop",
    "blockreplace",
    "packages",
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which the script has drawn everything."""
    out = tmp_path_factory.mktemp("images")
    subprocess.run([sys.executable, FOLDER / "make_diagrams.py", "--out", out], check=True)
    return out


def test_script_draws_every_diagram_small_enough_for_a_readme(drawn: Path) -> None:
    assert {path.stem for path in drawn.glob("*.png")} == NAMES
    for path in drawn.glob("*.png"):
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.width == 1280


def test_pictures_in_the_folder_are_those_that_the_script_draws(drawn: Path) -> None:
    for path in drawn.glob("*.png"):
        with Image.open(path) as new, Image.open(FOLDER / path.name) as old:
            difference = ImageChops.difference(new.convert("L"), old.convert("L"))
            mean = ImageStat.Stat(difference).mean[0]
            assert mean < 0.5, f"{path.name} is out of date: run images/make_diagrams.py"


def test_the_picture_of_the_packages_shows_the_packages_of_today(drawn: Path) -> None:
    """A number of modules or one arrow is too little to be seen in the mean over all pixels."""
    shown = []
    for folder in (FOLDER, drawn):
        with Image.open(folder / "packages.png") as picture:
            shown.append(json.loads(picture.info["Description"]))
    committed, now = shown
    assert {"adapt", "lxrt", "vlbert", "commands"} <= set(now["modules"])
    rows = {name: row for row, names in enumerate(now["rows"]) for name in names}
    assert all(rows[start] < rows[end] for start, end in now["arrows"]), "an arrow is not drawn"
    assert {"lxrt", "vlbert", "commands", "training"} <= {start for start, _ in now["arrows"]}
    assert committed == now, "packages.png is out of date: run images/make_diagrams.py"


def test_readme_of_the_folder_lists_every_picture() -> None:
    listed = re.findall(r"`(\w+)\.png` \|", (FOLDER / "README.md").read_text())
    assert set(listed) == {path.stem for path in FOLDER.glob("*.png")} == NAMES | {"web_page"}
