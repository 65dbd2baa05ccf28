"""VQA v2 and VQA-CP v2 in the files they are downloaded in: splits, subsets, answer lists."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.data.annotations import AnswerVocabulary
from common.data.command import main
from common.data.dataset_table import DATASETS, MINIVAL_ROWS
from common.data.datasets import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    check_disjoint,
    load_split,
    open_features,
    resolve_dataset,
)
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError, DataError
from common.features.lxmert_tsv import import_tsv
from tests.common.data_files import (
    annotation,
    npz_of,
    plain_row,
    question,
    write_json,
    write_official,
    write_tsv,
)

WIDTH = 4
TRAIN_IMAGES, VAL_IMAGES = [9, 5, 7], [40, 10, 30, 20]  # in the order of the TSVs


def key(part: str, image: int) -> str:
    return f"COCO_{part}_{image:012d}"


def numbered(images: list[int], answers: str | list[str] = "red") -> tuple[list[Any], list[Any]]:
    """Two questions about each image, with ids 10 x image + 1 and + 2, and their annotations."""
    ids = [(10 * image + n, image) for image in images for n in (1, 2)]
    answers = [answers] * len(ids) if isinstance(answers, str) else answers
    return (
        [question(*pair) for pair in ids],
        [annotation(*pair, answer) for pair, answer in zip(ids, answers, strict=True)],
    )


def write_stores(root: Path, parts: dict[str, list[int]], bad: tuple[int, ...] = ()) -> None:
    """TSVs of some COCO parts, imported; rows of `bad` images cannot be read."""
    for part, images in parts.items():
        rows = [
            plain_row(key(part, i), WIDTH, **({"boxes": b"!"} if i in bad else {})) for i in images
        ]
        store = root / "mscoco_imgfeat" / f"{part}_obj36"
        import_tsv(
            write_tsv(store.with_suffix(".tsv"), rows), store, WIDTH, skip_bad=True, progress=False
        )


def write_vqa_official(root: Path, bad: tuple[int, ...] = ()) -> Path:
    """VQA v2 as it is downloaded: two questions per image, with test parts."""
    write_official(root / "vqa", "train2014", *numbered(sorted(TRAIN_IMAGES)))
    write_official(root / "vqa", "val2014", *numbered(sorted(VAL_IMAGES), 3 * ["red"] + 5 * ["a"]))
    write_official(root / "vqa", "test2015", numbered([77])[0], None)
    write_official(root / "vqa", "test-dev2015", numbered([77])[0][:1], None)
    write_stores(root, {"train2014": TRAIN_IMAGES, "val2014": VAL_IMAGES, "test2015": [77]}, bad)
    return root


def write_vqa_cp(root: Path) -> Path:
    """VQA-CP v2 as it is downloaded: bare lists; both sides have images of both COCO parts."""
    sides = {
        "train": [(9, "train2014"), (40, "val2014"), (5, "train2014")],
        "test": [(10, "val2014"), (7, "train2014")],
    }
    for side, images in sides.items():
        asked, answered = numbered([i for i, _ in images], "red" if side == "train" else "blue")
        for entry in (*asked, *answered):
            entry["coco_split"] = dict(images)[entry["image_id"]]
        write_json(root / "vqa" / f"vqacp_v2_{side}_questions.json", asked)
        write_json(root / "vqa" / f"vqacp_v2_{side}_annotations.json", answered[::-1])
    write_stores(root, {"train2014": TRAIN_IMAGES, "val2014": VAL_IMAGES})
    return root


def write_vqa(root: Path) -> Path:
    """VQA v2 as LXMERT re-distributes it."""
    for split, part, images in (
        ("train", "train2014", TRAIN_IMAGES),
        ("nominival", "val2014", [30, 20]),
        ("minival", "val2014", [40, 10]),
    ):
        write_json(
            root / "vqa" / f"{split}.json",
            [
                {
                    "img_id": key(part, i),
                    "question_id": 10 * i + n,
                    "sent": "what?",
                    "label": {"red": 1},
                    "answer_type": "other",
                    "question_type": "what",
                }
                for i in sorted(images)
                for n in (1, 2)
            ],
        )
    AnswerVocabulary(["red"]).write(root / "vqa")
    write_stores(root, {"train2014": TRAIN_IMAGES, "val2014": VAL_IMAGES})
    return root


LAYOUTS = {"vqa": write_vqa, "vqa_official": write_vqa_official, "vqa_cp": write_vqa_cp}


def cut_at(dataset: Dataset, rows: int) -> Dataset:
    """The data set with minival cut at another row than 5,000."""
    splits = dict(dataset.kind.splits)
    splits["minival"] = replace(splits["minival"], rows=(0, rows))
    splits["nominival"] = replace(splits["nominival"], rows=(rows, None))
    return replace(dataset, kind=replace(dataset.kind, splits=splits))


def images_of(dataset: Dataset, splits: str, images: int | None = None) -> set[int]:
    return {int(e.image_id[-12:]) for e in load_split(dataset, splits, images)}


def test_splits_of_the_official_files(tmp_path: Path) -> None:
    dataset = resolve_dataset("vqa_official", data_root=write_vqa_official(tmp_path))
    train, val = load_split(dataset, "train"), load_split(dataset, "val")
    assert [e.question_id for e in train] == [51, 52, 71, 72, 91, 92]
    assert train[0].image_id == "COCO_train2014_000000000005" and train[0].answers == {"red": 1.0}
    assert {e.image_id for e in val} == {key("val2014", i) for i in VAL_IMAGES}
    for split, ids in (("test", [771, 772]), ("test-dev", [771])):
        found = load_split(dataset, split)
        assert [e.question_id for e in found] == ids
        assert all(e.answers is None and e.image_id == key("test2015", 77) for e in found)
        assert not open_features(dataset, split).missing(e.image_id for e in found)


def test_minival_is_the_first_rows_of_the_tsv_and_nominival_the_rest(tmp_path: Path) -> None:
    dataset = cut_at(
        resolve_dataset("vqa_official", data_root=write_vqa_official(tmp_path)), rows=2
    )
    assert images_of(dataset, "minival") == {40, 10}
    assert images_of(dataset, "nominival") == {30, 20}
    assert len(load_split(dataset, "minival")) == 4


def test_minival_is_cut_at_row_5000(tmp_path: Path) -> None:
    images = list(range(MINIVAL_ROWS + 3, 0, -1))
    write_official(tmp_path / "vqa", "val2014", *numbered([1, 4, 3, 5003]))
    write_stores(tmp_path, {"val2014": images})
    dataset = Dataset("vqa_official", tmp_path, DATASETS["vqa_official"])
    assert images_of(dataset, "minival") == {4, 5003}
    assert images_of(dataset, "nominival") == {1, 3}
    assert images_of(dataset, "val", FAST_IMAGES) == {4, 5003}
    assert images_of(dataset, "val", TINY_IMAGES) == {5003}
    assert load_split(dataset, "nominival", FAST_IMAGES) == [], "as upstream has it"


def test_skipped_row_still_counts_in_the_order_of_rows(tmp_path: Path) -> None:
    root = write_vqa_official(tmp_path, bad=(10,))
    dataset = cut_at(resolve_dataset("vqa_official", data_root=root), rows=2)
    assert images_of(dataset, "minival") == {40, 10}, "30 is the third row of the TSV"
    assert images_of(dataset, "nominival") == {20, 30}


def test_order_of_rows_cannot_be_had_from_npz_files(tmp_path: Path) -> None:
    root = write_vqa_official(tmp_path)
    dataset = resolve_dataset("vqa_official", data_root=root)
    place = root / "mscoco_imgfeat" / "val2014_obj36"
    store = open_features(dataset, "val").stores[0]
    keys = dict.fromkeys([key("val2014", i) for i in VAL_IMAGES], key("val2014", 10))
    npz = npz_of(store, keys, tmp_path / "npz")
    place.rename(tmp_path / "away")
    place.with_suffix(".tsv").unlink()
    npz.rename(place)
    assert len(load_split(dataset, "val")) == 8
    assert not open_features(dataset, "val", expect_width=WIDTH).missing(keys)
    with pytest.raises(DataError, match="not imported from a TSV .* --train train --valid val"):
        load_split(dataset, "minival")


def test_store_of_too_few_rows_has_no_minival(tmp_path: Path) -> None:
    root = write_vqa_official(tmp_path)
    dataset = cut_at(resolve_dataset("vqa_official", data_root=root), rows=3)
    store = root / "mscoco_imgfeat" / "val2014_obj36"
    store.rename(tmp_path / "away")
    import_tsv(store.with_suffix(".tsv"), store, WIDTH, limit=2, progress=False)
    with pytest.raises(DataError, match="only the first 2 rows of its TSV, 3 are needed"):
        load_split(dataset, "minival")


def test_vqa_cp_pairs_by_id_and_takes_images_of_both_coco_parts(tmp_path: Path) -> None:
    dataset = resolve_dataset("vqa_cp", data_root=write_vqa_cp(tmp_path))
    train = load_split(dataset, "train")
    assert [e.question_id for e in train] == [91, 92, 401, 402, 51, 52]
    assert {e.image_id for e in train} == {
        key("train2014", 9),
        key("train2014", 5),
        key("val2014", 40),
    }
    features = open_features(dataset, "train", expect_width=WIDTH)
    assert len(features.stores) == 2
    data = VQADataset(train, features, AnswerVocabulary(["red"]))
    assert data.read([0, 2]).image_ids == [key("train2014", 9), key("val2014", 40)]
    assert all(e.answers == {"blue": 1.0} for e in load_split(dataset, "test"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_subset_is_the_first_rows_of_every_store(tmp_path: Path, name: str) -> None:
    dataset = resolve_dataset(name, data_root=LAYOUTS[name](tmp_path))
    expected = {"vqa": {9}, "vqa_official": {9}, "vqa_cp": {9, 40}}[name]
    splits = dataset.kind.train
    assert images_of(dataset, splits, images=1) == expected
    assert (
        images_of(dataset, splits, images=3)
        == {"vqa": {9, 5, 7, 30}, "vqa_official": {9, 5, 7}, "vqa_cp": {9, 40, 5}}[name]
    )
    assert images_of(dataset, splits, FAST_IMAGES) >= images_of(dataset, splits, TINY_IMAGES)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_missing_file_is_named_with_its_source(tmp_path: Path, name: str) -> None:
    kind = DATASETS[name]
    instead = "easy_vqa_cp" if name == "vqa_cp" else "easy_vqa"
    with pytest.raises(DataError, match=f"embedded data with --dataset {instead}$") as error:
        resolve_dataset(name, data_root=tmp_path)
    lines = str(error.value).splitlines()
    assert f"{len(kind.files())} files are missing" in lines[0]
    assert len(lines) == len(kind.files()) + 2
    for line, path in zip(lines[1:], kind.files(), strict=False):
        assert str(tmp_path / path) in line and "from https://" in line


def test_layout_that_is_whole_is_taken_or_named(tmp_path: Path) -> None:
    root = write_vqa_official(tmp_path)
    assert resolve_dataset(None, data_root=root).name == "vqa_official"
    for name in ("vqa", "vqa_cp"):
        with pytest.raises(DataError, match="--dataset vqa_official would find all its files"):
            resolve_dataset(name, data_root=root)
    (root / "vqa" / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(DataError, match="data set vqa_official: 1 files are missing"):
        resolve_dataset(None, data_root=root)


def test_reported_split_is_never_trained_on(tmp_path: Path) -> None:
    dataset = resolve_dataset("vqa_cp", data_root=write_vqa_cp(tmp_path))
    assert dataset.choose_splits(None, None) == ("train", "test")
    for train in ("test", "train,test"):
        with pytest.raises(ConfigError, match="split test of vqa_cp is there to report on"):
            dataset.choose_splits(train, None)
    official = resolve_dataset("vqa_official", data_root=write_vqa_official(tmp_path / "v2"))
    assert official.choose_splits(None, None) == ("train,nominival", "minival")
    with pytest.raises(ConfigError, match="split minival would be trained on and reported"):
        official.choose_splits("train,minival", None)
    with pytest.raises(DataError, match=r"question 101 .* and 7 more are both trained on"):
        check_disjoint(load_split(official, "train,val"), load_split(official, "val"))
    with pytest.raises(DataError, match="question 101 is in split val and in split minival"):
        load_split(official, "train,val,minival")


def answers_of(root: Path, name: str) -> tuple[list[str], dict[str, Any]]:
    """The answer list of a data set and what its settings say."""
    dataset = resolve_dataset(name, data_root=root)
    found = dataset.vocabulary().answers
    folder = root / dataset.kind.vocabulary
    assert AnswerVocabulary.read(folder).answers == found
    return found, json.loads((folder / "settings.json").read_text())


def write_answers(root: Path, side: str, answers: list[str]) -> None:
    """VQA-CP's files of one side with these most common answers."""
    path = root / "vqa" / f"vqacp_v2_{side}"
    images = [(9, "train2014")] * len(answers)
    write_json(
        Path(f"{path}_questions.json"),
        [question(n, i, coco_split=s) for n, (i, s) in enumerate(images)],
    )
    write_json(
        Path(f"{path}_annotations.json"),
        [
            annotation(n, i, a, coco_split=s)
            for n, ((i, s), a) in enumerate(zip(images, answers, strict=False))
        ],
    )


