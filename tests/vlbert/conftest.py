"""What the tests of VL-BERT share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vlbert.runs import write_training_data


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as data/coco, with questions to train on and a pretrained model."""
    return write_training_data(tmp_path_factory.mktemp("coco"))
