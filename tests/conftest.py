"""What several test files share."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.data.easy_vqa.build import build_easy_vqa
from common.data.easy_vqa.changing_priors import build_easy_vqa_cp
from common.data.easy_vqa.dialect import build_easy_vqa_dialect

GOLDENS = Path(__file__).parent / "goldens"
EARLIER = Path(__file__).parent / "earlier"
EASY_VQA_IMAGES = 200
QUESTIONS = {"train": 300, "nominival": 20, "minival": 100}  # of `vqa_data`


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
    """A repository folder with small easy_vqa (200 + 50 images), easy_vqa_cp and easy_vqa_dialect
    under data/."""
    root = tmp_path_factory.mktemp("repository")
    assert build_easy_vqa(root / "data" / "easy_vqa", limit=EASY_VQA_IMAGES)
    assert build_easy_vqa_cp(root / "data" / "easy_vqa_cp", limit=EASY_VQA_IMAGES)
    assert build_easy_vqa_dialect(root / "data" / "easy_vqa_dialect", limit=EASY_VQA_IMAGES)
    return root


@pytest.fixture(scope="session")
def vqa_data(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as LXMERT/data: a few hundred questions of easy-VQA in the layout of VQA v2."""
    root, source = tmp_path_factory.mktemp("data"), easy_vqa_root / "data" / "easy_vqa"
    (root / "vqa").mkdir()
    (root / "mscoco_imgfeat").mkdir()
    for split, count in QUESTIONS.items():
        rows = json.loads((source / f"{split}.json").read_text())[:count]
        (root / "vqa" / f"{split}.json").write_text(json.dumps(rows))
    test = [
        {k: v for k, v in row.items() if k in ("img_id", "question_id", "sent")}
        for row in json.loads((source / "minival.json").read_text())[:30]
    ]
    (root / "vqa" / "test.json").write_text(json.dumps(test))
    for name in ("trainval_ans2label.json", "trainval_label2ans.json"):
        (root / "vqa" / name).write_text((source / name).read_text())
    for store in ("train2014", "val2014", "test2015"):
        (root / "mscoco_imgfeat" / f"{store}_obj36").symlink_to(source / "features")
    return root
