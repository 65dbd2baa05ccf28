"""easy-VQA with changing priors (`easy_vqa_cp`), in the manner of VQA-CP.

VQA-CP (Agrawal et al. 2018) re-splits VQA so that for every type of question the answers of the
test part are distributed differently from those of the training part; a model that answers from
the question alone then fails. Here, with the finetuning part of easy-VQA (`train` + `nominival`):

1. Every colour and shape has a favoured side (`FAVOURED`); triangles have none. A question favours
   the side of the colour or shape that it shows to be in the image, or, where its answer says that
   one is absent, the other side ("is there a red shape? no" favours the side that red is not on).
2. An image goes to the side that most of its questions with something present favour; one in
   `CROSSED` goes to the other side, and where votes are even a hash of its key decides. So no
   image is on both sides.
3. Questions of an image that favour its side, or none, stay. Of the others one in `KEPT_PRESENT`
   stays, or one in `KEPT_ABSENT` of those whose answer says that something is absent (they are
   many), chosen by a hash of the id. So every answer is there to learn from, but rare.

Files: easy_vqa_cp_{train,test}_{questions,annotations}.json as VQA-CP has them (bare lists, with
`coco_split`), and in the form of LXMERT train.json + nominival.json (a tenth of the training
side's images, with its priors), minival.json (the test side) and the answer vocabulary.
Images and region features are those of easy_vqa.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from common.data.easy_vqa.build import (
    Question,
    Splits,
    assign_splits,
    build_folder,
    lxmert_json,
    official_json,
    question_kind,
    share,
)
from common.files import write_json

TRAIN, TEST = "train", "test"
FAVOURED = dict.fromkeys(("blue", "green", "red", "yellow", "circle"), TRAIN) | dict.fromkeys(
    ("black", "brown", "gray", "teal", "rectangle"), TEST
)
OTHER = {TRAIN: TEST, TEST: TRAIN}
CROSSED, KEPT_PRESENT, KEPT_ABSENT = 6, 3, 10
SPLITS = ("train", "nominival", "minival")


def _shown(question: Question) -> tuple[str, bool]:
    """The colour or shape a question is about, and whether its answer says that it is there."""
    kind, value = question_kind(question.text)
    if value is None:
        return question.answer, True
    return value, (question.answer == "yes") != kind.startswith("is not")


def favoured_side(question: Question) -> str | None:
    """Side on which this question keeps its answer frequent; None for triangles."""
    value, present = _shown(question)
    side = FAVOURED.get(value)
    return side if present or side is None else OTHER[side]


def assign_sides(questions: Sequence[Question]) -> dict[str, str]:
    """Side of every image, by key."""
    votes: dict[str, Counter[str | None]] = defaultdict(Counter)
    for question in questions:
        present = _shown(question)[1]
        votes[question.key][favoured_side(question) if present else None] += 1
    sides = {}
    for key, vote in votes.items():
        lead = vote[TRAIN] - vote[TEST]
        if lead == 0:
            sides[key] = TRAIN if share(f"side {key}") < 0.5 else TEST
        else:
            crossed = share(f"side {key}") < 1 / CROSSED
            sides[key] = TRAIN if (lead > 0) != crossed else TEST
    return sides


def assign_cp_splits(questions: Sequence[Question]) -> Splits:
    """Questions of the finetuning part by split, some left out; no image in two splits."""
    sides = assign_sides(questions)
    held = sorted(
        (key for key, side in sides.items() if side == TRAIN), key=lambda k: share(f"held {k}")
    )
    nominival = set(held[: len(held) // 10])
    splits: Splits = {name: [] for name in SPLITS}
    for question in questions:
        side = sides[question.key]
        one_in = KEPT_PRESENT if _shown(question)[1] else KEPT_ABSENT
        kept = share(f"kept {question.question_id}") < 1 / one_in
        if kept or favoured_side(question) in (side, None):
            name = "nominival" if question.key in nominival else "train"
            splits["minival" if side == TEST else name].append(question)
    return splits


def build_easy_vqa_cp(out: Path | str, force: bool = False, limit: int | None = None) -> bool:
    """Write the split's files; a few seconds. Arguments and result as `build_easy_vqa`."""
    return build_folder("easy_vqa_cp", out, force, limit, _write)


def _write(
    folder: Path, questions: list[Question], _paths: dict[str, Path]
) -> tuple[Splits, dict[str, int]]:
    full = assign_splits(questions)
    splits = assign_cp_splits(full["train"] + full["nominival"])
    for side, rows in ((TRAIN, splits["train"] + splits["nominival"]), (TEST, splits["minival"])):
        asked, answered = official_json(rows, coco_split=True)
        write_json(folder / f"easy_vqa_cp_{side}_questions.json", asked)
        write_json(folder / f"easy_vqa_cp_{side}_annotations.json", answered)
    for name, rows in splits.items():
        write_json(folder / f"{name}.json", lxmert_json(rows))
    return splits, {}
