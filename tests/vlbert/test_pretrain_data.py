"""Captions in the original files, in folders and archives; embedded captions; bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError
from common.tasks.masking import Draws
from tests.vlbert.coco_files import encode, record
from tests.vlbert.pretraining_files import (
    CLASSES,
    IMAGES,
    SIZE,
    WIDTH,
    PretrainingFiles,
    caption,
    rows,
    write_all,
    write_rows,
)
from vlbert.config import load_config
from vlbert.pretraining import network_sizes
from vlbert.pretraining_conceptual import split_path
from vlbert.pretraining_data import PretrainingData, PretrainingSource

RAW = {"NETWORK__IMAGE_FEAT_PRECOMPUTED": False}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PretrainingFiles:
    return write_all(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> PretrainingFiles:
    return write_all(tmp_path_factory.mktemp("zipped"), zipped=True)


@pytest.fixture
def own(plain: PretrainingFiles, tmp_path: Path) -> PretrainingFiles:
    """Files that a test may damage; no store has been made of them."""
    ignored = shutil.ignore_patterns("*_features")
    return PretrainingFiles(Path(shutil.copytree(plain.data, tmp_path / "own", ignore=ignored)))


def load(
    files: PretrainingFiles, folder: Path, texts: bool = True, **changes: object
) -> PretrainingData:
    config = load_config(files.config(folder, texts, **changes))
    source = PretrainingSource(config, quiet=True)
    width = 2048 if source.embedded else WIDTH
    return source.load(source.tokenizer(folder), network_sizes(config, source.multitask, width))


def refused(files: PretrainingFiles, folder: Path, **changes: object) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        load(files, folder, **changes)
    return str(caught.value)


def sample(data: PretrainingData, indices: list[int], epoch: int = 0, part: str = "train"):
    samples = getattr(data, part).captions
    return samples.read(indices, Draws(7, epoch, indices))


def raw_record(data: Path, image: int, part: str = "train") -> dict[str, np.ndarray]:
    """A feature file, decoded without the code under test."""
    found = record(image, 2 + image % 3, classes=CLASSES, image_w=SIZE[0], image_h=SIZE[1])
    import base64

    return {
        key: np.frombuffer(base64.b64decode(found[key]), "<f4").reshape(found["num_boxes"], -1)
        for key in ("boxes", "features", "classes")
    }


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize("kind", ["plain", "zipped"])
def test_captions_come_with_their_text_and_their_regions_by_descending_probability(
    kind, imported, request, tmp_path
):
    whole = request.getfixturevalue(kind)
    ignored = shutil.ignore_patterns("*_features")
    files = PretrainingFiles(Path(shutil.copytree(whole.data, tmp_path / "own", ignore=ignored)))
    data = load(files, tmp_path, texts=False, TRAIN__FLIP_PROB=0, DATASET__IMPORT_FEATURES=imported)
    assert (len(data.train.captions), len(data.heldout.captions)) == (16, 8)
    names = data.tokenizer.text().splitlines()
    inputs, labels = sample(data, [5, 0])
    for row, (image, place) in enumerate([(3, 2), (1, 1)]):
        expected = raw_record(files.data, image)
        order = expected["classes"].max(1).argsort()[::-1]
        count = len(order)
        boxes, hidden = inputs["boxes"][row], inputs["masked"][row]
        tolerance = {"rtol": 2e-3, "atol": 2e-3} if imported else {"rtol": 1e-6, "atol": 1e-6}
        corners = expected["boxes"][order].clip(0, [SIZE[0] - 1, SIZE[1] - 1] * 2)
        np.testing.assert_allclose(boxes[1 : count + 1, :4], corners, **tolerance)
        np.testing.assert_allclose(
            boxes[1 : count + 1, 4:], expected["features"][order], **tolerance
        )
        assert boxes[0, :4].tolist() == [0, 0, SIZE[0] - 1, SIZE[1] - 1]
        assert (boxes[count + 1 :] == -2).all() and not hidden[0]
        shown = expected["features"][order][~hidden[1 : count + 1].numpy()]
        np.testing.assert_allclose(boxes[0, 4:], shown.mean(0) if len(shown) else 0, **tolerance)
        labelled = labels["regions"][row].sum(-1) > 0
        assert (labelled >= hidden).all()
        np.testing.assert_allclose(
            labels["regions"][row][1 : count + 1][labelled[1 : count + 1]],
            expected["classes"][order][labelled[1 : count + 1]],
            rtol=2e-3,
            atol=2e-3,
        )
        whole = torch.where(labels["words"][row] >= 0, labels["words"][row], inputs["text"][row])
        words = [names[i] for i in whole if i]
        assert words == ["[CLS]", *caption(image, place), "[SEP]"]
    assert (files.data / "train_frcnn_features").exists() or not imported


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train_frcnn.zip@/00000007.json", ("train_frcnn", "00000007.json")),
        ("train_frcnn/00000007.json", ("train_frcnn", "00000007.json")),
        ("train_frcnn.2.zip@/7.json", ("train_frcnn.2", "7.json")),
        ("deep/er/train.zip@/in/7.jpg", ("deep/er/train", "in/7.jpg")),
    ],
)
def test_paths_into_archives_and_into_folders_mean_the_same(text, expected):
    assert split_path(text) == expected


def test_numbered_parts_of_an_archive_may_be_one_folder_or_archives(own, tmp_path):
    """`.3` is stripped only at the end of the archive's name, nowhere else in a path."""
    values = rows("train")
    for place, row in enumerate(values):
        row["frcnn"] = row["frcnn"].replace(".zip", f".{place % 4}.zip")
        row["image"] = row["image"].replace(".zip@", "")
    write_rows(own.data, "train", values)
    data = load(own, tmp_path)
    _, labels = sample(data, list(range(16)))
    assert labels["regions"].shape[0] == 16


