"""The table of questions that a data set of one's own is made of: CSV or JSON lines.

Columns `image`, `question` and `answer` (or `answers`); by choice `question_id`, `split`,
`answer_type`, `question_type`, `kind`. All rows are looked at: what is wrong is collected, with the
line, so that it can be mended at once or left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.data.annotations import Example, QuestionId, Row
from common.data.answer_scores import normalise_answer, soft_scores
from common.data.own import TEST, TRAIN, VALID
from common.errors import DataError
from common.reading import parse_json, read_text, short

NEEDED = ("image", "question")
ANSWER, ANSWERS, SPLIT, ID = "answer", "answers", "split", "question_id"
BY_CHOICE = (ID, SPLIT, "answer_type", "question_type", "kind")
COLUMNS = (*NEEDED, ANSWER, ANSWERS, *BY_CHOICE)
SEPARATOR = "|"  # between several answers in a cell
DELIMITERS = ",;\t"
ENDINGS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json"}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev"), VALID),
    **dict.fromkeys(("test", "testing"), TEST),
}
FEW_PEOPLE = 3
WHOLE = re.compile("0|[1-9][0-9]{0,17}", re.ASCII)
SHOWN = 5
SEPARATOR_LINE = re.compile(r'"?sep=([^\r\n])"?[\r\n]', re.IGNORECASE)  # Excel's first line
LONGEST_CELL = 1 << 20  # letters
LONGEST_REASON = 200


class _Cells(Row):
    """The values of a row; its errors are shown beside file and line."""

    __slots__ = ()

    @property
    def where(self) -> str:
        return f"row {self.number}"


@dataclass(frozen=True)
class TableRow:
    """One question of the table.

    Attributes:
        line: in the file, from 1.
        example: its `image_id` is what the column `image` says.
        split: `train`, `valid`, `test`; None where the table has no splits.
        spellings: of its answers in the table.
    """

    line: int
    example: Example
    split: str | None = None
    spellings: tuple[str, ...] = ()


@dataclass
class Problems:
    """Rows that cannot be used, by their line in the file."""

    path: Path
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, reason: object) -> None:
        self.found.append((line, " ".join(str(reason).split())))

    def text(self) -> str:
        """The first of them, one a line."""
        shown = [
            f"  line {line}: {why if len(why) <= LONGEST_REASON else why[:LONGEST_REASON] + '…'}"
            for line, why in sorted(self.found)[:SHOWN]
        ]
        more = len(self.found) - SHOWN
        return "\n".join([*shown, *([f"  … and {more:,} more"] if more > 0 else [])])

    def check(self, skip: bool) -> None:
        """Raise DataError if there are any and none may be skipped."""
        if self.found and not skip:
            count = len(self.found)
            raise DataError(
                f"{self.path}: {count:,} {'row' if count == 1 else 'rows'} cannot be used:\n"
                f"{self.text()}\nmend {'it' if count == 1 else 'them'}, or leave out such rows "
                "with --skip-bad, which keeps a list of them"
            )


@dataclass
class Table:
    """What was read of a file.

    Attributes:
        path: the file.
        rows: those that can be used.
        problems: the others.
        total: of both.
        ignored: columns that nothing reads.
        split: whether the table says the splits.
    """

    path: Path
    rows: list[TableRow]
    problems: Problems
    total: int
    ignored: list[str]
    split: bool


def read_table(path: Path) -> Table:
    """Read a CSV file with a header, or JSON lines; by the ending of the name.

    CSV is UTF-8 with commas, semicolons or tabs (as in the header), quotes as RFC 4180 has them.

    Raises:
        DataError: no such file, no UTF-8, neither form, a column is missing or there twice, quotes
            that do not end, or no row.
    """
    form = ENDINGS.get(path.suffix.lower())
    if form is None:
        raise DataError(
            f"{path}: ending {path.suffix!r}: expected {', '.join(ENDINGS)}: a CSV file with a "
            "header, or one JSON object a line"
        )
    text = _text(path)
    problems = Problems(path)
    records = _csv(path, text, problems) if form == "csv" else _json_lines(path, text, problems)
    named: Counter[str] = Counter()
    rows: list[TableRow] = []
    seen: dict[QuestionId, int] = {}
    lacking: dict[str, set[int]] = {ID: set(), SPLIT: set()}
    number = 0
    for number, (line, values) in enumerate(records, 1):
        named.update(values.keys())
        try:
            row = _table_row(number, line, values)
            without = [name for name in lacking if values.get(name) in ("", None)]
            known = row.example.question_id
            if ID not in without and (first := seen.setdefault(known, line)) != line:
                raise DataError(f"{ID} {short(values[ID])} is that of line {first} too")
            rows.append(row)
            for name in without:
                lacking[name].add(line)
        except DataError as error:
            problems.add(line, error)
    if not number and not problems.found:
        raise DataError(f"{path}: no rows in it: give a question a line")
    total = len(rows) + len(problems.found)
    for name, lines in lacking.items():
        lines &= {row.line for row in rows}
        if 0 < len(lines) < len(rows):
            rows = _without(rows, lines, problems, f"{name!r} is empty, other rows have one")
    hidden = {row.line for row in rows if row.example.answers is None}
    if any(row.split == TEST and row.line not in hidden for row in rows):
        rows = _without(
            rows, hidden, problems, f"{ANSWER!r} is empty, other test questions have one"
        )
    ignored = [name for name in named if name not in COLUMNS]
    return Table(path, rows, problems, total, ignored, any(row.split for row in rows))


def _without(
    rows: list[TableRow], lines: set[int], problems: Problems, reason: str
) -> list[TableRow]:
    """The rows but for those in some lines, which become problems."""
    for line in lines:
        problems.add(line, reason)
    return [row for row in rows if row.line not in lines]


def _text(path: Path) -> str:
    try:
        return read_text(path, kind="a table of questions")
    except DataError as error:
        cause = error.__context__
        if not isinstance(cause, UnicodeDecodeError):
            raise
        before = cause.object[: cause.start]
        raise DataError(
            f"{path}: line {before.count(10) + 1}: byte {cause.object[cause.start]:#x} is not "
            f"UTF-8 text (behind {short(before[-20:].decode(errors='replace'))}): save the table "
            "with the encoding UTF-8"
        ) from None


def _csv(path: Path, text: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of CSV with the lines that they begin in."""
    told = SEPARATOR_LINE.match(text)
    delimiter = told[1] if told else max(DELIMITERS, key=text.split("\n", 1)[0].count)
    if delimiter not in DELIMITERS:
        raise DataError(
            f"{path}: line 1 says that {short(delimiter)} is between cells: expected a comma, a "
            "semicolon or a tab"
        )
    before = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0
    try:
        if told:
            next(reader)
        header = [name.strip().lower() for name in next(reader, [])]
        _check_header(path, header, 2 if told else 1)
        while True:
            line = reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                problems.add(
                    line,
                    f"{len(cells)} cells, the header has {len(header)}: a text with "
                    f"{'a tab' if delimiter == chr(9) else delimiter} in it needs quotes",
                )
                continue
            yield line, {k: cell.strip() for k, cell in zip(header, cells, strict=True) if k}
    except csv.Error as error:
        raise DataError(
            f"{path}: line {line}: no CSV from here on ({error}): a text with quotes in it is "
            'written "so, ""quoted"" inside"'
        ) from None
    finally:
        csv.field_size_limit(before)


