"""easy-VQA as files: splits, regions from pixels, changing priors, the command line."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from common.data.annotations import AnswerVocabulary, read_lxmert_json, read_official
from common.data.command import main
from common.data.easy_vqa.build import (
    COLOURS,
    SHAPES,
    Question,
    assign_splits,
    build_easy_vqa,
    is_whole,
    load_package,
    question_kind,
)
from common.data.easy_vqa.changing_priors import assign_cp_splits, build_easy_vqa_cp
from common.data.easy_vqa.regions import (
    ATTRIBUTE_CLASSES,
    LAYOUT,
    NO_ATTRIBUTE,
    NO_OBJECT,
    OBJECT_CLASSES,
    WIDTH,
    connected_regions,
    extract_regions,
)
from common.errors import DataError
from common.features.store import RegionFeatures
from tests.conftest import EASY_VQA_IMAGES


@pytest.fixture(scope="module")
def package() -> list[Question]:
    return load_package()[0]


@pytest.fixture(scope="module")
def folder(easy_vqa_root: Path) -> Path:
    return easy_vqa_root / "data" / "easy_vqa"


def test_the_whole_package_is_used_once(package: list[Question]) -> None:
    splits = assign_splits(package)
    counts = {name: (len({q.image for q in r}), len(r)) for name, r in splits.items()}
    assert {name: images for name, (images, _) in counts.items()} == {
        "pretrain": 2000,
        "train": 1800,
        "nominival": 200,
        "minival": 1000,
    }
    assert counts["minival"][1] == 9673 and sum(n for _, n in counts.values()) == 38575 + 9673
    assert len({q.question_id for q in package}) == len(package)


def test_splits_share_no_image_and_image_ids_are_unique(package: list[Question]) -> None:
    seen: dict[int, str] = {}
    for name, rows in assign_splits(package).items():
        for q in rows:
            assert seen.setdefault(q.image, name) == name
            assert q.key == f"EASY_{'test' if name == 'minival' else 'train'}_{q.image:012d}"
    assert len(seen) == 5000


def test_question_kinds_agree_with_their_answers(package: list[Question]) -> None:
    values = {"what color": COLOURS, "what shape": SHAPES}
    for q in package:
        kind, value = question_kind(q.text)
        assert q.answer in values.get(kind, ("yes", "no")), q
        assert (value is None) == (kind in values)
        if value is not None:
            assert value in q.text and (value in SHAPES) == kind.endswith("shape")
    with pytest.raises(DataError, match="names no or several colours and shapes"):
        question_kind("is there a cat?")


def test_files_agree_with_meta_and_with_the_store(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    store = RegionFeatures.open(folder / "features", expect_width=2048)
    store.verify()
    assert meta["images"] == len(store) == EASY_VQA_IMAGES * 5 // 4
    for split, count in meta["splits"].items():
        examples = read_lxmert_json(folder / f"{split}.json")
        images = {e.image_id for e in examples}
        assert count == {"images": len(images), "questions": len(examples)}
        assert not store.missing(images)
        for image_id in images:
            assert (folder / "images" / image_id.split("_")[1] / f"{image_id}.png").is_file()
    assert len(AnswerVocabulary.read(folder)) == meta["answers"] == 13


def test_every_answer_is_given_ten_times_so_that_scores_are_0_or_1(folder: Path) -> None:
    rows = json.loads((folder / "v2_easy_vqa_minival_annotations.json").read_text())["annotations"]
    for row in rows:
        assert [a["answer"] for a in row["answers"]] == 10 * [row["multiple_choice_answer"]]
        assert [a["answer_id"] for a in row["answers"]] == list(range(1, 11))


def test_building_is_deterministic_and_done_once(folder: Path, tmp_path: Path) -> None:
    assert not build_easy_vqa(folder, limit=EASY_VQA_IMAGES)
    assert build_easy_vqa(tmp_path / "again", limit=EASY_VQA_IMAGES)
    again, first = (json.loads((f / "meta.json").read_text()) for f in (tmp_path / "again", folder))
    assert again == first


def test_damage_is_noticed_and_repaired(tmp_path: Path) -> None:
    out = tmp_path / "easy"
    assert build_easy_vqa(out, limit=12)
    text = (out / "train.json").read_text()
    (out / "train.json").write_text(text.replace("shape", "sHape", 1))
    assert is_whole(out, 12, content=False) and not is_whole(out, 12)
    assert build_easy_vqa(out, limit=12) and (out / "train.json").read_text() == text
    image = "images/train/EASY_train_000000000003.png"
    for name in ("features/features.npy", "features/boxes.npy", image):
        content = bytearray((out / name).read_bytes())
        content[-20] ^= 1
        (out / name).write_bytes(content)
        assert not is_whole(out, 12), name
        assert build_easy_vqa(out, limit=12)
    for name in ("features/features.npy", "minival.json", image):
        (out / name).unlink()
        assert not is_whole(out, 12, content=False), name
        assert build_easy_vqa(out, limit=12)
    assert build_easy_vqa(out, force=True, limit=12)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".easy.lock", "easy"]


def test_data_of_an_older_version_is_built_anew(tmp_path: Path) -> None:
    out = tmp_path / "easy"
    assert build_easy_vqa(out, limit=4)
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps(meta | {"version": 1}))
    assert build_easy_vqa(out, limit=4) and not build_easy_vqa(out, limit=4)
    assert json.loads((out / "meta.json").read_text()) == meta


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty and not an easy-VQA folder: choose another"):
        build_easy_vqa(tmp_path, limit=4)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def flood_boxes(mask: np.ndarray) -> set[tuple[int, ...]]:
    """Tight boxes of 8-connected regions by flood fill, an independent way."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = set()
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
        ys, xs = zip(*region, strict=False)
        found.add((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return found


def test_connected_regions_equal_those_of_a_flood_fill() -> None:
    draw = np.random.default_rng(0)
    for density in (0.1, 0.3, 0.5, 0.8):
        for _ in range(10):
            mask = draw.random((17, 23)) < density
            assert {tuple(b) for b in connected_regions(mask, min_area=1)} == flood_boxes(mask)


def test_small_regions_are_left_out_and_large_ones_come_first() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[0:2, 0:2] = mask[10:15, 3:9] = mask[5:8, 15:18] = True
    assert [tuple(b) for b in connected_regions(mask)] == [(3, 10, 9, 15), (15, 5, 18, 8)]


def shapes_image() -> Image.Image:
    image = Image.new("RGB", (64, 64), (240, 240, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 6, 23, 15), fill=(255, 0, 0))
    draw.rectangle((40, 40, 59, 59), fill=(0, 0, 255))
    return image


def test_every_object_has_its_tight_box_first_with_its_colour_and_shape() -> None:
    found = extract_regions(shapes_image())
    assert found.boxes[:2].tolist() == [[40, 40, 60, 60], [4, 6, 24, 16]]
    assert found.confidence[:2].tolist() == [1, 1] and (np.diff(found.confidence) <= 0).all()
    assert found.object_ids[:2].tolist() == [2, 18]
    assert found.attribute_ids[:2].tolist() == [10, 11]
    assert [0, 0, 64, 64] in found.boxes.tolist() and len(found.boxes) == 8


def test_features_are_what_is_in_the_box() -> None:
    found = extract_regions(shapes_image())
    row = found.features[1]
    assert found.features.shape == (8, WIDTH) and not row[LAYOUT["geometry"].stop :].any()
    colours = row[LAYOUT["colours"]].reshape(256, 3)
    assert np.allclose(colours, (np.array([255, 0, 0]) - 240) / 256)
    assert (row[LAYOUT["mask"]] == 1).all() and row[LAYOUT["histogram"]][18] == 16
    geometry = [4 / 64, 6 / 64, 24 / 64, 16 / 64, 20 / 64, 10 / 64, 200 / 4096, 1, 200 / 600, 1, 1]
    assert np.allclose(row[LAYOUT["geometry"]] / 4, geometry)


def test_an_image_without_foreground_has_windows_of_nothing() -> None:
    found = extract_regions(Image.new("RGB", (64, 64), (250, 250, 250)))
    assert set(found.object_ids) == {NO_OBJECT} and set(found.attribute_ids) == {NO_ATTRIBUTE}
    assert not found.confidence.any() and len(found.boxes) == 6


def test_a_crowded_image_has_36_boxes_at_most() -> None:
    image = Image.new("RGB", (64, 64), (250, 250, 250))
    pixels = np.array(image)
    for y in range(0, 64, 8):
        for x in range(0, 64, 8):
            pixels[y : y + 4, x : x + 4] = 0
    assert len(extract_regions(Image.fromarray(pixels)).boxes) == 36


def test_classes_and_boxes_of_the_store_are_in_range(folder: Path) -> None:
    store = RegionFeatures.open(folder / "features")
    batch = store.read(store.ids())
    batch.normalised_boxes()
    assert batch.object_ids.max() < OBJECT_CLASSES and batch.attribute_ids.max() < ATTRIBUTE_CLASSES
    assert batch.object_conf.min() >= 0 and batch.object_conf.max() == 1
    assert batch.mask.sum(1).max() <= 36


def test_the_tight_box_separates_colours_and_shapes_linearly(folder: Path) -> None:
    store = RegionFeatures.open(folder / "features")
    for kind, names in (("what color", COLOURS), ("what shape", SHAPES)):
        known: dict[str, int] = {}
        for split in ("pretrain", "train", "nominival", "minival"):
            for e in read_lxmert_json(folder / f"{split}.json"):
                if e.question_type == kind:
                    known[e.image_id] = names.index(next(iter(e.answers)))
        inputs = store.read(list(known), max_regions=1).features[:, 0].double()
        labels = torch.tensor(list(known.values()))
        train = torch.arange(len(known)) % 4 > 0
        targets = torch.nn.functional.one_hot(labels, len(names)).double()
        gram = inputs[train].T @ inputs[train] + torch.eye(WIDTH)
        weights = torch.linalg.solve(gram, inputs[train].T @ targets[train])
        right = (inputs[~train] @ weights).argmax(1) == labels[~train]
        assert right.double().mean() > 0.85, kind


def answer_shares(rows: list[Question]) -> dict[object, dict[str, float]]:
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for q in rows:
        counts[question_kind(q.text)][q.answer] += 1
    return {k: {a: n / sum(c.values()) for a, n in c.items()} for k, c in counts.items()}


def test_changing_priors_differ_in_every_group_but_those_about_triangles(
    package: list[Question],
) -> None:
    full = assign_splits(package)
    splits = assign_cp_splits(full["train"] + full["nominival"])
    train = answer_shares(splits["train"] + splits["nominival"])
    test = answer_shares(splits["minival"])
    assert train.keys() == test.keys() and len(train) == 2 + 2 * 11
    for group in train:
        answers = train[group].keys() | test[group].keys()
        distance = sum(abs(train[group].get(a, 0) - test[group].get(a, 0)) for a in answers) / 2
        assert distance > 0.5 or "triangle" in group, (group, distance)
        assert train[group].keys() == test[group].keys(), "every answer can be learned"


def test_changing_priors_share_no_image_and_come_from_the_finetuning_part(
    package: list[Question],
) -> None:
    full = assign_splits(package)
    finetuning = full["train"] + full["nominival"]
    splits = assign_cp_splits(finetuning)
    images = {name: {q.image for q in rows} for name, rows in splits.items()}
    assert set().union(*images.values()) <= {q.image for q in finetuning}
    assert not images["train"] & images["nominival"]
    assert not images["minival"] & (images["train"] | images["nominival"])
    assert min(len(images["train"]), len(images["minival"])) > 800
    side = len(images["train"]) + len(images["nominival"])
    assert abs(len(images["nominival"]) - side / 10) < 2


def test_changing_priors_are_written_as_vqa_cp_has_them(easy_vqa_root: Path) -> None:
    folder = easy_vqa_root / "data" / "easy_vqa_cp"
    assert not build_easy_vqa_cp(folder, limit=EASY_VQA_IMAGES)
    for side, names in (("train", ("train", "nominival")), ("test", ("minival",))):
        paths = [folder / f"easy_vqa_cp_{side}_{k}.json" for k in ("questions", "annotations")]
        assert isinstance(json.loads(paths[0].read_text()), list)
        expected = [e for name in names for e in read_lxmert_json(folder / f"{name}.json")]
        assert read_official(*paths, image_prefix="EASY") == expected


def test_command_line_makes_lists_and_explains(
    easy_vqa_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(easy_vqa_root / "data" / "easy_vqa_cp", tmp_path / "data" / "easy_vqa_cp")
    assert main(["list", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "MISSING features" in shown and "there   train.json" in shown
    assert "nlp.cs.unc.edu" in shown and "python -m common.data easy_vqa" in shown
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["easy_vqa_cp", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["easy_vqa_cp", "--out", str(tmp_path / "cp")]) == 0
    assert "made in" in capsys.readouterr().out
    assert main(["easy_vqa_cp", "--out", str(tmp_path / "cp")]) == 0
    assert "its checksums match" in capsys.readouterr().out