@pytest.mark.parametrize("zip_mode", [True, False])
@pytest.mark.parametrize("kind", ["plain", "zipped"])
def test_from_images_masked_regions_have_no_pixels(kind, zip_mode, request, tmp_path):
    files = request.getfixturevalue(kind)
    data = load(files, tmp_path, **RAW)
    samples = data.train.captions
    inputs, _ = samples.read([0, 4], Draws(0, 5, [0, 4]))
    assert inputs["image"].shape == (2, 3, SIZE[1], SIZE[0])
    assert inputs["boxes"].shape[-1] == 4
    found = 0
    for seed in range(20):
        inputs, _ = samples.read([2], Draws(seed, 0, [2]))
        covered = torch.zeros(SIZE[1], SIZE[0], dtype=torch.bool)
        for box in inputs["boxes"][0][inputs["masked"][0]]:
            left, top, right, bottom = (int(edge) for edge in box)
            covered[top : bottom + 1, left : right + 1] = True
            found += 1
        # A pixel that is 0 in all colours by chance does not exist: the means are no whole numbers.
        assert torch.equal((inputs["image"][0] == 0).all(0), covered)
    assert found
    shown = load(
        files, tmp_path, NETWORK__IMAGE_FEAT_PRECOMPUTED=False, NETWORK__MASK_RAW_PIXELS=False
    ).train.captions
    for seed in range(20):
        assert not (shown.read([2], Draws(seed, 0, [2]))[0]["image"] == 0).any()


