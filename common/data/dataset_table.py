"""The table of data sets: which files a data set has, where they come from, how they are read.

A further data set is a row of `DATASETS` and, where its questions are in a form of their own, a
`Reader`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.annotations import (
    ANSWER_TO_LABEL,
    LABEL_TO_ANSWER,
    Example,
    read_lxmert_json,
    read_official,
)
from common.data.easy_vqa.dialect import VARIANTS
from common.projects import vqa_data

MINIVAL_ROWS = 5000


@dataclass(frozen=True)
class Split:
    """The files of one split; paths are relative to the folder of the data set."""

    questions: str
    features: tuple[str, ...]
    """Region-feature stores that its images are in; see `common.features.sources`."""
    annotations: str | None = None
    """File of the answers, where it is another one."""
    rows: tuple[int, int | None] = (0, None)
    """Only questions about the images in these rows of the feature TSV, from 0; the end is not
    included, None means all the rest."""


Reader = Callable[[Path, Split], list[Example]]


def read_lxmert_split(folder: Path, split: Split) -> list[Example]:
    """Questions with soft answers in one file."""
    return read_lxmert_json(folder / split.questions)


def read_official_split(folder: Path, split: Split) -> list[Example]:
    """Questions and annotations in two files."""
    answers = None if split.annotations is None else folder / split.annotations
    return read_official(folder / split.questions, answers)


@dataclass(frozen=True)
class DatasetKind:
    """One row of the table; paths are relative to the folder that `base` names."""

    summary: str
    splits: dict[str, Split]
    vocabulary: str
    """Folder of the two answer lists."""
    sources: dict[str, str]
    """Start of a path to where those files come from; the first that fits counts."""
    train: str = "train,nominival"
    """Splits that are trained on unless others are asked for."""
    valid: str = "minival"
    """The split that is reported unless another one is asked for."""
    reported_only: tuple[str, ...] = ()
    """Splits that must not be trained on."""
    read: Reader = read_lxmert_split
    answers_of: tuple[str, ...] = ()
    """Splits whose annotations the answer lists are made of; none: they are given."""
    optional: tuple[str, ...] = ()
    """Splits that training and validation do without."""
    subset_by_rows: bool = False
    """A subset of N images is the first N rows of each store (as upstream LXMERT has it), and not
    the first N images of each split."""
    embedded: tuple[str, ...] = ()
    """Embedded data sets that are built where they are missing, in this order; none: the files
    have to be fetched."""
    instead: str = "easy_vqa"
    """The embedded data set to use where files are missing."""
    small: bool = False
    """Its features are of plain shapes, as the committed small pretrained models know them."""
    place: str = ""
    """Folder, relative to the repository, of data that is embedded or one's own; empty: that of the
    official files of VQA."""

    @property
    def base(self) -> str:
        """Folder, relative to the repository; the user may name another one for official files."""
        return self.place or vqa_data()

    def files(self, optional: bool = False) -> dict[str, str]:
        """Paths of a data set, relative to its folder, and where each comes from.

        Args:
            optional: With those of the splits that training does without.
        """
        wanted = [s for name, s in self.splits.items() if optional or name not in self.optional]
        paths = [p for s in wanted for p in (s.questions, s.annotations) if p is not None]
        if not self.answers_of:
            paths += [f"{self.vocabulary}/{name}" for name in (ANSWER_TO_LABEL, LABEL_TO_ANSWER)]
        paths += [path for split in wanted for path in split.features]
        return {path.removeprefix("./"): self.source(path) for path in dict.fromkeys(paths)}

    def source(self, path: str) -> str:
        """Where a file comes from."""
        return next(s for start, s in self.sources.items() if path.startswith(start))

    def is_features(self, path: str) -> bool:
        """Whether a path of `files` is a region-feature store."""
        return any(path in split.features for split in self.splits.values())

    def answer_files(self) -> Iterator[str]:
        """Annotation files that the answer lists are made of."""
        found = (self.splits[name].annotations for name in self.answers_of)
        return (path for path in dict.fromkeys(found) if path is not None)


NLP_UNC = "https://nlp.cs.unc.edu/data/lxmert_data"
VQA_V2 = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
VQA_CP = "https://computing.ece.vt.edu/~aish/vqacp"
FEATURES_SOURCE = {"mscoco_imgfeat/": f"{NLP_UNC}/mscoco_imgfeat/ (the *_obj36.zip, unpacked)"}
COCO_TRAIN, COCO_VAL, COCO_TEST = (
    f"mscoco_imgfeat/{part}_obj36" for part in ("train2014", "val2014", "test2015")
)


def _official(part: str, store: str, answered: bool = True) -> Split:
    """A part of VQA v2 under the names its files are downloaded with."""
    return Split(
        f"vqa/v2_OpenEnded_mscoco_{part}_questions.json",
        (store,),
        f"vqa/v2_mscoco_{part}_annotations.json" if answered else None,
    )


def _changing_priors(part: str) -> Split:
    """A part of VQA-CP v2; its images are of both COCO parts."""
    start = f"vqa/vqacp_v2_{part}"
    return Split(f"{start}_questions.json", (COCO_TRAIN, COCO_VAL), f"{start}_annotations.json")


def _of_easy_vqa(
    name: str, summary: str, features: tuple[str, ...] = ("../easy_vqa/features",)
) -> DatasetKind:
    """An embedded data set that is made of the finetuning and test parts of easy_vqa."""
    return DatasetKind(
        summary=summary,
        place=f"data/{name}",
        splits={s: Split(f"{s}.json", features) for s in ("train", "nominival", "minival")},
        vocabulary=".",
        sources={
            "../": "made by `python -m common.data easy_vqa`",
            "": f"made by `python -m common.data {name}`",
        },
        reported_only=("minival",),
        embedded=("easy_vqa", name),
        small=True,
    )


OFFICIAL_VAL = _official("val2014", COCO_VAL)

DATASETS: dict[str, DatasetKind] = {
    "vqa": DatasetKind(
        summary="VQA v2 with Faster R-CNN features, in the layout of LXMERT",
        splits={
            "train": Split("vqa/train.json", (COCO_TRAIN,)),
            "nominival": Split("vqa/nominival.json", (COCO_VAL,)),
            "minival": Split("vqa/minival.json", (COCO_VAL,)),
            "test": Split("vqa/test.json", (COCO_TEST,)),
        },
        vocabulary="vqa",
        sources={"vqa/": f"{NLP_UNC}/vqa/", **FEATURES_SOURCE},
        optional=("test",),
        subset_by_rows=True,
    ),
    "vqa_official": DatasetKind(
        summary="VQA v2 in the files of visualqa.org, with the features of LXMERT",
        splits={
            "train": _official("train2014", COCO_TRAIN),
            "val": OFFICIAL_VAL,
            "nominival": replace(OFFICIAL_VAL, rows=(MINIVAL_ROWS, None)),
            "minival": replace(OFFICIAL_VAL, rows=(0, MINIVAL_ROWS)),
            "test": _official("test2015", COCO_TEST, answered=False),
            "test-dev": _official("test-dev2015", COCO_TEST, answered=False),
        },
        vocabulary="vqa/answers_vqa_official",
        sources={
            "vqa/v2_OpenEnded_mscoco_train2014": f"{VQA_V2}/v2_Questions_Train_mscoco.zip",
            "vqa/v2_OpenEnded_mscoco_val2014": f"{VQA_V2}/v2_Questions_Val_mscoco.zip",
            "vqa/v2_OpenEnded_mscoco_test": f"{VQA_V2}/v2_Questions_Test_mscoco.zip",
            "vqa/v2_mscoco_train2014": f"{VQA_V2}/v2_Annotations_Train_mscoco.zip",
            "vqa/v2_mscoco_val2014": f"{VQA_V2}/v2_Annotations_Val_mscoco.zip",
            **FEATURES_SOURCE,
        },
        read=read_official_split,
        answers_of=("train", "val"),
        optional=("test", "test-dev"),
        subset_by_rows=True,
    ),
    "vqa_cp": DatasetKind(
        summary="VQA-CP v2 (changing priors), with the features of LXMERT",
        splits={"train": _changing_priors("train"), "test": _changing_priors("test")},
        vocabulary="vqa/answers_vqa_cp",
        sources={"vqa/": f"{VQA_CP}/", **FEATURES_SOURCE},
        train="train",
        valid="test",
        reported_only=("test",),
        read=read_official_split,
        answers_of=("train",),
        subset_by_rows=True,
        instead="easy_vqa_cp",
    ),
    "easy_vqa": DatasetKind(
        summary="images of coloured shapes from the package easy-vqa, with features from pixels",
        place="data/easy_vqa",
        splits={
            s: Split(f"{s}.json", ("features",))
            for s in ("pretrain", "train", "nominival", "minival")
        },
        vocabulary=".",
        sources={"": "made by `python -m common.data easy_vqa`"},
        embedded=("easy_vqa",),
        small=True,
    ),
    "easy_vqa_cp": _of_easy_vqa(
        "easy_vqa_cp", "easy_vqa with changing priors, in the manner of VQA-CP"
    ),
    **{name: _of_easy_vqa(name, row.summary, row.features) for name, row in VARIANTS.items()},
}