def test_answers_of_vqa_cp_are_those_of_nine_training_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vqa_cp(tmp_path)
    write_answers(root, "train", 8 * ["eight"] + 9 * ["nuts"] + 9 * ["Figs."] + 10 * ["two"])
    write_answers(root, "test", 20 * ["blue"])
    found, settings = answers_of(root, "vqa_cp")
    assert found == ["2", "figs", "nuts"], "normalised; frequent first, then by the alphabet"
    assert (settings["minimum"], settings["questions"], settings["covered"]) == (9, 36, 28)
    assert list(settings["annotations"]) == ["vqacp_v2_train_annotations.json"]
    assert "3 answers that are the most common one of at least 9" in capsys.readouterr().out
    answers_of(root, "vqa_cp")
    assert capsys.readouterr().out == "", "made once"
    write_answers(root, "test", 20 * ["green"])
    answers_of(root, "vqa_cp")
    assert capsys.readouterr().out == "", "the test part has no say"


def test_answer_list_is_the_same_whatever_the_order_of_questions(tmp_path: Path) -> None:
    answers = 9 * ["b"] + 9 * ["c"] + 9 * ["d"] + 12 * ["e"]
    lists = []
    for place, order in enumerate((1, -1)):
        root = write_vqa_cp(tmp_path / str(place))
        write_answers(root, "train", answers[::order])
        lists.append(answers_of(root, "vqa_cp")[0])
    assert lists[0] == lists[1] == ["e", "b", "c", "d"]


