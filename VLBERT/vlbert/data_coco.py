"""Where VL-BERT's files of COCO, VQA v2 and VQA-CP v2 are, and how their questions are read.

All paths are relative to DATASET_PATH, `data/coco` in the configs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.annotations import Example, QuestionId, read_official
from common.data.answer_scores import soft_scores
from common.errors import ConfigError, DataError
from common.reading import short
from vlbert.images import ImageFiles, number_of, part_of

VQA_V2 = "https://visualqa.org/download.html"
VQA_CP = "https://computing.ece.vt.edu/~aish/vqacp"
COCO_SITE = "https://cocodataset.org/#download"
FEATURES = "https://github.com/jackroos/VL-BERT (data/PREPARE_DATA.md)"
WEIGHTS = "https://github.com/jackroos/VL-BERT (released models)"


@dataclass(frozen=True)
class Part:
    """A part of COCO: file of its images' sizes, and the features its images are in."""

    info: str
    features: str


@dataclass(frozen=True)
class ImageSet:
    """What a value of TRAIN_IMAGE_SET and the like stands for."""

    questions: str
    annotations: str | None = None


PARTS = {
    "train2014": Part("instances_train2014.json", "trainval2014"),
    "val2014": Part("instances_val2014.json", "trainval2014"),
    "test2015": Part("image_info_test2015.json", "test2015"),
}
FEATURE_FOLDER = "vgbua_res101_precomputed"
FEATURE_NAMES = {
    ("trainval2014", "10-100ada"): ("trainval2014_resnet101_faster_rcnn_genome",),
    ("test2015", "10-100ada"): ("test2015_resnet101_faster_rcnn_genome",),
    ("trainval2014", "36"): (
        "trainval_resnet101_faster_rcnn_genome_36",
        "trainval2014_resnet101_faster_rcnn_genome_36",
    ),
    ("test2015", "36"): ("test2015_resnet101_faster_rcnn_genome_36",),
}


def _v2(part: str, answered: bool = True) -> ImageSet:
    return ImageSet(
        f"vqa/v2_OpenEnded_mscoco_{part}_questions.json",
        f"vqa/v2_mscoco_{part}_annotations.json" if answered else None,
    )


def _cp(part: str) -> ImageSet:
    return ImageSet(f"vqa/vqacp_v2_{part}_questions.json", f"vqa/vqacp_v2_{part}_annotations.json")


SETS = {
    "vqa": {
        part: _v2(part) for part in ("train2014", "val2014", "minival2014", "valminusminival2014")
    }
    | {part: _v2(part, answered=False) for part in ("test2015", "test-dev2015")},
    # The derived repository calls the official test set `val`.
    "vqa_cp": {"train": _cp("train"), "val": _cp("test"), "test": _cp("test")},
}
NOT_TRAINED_ON = {"vqa_cp": ("val", "test")}


def split_sets(text: str) -> list[str]:
    """`train2014+val2014` as a list."""
    return [name.strip() for name in text.split("+") if name.strip()]


def find_set(dataset: str, name: str) -> ImageSet:
    """Look up one image set.

    Raises:
        ConfigError: The data set has none of this name.
    """
    if name not in SETS[dataset]:
        raise ConfigError(
            f"image set {name!r}: {dataset} has {', '.join(SETS[dataset])}; several "
            "are joined with +"
        )
    return SETS[dataset][name]


def check_files(folder: Path, wanted: Iterable[str], more: Iterable[tuple[Path, str]] = ()) -> None:
    """Make sure that files are there.

    Args:
        folder: DATASET_PATH.
        wanted: Paths in it.
        more: Other files, each with where it comes from.

    Raises:
        DataError: Some are not; all of them are listed with where they come from.
    """
    missing = [(folder / path, _source(path)) for path in wanted if not (folder / path).is_file()]
    missing += [(path, origin) for path, origin in more if not path.is_file()]
    if missing:
        lines = "\n".join(f"  {path.absolute()}  from {origin}" for path, origin in missing)
        raise DataError(
            f"{len(missing)} files are missing:\n{lines}\nfetch them, or use the "
            "embedded data: a config in cfgs/easy_vqa/, for instance "
            "./scripts/nondist_run.sh vqa/train_end2end.py cfgs/easy_vqa/base.yaml "
            "output"
        )


def _source(path: str) -> str:
    if "vqacp" in path:
        return VQA_CP
    return VQA_V2 if path.startswith("vqa/") else FEATURES


def read_examples(
    folder: Path, names: Sequence[str], verbatim: bool = False, dataset: str = "vqa"
) -> list[Example]:
    """Questions of one or several image sets; questions and answers are paired by their ids.

    Args:
        folder: DATASET_PATH.
        names: Of image sets.
        verbatim: Answers are compared as typed, as in the original; otherwise in the spelling of
            the official metric.
        dataset: vqa or vqa_cp.

    Raises:
        ConfigError: An unknown image set.
        DataError: Files are missing or damaged, or a question is in two of the sets.
    """
    sets = {name: find_set(dataset, name) for name in names}
    paths = [p for s in sets.values() for p in (s.questions, s.annotations) if p is not None]
    check_files(folder, paths)
    examples: list[Example] = []
    set_of: dict[QuestionId, str] = {}
    for name, found in sets.items():
        annotations = None if found.annotations is None else folder / found.annotations
        scores = typed_scores if verbatim else soft_scores
        for example in read_official(folder / found.questions, annotations, scores=scores):
            other = set_of.setdefault(example.question_id, name)
            if other != name:
                raise DataError(
                    f"{folder / found.questions}: question {example.question_id} is in "
                    f"image set {other} too: use sets that have no question in common"
                )
            examples.append(example)
    return examples