def test_the_original_s_features_need_class_probabilities(own, tmp_path):
    for image in IMAGES["train"]:
        found = record(image, 2, image_w=SIZE[0], image_h=SIZE[1])
        (own.data / "train_frcnn" / f"{image:08d}.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="no class probabilities"):
        sample(load(own, tmp_path), [0])
    with pytest.raises(DataError, match="one of 5 classes, the network tells 9: set NETWORK"):
        sample(
            load(own, tmp_path / "other", NETWORK__VLBERT__visual_region_classes=9),
            [0],
            part="heldout",
        )


def missing_features(data: Path) -> None:
    (data / "train_frcnn" / "00000004.json").unlink()


def missing_image(data: Path) -> None:
    (data / "train_image" / "00000004.jpg").unlink()


def broken_image(data: Path) -> None:
    (data / "train_image" / "00000001.jpg").write_bytes(b"\xff\xd8 nothing")


def bad_box(data: Path) -> None:
    found = record(4, 2, classes=CLASSES, boxes=encode(np.ones((2, 3))))
    (data / "train_frcnn" / "00000004.json").write_text(json.dumps(found))


def change_row(place: int, value: object) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        values: list = rows("train")
        values[place] = values[place] | value if isinstance(value, dict) else value
        write_rows(data, "train", values)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            missing_features,
            "train_frcnn.json, row 7: no region features train_frcnn/00000004.json in",
        ),
        (missing_image, "train_frcnn.json, row 7: no image file train_image.zip@/00000004.jpg"),
        (bad_box, "00000004.json: field 'boxes' holds 6 numbers, expected 2 x 4"),
        (change_row(2, '{"image": "x'), "train_frcnn.json, row 3: not valid JSON"),
        (change_row(2, "[1, 2]"), "train_frcnn.json, row 3: '[1, 2]': expected an object"),
        (change_row(3, '{"image": "a/b"}'), "row 4: field 'frcnn' is missing (it has image)"),
        (change_row(4, {"caption": "a dog"}), "row 5: field 'caption': 'a dog': expected a list"),
        (change_row(4, {"caption": ["a", 1]}), "row 5: field 'caption': ['a', 1]"),
        (change_row(4, {"caption": ["", " "]}), "row 5: field 'caption': ['', ' ']: is empty"),
        (
            change_row(5, {"frcnn": 7}),
            "row 6: field 'frcnn': 7: expected a path such as train_frcnn.zip@/00000001.json",
        ),
        (change_row(5, {"frcnn": "x.zip@/"}), "row 6: field 'frcnn': 'x.zip@/'"),
        (change_row(1, {"frcnn": "other.zip@/1.json"}), "other: no such features (neither"),
        (change_row(1, {"image": "other.zip@/1.jpg"}), "other and other.zip: neither is there"),
    ],
)
def test_bad_captions_are_one_error_with_file_and_row(own, tmp_path, damage, message):
    damage(own.data)
    assert message in refused(own, tmp_path, **RAW)


def test_a_damaged_image_is_an_error_and_not_a_black_image(own, tmp_path):
    broken_image(own.data)
    data = load(own, tmp_path, **RAW)
    with pytest.raises(DataError, match="00000001.jpg: not a picture"):
        sample(data, [0])


