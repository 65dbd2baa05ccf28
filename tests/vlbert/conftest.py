"""What the tests of VL-BERT share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.vlbert.runs import write_training_data


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slower, and busy machines much slower, with several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as data/coco, with questions to train on and a pretrained model."""
    return write_training_data(tmp_path_factory.mktemp("coco"))
