"""Questions of VL-BERT's small pretraining are read whole; everything else is masked as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.tasks.masking import Draws
from common.training.checkpoint import check_compatible, load_meta
from tests.vlbert.pretraining_files import WIDTH, write_all
from vlbert.config import load_config
from vlbert.outputs import lasting
from vlbert.pretraining import network_sizes
from vlbert.pretraining_data import PretrainingData, PretrainingSource
from vlbert.pretraining_network import ResNetVLBERTForPretraining
from vlbert.sizes import HOME, PretrainingConfig

CFGS = HOME / "cfgs" / "pretrain"
EASY = CFGS / "easy_vqa_small.yaml"
PUBLISHED = sorted(path for path in CFGS.glob("*.yaml") if path != EASY)
COMMITTED = HOME / "pretrained" / "easy_vqa_small"
Load = Callable[..., PretrainingData]


@pytest.fixture(scope="module")
def load(easy_vqa_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Opens the data of the shipped small config, with changes, on few images."""

    def opened(**changes: Any) -> PretrainingData:
        config = load_config(EASY, {key.replace("__", "."): x for key, x in changes.items()})
        source = PretrainingSource(config, quiet=True)
        tokenizer = source.tokenizer(tmp_path_factory.mktemp("words"))
        return source.load(tokenizer, network_sizes(config, False, 2048))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
        opened()  # while the folder of the data is the patched one
        yield opened


@pytest.fixture(scope="module")
def data(load: Load) -> PretrainingData:
    return load()


def questions(data: PretrainingData) -> list[int]:
    """Places of the training questions, several hundred."""
    captions = data.train.captions.captions
    return list(range(captions.statements, len(captions)))


def sample(data: PretrainingData, places: list[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return data.train.captions.read(places, Draws(7, 3, places))


def test_a_question_keeps_its_words_and_regions_and_is_always_asked_for_its_answer(data):
    places = questions(data)
    captions, tokenizer = data.train.captions.captions, data.tokenizer
    inputs, labels = sample(data, places)
    assert len(places) > 300 and not inputs["masked"].any() and not labels["regions"].any()
    for row, place in enumerate(places):
        question = tokenizer.numbers(tokenizer.pieces(captions[place].text))
        read = [tokenizer.cls_id, *question, tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id]
        assert inputs["text"][row, : len(read)].tolist() == read
        asked = {
            int(t): int(labels["words"][row, t]) for t in (labels["words"][row] >= 0).nonzero()
        }
        assert asked == {len(question) + 2: tokenizer.numbers([captions[place].reply])[0]}
    # Features of the regions and of the image as a whole are those of the images.
    seen = data.features.read([captions[place].regions for place in places])
    shown = inputs["boxes"][:, 1:, 4:][inputs["boxes"][:, 1:, 0] >= 0]
    torch.testing.assert_close(shown.sum(0), seen.features[seen.mask].sum(0), rtol=1e-4, atol=1e-2)


def test_what_is_masked_of_captions_does_not_depend_on_the_questions(data, load):
    places = list(range(data.train.captions.captions.statements))
    masked = sample(load(DATASET__MASK_QUESTIONS=True), places)
    for mine, theirs in zip(sample(data, places), masked, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    inputs, labels = masked
    words = (inputs["text"] > 0).sum(1) - 2
    assert float((labels["words"] >= 0).sum() / words.sum()) == pytest.approx(0.15, abs=0.02)
    assert inputs["masked"].sum() > 30


def test_questions_that_are_masked_lose_words_and_regions_as_captions_do(load):
    data = load(DATASET__MASK_QUESTIONS=True)
    inputs, labels = sample(data, questions(data))
    words = (inputs["text"] > 0) & (inputs["text_types"] == 0)
    words[:, 0] = False
    maskable = words.sum() - len(words)  # without [SEP]
    masked = (labels["words"] >= 0) & (inputs["text_types"] == 0)
    assert float(masked.sum() / maskable) == pytest.approx(0.15, abs=0.02)
    regions = (inputs["boxes"][:, 1:, 0] >= 0).sum()
    assert float(inputs["masked"].sum() / regions) == pytest.approx(0.135, abs=0.02)
    replies = labels["words"][inputs["text_types"] > 0].view(len(words), 2)[:, 0]
    asked = inputs["text"][inputs["text_types"] > 0].view(len(words), 2)[:, 0]
    assert (replies >= 0).all()
    assert float((asked == data.tokenizer.mask_id).float().mean()) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_configs_mask_questions_and_their_older_runs_go_on(path):
    config = load_config(path)
    assert config.datasets[0].MASK_QUESTIONS
    kept = lasting(config)["DATASET"]
    assert not any("MASK_QUESTIONS" in part for part in kept)
    assert lasting(load_config(EASY))["DATASET"][0]["MASK_QUESTIONS"] is False


def test_conceptual_captions_have_no_questions_and_are_masked_either_way(tmp_path):
    files = write_all(tmp_path / "files")
    found = []
    for whole in (False, True):
        changes = {"DATASET.MASK_QUESTIONS": not whole, "DATASET.ANSWER_MASK_RATE": 1.0}
        config = load_config(files.config(tmp_path, texts=False), changes)
        source = PretrainingSource(config, quiet=True)
        data = source.load(source.tokenizer(tmp_path), network_sizes(config, False, WIDTH))
        found.append(sample(data, list(range(16))))
    for mine, theirs in zip(*found, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert found[0][0]["masked"].any() and (found[0][1]["words"] >= 0).any()


def test_a_question_read_whole_whose_answer_is_shown_is_refused():
    config = load_config(EASY, {"DATASET.ANSWER_MASK_RATE": 0.5})
    with pytest.raises(ConfigError, match=r"key DATASET.MASK_QUESTIONS: False: .*set ANSWER_MASK"):
        PretrainingSource(config)


def test_the_committed_model_is_small_fits_the_shipped_config_and_compares():
    """The question alone answers 82 % of the held-out yes/no questions."""
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 10_000_000
    meta, config = load_meta(COMMITTED / "model.safetensors"), load_config(EASY)
    tokenizer = Tokenizer(COMMITTED)
    assert meta["vocabulary"] == tokenizer.digest()
    assert meta["config"] == network_sizes(config, False, 2048).to_dict()
    ResNetVLBERTForPretraining(PretrainingConfig.from_dict(meta["config"]))
    check_compatible(meta["keys"], lasting(config), COMMITTED)
    assert meta["held_out"]["heldout_accuracies"]["MLMAcc yes/no"] > 90
