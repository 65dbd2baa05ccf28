"""The batches of the original, computed once on small raw files (tests/goldens/vlbert/vqa_data)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.answer_scores import strip_punctuation
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.features.sources import FeatureSources
from common.reading import read_json
from common.training.weights import load_weights
from tests.vlbert.coco_files import zip_folder
from vlbert.data_answers import AnswerFile
from vlbert.data_coco import COCO, read_examples
from vlbert.data_features import open_features
from vlbert.data_parity import open_case, run_vqa_data
from vlbert.vqa_dataset import Transform, VLBertData

CASE = Path(__file__).parents[1] / "goldens" / "vlbert" / "vqa_data"
CONFIG = read_json(CASE / "config.json")
EXPECTED = load_weights(CASE / "outputs.safetensors")


def batches(**changes: object) -> dict[str, Tensor]:
    return run_vqa_data(CONFIG | {"folder": str(CASE)} | changes, {}, {}, list(EXPECTED))


def test_batches_are_those_of_the_original_bit_for_bit() -> None:
    found = batches()
    assert found.keys() == EXPECTED.keys() and len(found) == 15
    for name, tensor in found.items():
        assert tensor.dtype == EXPECTED[name].dtype and torch.equal(tensor, EXPECTED[name]), name


@pytest.mark.parametrize("name", CONFIG["variants"])
def test_questions_are_in_the_order_of_the_files_and_split_alike(name: str) -> None:
    variant = CONFIG["variants"][name]
    data = open_case(CASE / "raw", CONFIG, variant)
    batch = data.read(range(len(data)), epoch=0)
    assert batch.question_ids == variant["question_ids"]
    assert (batch.boxes[..., 0] > -1.5).sum(1).tolist() == variant["n_boxes"]
    for row, numbers in zip(
        batch.question.tolist(), variant["per_item_question_token_ids"], strict=False
    ):
        assert row[: len(numbers)] == numbers and not any(row[len(numbers) :])
    first = variant["database_first"]
    assert batch.image_ids[0].endswith(f"{first['image_id']:012d}")
    assert batch.questions[0] == first["question"]


def test_answer_file_and_punctuation_are_as_in_the_original() -> None:
    answers = AnswerFile(CASE / "raw/coco/vqa/answers_vqa.txt", verbatim=True)
    assert answers.answers == CONFIG["answer_vocab_processed"]
    for text, expected in CONFIG["process_punctuation"].items():
        assert (text if text == "<unk>" else strip_punctuation(text)) == expected


@pytest.mark.parametrize("kind", ["store", "zip"])
def test_store_and_archive_give_the_same_batches_as_the_files(tmp_path: Path, kind: str) -> None:
    coco = CASE / "raw" / "coco"
    features = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
    copy = tmp_path / Path(features).name
    copy.mkdir()
    for path in (coco / features).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    if kind == "zip":
        zip_folder(copy)
        for path in copy.iterdir():
            path.unlink()
        copy.rmdir()
    examples = read_examples(coco, ["train2014", "val2014"], verbatim=True)
    layout = COCO.of(examples)
    store = open_features(copy, layout.parts, wanted=kind == "store", progress=False)
    data = VLBertData(
        examples,
        FeatureSources([store]),
        AnswerFile(coco / "vqa/answers_vqa.txt", verbatim=True),
        Tokenizer(CASE / "raw"),
        Transform(CONFIG["scales"]),
        sizes=layout.sizes(coco, examples),
    )
    batch = data.read(range(len(data)))
    expected = EXPECTED["train_val::boxes"]
    tolerance = 2.0**-10 if kind == "store" else 0.0  # the store keeps float16
    assert torch.equal(batch.boxes[..., :4], expected[..., :4])
    assert torch.allclose(batch.boxes[..., 4:], expected[..., 4:], rtol=tolerance, atol=tolerance)
    assert torch.equal(batch.target, EXPECTED["train_val::label"])


def test_case_without_its_folder_is_refused() -> None:
    with pytest.raises(DataError, match="needs the key 'folder'"):
        run_vqa_data(CONFIG, {}, {}, [])
