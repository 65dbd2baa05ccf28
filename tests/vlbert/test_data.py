"""The data of a config: official files in, batches out; what is held out; bad files."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data import datasets
from common.data.easy_vqa.dialect import build_easy_vqa_dialect
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError
from common.training.runtime import make_runtime
from tests.common.data_files import annotation, question, write_json, write_official
from tests.conftest import EASY_VQA_IMAGES
from tests.vlbert.coco_files import (
    TRAINVAL,
    WIDTH,
    WORDS,
    key,
    overrides,
    record,
    write_coco,
    write_features,
    write_sizes,
    zip_folder,
)
from vlbert.config import HOME, load_config
from vlbert.config_remarks import idle_keys
from vlbert.data import Splits, VQASource, overlap
from vlbert.data_answers import AnswerFile
from vlbert.data_coco import read_examples, read_sizes
from vlbert.data_task import VLBertTask

CFGS = HOME / "cfgs"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def source(coco: Path, config: str = "vqa/base_4x16G_fp32.yaml", **changes: Any) -> VQASource:
    return VQASource(load_config(CFGS / config, overrides(coco, **changes)), quiet=True)


def test_splits_share_no_image_and_have_what_the_network_reads(coco: Path) -> None:
    splits = source(coco).splits()
    held, kept = ({e.image_id for e in d.examples} for d in (splits.heldout, splits.train))
    assert held | kept == {key(9), key(25)} and not held & kept
    assert {e.image_id for e in splits.valid.examples} == {key(42), key(73)}
    batch = splits.valid.read([0, 1, 2])
    assert list(batch.inputs()) == ["image", "boxes", "im_info", "question"]
    assert batch.image is None and batch.boxes.shape == (3, 4, 4 + WIDTH)
    assert batch.im_info.shape == (3, 4) and batch.target.shape == (3, 6)
    assert batch.question.tolist() == [[5, 6, 7, 9], [5, 6, 8, 9], [5, 6, 7, 9]]
    assert batch.target.argmax(1).tolist() == [2, 3, 2]  # answers were written in another order


def test_the_same_questions_are_read_from_images(coco: Path) -> None:
    features = source(coco).splits().valid
    images = source(coco, NETWORK__IMAGE_FEAT_PRECOMPUTED=False).splits().valid
    first, second = features.read([0, 2]), images.read([0, 2])
    assert second.boxes.shape == (2, 4, 4)
    assert torch.equal(first.boxes[..., :4], second.boxes)
    for name in ("im_info", "question", "target"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    height, width = (int(second.im_info[:, i].max()) for i in (1, 0))
    assert second.image.shape == (2, 3, height, width)
    for part in ("train2014", "val2014"):
        zip_folder(coco / part)
    zipped = source(coco, NETWORK__IMAGE_FEAT_PRECOMPUTED=False, DATASET__ZIP_MODE=True)
    assert torch.equal(zipped.splits().valid.read([0, 2]).image, second.image)


def test_mirroring_depends_on_seed_epoch_and_question_alone(coco: Path) -> None:
    changes = {"TRAIN__FLIP_PROB": 0.5, "NETWORK__IMAGE_FEAT_PRECOMPUTED": False}
    train = source(coco, **changes).splits().train
    alone = [train.read([i], epoch=3) for i in range(len(train))]
    together = train.read(range(len(train)), epoch=3)
    assert [row.boxes[0, 0].tolist() for row in alone] == together.boxes[:, 0].tolist()
    assert torch.equal(torch.cat([row.target for row in alone]), together.target)
    again = pickle.loads(pickle.dumps(train)).read(range(len(train)), epoch=3)
    assert torch.equal(again.boxes, together.boxes) and torch.equal(again.image, together.image)
    seen = {bool((train.read([0], epoch=e).question == 7).any()) for e in range(20)}
    assert seen == {True, False}
    plain = train.read([0])
    for epoch in range(20):
        batch = train.read([0], epoch=epoch)
        if batch.question.tolist() == plain.question.tolist():
            assert torch.equal(batch.boxes, plain.boxes) and torch.equal(batch.image, plain.image)
        else:  # "left" and "right" are exchanged in question, answer and picture together
            assert batch.target.argmax() == 5 - plain.target.argmax()
            assert torch.equal(batch.image, plain.image.flip(3))
            assert torch.allclose(
                batch.boxes[0, 1:, 0] + plain.boxes[0, 1:, 2], plain.im_info[0, 0] - 1, atol=1e-3
            )


def test_evaluation_is_never_mirrored(coco: Path) -> None:
    splits = source(coco, TRAIN__FLIP_PROB=1.0).splits()
    for data in (splits.heldout, splits.valid):
        first = data.read([0])
        assert torch.equal(data.read([0], epoch=1).question, first.question)
    train = splits.train
    assert not torch.equal(train.read([0], epoch=0).question, train.read([0]).question)


def test_task_reads_samples_as_they_look_in_the_epoch(coco: Path) -> None:
    splits = source(coco, TRAIN__FLIP_PROB=0.5).splits()
    task = VLBertTask(splits.train, splits.heldout, make_runtime("cpu", "fp32"), 2)
    read = [task.read([0, 1], epoch) for epoch in range(8)]
    for epoch, batch in enumerate(read):
        expected = splits.train.read([0, 1], epoch)
        assert torch.equal(batch.inputs["boxes"], expected.boxes)
        assert torch.equal(batch.labels["target"], expected.target)
    assert len({str(batch.inputs["question"].tolist()) for batch in read}) > 1
    model = AlwaysRed()
    found = task.evaluate(model, splits.heldout, "held out")
    assert set(found.predictions.values()) == {"red"} and found.scores["overall"] == 0


class AlwaysRed(torch.nn.Module):
    """Answers with label 1, but for `<unk>`, which it likes better."""

    def forward(self, image: Any, boxes: torch.Tensor, im_info: Any, question: Any) -> torch.Tensor:
        return torch.tensor([2.0, 1, 0, 0, 0, 0]).expand(len(boxes), 6)


def test_keys_without_effect_are_said(coco: Path) -> None:
    changed = source(coco, TRAIN__ASPECT_GROUPING=True, VAL_FREQUENT=3, TRAIN__FLIP_PROB=0)
    assert not changed.splits().remarks
    first, second = idle_keys(changed.config)
    assert first == "VAL_FREQUENT 3 has no effect"
    assert second.startswith("TRAIN.ASPECT_GROUPING true has no effect")
    assert not idle_keys(source(coco).config)
    (said,) = source(coco).splits().remarks
    assert "mirrors boxes and words of precomputed features" in said


def test_overlap_of_the_original_config_is_said(coco: Path) -> None:
    splits = source(coco, DATASET__TRAIN_IMAGE_SET="train2014+val2014").splits()
    assert any(
        "4 of 4 questions of val2014 are in the training set train2014+val2014" in said
        for said in splits.remarks
    )
    assert not any("are in the training set" in said for said in source(coco).splits().remarks)
    examples = read_examples(coco, ["train2014"])
    assert overlap("a", examples, "b", []) is None


@pytest.mark.parametrize("part", ["test2015", "test-dev2015"])
def test_test_parts_have_questions_and_no_targets(coco: Path, part: str) -> None:
    opened = source(coco)
    data = opened.data(opened.examples(part))
    batch = data.read(range(len(data)))
    assert batch.image_ids[0] == key(1) and batch.target is None
    with pytest.raises(ConfigError, match="it can be tested, not trained or validated on"):
        source(coco, DATASET__VAL_IMAGE_SET=part).splits()


def test_test_mode_leaves_answers_away(coco: Path) -> None:
    opened = source(coco)
    assert opened.data(opened.examples("val2014", test_mode=True)).read([0]).target is None


def write_cp(coco: Path) -> None:
    """VQA-CP: bare lists, images of both parts in both splits, answers in another order."""
    for part, images in (("train", [9, 42]), ("test", [25, 73])):
        asked = [
            question(
                100 * i, i, question="what is red?", coco_split="train2014" if i < 40 else "val2014"
            )
            for i in images
        ]
        write_json(coco / "vqa" / f"vqacp_v2_{part}_questions.json", asked)
        write_json(
            coco / "vqa" / f"vqacp_v2_{part}_annotations.json",
            [annotation(q["question_id"], q["image_id"]) for q in reversed(asked)],
        )


def test_changing_priors_never_select_on_the_test_set(coco: Path) -> None:
    write_cp(coco)
    splits = source(coco, "vqa_cp/base_4x16G_fp32.yaml").splits()
    trained = {e.image_id for e in [*splits.train.examples, *splits.heldout.examples]}
    assert trained == {key(9), key(42)} and len(splits.heldout) == 1
    assert {e.image_id for e in splits.valid.examples} == {key(25), key(73)}
    assert splits.valid.read([0, 1]).target[:, 1].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="there to report on; its answers must not be known"):
        source(coco, "vqa_cp/base_4x16G_fp32.yaml", DATASET__TRAIN_IMAGE_SET="train+val").splits()


def test_toy_keeps_the_first_questions(coco: Path) -> None:
    opened = source(coco, DATASET__TOY=True, DATASET__TOY_SAMPLES=3)
    assert [e.question_id for e in opened.examples("train2014")] == [900, 901, 2500]


def answers_of(coco: Path, given: list[str], spelling: str) -> dict[str, float]:
    """Scores over the vocabulary of one question with these answers."""
    answer = annotation(900, 9, answers=[{"answer": a} for a in given])
    write_official(coco / "vqa", "train2014", [question(900, 9)], [answer])
    opened = source(coco, DATASET__ANSWER_SPELLING=spelling)
    (example,) = opened.examples("train2014")
    vocabulary = opened.vocabulary
    return {vocabulary.answers[i]: s for i, s in vocabulary.encode(example).items()}


def test_answers_are_compared_as_the_metric_does_or_verbatim(coco: Path) -> None:
    given = ["red", "Red.", "the red", "two", "2", "<unk>", "yes", "yes", "yes", "green"]
    assert answers_of(coco, given, "normalised") == {"red": 0.9, "2": 0.6, "yes": 0.9}
    assert answers_of(coco, given, "verbatim") == {"red": 0.3, "2": 0.3, "yes": 0.9}


def test_unknown_answer_is_never_given(coco: Path) -> None:
    answers = AnswerFile(coco / "vqa" / "answers_vqa.txt")
    logits = torch.zeros(1, 6)
    logits[0, :2] = torch.tensor([9.0, 1.0])
    assert answers.decode(logits) == ["red"] and logits[0, 0] == 9


def test_answers_that_look_alike_share_the_first_label(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("<unk>\nT-shirt\n\nt shirt\n")
    answers = AnswerFile(path, 3)
    assert answers.answers == ["<unk>", "t shirt", "t shirt"] and answers.labels == {"t shirt": 1}


def test_sizes_come_from_coco_and_else_from_the_features(coco: Path) -> None:
    write_sizes(coco, "val2014", [42, 73])
    (coco / "annotations" / "instances_train2014.json").unlink()
    batch = source(coco, DATASET__TRAIN_IMAGE_SET="train2014").splits().train.read([0])
    assert batch.im_info[0].min() > 0
    write_sizes(coco, "val2014", [42])
    with pytest.raises(DataError, match="instances_val2014.json: no image with id 73"):
        source(coco).splits()


def test_only_the_list_of_images_of_a_coco_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    images = [{"id": i, "width": 4 + i, "height": 3} for i in range(40000)]
    path.write_text(json.dumps({"info": {}, "images": images})[:-1] + ', "annotations": [cut')
    assert read_sizes(path)["7"] == (11, 3)
    path.write_text(path.read_text()[:5000])
    with pytest.raises(DataError, match="no list 'images' in it, or it is cut off"):
        read_sizes(path)


def lose(path: str) -> Any:
    return lambda coco: (coco / path).unlink()


def empty_questions(coco: Path) -> None:
    write_official(coco / "vqa", "train2014", [question(1, 9, question=" ")], [annotation(1, 9)])


def control_characters(coco: Path) -> None:
    asked = question(900, 9, question="\u200b\u200b")
    write_official(
        coco / "vqa",
        "train2014",
        [asked, question(2500, 25)],
        [annotation(900, 9), annotation(2500, 25)],
    )


def other_pairs(coco: Path) -> None:
    write_official(coco / "vqa", "train2014", [question(1, 9)], [annotation(2, 9)])


def no_features_of_one(coco: Path) -> None:
    (coco / TRAINVAL / "42.json").unlink()


def features_cut_off(coco: Path) -> None:
    path = coco / TRAINVAL / "42.json"
    path.write_text(path.read_text()[:80])


def other_width(coco: Path) -> None:
    write_features(coco / TRAINVAL, {73: record(73, width=WIDTH + 1)})


BAD: dict[str, tuple[Any, str]] = {
    "questions missing": (
        lose("vqa/v2_OpenEnded_mscoco_train2014_questions.json"),
        r"1 files are missing:\n  .*train2014_questions.json  from https://visual",
    ),
    "annotations missing": (
        lose("vqa/v2_mscoco_val2014_annotations.json"),
        r"val2014_annotations.json  from .*\nfetch them, or use the embedded",
    ),
    "answers missing": (lose("vqa/answers_vqa.txt"), "answers_vqa.txt: no such file"),
    "empty question": (empty_questions, "question 1: field 'question': empty question"),
    "no word pieces": (control_characters, "question 900 .* has no word pieces"),
    "wrong pairs": (other_pairs, "question 1 has no annotation in .*train2014_annotations.json"),
    "no features": (no_features_of_one, "no region features of image 'COCO_val2014_000000000042'"),
    "damaged features": (features_cut_off, "42.json: line 1, column 73: not valid JSON"),
    "features of another width": (other_width, "73.json: field 'features' holds 21 numbers"),
}


def read_all(splits: Splits) -> None:
    for data in (splits.train, splits.heldout, splits.valid):
        data.read(range(len(data)), epoch=0)


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_clear_error(coco: Path, case: str) -> None:
    damage, message = BAD[case]
    damage(coco)
    with pytest.raises(DataError, match=message):
        read_all(source(coco).splits())


def test_missing_features_and_images_say_where_they_are_looked_for(coco: Path) -> None:
    import shutil

    shutil.rmtree(coco / TRAINVAL)
    with pytest.raises(DataError, match=re.escape(TRAINVAL.split("/")[1])):
        source(coco).splits()
    shutil.rmtree(coco / "vgbua_res101_precomputed")
    with pytest.raises(DataError, match=r"genome.zip  from https://github.com/jackroos/VL-BERT"):
        source(coco).splits()
    write_features(coco / TRAINVAL, {i: record(i) for i in (9, 25, 42, 73)})
    (coco / "val2014" / f"{key(73)}.jpg").unlink()
    with pytest.raises(DataError, match=f"no image file of {key(73)}.jpg"):
        source(coco, NETWORK__IMAGE_FEAT_PRECOMPUTED=False).splits()
    shutil.rmtree(coco / "val2014")
    with pytest.raises(DataError, match="val2014.zip: neither is there: the images of val2014"):
        source(coco, NETWORK__IMAGE_FEAT_PRECOMPUTED=False).splits()


WRONG_KEYS = {
    "DATASET.DATASET: 'vcr'; valid: vqa, vqa_cp, easy_vqa": {"DATASET__DATASET": "vcr"},
    "DATASET.USE_IMDB: true": {"DATASET__USE_IMDB": True},
    "image set 'train2015': vqa has train2014": {"DATASET__TRAIN_IMAGE_SET": "train2015"},
    "no image set is given": {"DATASET__VAL_IMAGE_SET": ""},
    "question 4200 is in image set val2014 too": {
        "DATASET__TRAIN_IMAGE_SET": "val2014+minival2014"
    },
    "6 answers, the config says 3129": {"DATASET__ANSWER_VOCAB_SIZE": 3129},
    "DATASET.ANSWER_VOCAB_FILE: is empty": {"DATASET__ANSWER_VOCAB_FILE": ""},
}


@pytest.mark.parametrize("message", WRONG_KEYS)
def test_wrong_key_is_one_clear_error(coco: Path, message: str) -> None:
    for kind in ("OpenEnded_mscoco_{}_questions", "mscoco_{}_annotations"):
        text = (coco / "vqa" / f"v2_{kind.format('val2014')}.json").read_text()
        (coco / "vqa" / f"v2_{kind.format('minival2014')}.json").write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        source(coco, **WRONG_KEYS[message]).splits()


def easy(
    config: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: dict[str, Any] | None = None,
) -> Splits:
    """Splits of a config on a small easy-VQA."""
    monkeypatch.setattr(datasets, "repository_root", lambda: root)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    found = load_config(CFGS / "easy_vqa" / config, overrides)
    return VQASource(found, Tokenizer(tmp_path)).splits()


@pytest.mark.parametrize(
    "config", ["base.yaml", "changing_priors.yaml", "dialect.yaml", "images.yaml"]
)
def test_embedded_data_is_read_by_the_same_class(
    easy_vqa_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    splits = easy(config, easy_vqa_root, monkeypatch, tmp_path)
    batch = splits.valid.read([0, 1, 2])
    assert batch.target.shape == (3, 13) and batch.target.sum(1).tolist() == [1, 1, 1]
    assert set(batch.kinds) == ({"kept"} if config == "dialect.yaml" else {None})
    if config == "images.yaml":
        assert batch.image.shape == (3, 3, 128, 128) and batch.boxes.shape[2] == 4
    else:
        assert batch.image is None and batch.boxes.shape[2] == 4 + 2048
    assert batch.boxes[:, 0, 2].tolist() == [
        pytest.approx((width - 1) * factor)
        for width, factor in zip(
            (batch.im_info[:, 0] / batch.im_info[:, 2]).tolist(),
            batch.im_info[:, 2].tolist(),
            strict=False,
        )
    ]
    assert not splits.remarks


def test_stamped_images_are_read_as_features_alone(
    easy_vqa_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "easy_vqa_dialect_image"
    build_easy_vqa_dialect(easy_vqa_root / "data" / name, limit=EASY_VQA_IMAGES, name=name)
    stamped = {"DATASET.DATASET": name}
    splits = easy("base.yaml", easy_vqa_root, monkeypatch, tmp_path, stamped)
    assert set(splits.valid.read([0, len(splits.valid) - 1]).kinds) == {"kept", "learned"}
    with pytest.raises(ConfigError, match="IMAGE_FEAT_PRECOMPUTED: false: images of easy_vqa_dia"):
        easy("images.yaml", easy_vqa_root, monkeypatch, tmp_path, stamped)


def test_an_empty_question_is_refused_before_training(coco: Path) -> None:
    found = source(coco)
    examples = found.examples("train2014")
    examples[1] = replace(examples[1], question=" ")
    with pytest.raises(DataError, match=f"question {examples[1].question_id} is empty"):
        found.data(examples)
