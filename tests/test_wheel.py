"""The wheel holds every module, and works from outside the checkout.

It is built from a copy: a build in the checkout leaves a folder whose stale modules a later wheel
would take in. `setuptools` is there wherever torch is, so nothing is asked of the network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from common.files import repository_root

ROOT = repository_root()
PACKAGES = {"common": ".", "lxrt": "LXMERT/src", "vlbert": "VLBERT", "vilbert": "ViLBERT"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package, place in PACKAGES.items():
        shutil.copytree(
            ROOT / place / package,
            source / place / package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = ("wheel", "./source", "--no-deps", "--no-build-isolation", "--no-index", "-w", "built")
    built = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def start(unpacked: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Python with the wheel's contents first on its path, in a folder that has nothing of ours."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_module_is_in_it_with_the_mark_of_types(unpacked):
    for package, place in PACKAGES.items():
        source = ROOT / place
        modules = {p.relative_to(source).as_posix() for p in (source / package).rglob("*.py")}
        packed = {p.relative_to(unpacked).as_posix() for p in (unpacked / package).rglob("*.py")}
        assert packed == modules
        folders = {path.parent for path in (source / package).rglob("*.py")}
        assert all((folder / "__init__.py").is_file() for folder in folders)
        assert (unpacked / package / "py.typed").is_file(), package


def test_it_holds_the_packages_the_licence_and_the_entry_points_alone(unpacked):
    (info,) = unpacked.glob("*.dist-info")
    assert {path.name for path in unpacked.iterdir()} == {*PACKAGES, info.name}
    assert list(info.rglob("LICENSE"))
    packed = ConfigParser()
    packed.read(info / "entry_points.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    written = {name: dict(packed[name]) for name in packed.sections()}
    assert written == project["entry-points"]


USE = """
import json, sys
from importlib.metadata import distribution
from transformers import LxmertConfig, LxmertModel
import common, lxrt, vilbert, vlbert
from common.adapt import adapt, adaptive_part

layers = dict(l_layers=1, r_layers=1, x_layers=1)
sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=20)
model = adapt(LxmertModel(LxmertConfig(**layers, **sizes)), "SpotTune_Block", policy="small")
packages = ("common", "lxrt", "vlbert", "vilbert")
ours = [m for n, m in sys.modules.items() if n.split(".")[0] in packages]
print(json.dumps({
    "files": sorted({module.__file__ for module in ours}),
    "distribution": str(distribution("adaptive-finetuning").locate_file("")),
    "decisions": list(adaptive_part(model).decision_names),
}))
"""


@pytest.mark.long
def test_a_foreign_model_is_adapted_by_the_wheel_and_not_by_the_checkout(unpacked, tmp_path):
    found = start(unpacked, tmp_path, "-c", USE)
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    for package in PACKAGES:
        assert str(unpacked / package / "__init__.py") in said["files"]
    assert [name for name in said["files"] if not Path(name).is_relative_to(unpacked)] == []
    assert Path(said["distribution"]) == unpacked, "where the entry points are read"
    assert said["decisions"] == ["lang.1", "vision.1", "cross.1"]


def test_a_command_of_the_wheel_starts(unpacked, tmp_path):
    shown = start(unpacked, tmp_path, "-m", "common.compare", "--help")
    assert shown.returncode == 0 and "usage:" in shown.stdout, shown.stderr
    assert not list(tmp_path.iterdir())