def test_missing_files_are_one_error_with_all_of_them_and_the_embedded_way_out(tmp_path):
    files = PretrainingFiles(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("[PAD]\n")
    source = PretrainingSource(load_config(files.config(tmp_path)))
    with pytest.raises(DataError) as caught:
        source.check_files()
    shown = str(caught.value)
    for name in (
        "train_frcnn.json",
        "train_frcnn.zip",
        "val_frcnn.json",
        "val_frcnn.zip",
        "bc1g.doc",
        "wiki.doc",
    ):
        assert shown.count(f"{tmp_path / name}  from ") == 1
    assert "6 files are missing" in shown
    assert (
        "./scripts/nondist_run.sh pretrain/train_end2end.py cfgs/pretrain/easy_vqa_small.yaml"
        in shown
    )


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (
            True,
            {"MODULE": "ResNetVLBERTForPretraining"},
            "key MODULE: ResNetVLBERTForPretraining: 2",
        ),
        (False, {"MODULE": "ResNetVLBERTForPretrainingMultitask"}, "key MODULE"),
        (False, {"MODULE": "ForPretraining"}, "key MODULE: ForPretraining: valid: ResNetVLBERT"),
        (False, {"DATASET__VAL_IMAGE_SET": ""}, "key DATASET.VAL_IMAGE_SET: '': give one set"),
        (False, {"DATASET__TRAIN_IMAGE_SET": "train+val"}, "'train+val': give one set"),
        (True, {"TRAIN__BATCH_IMAGES": 4}, "key TRAIN.BATCH_IMAGES: [4]: give one number for each"),
        (
            False,
            {"DATASET__DATASET": "vqa"},
            "key DATASET.DATASET: ['vqa']: give conceptual_captions",
        ),
        (False, {"DATASET__ANSWER_MASK_RATE": 7}, "key DATASET.ANSWER_MASK_RATE: 7.0: must lie"),
        (True, {"NETWORK__VLBERT__vocab_size": 9}, "key NETWORK.VLBERT.vocab_size: 9"),
        (True, {"NETWORK__WITH_REL_LOSS": True}, "set NETWORK.VLBERT.with_pooler to true"),
        (
            False,
            {"NETWORK__WITH_MLM_LOSS": False, "NETWORK__WITH_MVRC_LOSS": False},
            "nothing to learn",
        ),
    ],
)
def test_data_that_do_not_go_with_the_network_are_refused(plain, tmp_path, texts, changes, message):
    assert message in refused(plain, tmp_path, texts=texts, **changes)


@pytest.mark.parametrize("length", [0, -1])
def test_texts_of_no_length_are_refused(plain, tmp_path, length):
    path = plain.config(tmp_path)
    tree = yaml.safe_load(path.read_text())
    tree["DATASET"][1]["SEQ_LEN"] = length
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=rf"key DATASET\[1\].SEQ_LEN: {length}: must be positive"):
        PretrainingSource(load_config(path))


EASY = {
    "DATASET": "easy_vqa_captions",
    "TRAIN_IMAGE_SET": "pretrain",
    "VAL_IMAGE_SET": "nominival",
    "WITH_ANSWERS": True,
    "ANSWER_MASK_RATE": 1.0,
}
EASY_NETWORK = {
    "NETWORK__BERT_MODEL_NAME": "",
    "NETWORK__VLBERT__vocab_size": 136,
    "NETWORK__VLBERT__visual_region_classes": 28,
}


