"""What the tests of LXMERT share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from common.data.tokenizer import Tokenizer, small_vocabulary
from common.files import text_digest
from common.tasks.measuring import SAMPLES
from common.training.checkpoint import save_checkpoint
from lxrt.finetuning import main
from lxrt.modeling import PretrainingModel
from lxrt.pretraining import main as pretrain
from lxrt.sizes import size_config
from tests.common.mechanism_runs import Commands
from tests.lxmert.pretraining_files import PretrainingFiles, write_data
from tests.lxmert.runs import DROPOUT_RUN, small_run

WIDTH = 2048


@pytest.fixture(scope="session", autouse=True)
def measured_at_once() -> Iterator[None]:
    """Operations are counted in one batch after each run: counting costs by call, not by sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.tasks.measuring.BATCH", SAMPLES)
        yield


@pytest.fixture(scope="session")
def answers(vqa_data: Path) -> list[str]:
    """The 13 answers of easy-VQA in the order of the head."""
    return json.loads((vqa_data / "vqa" / "trainval_label2ans.json").read_text())


@pytest.fixture(scope="session")
def pretrained(
    vqa_data: Path, answers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Prefix of a small pretraining snapshot (random weights) with its vocabulary beside it."""
    folder = tmp_path_factory.mktemp("pretrained")
    rows = json.loads((vqa_data / "vqa" / "train.json").read_text())
    words = small_vocabulary(row["sent"] for row in rows)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    config = size_config(
        "small",
        vocab_size=len(Tokenizer(folder)),
        num_answers=len(answers),
        visual_feat_dim=WIDTH,
        obj_id_num=3,
        attr_id_num=8,
    )
    torch.manual_seed(0)
    model = PretrainingModel(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # So large that different questions and images get different answers.
            nn.init.normal_(module.weight, std=0.15)
    weights = model.state_dict()
    del weights["cls.predictions.decoder.weight"]  # tied
    save_checkpoint(
        folder / "model_LXRT.safetensors",
        {"model": weights},
        {
            "backbone": "lxmert",
            "task": "pretraining",
            "size": "small",
            "config": config.to_dict(),
            "answers": answers,
            "vocabulary": {
                "count": config.vocab_size,
                "sha256": text_digest((folder / "vocab.txt").read_text()),
            },
        },
    )
    return folder / "model"


@pytest.fixture(scope="session")
def commands(vqa_data: Path, pretrained: Path) -> Commands:
    """How the tests that all backbones share start LXMERT."""
    words = small_run(vqa_data, pretrained)
    tested = words[: words.index("--loadLXMERTQA")]
    return Commands(
        main,
        main,
        lambda out: [*words, "--output", str(out)],
        lambda file, out: [
            *tested,
            *("--load", str(file), "--test", "minival", "--quiet", "--output", str(out)),
        ],
    )


@pytest.fixture
def flags(vqa_data: Path, pretrained: Path) -> list[str]:
    return small_run(vqa_data, pretrained)


@pytest.fixture(scope="session")
def dialect_data(
    vqa_data: Path, easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder as `vqa_data` with questions of easy_vqa_dialect, as many of each kind."""
    root, source = tmp_path_factory.mktemp("dialect"), easy_vqa_root / "data" / "easy_vqa_dialect"
    (root / "vqa").mkdir()
    (root / "mscoco_imgfeat").symlink_to(vqa_data / "mscoco_imgfeat")
    for split, count in (("train", 60), ("nominival", 10), ("minival", 30)):
        rows = json.loads((source / f"{split}.json").read_text())
        if split == "nominival":  # a few images, so perhaps of one kind
            chosen = rows[:count]
        else:
            chosen = [r for kind in ("kept", "learned")
                      for r in [r for r in rows if r["kind"] == kind][:count]]  # fmt: skip
        (root / "vqa" / f"{split}.json").write_text(json.dumps(chosen))
    for name in ("trainval_ans2label.json", "trainval_label2ans.json"):
        (root / "vqa" / name).write_text((source / name).read_text())
    return root


@pytest.fixture
def dialect(flags: list[str], dialect_data: Path) -> list[str]:
    """Flags of a small run on it."""
    place = flags.index("--data") + 1
    return [*flags[:place], str(dialect_data), *flags[place + 1 :]]


@pytest.fixture(scope="session")
def whole(vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with dropout that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert main([*small_run(vqa_data, pretrained), *DROPOUT_RUN, "--output", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def stopped(
    vqa_data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """A SpotTune_Block run that stopped after its first epoch, and its command."""
    out = tmp_path_factory.mktemp("stopped")
    run = [
        *small_run(vqa_data, pretrained),
        "--epochs",
        "2",
        "--strategy",
        "SpotTune_Block",
        "--output",
        str(out),
    ]
    assert main([*run, "--max-steps", "4"]) == 0
    return out, run


@pytest.fixture(scope="session")
def pretraining_files(tmp_path_factory: pytest.TempPathFactory) -> PretrainingFiles:
    """LXMERT's pretraining data in the original files, a few images of each."""
    return write_data(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def whole_pretraining(
    pretraining_files: PretrainingFiles, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two epochs of 9 steps with dropout that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole_pretraining")
    assert pretrain(pretraining_files.flags(out, "--dropout", "0.2")) == 0
    return out
