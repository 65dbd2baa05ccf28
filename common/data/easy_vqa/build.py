"""Turn the PyPI package `easy-vqa` into files like those of VQA v2.

The package (https://github.com/vzhou842/easy-VQA, MIT) has 4000 + 1000 images of one coloured
shape each, 38,575 + 9,673 questions and 13 answers. `build_easy_vqa` writes a folder:

    v2_OpenEnded_easy_vqa_SPLIT_questions.json, v2_easy_vqa_SPLIT_annotations.json
                            official form; every answer ten times, so that a question scores 0 or 1
    SPLIT.json, trainval_ans2label.json, trainval_label2ans.json       the form of LXMERT
    images/train/KEY.png, images/test/KEY.png
    features/               region-feature store, made from pixels: see `regions`
    meta.json               counts, versions, sizes and SHA-256 of the files

Splits share no image: `pretrain` is half of the package's train images, chosen by a hash of the
image key; `nominival` a tenth of the other half, `train` the rest of it; `minival` is the
package's test part. Test images are numbered behind the train images, so ids are unique.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from PIL import Image
from tqdm import tqdm
from typing_extensions import TypedDict

from common.data.annotations import AnswerVocabulary, Example
from common.data.easy_vqa.regions import MAX_BOXES, WIDTH, extract_regions
from common.errors import DataError
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter, replace_folder
from common.files import exclusive, sha256, write_json
from common.reading import read_json

VERSION = 2  # of questions, splits and features: another one is built anew
DETECTOR = (
    f"pixels in the box (common.pixel_regions, version {VERSION}); not a learned detector, not "
    "comparable with Faster R-CNN features"
)
PREFIX = "EASY"
TEST_OFFSET = 4000
SPLITS = ("pretrain", "train", "nominival", "minival")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
Asked = tuple[str, str | None]
Splits = dict[str, list["Question"]]
Change = Callable[[Image.Image], Image.Image]


class BuiltFile(TypedDict):
    """A file of a data set as it was written."""

    bytes: int
    sha256: str


class BuiltMeta(TypedDict):
    """meta.json of a data set, as far as it is read."""

    version: int
    limit: int | None
    files: dict[str, BuiltFile]
    images: NotRequired[int]
    pictures: NotRequired[str]


@dataclass(frozen=True)
class Question:
    """One question of the package, with ids that are unique over both of its parts."""

    question_id: int
    """1000 x image id + number of the question, from 1."""
    image: int
    part: str
    """train or test, of the package."""
    text: str
    answer: str
    kind: str | None = None
    """Which of its data set's kinds it is of, where those are told apart."""

    @property
    def key(self) -> str:
        """Image key in the store."""
        return f"{PREFIX}_{self.part}_{self.image:012d}"

    @property
    def answer_type(self) -> str:
        return "yes/no" if self.answer in ("yes", "no") else "other"


