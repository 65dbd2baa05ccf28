"""LXMERT's pretraining data in the original files: what is read, left out and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources
from lxrt import pretraining_data
from lxrt.pretraining_data import (
    DataOptions,
    PretrainingData,
    load_pretraining_data,
    region_classes,
    resolve_pretraining,
    with_features,
)
from lxrt.pretraining_sentences import Sentences, SentencesBuilder
from lxrt.pretraining_upstream import json_entries, read_upstream
from tests.lxmert.pretraining_files import (
    ANSWERS,
    MINIVAL,
    TRAIN,
    VAL,
    VG,
    PretrainingFiles,
    write_store,
)

SPLITS = DataOptions("mscoco_train,mscoco_nominival,vgnococo", "mscoco_minival", progress=False)
KNOWN = [answer for answer, _ in ANSWERS]


@pytest.fixture
def files(pretraining_files: PretrainingFiles) -> PretrainingFiles:
    return pretraining_files


def load(files: PretrainingFiles, **changes: object) -> PretrainingData:
    options = DataOptions(**(vars(SPLITS) | changes))
    return load_pretraining_data(
        resolve_pretraining("lxmert", files.data, None), options, say=lambda line: None
    )


def table(rows: Sentences) -> list[tuple[str, str, str, bool, dict[str, float]]]:
    """Image, category, sentence, whether it is a question, answers."""
    found = []
    for row in range(len(rows)):
        labels, scores = rows.answers(row)
        found.append(
            (
                rows.image_id(row),
                rows.categories[rows.kinds[row]],
                rows.sentence(row),
                bool(rows.questions[row]),
                {KNOWN[i]: round(float(s), 6) for i, s in zip(labels, scores, strict=True)},
            )
        )
    return found


def write(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_a_file_is_flattened_in_its_order_with_labels_where_its_categories_have_them(tmp_path):
    path = write(
        tmp_path / "a.json",
        [
            {
                "img_id": "1",
                "sentf": {"mscoco": ["A cat.", "Süß 色"], "vqa": ["Who?", "How many?"]},
                "labelf": {"vqa": [{"a man": 0.9, "unheard": 0.3}, {"two": 1}]},
            },
            {"img_id": "2", "sentf": {"gqa": ["What?"], "vg": []}, "labelf": {"gqa": [{}]}},
        ],
    )
    said = []
    assert table(read_upstream([path], KNOWN, said.append, False)) == [
        ("1", "mscoco", "A cat.", False, {}),
        ("1", "mscoco", "Süß 色", False, {}),
        ("1", "vqa", "Who?", True, {"man": 0.9}),
        ("1", "vqa", "How many?", True, {"2": 1.0}),
        ("2", "gqa", "What?", True, {}),
    ]
    assert said == ["a: 5 sentences about 2 images; 1 answers are not among the 7 known ones"]


def test_of_two_spellings_of_one_answer_the_higher_score_counts(tmp_path):
    path = write(
        tmp_path / "a.json",
        [
            {
                "img_id": "1",
                "sentf": {"vqa": ["How many?", "Again?"]},
                "labelf": {"vqa": [{"2": 0.9, "two": 0.3}, {"2": 0.3, "Two.": 0.6}]},
            }
        ],
    )
    assert [row[4] for row in table(read_upstream([path], KNOWN, print, False))] == [
        {"2": 0.9},
        {"2": 0.6},
    ]


def test_blank_sentences_are_left_out_and_counted(tmp_path):
    path = write(
        tmp_path / "a.json",
        [{"img_id": "1", "sentf": {"vqa": [" ", "Who?"]}, "labelf": {"vqa": [{}, {"man": 1}]}}],
    )
    said = []
    assert table(read_upstream([path], KNOWN, said.append, False)) == [
        ("1", "vqa", "Who?", True, {"man": 1.0})
    ]
    assert "1 blank ones are left out" in said[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "entry 2: not an object with a text `img_id`"),
        ({"img_id": 7, "sentf": {}}, "entry 2: not an object with a text `img_id`"),
        ({"img_id": "b"}, "entry 2, image 'b': `sentf` and `labelf` must be objects"),
        (
            {"img_id": "b", "sentf": {"vqa": "Who?"}},
            "entry 2, image 'b': `sentf` of 'vqa' is not a list of texts",
        ),
        (
            {"img_id": "b", "sentf": {"vqa": ["Who?", "What?"]}, "labelf": {"vqa": [{}]}},
            "entry 2, image 'b': `labelf` of 'vqa' is not a list of as many labels as there are "
            r"sentences \(2\)",
        ),
        (
            {"img_id": "b", "sentf": {"vqa": ["Who?"]}, "labelf": {"vqa": ["man"]}},
            "image 'b', 'vqa', sentence 1: the label is not an object",
        ),
        *(
            (
                {"img_id": "b", "sentf": {"vqa": ["Who?"]}, "labelf": {"vqa": [{"man": score}]}},
                f"image 'b', 'vqa', sentence 1: answer 'man' has score {shown}, expected a number",
            )
            for score, shown in (
                (0, "0"),
                (1.5, "1.5"),
                ("1", "'1'"),
                (True, "True"),
                (float("nan"), "nan"),
            )
        ),
    ],
)
def test_an_entry_of_another_form_is_named_with_file_image_and_sentence(tmp_path, entry, message):
    path = write(tmp_path / "a.json", [{"img_id": "a", "sentf": {"vqa": ["Who?"]}}, entry])
    with pytest.raises(
        DataError,
        match=rf"a\.json: {message}"
        if message.startswith("entry")
        else rf"a\.json: entry 2, {message}",
    ):
        read_upstream([path], KNOWN, print, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"img_id": "a"}, {"img', r"line 1, column \d+: not valid JSON .* truncated or damaged"),
        ('[{"img_id": "a"}', r"line 1, column 17: not valid JSON"),
        ('{"img_id": "a"}', "not a JSON list"),
        ("", "not a JSON list"),
        ("[] []", "line 1, column 2: not valid JSON"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        list(json_entries(tmp_path / "a.json", False))


def test_entries_are_those_of_the_json_module(tmp_path):
    entries = [{"a": [1, {"b": None}]}, "x", [], 3.5]
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(f" \n{json.dumps(entries, indent=indent)}\n")
        assert list(json_entries(tmp_path / "a.json", False)) == entries


def test_the_splits_of_upstream_are_trained_and_validated_on(files):
    data = load(files)
    assert set(data.train.used_images()) == {*TRAIN, *VAL[4:], *VG}
    assert data.heldout.used_images() == MINIVAL
    assert sorted(data.train.categories) == ["gqa", "mscoco", "visual7w", "vqa"]
    captions = data.train.kinds == data.train.categories.index("mscoco")
    assert np.array_equal(data.train.questions, ~captions)
    assert list(data.answers) == KNOWN and data.features.width == 2048
    batch = data.features.read([TRAIN[0], VAL[0], VG[1]])
    assert batch.mask.sum(1).tolist() == [4, 4, 2] and batch.object_ids.max() < 1600


def test_without_a_validation_split_some_training_images_are_held_out(files):
    data = load(files, valid="", holdout=0.3)
    train, heldout = set(data.train.used_images()), set(data.heldout.used_images())
    assert not train & heldout and train | heldout == {*TRAIN, *VAL[4:], *VG}
    assert len(heldout) >= 2
    assert len(data.train) + len(data.heldout) == 6 * 26


def test_qasets_restricts_the_answers_to_those_of_some_data_sets(files):
    data = load(files, qa_sets=("visual7w",))
    assert list(data.answers) == [answer for answer, sets in ANSWERS if "visual7w" in sets]
    assert len(data.answers) == 4
    rows = [row for row in range(len(data.train)) if data.train.answers(row)[0].size]
    assert {data.answers[i] for row in rows for i in data.train.answers(row)[0]} == {
        "2",
        "man",
        "table",
    }
    both = load(files, qa_sets=("gqa", "vqa"))
    assert list(both.answers) == [answer for answer, sets in ANSWERS if {"gqa", "vqa"} & set(sets)]
    with pytest.raises(
        ConfigError, match="--qaSets 'vizwiz': the answers of .* are of gqa, visual7w, vqa"
    ):
        load(files, qa_sets=("vqa", "vizwiz"))


@pytest.mark.parametrize(("flag", "name"), [("tiny", "UPSTREAM_TINY"), ("fast", "FAST_IMAGES")])
def test_a_part_of_the_data_is_the_first_rows_of_every_feature_file(files, monkeypatch, flag, name):
    """So a small part has nothing of mscoco_nominival, whose images come later in val2014."""
    monkeypatch.setattr(pretraining_data, name, 3)
    data = load(files, **{flag: True})
    assert data.train.used_images() == [*TRAIN[:3], *VG[:3]]
    assert data.heldout.used_images() == MINIVAL[:3]


def test_validation_uses_the_first_images_of_each_feature_file_even_without_such_a_flag(
    files, monkeypatch
):
    monkeypatch.setattr(pretraining_data, "UPSTREAM_VALIDATION", 2)
    data = load(files)
    assert data.heldout.used_images() == MINIVAL[:2]
    assert len(data.train.used_images()) == 26


def test_missing_files_are_all_listed_with_where_they_come_from(tmp_path):
    with pytest.raises(DataError) as error:
        load(PretrainingFiles(tmp_path, tmp_path), train="mscoco_train,vgnococo")
    message = str(error.value)
    root = "https://nlp.cs.unc.edu/data/lxmert_data"
    assert "data set lxmert: 7 files are missing" in message
    for path, source in (
        ("lxmert/all_ans.json", "lxmert"),
        ("lxmert/vgnococo.json", "lxmert"),
        ("mscoco_imgfeat/val2014_obj36.tsv", "mscoco_imgfeat"),
        ("vg_gqa_imgfeat/vg_gqa_obj36.tsv", "vg_gqa_imgfeat"),
    ):
        assert f"{tmp_path / path}  from {root}/{source}/" in message
    assert "use the embedded data with --dataset easy_vqa" in message


@pytest.mark.parametrize(
    "train", ["train", "mscoco_train,mscoco_train", "", "mscoco_train,mscoco_minival"]
)
def test_splits_that_do_not_exist_or_are_named_twice_are_refused(files, train):
    with pytest.raises(ConfigError, match="split .* of lxmert: it has mscoco_train, .*vgnococo"):
        load(files, train=train)


def test_images_without_features_are_an_error_or_left_out_and_counted(tmp_path):
    builder = SentencesBuilder()
    for image in ("a", "b", "c", "b"):
        builder.add(image, "mscoco", f"about {image}", None)
    rows = builder.build()
    features = FeatureSources([write_store(tmp_path / "store", ["a", "c"])])
    with pytest.raises(
        DataError, match="mscoco_train: 1 of 3 images have no region features, e.g. 'b'.*--skip-bad"
    ):
        with_features(rows, features, False, "mscoco_train", print)
    said = []
    kept = with_features(rows, features, True, "mscoco_train", said.append)
    assert [kept.sentence(row) for row in range(len(kept))] == ["about a", "about c"]
    assert said == ["mscoco_train: 1 of 3 images have no region features: 2 sentences are left out"]
    with pytest.raises(DataError, match="no sentence is about an image with region features"):
        with_features(rows.keep(rows.about({"b"})), features, True, "mscoco_train", print)


def test_the_data_set_follows_the_named_splits_and_the_files_that_are_there(files, tmp_path):
    assert resolve_pretraining(None, files.data, None).name == "lxmert"
    assert resolve_pretraining(None, tmp_path, "mscoco_train").name == "lxmert"
    with pytest.raises(ConfigError, match="vqa_x"):
        resolve_pretraining("vqa_x", tmp_path, None)


def test_classes_are_those_of_the_original_detector_and_a_store_without_them_is_named(
    files, tmp_path
):
    source, data = resolve_pretraining("lxmert", files.data, None), load(files)
    assert region_classes(source, data.features, ("obj", "attr")) == {}
    store = write_store(tmp_path / "store", ["a"], classes=(1, 1))
    store.meta["optional"] = ["object_ids", "object_conf"]
    bare = FeatureSources([store])
    assert region_classes(source, bare, ("obj", "feat")) == {}
    with pytest.raises(
        ConfigError, match="has no attribute_conf: leave attr out of --visualLosses"
    ):
        region_classes(source, bare, ("obj", "attr"))


def test_a_table_keeps_its_sentences_when_some_are_taken_out():
    builder = SentencesBuilder()
    for place in range(10):
        builder.add(
            f"{place % 3}",
            "vqa" if place % 2 else "mscoco",
            "ä" * place + "x",
            {place: 0.5, 0: 1.0} if place % 4 else None,
        )
    rows = builder.build()
    keep = np.array([place % 3 != 1 for place in range(10)])
    kept = rows.keep(keep)
    for new, old in enumerate(np.flatnonzero(keep)):
        assert kept.sentence(new) == rows.sentence(old) and kept.image_id(new) == rows.image_id(old)
        assert kept.questions[new] == rows.questions[old] and kept.kinds[new] == rows.kinds[old]
        for a, b in zip(kept.answers(new), rows.answers(old), strict=True):
            assert np.array_equal(a, b)
    assert kept.used_images() == ["0", "2"]
    assert list(kept.texts()) == [rows.sentence(old) for old in np.flatnonzero(keep)]
