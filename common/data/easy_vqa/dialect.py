"""easy-VQA with a dialect (`easy_vqa_dialect`): most new questions give known words a new meaning.

For what adaptive finetuning is meant for: a new data set that contradicts what pretraining taught,
with a few questions left for which pretraining is still right. In the dialect every colour word
stands for another colour and every shape word for another shape (`RENAMED`), in questions and in
answers. A cue says that a question is in the dialect: its first word.

Finetuning part (`train` + `nominival` of easy-VQA): the questions of some images, chosen by a hash
of the image key, are asked as they are (kind `kept`), those of all others in the dialect (kind
`learned`). `minival`: the questions of half of the test images, each asked in both ways, so that
one reads off what was learned and what was kept.

`VARIANTS` differ in the share of images that keep their words; in the cue, which may be a stamp in
a corner of the image (on three of a hundred it covers a part of the shape): such a data set has
images and region features of its own, beside those of easy_vqa; and in a third kind, `unseen`, of
test questions: with their usual words and meaning, and a last word that training never has. (At the
end, since a pretrained model that is left alone can then answer them: a first word moves all others
to places where it has not met them.)

Files: as easy_vqa has them, without a split `pretrain`. Ids of questions (and numbers of stamped
images) are those of easy-VQA plus `OFFSET` for each kind behind the first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from common.data.easy_vqa.build import (
    COLOURS,
    SHAPES,
    Question,
    Splits,
    assign_splits,
    build_folder,
    share,
    write_images,
    write_splits,
)

KEPT, LEARNED, UNSEEN = "kept", "learned", "unseen"
OFFSET = 10**9  # of ids; a thousandth of it for images
TESTED_SHARE = 0.5
STAMP, STAMP_SIDE = (255, 0, 255), 6  # a colour that no shape has; pixels, top left
RENAMED = {
    word: words[(place + shift) % len(words)]
    for words, shift in ((COLOURS, 3), (SHAPES, 1))
    for place, word in enumerate(words)
}


@dataclass(frozen=True)
class Variant:
    """One data set with a dialect.

    Attributes:
        summary: what it is, in a line.
        kept_share: of the images in training whose questions keep their words, 0..1.
        cue: first word of a dialect question; empty: its image is stamped.
        unseen_cue: last word of test questions of kind `unseen`; empty: there are none.
    """

    summary: str
    kept_share: float = 0.1
    cue: str = "@"
    unseen_cue: str = ""

    @property
    def stamped(self) -> bool:
        return not self.cue

    @property
    def features(self) -> tuple[str, ...]:
        """Region-feature stores, relative to its folder."""
        return ("../easy_vqa/features", *(["features"] if self.stamped else []))


_MOST = "easy_vqa where most questions give known words a new meaning"
VARIANTS = {
    "easy_vqa_dialect": Variant(_MOST),
    "easy_vqa_dialect_kept02": Variant(f"{_MOST}, 1 image in 50 keeps the old one", 0.02),
    "easy_vqa_dialect_kept30": Variant(f"{_MOST}, 3 images in 10 keep the old one", 0.3),
    "easy_vqa_dialect_image": Variant(f"{_MOST}, told by a stamp in the image", cue=""),
    "easy_vqa_dialect_unseen": Variant(
        f"{_MOST}, with test questions that end in a word training does not have", unseen_cue="#"
    ),
}


def in_dialect(question: Question, variant: Variant) -> Question:
    """The same question, asked and answered in the dialect."""
    text = re.sub("[a-z]+", lambda word: RENAMED.get(word[0], word[0]), question.text)
    return replace(
        question,
        question_id=question.question_id + OFFSET,
        image=question.image + (OFFSET // 1000 if variant.stamped else 0),
        text=f"{variant.cue} {text}".strip(),
        answer=RENAMED.get(question.answer, question.answer),
        kind=LEARNED,
    )


def as_it_is(question: Question) -> Question:
    """The same question, which keeps its words."""
    return replace(question, kind=KEPT)


def with_unseen_cue(question: Question, variant: Variant) -> Question:
    """The same question with its words, and a cue behind it that training does not have."""
    return replace(
        question,
        question_id=question.question_id + 2 * OFFSET,
        text=f"{question.text} {variant.unseen_cue}",
        kind=UNSEEN,
    )


def assign_dialect_splits(questions: Sequence[Question], variant: Variant) -> Splits:
    """Questions by split; no image in two splits, and in training none in both vocabularies."""
    full = assign_splits(questions)
    splits = {
        name: [
            in_dialect(q, variant)
            if share(f"dialect {q.key}") < 1 - variant.kept_share
            else as_it_is(q)
            for q in full[name]
        ]
        for name in ("train", "nominival")
    }
    tested = [q for q in full["minival"] if share(f"tested {q.key}") < TESTED_SHARE]
    asked = [as_it_is(q) for q in tested] + [in_dialect(q, variant) for q in tested]
    if variant.unseen_cue:
        asked += [with_unseen_cue(q, variant) for q in tested]
    return splits | {"minival": asked}


def stamped(image: Image.Image) -> Image.Image:
    """The image with the stamp in its top left corner."""
    found = image.convert("RGB")
    found.paste(STAMP, (0, 0, STAMP_SIDE, STAMP_SIDE))
    return found


def build_easy_vqa_dialect(
    out: Path | str, force: bool = False, limit: int | None = None, name: str = "easy_vqa_dialect"
) -> bool:
    """Write a row of `VARIANTS`; a few seconds, a quarter of a minute with images of its own.

    Arguments and result as `build_easy_vqa`; `name` is that of the row.
    """
    return build_folder(name, out, force, limit, partial(_write, name))


def _write(
    name: str, folder: Path, questions: list[Question], paths: dict[str, Path]
) -> tuple[Splits, dict[str, int]]:
    variant = VARIANTS[name]
    splits = assign_dialect_splits(questions, variant)
    write_splits(folder, name, f"easy-VQA with a dialect ({name})", splits)
    if not variant.stamped:
        return splits, {}
    copies = {
        q.key: paths[replace(q, image=q.image - OFFSET // 1000).key]
        for rows in splits.values()
        for q in rows
        if q.kind == LEARNED
    }
    write_images(folder, copies, stamped)
    return splits, {"images": len(copies)}
