"""Import region features of other systems into a store (`common.features.store`).

    python -m common.data import --tsv data/mscoco_imgfeat/train2014_obj36.tsv
    python -m common.data import --npz FOLDER
    python -m common.data import --json data/coco/vgbua_res101_precomputed/NAME.zip
    python -m common.data import --lmdb NAME.lmdb

What all importers share; `lxmert_tsv`, `vlbert_json`, `npz` and `lmdb_records` beside it read one
format each. All are read one image at a time, so memory does not depend on their size, and an
import that was stopped goes on where it was.
With `skip_bad` a record that cannot be read is left out and named in `<store>_skipped.txt`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from common.errors import ConfigError, DataError
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter
from common.files import exclusive, write_bytes
from common.reading import read_json

SHOWN_BAD_ROWS = 5
HOPELESS_ROWS = 1000
NOUNS = {"import": "import", "extract": "extraction"}


@dataclass(frozen=True)
class BadRow:
    """A record that was left out: its number from 1, image id, and what is wrong with it."""

    row: int
    image_id: str
    reason: str


@dataclass
class BadRows:
    """What to do with records that cannot be read, and which ones there were."""

    source: Path
    skip: bool
    unit: str
    """What a record is called: row, file or picture."""
    suspect: str = "another format, or features of another width (--width)"
    """What is wrong where no record can be read."""
    rows: list[BadRow] = field(default_factory=list)

    def add(self, number: int, image_id: str, error: DataError, written: int) -> None:
        """Note a bad record.

        Args:
            number: Of the record, from 1.
            image_id: Of the record, as far as it can be read.
            error: What is wrong.
            written: Good records so far.

        Raises:
            DataError: Records must not be skipped, or all of the first `HOPELESS_ROWS` are bad.
        """
        where = f"{self.source}: {self.unit} {number}: {error}"
        if not self.skip:
            raise DataError(
                f"{where}; fetch the file again, or leave such {self.unit}s out with --skip-bad"
            ) from None
        self.rows.append(BadRow(number, image_id, str(error)))
        if not written and len(self.rows) >= HOPELESS_ROWS:
            raise DataError(
                f"{where}; this is so for all of the first {len(self.rows)} {self.unit}s: "
                f"{self.suspect}"
            ) from None

    def report(self, out: Path, total: int) -> None:
        """Write `<store>_skipped.txt` and say what it says; take an earlier report away."""
        path = report_path(out)
        if not self.rows:
            path.unlink(missing_ok=True)
            return
        lines = [f"{self.unit}\timage\treason"]
        lines += [
            "\t".join((str(bad.row), *(" ".join(t.split()) for t in (bad.image_id, bad.reason))))
            for bad in self.rows
        ]
        write_bytes(path, ("\n".join(lines) + "\n").encode())
        print(
            f"{self.source}: skipped {len(self.rows)} bad {self.unit}s of {total} (all of them "
            f"in {path}):"
        )
        for bad in self.rows[:SHOWN_BAD_ROWS]:
            print(f"  {self.unit} {bad.row}: {bad.reason}")
        if len(self.rows) > SHOWN_BAD_ROWS:
            print(f"  ... and {len(self.rows) - SHOWN_BAD_ROWS} more")


def report_path(store: Path) -> Path:
    """Where the report of skipped records of a store is."""
    return store.with_name(f"{store.name}_skipped.txt")


class Writer(Protocol):
    """Writes images one by one, in order, and goes on where an earlier one was stopped."""

    partial: Path

    def __enter__(self) -> Self:
        """Go on."""

    def __exit__(self, *error: Any) -> None:
        """Stop; what was written stays."""

    def __len__(self) -> int:
        """Images written so far."""

    def ids(self) -> list[str]:
        """Their ids, in order."""

    def stamp(self, image_id: str) -> int | None:
        """What one was read from."""

    def append(self, record: Any) -> None:
        """Write another one, which has an `image_id`."""

    def finish(self, **told: Any) -> Any:
        """Give the whole its name, with JSON values that tell of it."""


class Earlier:
    """What an earlier import left of the same source, which must still be the same.

    An import that goes on reads the records that it has again, in their order; one that was left
    out before and can be read now, or that has changed, means that the source was changed.
    """

    def __init__(self, writer: Writer, source: Path) -> None:
        self._writer, self._source = writer, source
        self._ids = writer.ids()
        self._next = 0

    def has(self, image_id: str, stamp: int) -> bool:
        """Whether this record, the next one of the source, was imported earlier.

        Args:
            image_id: Of the record.
            stamp: What it was then said to be, to `RegionFeatureWriter.add`.

        Raises:
            ConfigError: it is another one now.
        """
        if self._next == len(self._ids) or self._ids[self._next] != image_id:
            return False
        known = self._writer.stamp(image_id)
        if known is not None and known != stamp:
            raise self._changed(f"image {image_id!r} has another content now")
        self._next += 1
        return True

    def append(self, record: Any) -> None:
        """Append a record that was not imported earlier.

        Raises:
            ConfigError: others that come after it were.
        """
        if self._next < len(self._ids):
            raise self._changed(
                f"image {record.image_id!r} was not in this place, where "
                f"{self._ids[self._next]!r} was"
            )
        self._writer.append(record)

    def check_all_there(self) -> None:
        """Raise ConfigError unless the source has everything that was imported from it."""
        if self._next < len(self._ids):
            raise self._changed(f"image {self._ids[self._next]!r} is not in it any more")

    def _changed(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self._source}: was changed or exchanged since its import into "
            f"{self._writer.partial} began: {what}; bring the earlier file back, or delete that "
            "folder to import this one from its beginning"
        )


def extraction_path(path: Path) -> Path:
    """Where it is said what extracted features in another format than the store are of."""
    return path.with_name(f"{path.name}_extraction.json")


def read_extraction(source: Path) -> dict[str, Any]:
    """What is said there of the detector of `source`: `detector`, `extraction`; else empty.

    Raises:
        DataError: the file is damaged.
    """
    path = extraction_path(source)
    if not path.is_file():
        return {}
    found = read_json(path)
    kinds = {"detector": str, "extraction": dict}
    right = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in kinds.items())
    if not right:
        raise DataError(f"{path}: does not say what the features are of: extract them again")
    return {key: found[key] for key in kinds}


def detector_of(source: Path, named: str | None, usual: str) -> str:
    """The name of the detector of features that are imported.

    Args:
        source: of the features, which may be extracted ones.
        named: by the user.
        usual: of this format.
    """
    return named or read_extraction(source).get("detector", usual)


def import_records(
    out: Path,
    settings: dict[str, Any],
    bad: BadRows,
    copy: Callable[[RegionFeatureWriter, BadRows], dict[str, Any]],
) -> RegionFeatures:
    """Make the store `out`, or go on with it, unless it is there.

    Args:
        settings: Of the writer.
        bad: Collects what cannot be read.
        copy: Appends every record, and returns what meta.json should tell of the source.
    """

    made = read_extraction(bad.source)

    def copied(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        with _one_thread():
            return copy(writer, bad) | {key: made[key] for key in made if key == "extraction"}

    write_records(out, lambda: RegionFeatureWriter(out, **settings), bad, copied, "import")
    return RegionFeatures.open(out, settings["width"])


def write_records(
    out: Path,
    open_writer: Callable[[], Any],
    bad: BadRows,
    copy: Callable[[Any, BadRows], dict[str, Any]],
    verb: str,
) -> None:
    """Write `out`, or go on with it, unless it is there; other processes that want to wait.

    Args:
        open_writer: Gives a `Writer`.
        bad: Collects what cannot be read.
        copy: Appends every record to the writer, and returns what should be told of the source.
        verb: What this is called, a key of `NOUNS`.
    """
    with _disk_errors_explained(out, NOUNS[verb]), exclusive(out.with_name(f".{out.name}.lock")):
        if out.exists():
            print(f"{out}: is there already (delete it to {verb} again)")
            return
        with open_writer() as writer:
            if len(writer):
                print(f"{out}: going on with {len(writer)} images that were there from before")
            told = copy(writer, bad)
            images = len(writer)
            bad.report(out, images + len(bad.rows))
            skipped = [asdict(row) for row in bad.rows]
            writer.finish(skipped_rows=len(skipped), skipped=skipped, **told)


@contextmanager
def _disk_errors_explained(out: Path, noun: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{out}: the {noun} stopped ({error}): where the disk is full or read-only make room "
            "or choose another folder (--out); the same command then goes on where it stopped"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One record is little work: several threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