def _check_header(path: Path, header: list[str], line: int) -> None:
    shown = short(", ".join(header))[1:-1]
    missing = [name for name in NEEDED if name not in header]
    if not missing and ANSWER not in header and ANSWERS not in header:
        missing = [ANSWER]
    if missing:
        raise DataError(
            f"{path}: column {missing[0]!r} is missing: line {line} has {shown or 'nothing'}; give "
            f"the columns {', '.join(NEEDED)} and {ANSWER} (or {ANSWERS}) these names"
        )
    twice = [name for name, count in Counter(header).items() if count > 1 and name in COLUMNS]
    if twice or (ANSWER in header and ANSWERS in header):
        names = f"{twice[0]!r} twice" if twice else f"{ANSWER!r} and {ANSWERS!r}"
        raise DataError(f"{path}: line {line} has {names}: keep one column")


def _json_lines(path: Path, text: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    if text.lstrip()[:1] == "[":
        raise DataError(
            f"{path}: begins with [: expected one JSON object a line, without brackets around "
            "them and commas between"
        )
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = parse_json(content, "the line")
            if not isinstance(values, dict):
                raise DataError(f"{short(values)} is no object")
            named = Counter(name.strip().lower() for name in values)
            if twice := [name for name, count in named.items() if count > 1 and name in COLUMNS]:
                raise DataError(f"has {twice[0]!r} twice: keep one")
        except DataError as error:
            problems.add(line, error)
            continue
        yield line, {name.strip().lower(): value for name, value in values.items()}


def _table_row(number: int, line: int, values: Mapping[str, Any]) -> TableRow:
    """A row of the table.

    Raises:
        DataError: a value that is none of its column.
    """
    given = {name: value for name, value in values.items() if value not in ("", None)}
    row = _Cells(Path(), number, given)
    for name in NEEDED:
        if name not in given:
            raise DataError(f"{name!r} is empty" if name in values else f"{name!r} is missing")
        if not row.get(name, str).strip():
            raise DataError(f"{name!r} is empty")
    image = given["image"].strip()
    if not image.isprintable():
        raise DataError(f"'image' is {short(image)}: expected the name of a file")
    split = None
    if SPLIT in given:
        split = SPLIT_NAMES.get(row.get(SPLIT, str).strip().lower())
        if split is None:
            raise DataError(
                f"{SPLIT!r} is {short(given[SPLIT])}: expected {TRAIN}, {VALID} or {TEST}"
            )
    spellings = _spellings(given)
    answers = None if spellings is None else _scores(spellings)
    if answers is None and split != TEST:
        raise DataError(f"{ANSWER!r} is empty (only test questions may have none)")
    example = Example(
        _question_id(given, number),
        image,
        given["question"].strip(),
        answers,
        row.answer_type() or _answer_type(answers),
        row.get("question_type", str, optional=True) or "",
        row.kind(),
    )
    return TableRow(line, example, split, tuple(spellings or ()))


def _question_id(given: Mapping[str, Any], number: int) -> QuestionId:
    """That of the table, else the number of the row."""
    found = given.get(ID, number)
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise DataError(f"{ID!r} is {short(found)}: expected a whole number or a text")
    if isinstance(found, str) and not found.isprintable():
        raise DataError(f"{ID!r} is {short(found)}: expected printable signs")
    return int(found) if isinstance(found, str) and WHOLE.fullmatch(found) else found


def _spellings(given: Mapping[str, Any]) -> list[str] | dict[str, float] | None:
    """The answers of a row as they are written, several people's or with their scores; None where
    it has none."""
    if ANSWER in given and ANSWERS in given:
        raise DataError(f"{ANSWER!r} and {ANSWERS!r}: give one of them")
    name = ANSWERS if ANSWERS in given else ANSWER
    value = given.get(name)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        value = parse_json(value, repr(name))
    elif isinstance(value, str) and name == ANSWERS:
        value = [part for part in value.split(SEPARATOR) if part.strip()]
    if value is None or value in ([], {}):
        return None
    if isinstance(value, dict):
        for answer, score in value.items():
            _check_answer(answer, name)
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 < score <= 1:
                raise DataError(
                    f"{name!r}: {short(answer)} has score {short(score)}: expected a number above "
                    "0, up to 1"
                )
        return {answer: float(score) for answer, score in value.items()}
    several = value if isinstance(value, list) else [value]
    return [_check_answer(answer, name) for answer in several]


def _check_answer(answer: Any, name: str) -> str:
    """An answer as it is written, of which something is left in the spelling of the metric."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise DataError(f"{name!r}: {short(answer)}: expected a text (yes and no are texts too)")
    if not normalise_answer(answer):
        raise DataError(
            f"{name!r}: {short(answer)}: nothing is left of it without punctuation and articles, "
            "which answers are compared without"
        )
    return answer


def _scores(spellings: list[str] | dict[str, float]) -> dict[str, float]:
    """Scores in (0, 1] of answers in the spelling in which they are compared."""
    if isinstance(spellings, list):
        return scores_of([normalise_answer(answer) for answer in spellings])
    found: dict[str, float] = {}
    for answer, score in spellings.items():
        spelled = normalise_answer(answer)
        found[spelled] = max(found.get(spelled, 0.0), score)
    return found


def scores_of(answers: list[str]) -> dict[str, float]:
    """Scores in (0, 1] of what one or several people answered, each in its usual spelling.

    Of four people on it is the rule of VQA (`soft_scores`), by which three of the others have to
    agree; of up to three, the share of them that gave the answer.
    """
    people = len(answers)
    if people > FEW_PEOPLE:
        return soft_scores(answers, str)
    return {answer: round(count / people, 10) for answer, count in Counter(answers).items()}


def _answer_type(answers: Mapping[str, float] | None) -> str | None:
    """yes/no, number or other, by the best answer."""
    if not answers:
        return None
    best = max(answers, key=lambda answer: answers[answer])
    if best in ("yes", "no"):
        return "yes/no"
    return "number" if best.replace(".", "", 1).isdecimal() else "other"


def with_images(rows: Iterable[TableRow], images: Mapping[str, str]) -> list[TableRow]:
    """Rows whose images have the ids of the features; those that are not in `images` are left."""
    return [
        replace(row, example=replace(row.example, image_id=images[row.example.image_id]))
        for row in rows
        if row.example.image_id in images
    ]


def joined_spellings(rows: Iterable[TableRow]) -> dict[str, list[str]]:
    """Answers to the spellings that they have in a table, of those that have several; capitals and
    spaces at the ends make none."""
    found: dict[str, set[str]] = {}
    for row in rows:
        for spelling in row.spellings:
            found.setdefault(normalise_answer(spelling), set()).add(spelling.strip().casefold())
    return {answer: sorted(several) for answer, several in found.items() if len(several) > 1}
