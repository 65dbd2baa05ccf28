"""A detector of the tests, and what every backbone's runs have to do with one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.ask.answerer import Answerer, AnswererOptions
from common.ask.answering import ask
from common.detector.names import RegionNames
from common.detector.regions import FoundRegions
from common.errors import DataError
from common.features.origin import ALLOW
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint, save_checkpoint
from tests.common.refusals import error_of

DIGEST = "0123456789abcdef"
PICTURE = Image.new("RGB", (64, 48), "orange")


class OwnDetector:
    """Random regions, the same for every picture; counts how often it looks."""

    name, box_policy, doubt = "own", "3 boxes", "doubtful"
    classes = None
    names = RegionNames(["cat", "dog", "mat"], [])

    def __init__(self, width: int, digest: str = DIGEST) -> None:
        self.width, self.record, self.looks = width, {"digest": digest}, 0

    def detect(self, picture: Image.Image) -> FoundRegions:
        self.looks += 1
        generator = torch.Generator().manual_seed(1)
        boxes = torch.tensor([[0.0, 0, 20, 20], [10, 5, 60, 40], [30, 10, 64, 48]])
        features = torch.randn(3, self.width, generator=generator).clamp(min=0)
        ids, conf = torch.arange(3), torch.tensor([0.9, 0.5, 0.2])
        return FoundRegions(boxes, features, ids, conf, ids, conf)

    def doubts(self, found: FoundRegions, picture: Image.Image) -> dict[str, float]:
        return {}


def with_features(folder: Path, out: Path, **features: Any) -> Path:
    """A copy of a run whose checkpoint remembers other features."""
    shutil.copytree(folder, out)
    state, meta = load_checkpoint(folder / "BEST.safetensors")
    meta["features"] |= features
    save_checkpoint(out / "BEST.safetensors", state, meta)
    return out


def check_asked(folder: Path, question: str, tmp_path: Path) -> None:
    """A picture is answered as its regions in a store are, of the run's detector alone."""
    trained = with_features(folder, tmp_path / "run", detector="as it was called", digest=DIGEST)
    run = open_run(trained)
    width = run.meta["features"]["width"]
    detector = OwnDetector(width)
    answerer = Answerer(run, detector)
    image = answerer.look(PICTURE, "fruit")
    first, again = (answerer.ask(image, question, top=4) for _ in range(2))
    assert asdict(first) == asdict(again) and detector.looks == 1, "regions are found once"
    found = detector.detect(PICTURE)
    with RegionFeatureWriter(
        tmp_path / "s", width, detector="own", optional=["object_ids"]
    ) as file:
        file.add("fruit", 64, 48, found.boxes, found.features, object_ids=found.object_ids)
        file.finish(extraction=detector.record)
    stored = ask(run, RegionFeatures.open(tmp_path / "s").get("fruit"), question, top=4)
    assert [vars(a) for a in stored.answers] == [vars(a) for a in first.answers]
    assert answerer.find(None, "fruit", tmp_path / "s").names.of("object", 1) == "dog"
    other = OwnDetector(width, "f" * 16)
    with pytest.raises(DataError, match="'own' .files f{16}.*'as it was called' .files 0123"):
        Answerer(run, other).look(PICTURE)
    allowed = Answerer(run, other, AnswererOptions(any_detector=True)).look(PICTURE)
    assert "--allow-other-detector" in allowed.notes[0]
    with pytest.raises(DataError, match="to be as wide"):
        Answerer(run, OwnDetector(width + 1), AnswererOptions(any_detector=True)).look(PICTURE)
    with pytest.raises(DataError, match="--detector FOLDER"):
        Answerer(run).look(PICTURE)


def check_commands(
    command: Callable[[list[str]], int],
    words: list[str],
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A command refuses weights of another detector's features, unless it is told to take them.

    Args:
        command: that loads `file`.
        words: its command line.
        file: weights of ours; what it remembers is changed.
        capsys: of the test.
    """
    state, meta = load_checkpoint(file)
    own = meta["features"]["detector"]
    meta["features"]["detector"] = "another one"
    save_checkpoint(file, state, meta)
    error = error_of(capsys, command, words)
    assert f"{file}: made with other settings: features.detector is 'another one' in" in error
    assert own in error and ALLOW in error
    assert command([*words, ALLOW]) == 0
    assert f"{file}: it was trained with features of 'another one'" in capsys.readouterr().out
