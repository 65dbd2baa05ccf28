"""Which data set is taken, how questions and features come together, and what is refused."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.annotations import AnswerVocabulary, Example
from common.data.dataset_table import DATASETS
from common.data.datasets import (
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
    subset_by_images,
)
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter

STORES = {"train2014": ["T1", "T2", "T3"], "val2014": ["V1", "V2"]}
SPLITS = {"train": ["T1", "T2", "T3", "T3"], "nominival": ["V2"], "minival": ["V1", "V1"]}


def write_store(path: Path, ids: list[str], width: int = 4, regions: int = 2) -> RegionFeatures:
    with RegionFeatureWriter(path, width) as writer:
        for number, image_id in enumerate(ids):
            boxes = torch.tensor([[1.0, 2.0, 8.0, 10.0]] * regions)
            writer.add(image_id, 16, 20, boxes, torch.full((regions, width), float(number)))
        return writer.finish()


def write_vqa(root: Path, width: int = 4) -> Path:
    """The files of VQA v2 in the layout of LXMERT, with tiny stores."""
    (root / "vqa").mkdir(parents=True)
    number = 0
    for split, images in SPLITS.items():
        rows = []
        for image_id in images:
            number += 1
            rows.append(
                {
                    "img_id": image_id,
                    "question_id": number,
                    "sent": f"what is {number}?",
                    "label": {"cat": 0.9, "mauve": 0.3},
                    "answer_type": "other",
                    "question_type": "",
                }
            )
        (root / "vqa" / f"{split}.json").write_text(json.dumps(rows))
    AnswerVocabulary(["dog", "cat"]).write(root / "vqa")
    for name, ids in STORES.items():
        write_store(root / "mscoco_imgfeat" / f"{name}_obj36", ids, width)
    return root


def test_vqa_is_taken_where_all_its_files_are(tmp_path: Path) -> None:
    write_vqa(tmp_path / "LXMERT" / "data")
    dataset = resolve_dataset(None, tmp_path)
    assert dataset.name == "vqa" and dataset.vocabulary().answers == ["dog", "cat"]


def test_easy_vqa_is_taken_where_no_file_of_vqa_is(
    easy_vqa_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve_dataset(None, easy_vqa_root).name == "easy_vqa"
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and "using easy_vqa" in shown
    for name in ("vqa/train.json", "trainval_ans2label.json", "train2014_obj36", "val2014_obj36"):
        assert name in shown


def test_a_part_of_vqa_is_an_error_that_lists_the_rest(tmp_path: Path) -> None:
    root = write_vqa(tmp_path / "vqa_files")
    (root / "vqa" / "minival.json").unlink()
    (root / "mscoco_imgfeat" / "val2014_obj36" / "meta.json").unlink()
    for name in (None, "vqa"):
        with pytest.raises(DataError, match="2 files are missing") as error:
            resolve_dataset(name, tmp_path, data_root=root)
        lines = str(error.value).splitlines()
        assert "vqa/minival.json  from https://nlp.cs.unc.edu/" in lines[1]
        assert "val2014_obj36.tsv  from https://" in lines[2]
        assert "--dataset easy_vqa" in lines[3] and "train.json" not in str(error.value)


def test_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data set 'gqa'; there are: vqa, vqa_official, "):
        resolve_dataset("gqa", tmp_path)


def test_unknown_split_lists_the_known_ones(easy_vqa_root: Path) -> None:
    dataset = resolve_dataset("easy_vqa", easy_vqa_root)
    with pytest.raises(ConfigError, match="split tran of easy_vqa: it has pretrain, train, nomin"):
        load_split(dataset, "tran,minival")
    for splits in ("", "train,train"):
        with pytest.raises(ConfigError, match="each once"):
            load_split(dataset, splits)


def test_missing_test_part_is_named_only_when_it_is_asked_for(tmp_path: Path) -> None:
    dataset = resolve_dataset("vqa", data_root=write_vqa(tmp_path / "d"))
    with pytest.raises(DataError, match=r"vqa/test\.json  from https"):
        load_split(dataset, "test")
    with pytest.raises(DataError, match=r"test2015_obj36\.tsv  from https"):
        open_features(dataset, "test")


def test_tsv_is_imported_once_where_the_store_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_vqa(tmp_path / "d", width=2048)
    store = root / "mscoco_imgfeat" / "val2014_obj36"
    for path in store.iterdir():
        path.unlink()
    store.rmdir()

    def cell(array: np.ndarray) -> str:
        return base64.b64encode(array.tobytes()).decode()

    ids, ones = cell(np.zeros(1, "i8")), cell(np.ones(1, "f4"))
    arrays = [cell(np.array([1, 2, 8, 10], "f4")), cell(np.ones(2048, "f4"))]
    rows = [[i, "20", "16", ids, ones, ids, ones, "1", *arrays] for i in STORES["val2014"]]
    store.with_suffix(".tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    dataset = resolve_dataset("vqa", data_root=root)
    for expected in (1, 0):
        assert not open_features(dataset, "minival").missing(STORES["val2014"])
        assert capsys.readouterr().out.count("importing val2014_obj36.tsv") == expected


def test_several_stores_read_like_one(tmp_path: Path) -> None:
    one = write_store(tmp_path / "one", ["a", "b"], regions=2)
    two = write_store(tmp_path / "two", ["c", "d"], regions=3)
    both = FeatureSources([one, two])
    batch = both.read(["d", "a", "c", "a"])
    assert batch.image_ids == ["d", "a", "c", "a"] and batch.features.shape == (4, 3, 4)
    assert batch.mask.sum(1).tolist() == [3, 2, 3, 2]
    for row, (store, image_id) in enumerate([(two, "d"), (one, "a"), (two, "c"), (one, "a")]):
        regions = store.get(image_id)
        assert torch.equal(batch.features[row, : len(regions.boxes)], regions.features)
        assert not batch.features[row, len(regions.boxes) :].any()
    assert torch.equal(both.read(["b"]).features, one.read(["b"]).features)
    assert "d" in both and "e" not in both and both.missing(["e", "a"]) == ["e"]
    with pytest.raises(DataError, match=r"no record of image 'e' in .*one, .*two \(1 of 2 asked"):
        both.read(["a", "e"])


def test_stores_of_different_width_are_refused(tmp_path: Path) -> None:
    one, two = write_store(tmp_path / "one", ["a"], 4), write_store(tmp_path / "two", ["b"], 5)
    with pytest.raises(DataError, match="one has 4, .*two has 5"):
        FeatureSources([one, two])
    with pytest.raises(DataError, match="no store given"):
        FeatureSources([])


def make_data(tmp_path: Path, **changes: object) -> VQADataset:
    dataset = resolve_dataset("vqa", data_root=write_vqa(tmp_path / "d"))
    splits = "train,nominival"
    examples, features = load_split(dataset, splits), open_features(dataset, splits)
    return VQADataset(examples, features, dataset.vocabulary(), **changes)


def test_a_batch_has_questions_regions_and_targets_in_the_order_asked_for(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    batch = data.read([4, 0])
    assert len(data) == 5 and len(batch) == 2
    assert batch.question_ids == [5, 1] and batch.image_ids == ["V2", "T1"]
    assert batch.questions == ["what is 5?", "what is 1?"] and batch.answer_types == 2 * ["other"]
    assert batch.features[:, 0, 0].tolist() == [1, 0] and batch.region_mask.all()
    assert torch.allclose(batch.boxes, torch.tensor([1 / 16, 0.1, 0.5, 0.5]).expand(2, 2, 4))
    assert torch.allclose(batch.boxes * batch.sizes.repeat(1, 2)[:, None], batch.boxes_px)
    assert batch.target.dtype == torch.float32
    assert torch.equal(batch.target, torch.tensor([[0, 0.9], [0, 0.9]]))
    assert batch.target is not None and batch.object_ids is None


def test_unknown_answers_are_counted_once_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_data(tmp_path)
    shown = capsys.readouterr().out
    assert "5 answers of 5 questions (of 5) are not among the 2 known answers" in shown
    with pytest.raises(DataError, match=r"question 1 \('what is 1\?'\): answer 'mauve' is not"):
        make_data(tmp_path / "b", unknown="error")


def test_questions_without_public_answers_have_no_target(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", ["a"])
    examples = [Example(1, "a", "q?"), Example(2, "a", "q?", {"no": 1})]
    data = VQADataset(examples, store, AnswerVocabulary(["yes", "no"]))
    assert data.read([0]).target is None
    assert data.read([0, 1]).target.tolist() == [[0, 0], [0, 1]]


def test_image_without_features_is_named_with_its_question(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", ["a"])
    examples = [Example(n, i, f"q{n}?", {}) for n, i in enumerate(["a", "x", "x", "y"])]
    with pytest.raises(
        DataError, match=r"image 'x', which question 1 \('q1\?'\) is about; 2 of 3 images have none"
    ):
        VQADataset(examples, store, AnswerVocabulary(["no"]))
    with pytest.raises(DataError, match="no questions: the split, or the subset"):
        VQADataset([], store, AnswerVocabulary(["no"]))


def test_easy_vqa_reads_into_batches(easy_vqa_root: Path) -> None:
    for name in ("easy_vqa", "easy_vqa_cp", "easy_vqa_dialect"):
        dataset = resolve_dataset(name, easy_vqa_root)
        examples = load_split(dataset, "train,nominival")
        features = open_features(dataset, "train,nominival", expect_width=2048)
        data = VQADataset(examples, features, dataset.vocabulary(), unknown="error")
        batch = data.read(range(32))
        assert batch.features.shape == (32, 7, 2048) and batch.boxes.max() <= 1
        assert torch.equal(batch.target.sum(1), torch.ones(32)) and batch.target.shape[1] == 13
        assert batch.object_ids.shape == batch.attribute_conf.shape == (32, 7)


def test_subset_of_vqa_is_the_first_rows_of_each_store_as_upstream(tmp_path: Path) -> None:
    dataset = resolve_dataset("vqa", data_root=write_vqa(tmp_path / "d"))
    found = load_split(dataset, "train,nominival", images=1)
    assert [e.image_id for e in found] == ["T1"], "V2 is not among the first rows of val2014"


def test_subset_of_easy_vqa_is_the_first_images_of_each_split(easy_vqa_root: Path) -> None:
    dataset = resolve_dataset("easy_vqa", easy_vqa_root)
    examples = load_split(dataset, "train", images=5)
    assert len({e.image_id for e in examples}) == 5
    assert examples == subset_by_images(load_split(dataset, "train"), 5)


def test_holdout_shares_no_image_and_does_not_depend_on_the_order() -> None:
    examples = [Example(n, f"image{n // 3}", "q?") for n in range(3000)]
    train, held = split_holdout(examples, 0.1, seed=3)
    assert sorted([*train, *held], key=lambda e: e.question_id) == examples
    assert not {e.image_id for e in train} & {e.image_id for e in held}
    assert 70 < len(held) // 3 < 130
    backwards = split_holdout(examples[::-1], 0.1, seed=3)
    assert list(backwards[1])[::-1] == held
    assert split_holdout(examples, 0.1, seed=4)[1] != held


def test_holdout_has_an_image_on_both_sides_even_of_two() -> None:
    examples = [Example(1, "a", "q?"), Example(2, "b", "q?")]
    for fraction in (0.001, 0.999):
        assert [len(part) for part in split_holdout(examples, fraction)] == [1, 1]
    with pytest.raises(ConfigError, match="held-out fraction is 1.5: must lie between 0 and 1"):
        split_holdout(examples, 1.5)
    with pytest.raises(DataError, match="1 examples about 1 images cannot be split"):
        split_holdout(examples[:1], 0.5)


def test_table_names_a_source_for_every_file() -> None:
    for kind in DATASETS.values():
        files = kind.files(optional=True)
        assert all(files.values()) and kind.files().items() <= files.items()
        assert {s.questions for s in kind.splits.values()} <= files.keys()
        for split in (*kind.train.split(","), kind.valid):
            assert split in kind.splits and split not in kind.optional