def typed_scores(answers: Sequence[str]) -> dict[str, float]:
    """`soft_scores` of answers compared letter by letter."""
    return soft_scores(answers, spelling=str)


@dataclass(frozen=True)
class COCO:
    """The parts of COCO that some questions are about."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, examples: Iterable[Example]) -> COCO:
        """Those of the images of some questions.

        Raises:
            DataError: An image of an unknown part.
        """
        first_of: dict[str, Example] = {}
        for example in examples:
            first_of.setdefault(part_of(example.image_id), example)
        for part, example in first_of.items():
            if part not in PARTS:
                raise DataError(
                    f"question {example.question_id}: image {example.image_id!r}: "
                    f"{part!r} is no part of COCO that VQA uses: {', '.join(PARTS)}"
                )
        return cls(tuple(part for part in PARTS if part in first_of))

    def features(self, boxes: str, folder: Path | None = None) -> dict[str, tuple[str, ...]]:
        """Path of region features -> parts of COCO whose images they may have.

        Args:
            boxes: 36 or 10-100ada.
            folder: Of the data: decides between names where a set of features has two.
        """
        found: dict[str, tuple[str, ...]] = {}
        for name in dict.fromkeys(PARTS[part].features for part in self.parts):
            names = [f"{FEATURE_FOLDER}/{n}" for n in FEATURE_NAMES[name, boxes]]
            there = [
                n
                for n in names
                if folder is not None
                and any((folder / f"{n}{end}").exists() for end in ("", ".zip", "_features"))
            ]
            found[(there or names)[0]] = tuple(p for p in PARTS if PARTS[p].features == name)
        return found

    def images(self, folder: Path, zipped: bool) -> ImageFiles:
        """Images of the parts: `train2014/` or `train2014.zip`.

        Args:
            folder: Of the data.
            zipped: Take the archive where both are there; otherwise the folder.

        Raises:
            DataError: There is neither.
        """
        places = {}
        for part in self.parts:
            both = [folder / part, folder / f"{part}.zip"]
            there = [path for path in both if path.exists()]
            if not there:
                raise DataError(
                    f"{both[0]} and {both[1].name}: neither is there: the images of "
                    f"{part} from {COCO_SITE}"
                )
            places[part] = there[-1] if zipped else there[0]
        return ImageFiles(places)

    def sizes(self, folder: Path, examples: Iterable[Example]) -> dict[str, tuple[int, int]]:
        """Width and height in pixels of the images of some questions, from COCO's JSON files.

        A part whose file is not there is left out: the region features know the sizes as well.

        Raises:
            DataError: A file is damaged, or lacks an image.
        """
        wanted = dict.fromkeys(example.image_id for example in examples)
        found = {}
        for part in self.parts:
            path = folder / "annotations" / PARTS[part].info
            if not path.is_file():
                continue
            known = read_sizes(path)
            for image_id in (i for i in wanted if part_of(i) == part):
                size = known.get(number_of(image_id))
                if size is None:
                    raise DataError(
                        f"{path}: no image with id {number_of(image_id)}: take the file of {part}"
                    )
                found[image_id] = size
        return found


ENTRY = ("id", "width", "height")
IMAGES_KEY = re.compile(r'"images"\s*:\s*(?=\[)')
FIRST_CHARACTERS = 1 << 20


def read_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Width and height by number, from the list `images` of a COCO JSON file.

    The instances files have hundreds of megabytes of outlines behind that list: they are not read.

    Raises:
        DataError: The list is missing or damaged, or an entry of it.
    """
    entries = _images_list(path)
    sizes = {}
    for place, entry in enumerate(entries, 1):
        values = [entry.get(k) if isinstance(entry, dict) else None for k in ENTRY]
        whole = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
        if len(whole) < len(ENTRY):
            raise DataError(
                f"{path}: entry {place} of 'images': {short(entry)}: expected whole numbers "
                "id, width and height"
            )
        number, width, height = whole
        sizes[str(number)] = (width, height)
        if min(width, height) < 1:
            raise DataError(
                f"{path}: entry {place} of 'images': {width} x {height} pixels: must be positive"
            )
    return sizes


def _images_list(path: Path) -> list[dict[str, Any]]:
    """The value of the key `images`, of so much of the file as it takes."""
    text, more = "", FIRST_CHARACTERS
    try:
        with open(path, encoding="utf-8-sig") as file:
            while part := file.read(more):
                text += part
                more = len(text)
                if (key := IMAGES_KEY.search(text)) is None:
                    continue
                try:
                    return json.JSONDecoder().raw_decode(text, key.end())[0]
                except json.JSONDecodeError:
                    continue
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({short(str(error))})") from None
    raise DataError(f"{path}: no list 'images' in it, or it is cut off: fetch the file again")