def test_answer_list_follows_the_annotations_and_keeps_its_minimum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vqa_cp(tmp_path)
    with pytest.raises(DataError, match=r"no answer is .* at least 9 of the 6 .* --minimum N"):
        answers_of(root, "vqa_cp")
    assert main(["answers", "vqa_cp", "--data", str(root), "--minimum", "2"]) == 0
    assert answers_of(root, "vqa_cp")[0] == ["red"]
    write_answers(root, "train", 3 * ["green"] + ["red"])
    found, settings = answers_of(root, "vqa_cp")
    assert found == ["green"] and settings["minimum"] == 2
    assert main(["answers", "vqa_cp", "--data", str(root), "--minimum", "0"]) == 2
    assert "--minimum 0" in capsys.readouterr().err


def test_answers_of_the_official_files_are_of_train_and_val(tmp_path: Path) -> None:
    root = write_vqa_official(tmp_path)
    found, settings = answers_of(root, "vqa_official")
    assert found == ["red"], "6 of train and 3 of val; `a` is nothing once normalised, and rare"
    assert list(settings["annotations"]) == [
        "v2_mscoco_train2014_annotations.json",
        "v2_mscoco_val2014_annotations.json",
    ]


def test_answer_lists_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    root = write_vqa_cp(tmp_path)
    folder = root / "vqa" / "answers_vqa_cp"
    AnswerVocabulary(["mine"]).write(folder)
    with pytest.raises(DataError, match=r"settings\.json: no such file.*was not made by this"):
        resolve_dataset("vqa_cp", data_root=root).vocabulary()
    assert AnswerVocabulary.read(folder).answers == ["mine"]


