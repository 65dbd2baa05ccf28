"""Questions that are longer than the model, sizes and boxes that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.ask.answering import question_notes
from common.errors import DataError
from tests.common.tiny_models import vlbert_config
from tests.vlbert.coco_files import TRAINVAL, encode, record
from tests.vlbert.runs import TRAIN, flags, refused, result_of, write_config, write_training_data
from vlbert.finetuning import main
from vlbert.vqa_dataset import longest_question
from vlbert.vqa_network import ResNetVLBERT

QUESTIONS = "vqa/v2_OpenEnded_mscoco_train2014_questions.json"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_training_data(tmp_path / "coco")


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_question_longer_than_the_position_table_is_cut_and_said(data, tmp_path, capsys):
    def lengthen(file: Any) -> None:
        file["questions"][3]["question"] = "what is left ? " * 40

    change_json(data / QUESTIONS, lengthen)
    out = tmp_path / "out"
    assert main(flags(write_config(data), out, "--no-tensorboard")) == 0
    room = longest_question(40)
    shown = capsys.readouterr().out
    assert f"only the first {room} word pieces are read" in shown
    assert f"question {10 * TRAIN[1] + 1} has 160" in shown
    assert result_of(out)["accuracy"]["train"]["count"] > 0


def test_the_longest_question_that_fits_is_read_whole(data):
    """One piece more has no position: `longest_question` leaves nothing out."""
    tiny = vlbert_config()
    sizes = replace(tiny, encoder=replace(tiny.encoder, max_position_embeddings=20))
    network = ResNetVLBERT(sizes).eval()
    boxes = torch.rand(2, 3, 4 + 7)
    boxes[..., 2:4] += 2
    info = torch.tensor([[9.0, 9.0]] * 2)
    question = torch.zeros(2, longest_question(20), dtype=torch.long)
    question[0], question[1, :2] = 5, 5  # the second one is padded beyond the table
    assert torch.isfinite(network(boxes, info, question)).all()
    with pytest.raises(DataError, match="max_position_embeddings"):
        network(boxes, info, torch.full((2, longest_question(20) + 1), 5))


def test_ask_says_what_this_model_reads():
    class Spelled:
        def pieces(self, text: str) -> list[str]:
            return text.split()

    words = " ".join(["what"] * 30)
    assert "the model reads 18" in question_notes(Spelled(), words)[-1]  # type: ignore[arg-type]
    assert question_notes(Spelled(), words, 30) == []  # type: ignore[arg-type]


def features(data: Path, **changes: Any) -> None:
    image = TRAIN[0]
    path = data / TRAINVAL / f"{image}.json"
    path.write_text(json.dumps(record(image) | changes))


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ([[30, 20, 10, 40], [1, 1, 9, 9]], "corners are the wrong way round"),
        ([[70, 1, 90, 9], [1, 1, 9, 9]], "lies outside the image of 64 x 48"),
    ],
)
def test_boxes_beside_their_image_are_refused_also_where_features_are_read_in_place(
    data, tmp_path, capsys, imported, boxes, reason
):
    features(data, num_boxes=2, boxes=encode(np.array(boxes)), features=encode(np.ones((2, 6))))
    config = write_config(data, DATASET__IMPORT_FEATURES=imported)
    shown = refused(capsys, flags(config, tmp_path / "out", "--no-tensorboard"))
    assert reason in shown and f"{TRAIN[0]}.json" in shown


def test_boxes_without_a_size_beside_them_are_compared_with_coco_s(data, tmp_path, capsys):
    value = record(TRAIN[0])
    del value["image_w"], value["image_h"]
    boxes = np.array([[30, 20, 10, 40], [1, 1, 9, 9], [2, 2, 8, 8]])
    (data / TRAINVAL / f"{TRAIN[0]}.json").write_text(json.dumps(value | {"boxes": encode(boxes)}))
    config = write_config(data, DATASET__IMPORT_FEATURES=False)
    shown = refused(capsys, flags(config, tmp_path / "out", "--no-tensorboard"))
    assert "corners are the wrong way round" in shown
    assert f"COCO_train2014_{TRAIN[0]:012d}" in shown


def test_coco_sizes_that_contradict_the_features_are_refused(data, tmp_path, capsys):
    def halve(file: Any) -> None:
        file["images"][0]["width"] = 32

    change_json(data / "annotations" / "instances_train2014.json", halve)
    shown = refused(capsys, flags(write_config(data), tmp_path / "out", "--no-tensorboard"))
    assert "says 32 x 48 pixels, its features were made of 64 x 48" in shown
    assert f"COCO_train2014_{TRAIN[0]:012d}" in shown


def test_answers_of_one_person_are_said_before_training(data, tmp_path, capsys):
    def one(file: Any) -> None:
        for entry in file["annotations"]:
            entry["answers"] = entry["answers"][:1]

    change_json(data / "vqa" / "v2_mscoco_train2014_annotations.json", one)
    shown = refused(capsys, flags(write_config(data), tmp_path / "out", "--no-tensorboard"))
    assert "training questions: none of the" in shown and "one answer ten times" in shown
