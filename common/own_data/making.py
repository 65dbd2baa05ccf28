"""From a table and pictures to a data set that is found by its name.

What is read is checked before anything is written; then features are extracted (which goes on
where it was stopped), then questions, answer lists and, last of all, `dataset.json` are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.data.annotations import AnswerVocabulary, Example
from common.data.dataset_table import DATASETS
from common.data.easy_vqa.build import DETECTOR
from common.data.own import (
    BASE,
    BEGUN,
    FEATURES,
    NAME,
    RECORD,
    SMALL,
    SPLITS,
    TEST,
    TRAIN,
    VALID,
    VERSION,
    Record,
    place,
    read_record,
)
from common.data.tokenizer import MAX_TOKENS
from common.detector.extracting import ExtractionOptions, extract
from common.detector.faster_rcnn import DetectorOptions
from common.detector.opening import PIXELS, open_detector
from common.detector.regions import Detector
from common.errors import ConfigError, DataError
from common.features.store import RegionFeatures
from common.files import exclusive, sha256, write_bytes, write_json
from common.own_data.pictures import Images, Pictures, StoredImages, split_images
from common.own_data.table import (
    Problems,
    Table,
    TableRow,
    joined_spellings,
    read_table,
    with_images,
)
from common.reading import read_json, short

VALID_SHARE = 0.1
SKIPPED = "skipped.txt"
PICTURES = "images"
JOINED_SHOWN = 2  # answers
# Arguments that features depend on.
OF_FEATURES = ("images", "features", "detector", "detector_name", "boxes", "rule", "precision")
Examples = dict[str, list[Example]]


@dataclass
class _Opening:
    """Opens a detector, once in this process and in each one that it is sent to."""

    name: str
    how: DetectorOptions
    opened: Detector | None = None

    def __call__(self) -> Detector:
        if self.opened is None:
            self.opened = open_detector(self.name, self.how)
        return self.opened

    def __reduce__(self) -> tuple[Any, ...]:
        return _Opening, (self.name, self.how)


@dataclass(frozen=True)
class MakeOptions:
    """What `python -m common.data make` is told.

    Attributes:
        name: of the data set.
        table: CSV or JSON lines.
        images: folder or ZIP archive of the pictures.
        detector: folder of its weights, or `pixels`.
        features: a store that is there, instead of pictures and detector.
        out: the data set's folder, which data/NAME becomes a link to; None: data/NAME itself.
        how: the detector is run.
        detector_name: kept with the features instead of its own.
        minimum: training questions that an answer has to be the best one of.
        valid, test: shares of the images; None: 0.1 and none, where the table has no splits.
        seed: of the splits; None: 0.
        workers, threads: that look at pictures.
        skip_bad: leave out rows and pictures that cannot be used, and list them.
        progress: show bars.
    """

    name: str
    table: Path
    images: Path | None = None
    detector: str | None = None
    features: Path | None = None
    out: Path | None = None
    how: DetectorOptions = field(default_factory=DetectorOptions)
    detector_name: str | None = None
    minimum: int = 1
    valid: float | None = None
    test: float | None = None
    seed: int | None = None
    workers: int = 1
    threads: int | None = None
    skip_bad: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in DATASETS:
            raise ConfigError(
                f"name {short(self.name)}: give letters, digits, _, - and points, 100 at most, and "
                f"none of {', '.join(DATASETS)}"
            )
        if self.minimum < 1:
            raise ConfigError(f"--min-count {self.minimum}: give a whole number of at least 1")
        if self.features is None and (self.images is None or self.detector is None):
            raise ConfigError(
                "give the pictures with --images and what finds their regions with --detector, or "
                "features that are there with --features"
            )
        if self.features is not None and (
            self.detector is not None or self.how != DetectorOptions() or self.detector_name
        ):
            raise ConfigError(
                f"--features {self.features}: these are there: leave --detector and what belongs "
                "to it out"
            )

        self.extraction()

    def extraction(self) -> ExtractionOptions:
        """How features are extracted.

        Raises:
            ConfigError: fewer than one worker or thread.
        """
        return ExtractionOptions(
            name=self.detector_name,
            skip_bad=self.skip_bad,
            workers=self.workers,
            threads=self.threads,
            progress=self.progress,
        )

    @property
    def shares(self) -> dict[str, float]:
        """Of the images, by split."""
        return {VALID: VALID_SHARE if self.valid is None else self.valid, TEST: self.test or 0.0}

    def arguments(self) -> dict[str, Any]:
        """What the data set depends on, as JSON values."""
        how, detector = self.how, self.detector
        if detector is not None and detector != PIXELS:
            detector = str(Path(detector).resolve())
        boxes = None if how.fewest is None else [how.fewest, how.most]
        return {
            "table": sha256(self.table) if self.table.is_file() else None,
            "images": None if self.images is None else str(self.images.resolve()),
            "features": None if self.features is None else str(self.features.resolve()),
            "detector": detector,
            "detector_name": self.detector_name,
            "boxes": boxes,
            "rule": how.rule,
            "precision": how.precision,
            "min_count": self.minimum,
            **self.shares,
            "seed": self.seed or 0,
        }


def make(options: MakeOptions, root: Path) -> Path:
    """Make a data set, or go on with it, unless it is there; returns its folder.

    Args:
        options: see `MakeOptions`.
        root: the repository, in whose folder data it will be found.

    Raises:
        DataError: a table, or names of pictures, that cannot be used (nothing is written then), see
            `read_table`; a file that is no picture (what was extracted before it is kept); or a
            full disk.
        ConfigError: options that make no sense, or a data set of that name that was made, or
            begun, with other ones.
        CheckpointError: a detector that cannot be opened; nothing is written then.
    """
    if not options.table.is_file():
        raise DataError(f"{options.table}: no such file: give the table of questions")
    link = place(options.name, root)
    folder = link if options.out is None else options.out.absolute()
    wanted = options.arguments()
    fresh = not any(path.exists() or path.is_symlink() for path in (link, folder))
    plan = _plan(options) if fresh else None
    with exclusive(link.with_name(f".{options.name}.lock")):
        if not link.exists() and link.is_symlink() and (link == folder or link.resolve() != folder):
            raise ConfigError(
                f"{link}: leads to {link.resolve()}, which is not there: bring it back, or remove "
                "the link"
            )
        if options.out is not None and link.exists() and link.resolve() != folder.resolve():
            raise ConfigError(
                f"--out {options.out}: {link} is there already: take another name, or move it away"
            )
        if (folder / RECORD).is_file():
            record = read_record(folder)
            _check_same(folder, record["arguments"], wanted, wanted, "made")
            _link(link, folder)
            print(f"{folder}: is there and complete")
            return folder
        if (folder / BEGUN).is_file():
            begun = read_json(folder / BEGUN, schema=dict[str, Any])
            _check_same(folder, begun, wanted, OF_FEATURES, "begun")
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder}: is there, and not made by this command: take another name, another "
                "--out, or move it away"
            )
        _make(options, folder, link, wanted, plan or _plan(options))
    return folder


def _check_same(
    folder: Path,
    before: Mapping[str, Any],
    wanted: Mapping[str, Any],
    keys: Iterable[str],
    what: str,
) -> None:
    """Raise ConfigError if a data set was made of something else."""
    for key in keys:
        was, now = before.get(key), wanted[key]
        if was == now:
            continue
        flag = f"--{key.replace('_', '-')}"
        said = (
            "the table was another one"
            if key == "table"
            else f"{flag} was {'not given' if was is None else short(was)} and is "
            f"{'not given' if now is None else short(now)} now"
        )
        kept = folder / FEATURES
        features = (
            f" (where the pictures are the same, --features {kept} takes over its features)"
            if (kept / "meta.json").is_file()
            else ""
        )
        raise ConfigError(
            f"{folder}: was {what} with other arguments: {said}: give the same, or another "
            f"name{features}, or move the folder away to make it anew"
        )


@dataclass
class _Plan:
    """What there is to be made, all of it checked but for what is in the pictures.

    Attributes:
        table: as it was read, with the problems that were found since.
        rows: those whose images are there.
        source: of these.
        splits: questions by split.
        vocabulary: of the answers.
        opening: of the detector; None: features are there.
    """

    table: Table
    rows: list[TableRow]
    source: Images
    splits: Examples
    vocabulary: AnswerVocabulary
    opening: _Opening | None


def _plan(options: MakeOptions) -> _Plan:
    """Read table, names of pictures and detector; nothing is written.

    Raises:
        AdaptiveError: something of it cannot be used.
    """
    table = read_table(options.table)
    if table.ignored:
        print(f"{table.path}: columns that are not read: {short(', '.join(table.ignored))[1:-1]}")
    source: Images
    opening = None
    if options.features is not None:
        source = StoredImages(RegionFeatures.open(options.features))
        if options.images is not None:
            print(
                f"--images {options.images}: is not looked at, as --features are there; a folder "
                "is only kept to be shown"
            )
    else:
        assert options.images is not None and options.detector is not None
        source = Pictures(options.images)
        opening = _Opening(options.detector, options.how)
    rows = _found(table, source)
    table.problems.check(options.skip_bad)
    splits = _splits(options, table, rows, source)
    vocabulary = _vocabulary(splits, options.minimum)
    if opening is not None:
        opening()
    return _Plan(table, rows, source, splits, vocabulary, opening)


def _make(
    options: MakeOptions, folder: Path, link: Path, wanted: dict[str, Any], plan: _Plan
) -> None:
    table, rows, source = plan.table, plan.rows, plan.source
    splits, vocabulary = plan.splits, plan.vocabulary
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / BEGUN, wanted, indent=1)
    _link(link, folder)
    store = _features(options, folder, plan)
    unreadable = {bad["image_id"]: bad["reason"] for bad in store.meta.get("skipped", ())}
    images = {row.example.image_id for row in rows}
    if absent := store.missing(sorted(images - unreadable.keys())):
        raise DataError(
            f"{store.path}: has no features of {len(absent)} images of {table.path}, the first is "
            f"{absent[0]!r}: the table has more pictures than when features were extracted: delete "
            f"{store.path} to extract them again"
        )
    if bad := [row for row in rows if row.example.image_id in unreadable]:
        for row in bad:
            table.problems.add(row.line, unreadable[row.example.image_id])
        table.problems.check(options.skip_bad)
        rows = [row for row in rows if row.example.image_id not in unreadable]
        splits = _splits(options, table, rows, source)
        vocabulary = _vocabulary(splits, options.minimum)
    _report_skipped(folder, table.problems, table.total)
    _write(options, folder, splits, vocabulary, store, wanted)
    _report(folder, splits, vocabulary, store)
    if joined := _joined(rows, vocabulary):
        print(joined)
    print(f"use it with --dataset {options.name}")
    (folder / BEGUN).unlink(missing_ok=True)


def _found(table: Table, source: Images) -> list[TableRow]:
    """Rows whose images are there, with the ids of these; the others become problems."""
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for row in table.rows:
        name = row.example.image_id
        if name in found:
            continue
        try:
            if name not in reasons:
                found[name] = source.find(name)
        except DataError as error:
            reasons[name] = str(error)
        if name in reasons:
            table.problems.add(row.line, reasons[name])
    rows = with_images(table.rows, found)
    first: dict[str, TableRow] = {}
    kept = []
    for row in rows:
        image = row.example.image_id
        other = first.setdefault(image, row)
        if other.split == row.split:
            kept.append(row)
            continue
        table.problems.add(
            row.line,
            f"'split' is {row.split}, that of line {other.line} about the same image {image!r} is "
            f"{other.split}: what is trained on must not be reported",
        )
    return kept


def _splits(
    options: MakeOptions, table: Table, rows: Sequence[TableRow], source: Images
) -> Examples:
    """Questions by split.

    Raises:
        ConfigError: shares beside splits that the table says, or that make no sense.
        DataError: nothing to train on or to report.
    """
    given = {"valid": options.valid, "test": options.test, "seed": options.seed}
    contents = {row.example.image_id: "" for row in rows}
    contents = {image: source.content(image) for image in contents}
    if table.split:
        if told := [f"--{name}" for name, value in given.items() if value is not None]:
            raise ConfigError(
                f"{' '.join(told)}: {table.path} says the splits in its column 'split': leave one "
                "of the two out"
            )
        split_of = {row.example.image_id: row.split or TRAIN for row in rows}
        _warn_of_copies(contents, split_of)
    else:
        split_of = split_images(contents, options.shares, options.seed or 0)
    found: Examples = {}
    for row in rows:
        found.setdefault(split_of[row.example.image_id], []).append(row.example)
    for name in (TRAIN, VALID):
        if name not in found:
            raise DataError(
                f"{table.path}: no row is in split {name}: {TRAIN} is trained on and {VALID} "
                "reported; name both in the column 'split', or leave the column out"
            )
    return {name: found[name] for name in SPLITS if name in found}


def _warn_of_copies(contents: Mapping[str, str], split_of: Mapping[str, str]) -> None:
    """Say where pictures in different splits have the same content."""
    first: dict[str, str] = {}
    copies = [
        (first[content], image)
        for image, content in contents.items()
        if split_of[first.setdefault(content, image)] != split_of[image]
    ]
    if copies:
        a, b = copies[0]
        print(
            f"warning: {len(copies)} pictures are in another split than one of the same content, "
            f"such as {a} ({split_of[a]}) and {b} ({split_of[b]}): what is trained on is reported"
        )


def _vocabulary(splits: Examples, minimum: int) -> AnswerVocabulary:
    """The answers that are the best one of enough training questions."""
    try:
        return AnswerVocabulary.build(splits[TRAIN], minimum)
    except DataError:
        raise DataError(
            f"--min-count {minimum}: no answer is the best one of so many of the "
            f"{len(splits[TRAIN])} training questions: give a lower number"
        ) from None


def _features(options: MakeOptions, folder: Path, plan: _Plan) -> RegionFeatures:
    """The store: the one that is given, or of regions that are looked for now."""
    source = plan.source
    if isinstance(source, StoredImages):
        return source.store
    assert isinstance(source, Pictures) and options.images is not None and plan.opening
    names = list(source.chosen.values())
    extract(options.images, folder / FEATURES, plan.opening, options.extraction(), names)
    return RegionFeatures.open(folder / FEATURES)


def _link(link: Path, folder: Path) -> None:
    """Let a name lead to a folder that is elsewhere."""
    if link.resolve() != folder.resolve():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder, target_is_directory=True)


def _row(example: Example) -> dict[str, Any]:
    """A question in the form of LXMERT, as `read_lxmert_json` reads it."""
    found: dict[str, Any] = {
        "img_id": example.image_id,
        "question_id": example.question_id,
        "sent": example.question,
    }
    more = {
        "label": example.answers,
        "answer_type": example.answer_type,
        "question_type": example.question_type or None,
        "kind": example.kind,
    }
    return found | {name: value for name, value in more.items() if value is not None}


def _write(
    options: MakeOptions,
    folder: Path,
    splits: Examples,
    vocabulary: AnswerVocabulary,
    store: RegionFeatures,
    wanted: dict[str, Any],
) -> None:
    """Questions, answers, and the record, which makes it a data set."""
    for name, examples in splits.items():
        write_json(folder / f"{name}.json", [_row(example) for example in examples])
    vocabulary.write(folder)
    if options.images is not None and options.images.is_dir():
        pictures = folder / PICTURES  # which `common.ask` shows
        if pictures.is_symlink():
            pictures.unlink()
        pictures.symlink_to(options.images.resolve(), target_is_directory=True)
    own = store.path.resolve() == (folder / FEATURES).resolve()
    record: Record = {
        "version": VERSION,
        "name": options.name,
        "table": options.table.name,
        "images": None if options.images is None else str(options.images),
        "features": FEATURES if own else str(store.path.resolve()),
        "detector": store.meta["detector"],
        "size": SMALL if store.meta["detector"] == DETECTOR else BASE,
        "answers": len(vocabulary),
        "minimum": options.minimum,
        "splits": {
            name: {"images": len({e.image_id for e in examples}), "questions": len(examples)}
            for name, examples in splits.items()
        },
        "arguments": wanted,
    }
    write_json(folder / RECORD, record, indent=1)


def _report(
    folder: Path, splits: Examples, vocabulary: AnswerVocabulary, store: RegionFeatures
) -> None:
    """Say what is in the data set, and what is not."""
    print(
        f"{folder}: {len(vocabulary)} answers, {store.width} numbers a region of "
        f"{store.meta['detector']}"
    )
    for split, examples in splits.items():
        images = len({example.image_id for example in examples})
        print(
            f"  {split:5} {images:8,} images {len(examples):9,} questions  "
            f"{_coverage(examples, vocabulary)}"
        )
    longest = max(len(e.question.split()) for part in splits.values() for e in part)
    if longest > MAX_TOKENS - 2:
        print(
            f"  the longest question has {longest} words; models read the first {MAX_TOKENS - 2} "
            "word pieces or so of one"
        )


def _joined(rows: Iterable[TableRow], vocabulary: AnswerVocabulary) -> str | None:
    """A line about answers of the table that are one in the spelling of the metric."""
    found = {a: several for a, several in joined_spellings(rows).items() if a in vocabulary}
    if not found:
        return None
    telling = sorted(found, key=lambda a: all(map(_is_plain, found[a])))[:JOINED_SHOWN]
    shown = "; ".join(f"{' and '.join(map(short, found[a][:2]))} are {short(a)}" for a in telling)
    return (
        f"  {sum(map(len, found.values())):,} spellings of answers are {len(found):,} known "
        f"{'answer' if len(found) == 1 else 'answers'}, as VQA's metric compares them: {shown}"
    )


def _is_plain(spelling: str) -> bool:
    """Whether it has words alone, perhaps with a point behind them."""
    return spelling.rstrip(".").replace(" ", "").isalpha()


def _report_skipped(folder: Path, problems: Problems, total: int) -> None:
    path = folder / SKIPPED
    if not problems.found:
        path.unlink(missing_ok=True)
        return
    lines = ["line\treason", *(f"{line}\t{why}" for line, why in sorted(problems.found))]
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    print(
        f"{problems.path}: {len(problems.found):,} of {total:,} rows are left out (all of them in "
        f"{path}):\n{problems.text()}"
    )


def _coverage(examples: Sequence[Example], vocabulary: AnswerVocabulary) -> str:
    """How much of the answers the vocabulary has, and the score that it lets a model reach."""
    answered = [e.answers for e in examples if e.answers is not None]
    if not answered:
        return "without answers"
    best = [max((s for a, s in each.items() if a in vocabulary), default=0.0) for each in answered]
    without = sum(score == 0 for score in best)
    reached = 100 * sum(best) / len(best)
    if not without:
        return f"all have a known answer; right answers score {reached:.1f} %"
    return (
        f"{without:,} have only answers outside the vocabulary: no model can score more than "
        f"{reached:.1f} %"
    )