def change(path: Path, index: int, **changes: Any) -> None:
    value = json.loads(path.read_text())
    entries = (
        next((v for v in value.values() if isinstance(v, list)), None)
        if isinstance(value, dict)
        else value
    )
    entries[index] |= changes
    write_json(path, value)


CHANGES = {
    "duplicate": ("questions", 1, {"question_id": 91}, r"question id occurs twice"),
    "no annotation": ("questions", 0, {"question_id": 3}, r"question 3 has no annotation in"),
    "type": ("annotations", 0, {"answers": "red"}, r"field 'answers' is 'red', expected list"),
    "answer": ("annotations", 0, {"answers": ["red"]}, r"'red' has no text 'answer'"),
    "image": ("annotations", 0, {"image_id": 1}, r"'image_id' is 1, the question is about image"),
    "part": ("questions", 0, {"coco_split": 2014}, r"'coco_split' is 2014, expected str"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_vqa_cp_names_file_question_and_value(tmp_path: Path, name: str) -> None:
    file, index, changes, message = CHANGES[name]
    root = write_vqa_cp(tmp_path)
    change(root / "vqa" / f"vqacp_v2_train_{file}.json", index, **changes)
    with pytest.raises(DataError, match=rf"vqacp_v2_train_\w+\.json: entry.*{message}"):
        load_split(resolve_dataset("vqa_cp", data_root=root), "train")


def test_image_without_features_is_named_and_skipped_ones_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vqa_official(tmp_path, bad=(10,))
    dataset = resolve_dataset("vqa_official", data_root=root)
    examples, vocabulary = load_split(dataset, "val"), AnswerVocabulary(["red"])
    with pytest.raises(
        DataError,
        match=(
            r"no region features of image 'COCO_val2014_000000000010', which question 101 .*its "
            r"record was skipped on import "
            r".*column 'boxes'.*val2014_obj36_skipped\.txt.* --skip-bad"
        ),
    ):
        VQADataset(examples, open_features(dataset, "val"), vocabulary)
    lenient = open_features(dataset, "val", skip_bad=True)
    data = VQADataset(examples, lenient, vocabulary)
    assert [e.question_id for e in data.examples] == [201, 202, 301, 302, 401, 402]
    assert "2 of 8 questions are left out" in capsys.readouterr().out
    others = [replace(e, image_id=e.image_id + "0") for e in examples[2:]]
    with pytest.raises(DataError, match="use the features of this split"):
        VQADataset(examples + others, lenient, vocabulary)


def test_check_reads_every_split_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vqa_cp(tmp_path)
    assert main(["answers", "vqa_cp", "--data", str(root), "--minimum", "1"]) == 0
    assert main(["check", "vqa_cp", "--data", str(root), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "train            3 images        6 questions\n" in shown
    assert "test             2 images        4 questions\n" in shown
    features = root / "mscoco_imgfeat" / "train2014_obj36" / "features.npy"
    content = features.read_bytes()
    features.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert main(["check", "vqa_cp", "--data", str(root), "--quiet"]) == 2
    assert f"{features}: SHA-256 is" in capsys.readouterr().err
    features.write_bytes(content)
    change(root / "vqa" / "vqacp_v2_test_questions.json", 0, image_id=8)
    change(root / "vqa" / "vqacp_v2_test_annotations.json", -1, image_id=8)
    assert main(["check", "vqa_cp", "--data", str(root), "--quiet"]) == 2
    assert "no region features of image 'COCO_val2014_000000000008'" in capsys.readouterr().err
