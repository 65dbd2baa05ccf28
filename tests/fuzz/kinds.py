"""The readers of foreign bytes, each with a real file, a way to damage it, and what is right.

A new reader, also one of a new backbone, gets a `Kind` here and is tested with the others. Paths of
a test never have to be understood by a reader: the file has its usual name in a fresh folder.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import math
import pickle
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import yaml
from hypothesis.strategies import SearchStrategy
from PIL import Image
from torch import Tensor

from common.ask.answering import ask
from common.data.annotations import AnswerVocabulary, Example, read_lxmert_json, read_official
from common.data.answer_scores import soft_scores
from common.data.tokenizer import Tokenizer
from common.detector.network import FasterRCNN
from common.detector.settings import read_settings
from common.features.lmdb_records import import_lmdb
from common.features.lxmert_tsv import COLUMNS, import_tsv
from common.features.npz import import_npz
from common.features.pictures import read_picture
from common.features.store import RegionFeatures
from common.features.vlbert_json import JsonFeatures, import_json
from common.own_data import read_table
from common.pickles import parse_pickle
from common.results.files import comparison_notes, load_result
from common.results.table import format_markdown, format_table
from common.runs.opened_run import open_run
from common.training.checkpoint import load_checkpoint
from common.training.weights import load_weights
from lxrt.answers import read_answers
from lxrt.pretraining_upstream import json_entries
from tests.common.data_files import annotation, plain_row, question, write_official, write_tsv
from tests.common.detector import files as detector_files
from tests.common.lmdb_files import arrays, texts, write_lmdb
from tests.common.own_data.files import write_csv
from tests.common.result_examples import lxmert_layout, make_result
from tests.conftest import EARLIER
from tests.fuzz import mutations
from tests.vilbert import concap_files
from tests.vilbert.task_files import NAMES, references, write_captions, write_references, write_vcr
from tests.vlbert.coco_files import ANSWERS, record
from vilbert.caption_data import (
    CaptionedImage,
    HardNegatives,
    find_hard_negatives,
    read_captions,
    read_hard_negatives,
)
from vilbert.concap_data import CaptionRecord, parse_record
from vilbert.referring_data import Referring, read_referring
from vilbert.sizes import BASE_CONFIG, ViLBertConfig, read_config
from vilbert.tasks import LOSSES, TASKS_FILE, TaskEntry, read_tasks
from vilbert.vcr_data import VCREntry, read_vcr
from vilbert.vqa_data import LABEL_TO_ANSWER, original_answers, with_targets
from vlbert.config import load_config
from vlbert.data_answers import AnswerFile
from vlbert.data_coco import read_sizes
from vlbert.options import read_changes
from vlbert.sizes import HOME

WIDTH = 6
Files = dict[str, bytes]


@dataclass(frozen=True)
class Kind:
    """A reader.

    Attributes:
        name: for the test.
        files: makes the real files in a folder.
        file: the one that is damaged.
        damage: strategy for its content.
        read: reads the folder.
        right: asserts that what was read of a damaged file is right: (value, value of the real
            files, content of the damaged one).
        weight: share of the long runs, in tenths of that of a quick reader.
    """

    name: str
    files: Callable[[Path], object]
    file: str
    damage: Callable[[bytes], SearchStrategy[bytes]]
    read: Callable[[Path], Any]
    right: Callable[[Any, Any, bytes], None]
    weight: int = 10


def unchanged(value: Any, real: Any, content: bytes) -> None:
    """Of files with checksums: only what was written is read."""
    assert same(value, real), "another value was accepted"


def anything(value: Any, real: Any, content: bytes) -> None:
    """Where every content is a valid one, that nothing else than a refusal is raised."""


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# Questions


def lxmert_questions(folder: Path) -> None:
    rows = [
        {
            "img_id": f"COCO_val2014_{i:012d}",
            "question_id": 10 * i,
            "sent": f"what is {i}?",
            "label": {"red": 1, "blue": 0.3},
            "answer_type": "other",
            "question_type": "what",
        }
        for i in range(1, 5)
    ]
    (folder / "train.json").write_text(json.dumps(rows))


def lxmert_right(value: list[Example], real: Any, content: bytes) -> None:
    rows = json.loads(content.decode("utf-8-sig"))
    assert len(rows) == len(value) == len({row["question_id"] for row in rows})
    for row, example in zip(rows, value, strict=True):
        assert example.question_id == row["question_id"] and type(row["question_id"]) in (int, str)
        assert example.image_id == row["img_id"] and example.question == row["sent"]
        assert example.answers == row.get("label") and (row["sent"]).strip()
        assert all(0 < s <= 1 for s in (row.get("label") or {}).values())
        (example.question + example.image_id).encode()


def official(folder: Path) -> None:
    asked = [question(i, 40 + i) for i in range(1, 5)]
    answered = [annotation(i, 40 + i, ("red", "blue")[i % 2]) for i in range(1, 5)]
    write_official(folder, "val2014", asked, answered)


def read_both(folder: Path) -> list[Example]:
    return read_official(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        folder / "v2_mscoco_val2014_annotations.json",
    )


def questions_right(value: list[Example], real: list[Example], content: bytes) -> None:
    file = json.loads(content.decode("utf-8-sig"))
    rows = file["questions"] if isinstance(file, dict) else file
    assert [e.question for e in value] == [row["question"] for row in rows]
    assert [e.question_id for e in value] == [row["question_id"] for row in rows]
    answers = {e.question_id: e.answers for e in real}
    assert all(e.answers == answers[e.question_id] for e in value)


def annotations_right(value: list[Example], real: list[Example], content: bytes) -> None:
    file = json.loads(content.decode("utf-8-sig"))
    rows = file["annotations"] if isinstance(file, dict) else file
    answers = {row["question_id"]: [a["answer"] for a in row["answers"]] for row in rows}
    assert [e.question for e in value] == [e.question for e in real]
    assert all(e.answers == soft_scores(answers[e.question_id]) for e in value)


def answer_files(folder: Path) -> None:
    AnswerVocabulary(["red", "blue", "yes", "no"]).write(folder)


def answers_right(value: AnswerVocabulary, real: AnswerVocabulary, content: bytes) -> None:
    assert value.answers == real.answers, "the other file has these"


TABLE = [
    {"image": "a.jpg", "question": 'is "it", red?', "answers": "yes|no|yes", "question_id": "7"},
    {"image": "b 2.png", "question": "how many are\nthere?", "answers": "two", "question_id": "x"},
    {"image": "é", "question": "what?", "answers": '{"red": 1, "blue": 0.5}', "question_id": "9"},
]


def table_rows(folder: Path, name: str) -> list[tuple[int, Example, str | None]]:
    table = read_table(folder / name)
    table.problems.check(skip=False)
    return [(row.line, row.example, row.split) for row in table.rows]


def plain_rows(given: list[dict[str, Any]], value: list[tuple[int, Example, str | None]]) -> None:
    """That what was read is what another reader finds."""
    assert len(given) == len(value) == len({example.question_id for _, example, _ in value})
    for row, (_, example, _) in zip(given, value, strict=True):
        assert row["image"].strip() == example.image_id and example.image_id.isprintable()
        assert row["question"].strip() == example.question and example.question
        assert str(row.get("question_id") or example.question_id).strip() == str(
            example.question_id
        )
        assert example.answers and all(0 < score <= 1 for score in example.answers.values())
        json.dumps(example.answers)
        (example.question + example.image_id).encode()


def csv_right(value: Any, real: Any, content: bytes) -> None:
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    cells = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    header = [name.strip().lower() for name in cells[0]]
    rows = [row for row in cells[1:] if any(cell.strip() for cell in row)]
    plain_rows([dict(zip(header, row, strict=True)) for row in rows], value)


def json_lines_right(value: Any, real: Any, content: bytes) -> None:
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    plain_rows([json.loads(line) for line in text.split("\n") if line.strip()], value)


# Features


def tsv(folder: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = []
    for name in ("a", "b"):
        features = torch.rand(3, WIDTH, generator=draw).numpy().astype("<f4")
        boxes = np.array([[1, 2, 30, 40], [5, 6, 20, 21], [0, 0, 8, 8]], "<f4")
        row = plain_row(name, WIDTH, 3, img_w=b"64", img_h=b"48")
        rows.append(
            row
            | {
                c: base64.b64encode(x.tobytes())
                for c, x in (("features", features), ("boxes", boxes))
            }
        )
    write_tsv(folder / "f.tsv", rows)


def store_values(store: RegionFeatures | JsonFeatures) -> dict[str, dict[str, Any]]:
    found = {}
    for name in store.ids():
        batch = store.read([name], classes=True)
        found[name] = {k: v for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return found


def read_tsv(folder: Path) -> Any:
    return store_values(import_tsv(folder / "f.tsv", folder / "s", WIDTH, progress=False))


def good_record(values: dict[str, Any]) -> None:
    """What every record of a store has to be."""
    width, height = values["sizes"][0].tolist()
    boxes, features = values["boxes"][0], values["features"][0]
    assert width >= 1 and height >= 1 and width == int(width) and height == int(height)
    assert features.shape == (len(boxes), WIDTH) and torch.isfinite(features).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and (boxes >= -1e-3).all()
    assert (boxes <= boxes.new_tensor([width, height, width, height]) * (1 + 1e-4)).all()
    for name in ("object_conf", "attribute_conf", "class_probabilities"):
        if name in values:
            assert ((values[name] >= 0) & (values[name] <= 1.002)).all()
    for name in ("object_ids", "attribute_ids"):
        if name in values:
            assert ((values[name] >= 0) & (values[name] < 2**31)).all()


def tsv_right(value: Any, real: Any, content: bytes) -> None:
    lines = [line.rstrip(b"\r\n") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    lines = lines[:-1] if not lines[-1] else lines  # behind the last line's end
    lines = lines[:-1] if not lines[-1] else lines  # an empty last line
    assert len(lines) == len(value)
    for line, (name, values) in zip(lines, value.items(), strict=True):
        row = dict(zip(COLUMNS, line.split(b"\t"), strict=True))
        assert row["img_id"].decode() == name
        count = int(row["num_boxes"])
        features = np.frombuffer(base64.b64decode(row["features"]), "<f4").reshape(count, WIDTH)
        boxes = np.frombuffer(base64.b64decode(row["boxes"]), "<f4").reshape(count, 4)
        assert torch.equal(values["features"][0], torch.from_numpy(features.copy()).half().float())
        assert torch.equal(values["boxes"][0], torch.from_numpy(boxes.copy()))
        assert values["sizes"][0].tolist() == [int(row["img_w"]), int(row["img_h"])]
        good_record(values)


def npz(folder: Path) -> None:
    (folder / "npz").mkdir()
    boxes = np.array([[1, 2, 30, 40], [5, 6, 20, 21], [0, 0, 8, 8]], np.float32)
    features = np.arange(3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)
    np.savez_compressed(
        folder / "npz" / "a.npz", features=features, boxes=boxes, width=64, height=48
    )


def read_npz(folder: Path) -> Any:
    return store_values(import_npz(folder / "npz", folder / "s", WIDTH, progress=False))


def npz_right(value: Any, real: Any, content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        file = {
            name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)))
            for name in archive.namelist()
        }
        names = {
            n: next(k for k in keys if k in file)
            for n, keys in {"features": ("features", "x"), "boxes": ("boxes", "bbox")}.items()
        }
        expected = {n: file[k] for n, k in names.items()}
    (values,) = value.values()
    features = torch.from_numpy(expected["features"].astype(np.float64)).half().float()
    assert torch.equal(values["features"][0], features)
    boxes = torch.from_numpy(expected["boxes"].astype(np.float32))
    assert torch.equal(values["boxes"][0], boxes)
    good_record(values)


def store(folder: Path) -> None:
    tsv(folder)
    import_tsv(folder / "f.tsv", folder / "store", WIDTH, progress=False)
    (folder / "f.tsv").unlink()


def read_store(folder: Path) -> Any:
    return store_values(RegionFeatures.open(folder / "store"))


def partial_store(folder: Path) -> None:
    """A TSV whose import was killed after its first row."""
    tsv(folder)
    content = (folder / "f.tsv").read_bytes()
    first, second = content.splitlines(keepends=True)
    (folder / "f.tsv").write_bytes(first + second[:-60])
    with contextlib.suppress(ValueError):
        import_tsv(folder / "f.tsv", folder / "s", WIDTH, progress=False)
    (folder / "f.tsv").write_bytes(content)


def json_features(folder: Path) -> None:
    (folder / "j").mkdir()
    for image in (9, 25):
        value = record(image, 3, WIDTH, classes=4)
        (folder / "j" / f"{image}.json").write_text(json.dumps(value))


def zipped_features(folder: Path) -> None:
    json_features(folder)
    shutil.make_archive(str(folder / "j"), "zip", folder / "j")
    shutil.rmtree(folder / "j")


def read_in_place(folder: Path) -> Any:
    path = folder / "j" if (folder / "j").is_dir() else folder / "j.zip"
    return store_values(JsonFeatures(path, WIDTH))


def read_imported(folder: Path) -> Any:
    path = folder / "j" if (folder / "j").is_dir() else folder / "j.zip"
    return store_values(import_json(path, folder / "s", WIDTH, progress=False))


def records_right(value: Any, real: Any, content: bytes) -> None:
    for values in value.values():
        if bool((values["sizes"] > 0).all()):
            good_record(values)


def text_record(folder: Path) -> None:
    (folder / "b.pkl").write_bytes(pickle.dumps(texts("b", classes=4), 3))


def array_record(folder: Path) -> None:
    (folder / "b.pkl").write_bytes(pickle.dumps(arrays("b", classes=4), 3))


def read_lmdb_record(folder: Path) -> Any:
    value = (folder / "b.pkl").read_bytes()
    path = write_lmdb(folder / "f.lmdb", {"a": arrays("a", classes=4), "b": value})
    return store_values(import_lmdb(path, folder / "s", WIDTH, progress=False))


def lmdb_records_right(value: Any, real: Any, content: bytes) -> None:
    records_right(value, real, content)
    record = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    features, boxes = (
        np.frombuffer(base64.b64decode(found), "<f4") if isinstance(found, str) else found
        for found in (record["features"], record["boxes"])
    )
    count = len(value["b"]["boxes"][0])
    expected = torch.from_numpy(np.asarray(features, np.float32).reshape(count, -1))
    assert torch.equal(value["b"]["features"][0], expected.half().float())
    assert np.array_equal(value["b"]["boxes"][0].numpy(), np.asarray(boxes, "f4").reshape(-1, 4))


class PlainUnpickler(pickle.Unpickler):
    """The standard library's, for what was accepted, with the names that may be in it."""

    def find_class(self, module: str, name: str) -> Any:
        assert module.split(".")[0] in ("numpy", "collections", "_codecs", "builtins"), module
        assert name in ("OrderedDict", "ndarray", "dtype", "encode", "bytes", "_reconstruct") or (
            name in ("scalar", "_frombuffer")
        ), name
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def pickled(folder: Path) -> None:
    draw = {"list": [1, -2.5, None, True, (2**40, "é", b"\x80")], "more": {"a": {1: [[]] * 2}}}
    draw |= {"array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(2), "record": texts("a")}
    (folder / "p.pkl").write_bytes(pickle.dumps(draw, 4))


def pickle_right(value: Any, real: Any, content: bytes) -> None:
    """What is accepted has the value that the standard library gives it, if it reads it."""
    try:
        expected = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    except AssertionError:
        raise
    except Exception:
        return
    assert same(value, expected) or repr(value) == repr(expected)  # NaN is not itself


def lmdb_file(folder: Path) -> None:
    write_lmdb(folder / "f.lmdb", {name: arrays(name, 60) for name in "abc"})


def read_lmdb_file(folder: Path) -> Any:
    return store_values(import_lmdb(folder / "f.lmdb", folder / "s", WIDTH, progress=False))


# Texts and configs


def vocabulary(folder: Path) -> None:
    shutil.copy(EARLIER / "lxmert" / "vocab.txt", folder / "vocab.txt")


def read_vocabulary(folder: Path) -> Any:
    tokenizer = Tokenizer(folder)
    ids, mask = tokenizer.encode(["What color is the shape?", "é 色"])
    assert ids.shape == mask.shape and int(ids.max()) < len(tokenizer)
    return tokenizer.text()


def vlbert_answers(folder: Path) -> None:
    (folder / "answers_vqa.txt").write_text("\n".join(ANSWERS) + "\n")


def config(folder: Path) -> None:
    text = (
        f"BASE: {HOME / 'cfgs' / 'easy_vqa' / 'base.yaml'}\n"
        "FINETUNE_STRATEGY: SpotTune_Block\nDATASET: {DATASET: easy_vqa}\nHOLDOUT: 0.2\n"
        "TRAIN:\n  LR: 1.0e-4\n  END_EPOCH: 2\n  LR_STEP: [1, 2]\n"
        "NETWORK:\n  VLBERT: &sizes {hidden_size: 32, num_hidden_layers: 2}\n"
        "POLICY: {NETWORK: small, TEMPERATURE: 5.0}\n"
    )
    (folder / "my.yaml").write_text(text)


def read_set(folder: Path) -> Any:
    text = (folder / "word").read_bytes().decode(errors="surrogateescape")
    return read_changes([text])


def coco_sizes(folder: Path) -> None:
    images = [{"id": i, "width": 64, "height": 48, "file_name": f"{i}.jpg"} for i in (1, 2, 3)]
    (folder / "i.json").write_text(json.dumps({"info": {}, "images": images, "licenses": []}))


def sizes_right(value: Any, real: Any, content: bytes) -> None:
    assert all(w >= 1 and h >= 1 and isinstance(w, int) for w, h in value.values())


def pretraining_answers(folder: Path) -> None:
    rows = [{"ans": a, "dsets": ["vqa"], "cnt": {"vqa": 3}} for a in ("red", "blue")]
    (folder / "all_ans.json").write_text(json.dumps(rows))


def pretraining_texts(folder: Path) -> None:
    rows = [{"img_id": "a", "sentf": {"mscoco": ["a red ball"]}, "labelf": {"vqa": []}}]
    (folder / "p.json").write_text(json.dumps(rows * 3))


# ViLBERT: its tasks, sizes and prepared answers


def vilbert_tasks(folder: Path) -> None:
    shutil.copy(TASKS_FILE, folder / "tasks.yml")


def tasks_right(value: dict[str, TaskEntry], real: Any, content: bytes) -> None:
    sections = yaml.safe_load(content.decode("utf-8-sig"))
    assert len(sections) == len(value)
    for (name, section), (number, task) in zip(sections.items(), value.items(), strict=True):
        # A rate without a point is a text in YAML.
        section = section | {"lr": float(section["lr"])}
        assert name == f"TASK{number}" and section.items() <= vars(task).items()
        assert LOSSES[task.type] == task.loss and task.name.strip()
        for key in ("batch_size", "lr", "num_epoch", "max_seq_length", "max_region_num"):
            assert 0 < getattr(task, key) < 1e9


def vilbert_config(folder: Path) -> None:
    shutil.copy(BASE_CONFIG, folder / "c.json")


def config_right(value: ViLBertConfig, real: Any, content: bytes) -> None:
    found = json.loads(content.decode("utf-8-sig"))
    read = value.to_dict()
    assert all(read[key] == x for key, x in found.items() if key in read)
    assert value.hidden_size % value.num_attention_heads == 0
    order = value.order()
    assert order.count(("connection", 0)) == bool(value.v_biattention_id and value.with_coattention)
    assert sum(stream == "lang" for stream, _ in order) == value.num_hidden_layers


def prepared_answers(folder: Path) -> None:
    (folder / "cache").mkdir()
    answers = ["red", "blue", "yes", "no", "2"]
    (folder / LABEL_TO_ANSWER).write_bytes(pickle.dumps(answers, 3))
    rows = [
        {"question_id": i, "image_id": 40 + i, "labels": [i, 0], "scores": [1.0, 0.3]}
        for i in range(1, 5)
    ]
    (folder / "cache" / "val_target.pkl").write_bytes(pickle.dumps(rows, 3))
    official(folder)


def read_targets(folder: Path) -> list[Example]:
    questions = read_official(folder / "v2_OpenEnded_mscoco_val2014_questions.json")
    return with_targets(questions, folder / "cache" / "val_target.pkl", original_answers(folder))


def prepared_right(value: list[str], real: Any, content: bytes) -> None:
    assert value == PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    assert all(isinstance(answer, str) for answer in value)


def targets_right(value: list[Example], real: list[Example], content: bytes) -> None:
    answers = ["red", "blue", "yes", "no", "2"]
    rows = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    said = {
        row["question_id"]: {
            answers[label]: score for label, score in zip(row["labels"], row["scores"], strict=True)
        }
        for row in rows
    }
    assert len(said) == len(rows)
    for example, of_file in zip(value, real, strict=True):
        assert example.question_id == of_file.question_id
        assert example.answers == said[example.question_id]
        assert all(0 < score <= 1 for score in example.answers.values())


# ViLBERT: its other tasks


def vcr(folder: Path) -> None:
    path = write_vcr(folder)
    path.write_text(path.read_text() * 2)


def vcr_right(value: list[VCREntry], real: Any, content: bytes) -> None:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    for entry, line in zip(value, lines, strict=True):
        assert (entry.entry_id, entry.label) == (line["annot_id"], line.get("answer_label"))
        assert len(entry.options) == 4 and int(entry.image_id) >= int(line["img_id"][-1])
        spoken = [word for word in line["question"] if isinstance(word, str)]
        assert all(word in entry.question for word in spoken)


def referring_right(value: list[Referring], real: Any, content: bytes) -> None:
    refs = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    said = [t for ref in refs if ref["split"] == "train" for t in ref["sentences"]]
    assert [(r.sentence_id, r.text) for r in value] == [(t["sent_id"], t["raw"]) for t in said]
    assert all(r.box == (1.5, 2, 31.5, 42) for r in value)


def captions(folder: Path) -> None:
    lines = [{"img_path": f"{n}.jpg", "sentences": ["a man", f"boat {n}"]} for n in range(3)]
    write_captions(folder / "a.jsonline", *lines)


def captions_right(value: list[CaptionedImage], real: Any, content: bytes) -> None:
    lines = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    for image, line in zip(value, lines, strict=True):
        assert list(image.captions) == line["sentences"] and all(image.captions)
        assert int(image.image_id) == int(Path(line["img_path"]).stem)


def concap_record(folder: Path) -> None:
    (folder / "record").write_bytes(concap_files.pack(concap_files.record(3, width=6)))


def concap_right(value: CaptionRecord, real: Any, content: bytes) -> None:
    found = msgpack.unpackb(content, strict_map_key=False)
    count = len(value.features)
    assert (int(found[3]), found[7]) == (count, value.caption)
    assert (int(found[4]), int(found[5])) == (value.height, value.width)
    assert value.features.isfinite().all() and value.boxes.shape == (count, 4)
    assert ((value.classes.sum(1) - 1).abs() < 0.02).all()
    limits = torch.tensor([value.width, value.height] * 2) + 1
    assert (value.boxes >= -1).all() and (value.boxes <= limits).all()


def hard_negatives(folder: Path) -> None:
    found = find_hard_negatives(["3", "5", "8"], torch.tensor([[0.0], [1.0], [5.0]]), 3)
    found.write(folder / "hard_negative.pkl")


def negatives_right(value: HardNegatives, real: Any, content: bytes) -> None:
    try:
        found = PlainUnpickler(io.BytesIO(content), encoding="latin-1").load()
    except AssertionError:
        raise
    except Exception:
        return  # numpy reads less than we do, where nothing depends on it
    assert (value.pool == found["train_hard_pool"]).all()
    assert list(value.images) == [str(name) for name in found["train_image_list"]]
    assert all(set(others) <= set(value.images) for others in value.of().values())


# Pictures


def photograph(height: int, width: int) -> np.ndarray:
    """Soft colours and noise."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    colours = np.stack([3 * x, 5 * y, x + y], -1) + draw.integers(0, 20, (height, width, 3))
    return colours.clip(0, 255).astype(np.uint8)


def png(folder: Path) -> None:
    Image.fromarray(photograph(40, 40)).save(folder / "p.png")


def jpeg(folder: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.fromarray(photograph(40, 56))
    picture.save(folder / "p.jpg", exif=exif.tobytes())


def picture_right(value: Image.Image, real: Image.Image, content: bytes) -> None:
    assert value.mode == "RGB" and min(value.size) >= 1
    assert math.prod(value.size) <= 178_956_970


# Results and checkpoints


def result(folder: Path) -> None:
    made = make_result(layout=lxmert_layout("SpotTune_Block", (1, 1, 1)))
    (folder / "result.json").write_text(json.dumps(made))


def read_result(folder: Path) -> Any:
    found = load_result(folder)
    format_table([found])
    format_markdown([found])
    comparison_notes([found])
    return found


def result_right(value: dict[str, Any], real: Any, content: bytes) -> None:
    assert {k: v for k, v in value.items() if k != "path"} == json.loads(
        content.decode("utf-8-sig")
    )
    for figures in value["accuracy"].values():
        assert all(v is None or math.isfinite(v) for v in (figures or {}).values())


def checkpoint(folder: Path) -> None:
    state, meta = load_checkpoint(EARLIER / "vlbert" / "BEST.safetensors")
    from common.training.checkpoint import save_checkpoint

    small = dict(list(state["model"].items())[-4:])
    save_checkpoint(folder / "c.safetensors", state | {"model": small}, meta)


def read_checkpoint(folder: Path) -> Any:
    return load_checkpoint(folder / "c.safetensors")


def crafted(value: Any, real: Any, content: bytes) -> None:
    """Checksums were made anew: what was crafted may be read, the tensors are those of the file."""
    weights = value[0].get("model")
    if isinstance(weights, dict) and isinstance(real[0]["model"], dict):
        for name, x in weights.items():
            if name in real[0]["model"] and isinstance(x, Tensor):
                assert x.numel() > 0


def detector_config(folder: Path) -> None:
    """JSON is YAML."""
    (folder / "config.yaml").write_text(json.dumps(detector_files.config()))


def settings_right(value: Any, real: Any, content: bytes) -> None:
    """A network can be made of them."""
    with torch.device("meta"):
        FasterRCNN(value)


def torch_file(folder: Path) -> None:
    weights = {"head.weight": torch.arange(6.0).view(2, 3), "head.bias": torch.ones(2)}
    torch.save({"state_dict": weights}, folder / "w.pth")


def weights_right(value: dict[str, Tensor], real: dict[str, Tensor], content: bytes) -> None:
    assert all(isinstance(x, Tensor) and isinstance(name, str) for name, x in value.items())


RUN = EARLIER / "lxmert"
QUESTION = "What color is the shape?"


def run_folder(folder: Path) -> None:
    for name in ("BEST.safetensors", "answers.json", "vocab.txt"):
        shutil.copy(RUN / name, folder / name)
    result(folder)


def read_run(folder: Path) -> Any:
    from common.features.store import Regions

    run = open_run(folder)
    boxes = torch.tensor([[1.0, 2, 30, 40], [5, 6, 20, 21]])
    regions = Regions("a", 64, 48, torch.ones(2, 2048), boxes)
    answered = ask(run, regions, QUESTION)
    return [(a.text, round(a.probability, 5)) for a in answered.answers]


def count_of(kinds: list[Kind]) -> Counter[str]:
    return Counter(kind.name for kind in kinds)


KINDS = [
    Kind(
        "LXMERT questions",
        lxmert_questions,
        "train.json",
        mutations.damaged_json,
        lambda f: read_lxmert_json(f / "train.json"),
        lxmert_right,
    ),
    Kind(
        "official questions",
        official,
        "v2_OpenEnded_mscoco_val2014_questions.json",
        mutations.damaged_json,
        read_both,
        questions_right,
    ),
    Kind(
        "official annotations",
        official,
        "v2_mscoco_val2014_annotations.json",
        mutations.damaged_json,
        read_both,
        annotations_right,
    ),
    Kind(
        "answer list",
        answer_files,
        "trainval_label2ans.json",
        mutations.damaged_json,
        AnswerVocabulary.read,
        answers_right,
    ),
    Kind(
        "answer labels",
        answer_files,
        "trainval_ans2label.json",
        mutations.damaged_json,
        AnswerVocabulary.read,
        answers_right,
    ),
    Kind("TSV", tsv, "f.tsv", mutations.damaged_tsv, read_tsv, tsv_right),
    Kind("NPZ", npz, "npz/a.npz", mutations.damaged_npz, read_npz, npz_right),
    Kind(
        "LMDB record of texts",
        text_record,
        "b.pkl",
        mutations.damaged_pickle,
        read_lmdb_record,
        lmdb_records_right,
    ),
    Kind(
        "LMDB record of arrays",
        array_record,
        "b.pkl",
        mutations.damaged_pickle,
        read_lmdb_record,
        lmdb_records_right,
    ),
    Kind(
        "LMDB file",
        lmdb_file,
        "f.lmdb/data.mdb",
        mutations.damaged_bytes,
        read_lmdb_file,
        records_right,
    ),
    Kind(
        "pickle",
        pickled,
        "p.pkl",
        mutations.damaged_pickle,
        lambda f: parse_pickle((f / "p.pkl").read_bytes(), f"{f / 'p.pkl'}"),
        pickle_right,
    ),
    *(
        Kind(
            f"store {name}",
            store,
            f"store/{name}",
            mutations.damaged_json if name.endswith("json") else mutations.damaged_bytes,
            read_store,
            anything if name == "meta.json" else unchanged,
            5,
        )
        for name in ("features.npy", "boxes.npy", "object_ids.npy", "index.npz", "meta.json")
    ),
    Kind(
        "journal",
        partial_store,
        "s.partial/journal.jsonl",
        mutations.damaged_bytes,
        read_tsv,
        unchanged,
        5,
    ),
    Kind(
        "writer settings",
        partial_store,
        "s.partial/writer.json",
        mutations.damaged_json,
        read_tsv,
        unchanged,
        5,
    ),
    Kind(
        "JSON features in place",
        json_features,
        "j/9.json",
        mutations.damaged_json,
        read_in_place,
        records_right,
    ),
    Kind(
        "JSON features imported",
        json_features,
        "j/9.json",
        mutations.damaged_json,
        read_imported,
        records_right,
    ),
    Kind(
        "ZIP in place",
        zipped_features,
        "j.zip",
        mutations.damaged_zip,
        read_in_place,
        records_right,
    ),
    Kind(
        "ZIP imported",
        zipped_features,
        "j.zip",
        mutations.damaged_zip,
        read_imported,
        records_right,
    ),
    Kind(
        "vocabulary", vocabulary, "vocab.txt", mutations.damaged_bytes, read_vocabulary, anything, 2
    ),
    Kind(
        "answers_vqa.txt",
        vlbert_answers,
        "answers_vqa.txt",
        mutations.damaged_bytes,
        lambda f: AnswerFile(f / "answers_vqa.txt").answers,
        anything,
    ),
    Kind(
        "config",
        config,
        "my.yaml",
        mutations.damaged_bytes,
        lambda f: load_config(f / "my.yaml"),
        anything,
        3,
    ),
    Kind(
        "--set",
        lambda f: (f / "word").write_bytes(b"TRAIN.LR={a: [1, 2.0e-4, yes, 2024-01-01]}"),
        "word",
        mutations.damaged_bytes,
        read_set,
        anything,
    ),
    Kind(
        "COCO sizes",
        coco_sizes,
        "i.json",
        mutations.damaged_json,
        lambda f: read_sizes(f / "i.json"),
        sizes_right,
    ),
    Kind(
        "pretraining answers",
        pretraining_answers,
        "all_ans.json",
        mutations.damaged_json,
        lambda f: read_answers(f / "all_ans.json", "hint", "way out"),
        anything,
    ),
    Kind(
        "pretraining texts",
        pretraining_texts,
        "p.json",
        mutations.damaged_json,
        lambda f: list(json_entries(f / "p.json", progress=False)),
        anything,
    ),
    Kind(
        "table as CSV",
        lambda f: write_csv(f / "t.csv", TABLE),
        "t.csv",
        mutations.damaged_bytes,
        lambda f: table_rows(f, "t.csv"),
        csv_right,
    ),
    Kind(
        "table as JSON lines",
        lambda f: (f / "t.jsonl").write_text("\n".join(map(json.dumps, TABLE))),
        "t.jsonl",
        mutations.damaged_lines,
        lambda f: table_rows(f, "t.jsonl"),
        json_lines_right,
    ),
    Kind(
        "ViLBERT tasks",
        vilbert_tasks,
        "tasks.yml",
        mutations.damaged_bytes,
        lambda f: read_tasks(f / "tasks.yml"),
        tasks_right,
    ),
    Kind(
        "ViLBERT config",
        vilbert_config,
        "c.json",
        mutations.damaged_json,
        lambda f: read_config(f / "c.json"),
        config_right,
    ),
    Kind(
        "ViLBERT prepared answers",
        prepared_answers,
        LABEL_TO_ANSWER,
        mutations.damaged_pickle,
        original_answers,
        prepared_right,
    ),
    Kind(
        "ViLBERT prepared targets",
        prepared_answers,
        "cache/val_target.pkl",
        mutations.damaged_pickle,
        read_targets,
        targets_right,
    ),
    Kind(
        "VCR",
        vcr,
        "val.jsonl",
        mutations.damaged_bytes,
        lambda f: read_vcr(f / "val.jsonl", f, NAMES),
        vcr_right,
    ),
    Kind(
        "referring expressions",
        lambda f: write_references(f, *references(), protocol=2),
        "refs(unc).p",
        mutations.damaged_pickle,
        lambda f: read_referring(f, "train"),
        referring_right,
    ),
    Kind(
        "captions",
        captions,
        "a.jsonline",
        mutations.damaged_bytes,
        lambda f: read_captions(f / "a.jsonline"),
        captions_right,
    ),
    Kind(
        "Conceptual Captions",
        concap_record,
        "record",
        mutations.damaged_bytes,
        lambda f: parse_record((f / "record").read_bytes(), "record"),
        concap_right,
    ),
    Kind(
        "hard negatives",
        hard_negatives,
        "hard_negative.pkl",
        mutations.damaged_pickle,
        lambda f: read_hard_negatives(f / "hard_negative.pkl"),
        negatives_right,
    ),
    Kind(
        "PNG",
        png,
        "p.png",
        mutations.damaged_bytes,
        lambda f: read_picture(f / "p.png"),
        picture_right,
        5,
    ),
    Kind(
        "JPEG",
        jpeg,
        "p.jpg",
        mutations.damaged_bytes,
        lambda f: read_picture(f / "p.jpg"),
        picture_right,
        5,
    ),
    Kind("result", result, "result.json", mutations.damaged_json, read_result, result_right),
    Kind(
        "checkpoint bytes",
        checkpoint,
        "c.safetensors",
        mutations.damaged_bytes,
        read_checkpoint,
        unchanged,
    ),
    Kind(
        "checkpoint header",
        checkpoint,
        "c.safetensors",
        mutations.damaged_safetensors,
        read_checkpoint,
        crafted,
    ),
    Kind(
        "detector config",
        detector_config,
        "config.yaml",
        mutations.damaged_json,
        lambda f: read_settings(f / "config.yaml"),
        settings_right,
        3,
    ),
    Kind(
        "torch file",
        torch_file,
        "w.pth",
        mutations.damaged_bytes,
        lambda f: load_weights(f / "w.pth"),
        weights_right,
    ),
    *(
        Kind(f"run {name}", run_folder, name, damage, read_run, right, 1)
        for name, damage, right in (
            ("BEST.safetensors", mutations.damaged_safetensors, anything),
            ("answers.json", mutations.damaged_json, unchanged),
            ("vocab.txt", mutations.damaged_bytes, unchanged),
            ("result.json", mutations.damaged_json, unchanged),
        )
    ),
]
