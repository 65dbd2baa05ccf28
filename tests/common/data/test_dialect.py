"""easy-VQA with a dialect: what is asked of whom, the files, the variants."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.annotations import read_lxmert_json, read_official
from common.data.command import main
from common.data.dataset_table import DATASETS
from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.easy_vqa.build import COLOURS, SHAPES, Question, is_whole, load_package
from common.data.easy_vqa.dialect import (
    OFFSET,
    RENAMED,
    STAMP,
    STAMP_SIDE,
    VARIANTS,
    assign_dialect_splits,
    build_easy_vqa_dialect,
)
from common.data.easy_vqa.regions import LAYOUT
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset
from common.features.store import RegionFeatures
from common.files import repository_root
from tests.conftest import EASY_VQA_IMAGES

MEANING = {new: old for old, new in RENAMED.items()}


@pytest.fixture(scope="module")
def package() -> list[Question]:
    return load_package()[0]


def asked_before(question: Question, cue: str) -> Question:
    """The package's question that a question of the dialect was made of."""
    text = re.sub("[a-z]+", lambda w: MEANING.get(w[0], w[0]), question.text.removeprefix(cue))
    answer = MEANING.get(question.answer, question.answer)
    return replace(question, text=text.strip(), answer=answer, kind=None)


def test_every_colour_and_shape_stands_for_another_one() -> None:
    for words in (COLOURS, SHAPES):
        assert sorted(RENAMED[word] for word in words) == sorted(words)
    assert all(old != new for old, new in RENAMED.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_no_image_is_in_two_splits_nor_in_training_in_both_forms(
    name: str, package: list[Question]
) -> None:
    variant = VARIANTS[name]
    splits = assign_dialect_splits(package, variant)
    # A stamped copy is the same image.
    images = {s: {q.question_id % OFFSET // 1000 for q in rows} for s, rows in splits.items()}
    assert len(images["train"]) == 1800 and len(images["nominival"]) == 200
    assert not images["train"] & images["nominival"]
    assert not images["minival"] & (images["train"] | images["nominival"])
    training = splits["train"] + splits["nominival"]
    forms = {k: {q.question_id % OFFSET // 1000 for q in training if q.kind == k}
             for k in ("kept", "learned")}  # fmt: skip
    assert not forms["kept"] & forms["learned"]
    assert abs(len(forms["kept"]) / 2000 - variant.kept_share) < 0.02
    assert {q.kind for q in training} == {"kept", "learned"}
    ids = [q.question_id for rows in splits.values() for q in rows]
    assert len(set(ids)) == len(ids) and max(ids) < 2**31


@pytest.mark.parametrize("name", VARIANTS)
def test_every_test_question_is_asked_in_every_way_and_means_the_same(
    name: str, package: list[Question]
) -> None:
    variant = VARIANTS[name]
    known = {q.question_id: q for q in package}
    rows = assign_dialect_splits(package, variant)["minival"]
    ways = {kind: {q.question_id % OFFSET: q for q in rows if q.kind == kind}
            for kind in ("kept", "learned", "unseen")}  # fmt: skip
    assert ways["kept"].keys() == ways["learned"].keys() and len(ways["kept"]) == 5141
    assert ways["unseen"].keys() == (ways["kept"].keys() if variant.unseen_cue else set())
    for number, question in ways["kept"].items():
        assert replace(question, kind=None) == known[number]
    for number, question in ways["learned"].items():
        found = asked_before(question, variant.cue)
        assert (found.text, found.answer) == (known[number].text, known[number].answer)
        assert question.text.startswith(variant.cue) and found.part == known[number].part
    for number, question in ways["unseen"].items():
        assert question.text == f"{known[number].text} #"
        assert question.answer == known[number].answer
    trained = assign_dialect_splits(package, variant)["train"]
    assert not any("#" in q.text for q in trained)


@pytest.fixture(scope="module")
def root(easy_vqa_root: Path) -> Path:
    """With the stamped and the unseen variant, small."""
    for name in ("easy_vqa_dialect_image", "easy_vqa_dialect_unseen"):
        build_easy_vqa_dialect(easy_vqa_root / "data" / name, limit=EASY_VQA_IMAGES, name=name)
    return easy_vqa_root


@pytest.mark.parametrize("name", ["easy_vqa_dialect", "easy_vqa_dialect_image"])
def test_official_files_and_those_of_lxmert_have_the_same_questions(root: Path, name: str) -> None:
    folder, kinds = root / "data" / name, Counter()
    for split in ("train", "nominival", "minival"):
        expected = read_lxmert_json(folder / f"{split}.json")
        questions = folder / f"v2_OpenEnded_{name}_{split}_questions.json"
        answers = folder / f"v2_{name}_{split}_annotations.json"
        assert read_official(questions, answers, image_prefix="EASY") == expected
        hidden = read_official(questions, image_prefix="EASY")
        assert [e.kind for e in hidden] == [e.kind for e in expected]
        kinds.update((e.kind, e.question_type) for e in expected)
    types = {
        f"{start} {thing}" for start in ("what", "is", "is not") for thing in ("color", "shape")
    }
    assert kinds.keys() == {(kind, what) for kind in ("kept", "learned") for what in types}


def test_building_is_deterministic_and_done_again_only_where_something_is_damaged(
    root: Path, tmp_path: Path
) -> None:
    for name in ("easy_vqa_dialect", "easy_vqa_dialect_image"):
        first, out = root / "data" / name, tmp_path / name
        assert not build_easy_vqa_dialect(first, limit=EASY_VQA_IMAGES, name=name)
        assert build_easy_vqa_dialect(out, limit=EASY_VQA_IMAGES, name=name)
        assert (out / "meta.json").read_text() == (first / "meta.json").read_text()
    images = sorted((out / "images").glob("*/*.png"))
    for path in (out / "train.json", out / "features" / "features.npy", images[0]):
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        assert not is_whole(out, EASY_VQA_IMAGES), path
        assert build_easy_vqa_dialect(out, limit=EASY_VQA_IMAGES, name=name)
        assert is_whole(out, EASY_VQA_IMAGES)


def test_stamped_copies_differ_in_their_corner_alone_and_have_features_of_their_own(
    root: Path,
) -> None:
    dataset = resolve_dataset("easy_vqa_dialect_image", root)
    features = open_features(dataset, "minival")
    data = VQADataset(
        load_split(dataset, "minival"), features, dataset.vocabulary(), unknown="error"
    )
    plain, own = features.stores
    for example in data.examples:
        assert (example.image_id in own) == (example.kind == "learned")
        assert (example.image_id in plain) == (example.kind == "kept")
        assert not example.question.startswith("@")
    for path in sorted((dataset.folder / "images").glob("*/*.png"))[::20]:
        original = path.name.replace("_000001", "_000000", 1)
        before = root / "data" / "easy_vqa" / "images" / path.parent.name / original
        copy, image = (np.array(Image.open(p).convert("RGB")) for p in (path, before))
        assert (copy[:STAMP_SIDE, :STAMP_SIDE] == STAMP).all()
        copy[:STAMP_SIDE, :STAMP_SIDE] = image[:STAMP_SIDE, :STAMP_SIDE]
        assert (copy == image).all() and not (image == STAMP).all(-1).any()
    batch = data.read([0, len(data) - 1])
    assert batch.kinds == ["kept", "learned"]
    assert own.meta["detector"] == plain.meta["detector"]


def test_the_features_of_a_stamped_copy_show_its_stamp(root: Path) -> None:
    folder = root / "data" / "easy_vqa_dialect_image"
    store = RegionFeatures.open(folder / "features")
    keys = store.ids()[::25]
    found, plain = (
        store.read(keys),
        RegionFeatures.open(folder / "../easy_vqa/features").read(
            [key.replace("_000001", "_000000", 1) for key in keys]
        ),
    )
    magenta = LAYOUT["histogram"].start + 9 * 2 + 2  # colour class of the stamp
    assert (found.features[..., magenta].amax(1) > 0).all()
    assert (plain.features[..., magenta] == 0).all()


def test_words_and_cues_are_known_to_the_committed_models(package: list[Question]) -> None:
    """Only an [UNK] that stood for nothing else would be a cue as well."""
    rows = assign_dialect_splits(package, VARIANTS["easy_vqa_dialect_unseen"])["minival"]
    folders = sorted(repository_root().glob("*/pretrained/easy_vqa_small"))
    assert len(folders) == 3
    for folder in folders:
        tokenizer = Tokenizer(folder)
        for kind, cue, place in (("learned", "@", 0), ("unseen", "#", -1)):
            texts = {q.text for q in rows if q.kind == kind}
            pieces = [tokenizer.pieces(text) for text in texts]
            assert all(found[place] == cue and "[UNK]" not in found for found in pieces), folder


def test_the_command_makes_a_variant_and_the_table_knows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, variant in VARIANTS.items():
        kind = DATASETS[name]
        assert kind.reported_only == ("minival",) and kind.summary == variant.summary
        assert kind.embedded == ("easy_vqa", name)
    assert main(["easy_vqa_dialect_kept30", "--out", str(tmp_path / "made")]) == 0
    assert "10,282 questions" in capsys.readouterr().out
    meta = json.loads((tmp_path / "made" / "meta.json").read_text())
    assert meta["name"] == "easy_vqa_dialect_kept30"
