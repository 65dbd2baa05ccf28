"""What the tests of VL-BERT share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.common.mechanism_runs import Commands
from tests.vlbert.runs import FOLDER, flags, write_config, write_training_data
from vlbert.finetuning import main
from vlbert.testing import main as evaluate


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as data/coco, with questions to train on and a pretrained model."""
    return write_training_data(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny config on data of its own; not to be changed."""
    return write_config(write_training_data(tmp_path_factory.mktemp("coco")))


@pytest.fixture(scope="session")
def commands(config: Path) -> Commands:
    """How the tests that all backbones share start VL-BERT."""

    def of_test(file: Path, out: Path) -> list[str]:
        words = ["--cfg", str(config), "--ckpt", str(file), "--result-path", str(out)]
        return [*words, "--gpus", "cpu", "--quiet", "--split", "val2014"]

    return Commands(
        main,
        evaluate,
        lambda out: flags(config, out),
        of_test,
        lambda out: out / FOLDER,
        ("--set", "ATTENTION.NORMALISER=sparsemax"),
    )