def question_kind(text: str) -> Asked:
    """What is asked for: the question type and, in a yes/no question, the colour or shape.

    Types are `what color`, `what shape`, `is color`, `is shape`, `is not color`, `is not shape`.

    Raises:
        DataError: A question that the package does not ask.
    """
    words = re.findall("[a-z]+", text.lower())
    if words[:1] == ["what"]:
        return ("what color" if "color" in words else "what shape"), None
    values = [word for word in words if word in SHAPES or word in COLOURS]
    if len(values) != 1:
        raise DataError(f"question {text!r} names no or several colours and shapes: {values}")
    negated = "not " if "not" in words or "no" in words else ""
    return f"is {negated}{'shape' if values[0] in SHAPES else 'color'}", values[0]


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text only, evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def load_package(limit: int | None = None) -> tuple[list[Question], dict[str, Path]]:
    """Questions and image files (by key) of the installed package.

    Args:
        limit: Only the first so many train images, and a quarter as many test images.

    Raises:
        DataError: The package is not installed.
    """
    try:
        import easy_vqa
    except ImportError:
        raise DataError("package easy-vqa is not installed: pip install easy-vqa==1.0") from None
    questions, paths = [], {}
    for part, offset, read_questions, read_images in (
        ("train", 0, easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
        ("test", TEST_OFFSET, easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
    ):
        images = {k: Path(p) for k, p in read_images().items()}
        stop = len(images) if limit is None else limit if part == "train" else limit // 4
        asked: Counter[int] = Counter()
        for text, answer, number in zip(*read_questions(), strict=False):
            if number < stop:
                asked[number] += 1
                image = number + offset
                questions.append(Question(1000 * image + asked[number], image, part, text, answer))
        for number in sorted(images):
            if number < stop:
                paths[f"{PREFIX}_{part}_{number + offset:012d}"] = images[number]
    return questions, paths


def assign_splits(questions: Sequence[Question]) -> Splits:
    """Questions by split; deterministic, no image in two splits."""
    train_keys = {q.key for q in questions if q.part == "train"}
    ranked = sorted(train_keys, key=lambda key: share(f"pretrain {key}"))
    half = len(ranked) // 2
    held = len(ranked[half:]) // 10
    of_key = dict.fromkeys(ranked[:half], "pretrain")
    of_key |= dict.fromkeys(ranked[half : half + held], "nominival")
    splits: Splits = {name: [] for name in SPLITS}
    for q in questions:
        splits["minival" if q.part == "test" else of_key.get(q.key, "train")].append(q)
    return splits


def official_json(
    questions: Iterable[Question], coco_split: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Question and annotation entries in the official form; with `coco_split` as in VQA-CP."""
    asked, answered = [], []
    for q in questions:
        extra = ({"coco_split": q.part} if coco_split else {}) | kind_entry(q)
        ids = {"image_id": q.image, "question_id": q.question_id}
        asked.append({**ids, "question": q.text, **extra})
        answers = [
            {"answer": q.answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)
        ]
        answered.append(
            {
                **ids,
                "question_type": question_kind(q.text)[0],
                "answer_type": q.answer_type,
                "multiple_choice_answer": q.answer,
                "answers": answers,
                **extra,
            }
        )
    return asked, answered


def kind_entry(question: Question) -> dict[str, str]:
    """The field of a question whose kind is told."""
    return {} if question.kind is None else {"kind": question.kind}


def lxmert_json(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Entries in the form of LXMERT."""
    return [
        {
            "answer_type": q.answer_type,
            "img_id": q.key,
            "label": {q.answer: 1},
            "question_id": q.question_id,
            "question_type": question_kind(q.text)[0],
            "sent": q.text,
            **kind_entry(q),
        }
        for q in questions
    ]


def question_vocabulary(questions: Iterable[Question]) -> AnswerVocabulary:
    """All answers of the package, frequent ones first."""
    examples = [Example(q.question_id, q.key, q.text, {q.answer: 1.0}) for q in questions]
    return AnswerVocabulary.build(examples, minimum=1)


def build_easy_vqa(out: Path | str, force: bool = False, limit: int | None = None) -> bool:
    """Write the data set; half a minute on one core. Does nothing where it is there and whole.

    Args:
        out: Its folder.
        force: Write it anew in any case.
        limit: As in `load_package`, for tests.

    Returns:
        Whether anything was written.

    Raises:
        DataError: `out` has other things in it, or the package is not installed.
    """
    return build_folder("easy_vqa", out, force, limit, _write_easy_vqa)


Write = Callable[[Path, list[Question], dict[str, Path]], tuple[Splits, dict[str, int]]]


def build_folder(name: str, out: Path | str, force: bool, limit: int | None, write: Write) -> bool:
    """Write a data set that is made of the package; arguments and result as `build_easy_vqa`.

    Args:
        name: Of the data set.
        write: Gets a folder, and what `load_package` gives; writes questions, and images if it has
            its own, and returns the questions by split and further counts for meta.json.
    """
    out = Path(out)
    with exclusive(out.with_name(f".{out.name}.lock")):
        if not force and is_whole(out, limit):
            return False
        partial = start_folder(out)
        questions, paths = load_package(limit)
        splits, counts = write(partial, questions, paths)
        question_vocabulary(questions).write(partial)
        finish_folder(partial, out, name, splits, limit, **counts)
    return True


def _write_easy_vqa(
    folder: Path, questions: list[Question], paths: dict[str, Path]
) -> tuple[Splits, dict[str, int]]:
    splits = assign_splits(questions)
    write_splits(folder, "easy_vqa", "easy-VQA", splits)
    write_images(folder, paths)
    return splits, {"images": len(paths)}


def write_splits(folder: Path, name: str, title: str, splits: Splits) -> None:
    """Questions in the official form and in that of LXMERT; `minival` is of the test images."""
    for split, rows in splits.items():
        asked, answered = official_json(rows)
        subtype = {"data_subtype": "test" if split == "minival" else "train"}
        head = {"info": {"description": f"{title}, {split}"}, **subtype}
        write_json(
            folder / f"v2_OpenEnded_{name}_{split}_questions.json",
            {**head, "task_type": "Open-Ended", "questions": asked},
        )
        write_json(
            folder / f"v2_{name}_{split}_annotations.json", {**head, "annotations": answered}
        )
        write_json(folder / f"{split}.json", lxmert_json(rows))


def write_images(folder: Path, paths: Mapping[str, Path], change: Change | None = None) -> None:
    """Write images and their region features.

    Args:
        folder: Of the data set.
        paths: Image files by key.
        change: Makes another image of each; None copies the files.
    """
    optional = ("object_ids", "object_conf", "attribute_ids", "attribute_conf")
    for part in ("train", "test"):
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
    with RegionFeatureWriter(
        folder / "features",
        WIDTH,
        detector=DETECTOR,
        box_policy=f"tight boxes of foreground, windows, whole image; at most {MAX_BOXES}",
        optional=optional,
        source=f"easy-vqa {importlib.metadata.version('easy-vqa')}",
    ) as writer:
        for key, path in tqdm(paths.items(), desc="easy-VQA images", unit="image"):
            own = folder / "images" / key.split("_")[1] / f"{key}.png"
            if change is None:
                shutil.copyfile(path, own)
            else:
                with Image.open(path) as image:
                    change(image).save(own)
            with Image.open(own) as image:
                width, height = image.size
                found = extract_regions(image)
            writer.add(
                key,
                width,
                height,
                found.boxes,
                found.features,
                object_ids=found.object_ids,
                object_conf=found.confidence,
                attribute_ids=found.attribute_ids,
                attribute_conf=found.confidence,
            )
        writer.finish()


def start_folder(out: Path) -> Path:
    """An empty folder to write in, beside `out`; `finish_folder` gives it its name.

    Raises:
        DataError: `out` has things in it that no builder of this module wrote.
    """
    if out.exists() and any(out.iterdir()) and not (out / "meta.json").is_file():
        raise DataError(f"{out}: is not empty and not an easy-VQA folder: choose another --out")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def finish_folder(
    partial: Path, out: Path, name: str, splits: Splits, limit: int | None, **counts: int
) -> None:
    """Write meta.json and give the folder its name."""
    files = sorted(p for p in partial.glob("**/*") if p.is_file() and p.suffix in (".json", ".npy"))
    meta = {
        "name": name,
        "version": VERSION,
        "package": f"easy-vqa {importlib.metadata.version('easy-vqa')}",
        "limit": limit,
        "answers": len(AnswerVocabulary.read(partial)),
        **counts,
        "splits": {
            split: {"images": len({q.image for q in rows}), "questions": len(rows)}
            for split, rows in splits.items()
        },
        "files": {
            p.relative_to(partial).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)}
            for p in files
        },
    }
    if (partial / "images").is_dir():
        meta["pictures"] = pictures_digest(partial)
    write_json(partial / "meta.json", meta, indent=1)
    replace_folder(partial, out)


def is_whole(
    out: Path, limit: int | None = None, content: bool = True, progress: bool = True
) -> bool:
    """Whether `out` has a data set of this version with every file as it was written.

    Args:
        out: Folder of the data set.
        limit: The one it was built with.
        content: Compare the SHA-256 of all files as well, not only their sizes.
        progress: Show a bar while they are read.
    """
    try:
        meta = read_json(out / "meta.json", schema=BuiltMeta)
        if (meta["version"], meta["limit"]) != (VERSION, limit):
            return False
        if any((out / n).stat().st_size != known["bytes"] for n, known in meta["files"].items()):
            return False
        if "images" in meta:
            if not RegionFeatures.open(out / "features").has_checksums:
                return False  # made by an earlier version; the values are the same
            if len(list((out / "images").glob("*/*.png"))) != meta["images"]:
                return False
        return not content or _as_written(out, meta, progress)
    except (DataError, OSError):
        return False


def _as_written(out: Path, meta: BuiltMeta, progress: bool) -> bool:
    """Whether all files have the checksums of meta.json."""
    total = sum(known["bytes"] for known in meta["files"].values())
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=f"verify {out.name}", disable=not progress
    ) as bar:
        if any(sha256(out / name, bar) != known["sha256"] for name, known in meta["files"].items()):
            return False
    return "pictures" not in meta or pictures_digest(out) == meta["pictures"]


def pictures_digest(folder: Path) -> str:
    """SHA-256 of the image files of a data set, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted((folder / "images").glob("*/*.png")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
