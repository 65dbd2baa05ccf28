"""What several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.data.easy_vqa.build import build_easy_vqa
from common.data.easy_vqa.changing_priors import build_easy_vqa_cp

GOLDENS = Path(__file__).parent / "goldens"
EARLIER = Path(__file__).parent / "earlier"
EASY_VQA_IMAGES = 200


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are slower, and busy machines much slower, with several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the tensors that the original systems computed."""
    return GOLDENS


@pytest.fixture(scope="session")
def easy_vqa_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository folder with small easy_vqa (200 + 50 images) and easy_vqa_cp under data/."""
    root = tmp_path_factory.mktemp("repository")
    assert build_easy_vqa(root / "data" / "easy_vqa", limit=EASY_VQA_IMAGES)
    assert build_easy_vqa_cp(root / "data" / "easy_vqa_cp", limit=EASY_VQA_IMAGES)
    return root