@pytest.fixture
def embedded(easy_vqa_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("common.data.datasets.repository_root", lambda: easy_vqa_root)
    return easy_vqa_root


def easy(plain: PretrainingFiles, folder: Path, **changes: object) -> PretrainingData:
    """The embedded data; `changes` are of keys of DATASET, or have their section's name."""
    own = {key: value for key, value in changes.items() if "__" not in key}
    network = {key: value for key, value in changes.items() if "__" in key}
    return load(plain, folder, texts=False, DATASET=EASY | own, **EASY_NETWORK | network)


def test_embedded_captions_and_questions_with_answers_where_vqa_has_them(plain, embedded, tmp_path):
    data = easy(plain, tmp_path)
    tokenizer, captions = data.tokenizer, data.train.captions.captions
    assert isinstance(tokenizer, Tokenizer) and "yes" in tokenizer.text().splitlines()
    questions = [i for i in range(len(captions)) if captions[i].reply is not None]
    assert 0 < len(questions) < len(captions)
    inputs, labels = sample(data, [0, questions[0]])
    asked = captions[questions[0]]
    types = inputs["text_types"]
    assert not types[0].any() and types[1].sum() == 2  # the answer and [SEP]
    place = int(types[1].argmax())
    assert inputs["text"][1, place - 1] == inputs["text"][1, place + 1] == tokenizer.sep_id
    assert labels["words"][1, place] == tokenizer.numbers([asked.reply])[0]  # always masked here
    images = set(data.train.captions.captions.image_ids())
    assert images.isdisjoint(data.heldout.captions.captions.image_ids())
    without = easy(plain, tmp_path / "b", WITH_ANSWERS=False)
    assert len(without.train.captions) == len(captions) - len(questions)
    assert without.tokenizer.text() == tokenizer.text()


def test_pairs_of_object_and_attribute_are_classes_where_the_config_says_so(
    plain, embedded, tmp_path
):
    single = easy(plain, tmp_path, REGION_CLASSES="object")
    pairs = easy(
        plain,
        tmp_path / "pairs",
        REGION_CLASSES="object_attribute",
        NETWORK__VLBERT__visual_region_classes=364,
    )
    indices = list(range(40))
    ids = [single.train.captions.captions[i].regions for i in indices]
    found = single.features.read(ids)
    objects, attributes = (
        torch.nn.functional.pad(x, (1, 0)) for x in (found.object_ids, found.attribute_ids)
    )  # the first box is the image
    one, other = (sample(data, indices)[1]["regions"] for data in (single, pairs))
    assert one.shape[-1] == 28 and other.shape[-1] == 364
    labelled = one.sum(-1) == 1
    assert torch.equal(labelled, other.sum(-1) == 1) and labelled.sum() > 20
    assert torch.equal(one.argmax(-1)[labelled], objects[labelled])
    assert torch.equal(other.argmax(-1)[labelled], (13 * objects + attributes)[labelled])


@pytest.mark.parametrize(
    ("key", "sets"),
    [
        ("TRAIN_IMAGE_SET", "train"),
        ("TRAIN_IMAGE_SET", "pretrain+nominival"),
        ("VAL_IMAGE_SET", "minival"),
        ("VAL_IMAGE_SET", ""),
    ],
)
def test_pretraining_does_not_see_what_is_finetuned_on_or_reported(
    plain, embedded, tmp_path, key, sets
):
    with pytest.raises(ConfigError, match=f"key DATASET.{key}: .*must be"):
        easy(plain, tmp_path, **{key: sets})


def test_half_of_the_captions_belong_to_another_image_and_questions_are_never_replaced(
    plain, embedded, tmp_path
):
    data = easy(plain, tmp_path, NETWORK__WITH_REL_LOSS=True, NETWORK__VLBERT__with_pooler=True)
    captions, tokenizer = data.train.captions.captions, data.tokenizer
    assert 0 < captions.statements < len(captions)
    indices = [*range(captions.statements), captions.statements, len(captions) - 1]
    inputs, labels = sample(data, indices)
    matched = labels["relationship"]
    assert (matched[-2:] == -1).all() and set(matched[:-2].tolist()) == {0, 1}
    assert float(matched[:-2].double().mean()) == pytest.approx(0.5, abs=0.1)
    whole = torch.where(labels["words"] >= 0, labels["words"], inputs["text"])
    texts: dict[tuple[int, ...], set[str]] = {}
    for place in range(captions.statements):
        ids = tuple(tokenizer.numbers(tokenizer.pieces(captions[place].text)))
        texts.setdefault(ids, set()).add(captions[place].regions)
    others = set()
    for row, place in enumerate(indices[:-2]):
        found = tuple(int(i) for i in whole[row] if i)[1:-1]
        own = tuple(tokenizer.numbers(tokenizer.pieces(captions[place].text)))
        if matched[row] == 1:
            assert found == own
        else:
            assert texts[found] - {captions[place].regions}  # of some other image
            others.add(found)
    assert len(others) > 20  # they come from everywhere


def test_captions_about_one_image_cannot_be_mismatched(own, tmp_path):
    write_rows(own.data, "train", [row for row in rows("train") if "00000003" in row["image"]] * 4)
    data = load(own, tmp_path, NETWORK__WITH_REL_LOSS=True, NETWORK__VLBERT__with_pooler=True)
    with pytest.raises(DataError, match="all captions are about image 'train_frcnn/00000003'"):
        sample(data, list(range(8)))
