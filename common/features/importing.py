"""Import region features of other systems into a store (`common.features.store`).

    python -m common.data import --tsv data/mscoco_imgfeat/train2014_obj36.tsv
    python -m common.data import --npz FOLDER
    python -m common.data import --json data/coco/vgbua_res101_precomputed/NAME.zip

LXMERT's TSV is described in `common.features.lxmert_tsv`, VL-BERT's JSON files in `common.features.vlbert_json`. NPZ:
one file `<image id>.npz` per image, as the bottom-up-attention extractors write them (`NPZ_KEYS`).
All are read one image at a time, so memory does not depend on their size, and an import that was
stopped goes on where it was.
With `skip_bad` a record that cannot be read is left out and named in `<store>_skipped.txt`.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import AdaptiveError, DataError
from common.features.lxmert_tsv import (
    COLUMNS,
    OPTIONAL_COLUMNS,
    add_row,
    check_boxes,
    read_rows,
    row_image,
)
from common.features.store import RegionFeatures
from common.features.writer import RegionFeatureWriter
from common.files import exclusive, write_bytes

__all__ = ["COLUMNS", "NPZ_DETECTOR", "TSV_DETECTOR", "import_npz", "import_tsv", "main"]

# array -> its names in a file; width and height are of the image, in pixels
NPZ_KEYS = {
    "features": ("features", "x"),
    "boxes": ("boxes", "bbox"),
    "width": ("width", "image_w"),
    "height": ("height", "image_h"),
}
SHOWN_BAD_ROWS = 5
HOPELESS_ROWS = 1000
TSV_DETECTOR = "Faster R-CNN bottom-up attention (LXMERT TSV)"
NPZ_DETECTOR = "as in the NPZ files"


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
    """What a record is called: row or file."""
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
                f"{where}; this is so for all of the first {len(self.rows)} {self.unit}s: another "
                "format, or features of another width (--width)"
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


def import_tsv(
    path: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    skip_bad: bool = False,
    limit: int | None = None,
    detector: str = TSV_DETECTOR,
    progress: bool = True,
) -> RegionFeatures:
    """Import an LXMERT TSV, line by line.

    Args:
        path: The TSV.
        out: Folder of the store.
        width: C, numbers per feature vector in the TSV.
        dtype: float16 (half the size; rounding 2^-11) or float32, in the store.
        skip_bad: Leave out rows that cannot be read, and report them; otherwise an error.
        limit: Read only the first so many rows.
        detector: What made the features. A checkpoint takes features of its own detector only, so
            features of the same detector are imported under the same name.
        progress: Show a bar.

    Raises:
        DataError: A row cannot be read: file, row number, image id, column and value or shape;
            or the disk is full.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    settings = {
        "width": width, "dtype": dtype, "detector": detector,
        "box_policy": "as in the TSV, by descending object confidence",
        "optional": [name for name, _ in OPTIONAL_COLUMNS.values()],
        "source": path.name if limit is None else f"{path.name}, first {limit} rows",
    }  # fmt: skip

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        rows = _copy_rows(writer, bad, limit, progress)
        return {"rows": rows, "limit": limit}

    return import_records(Path(out), settings, BadRows(path, skip_bad, "row"), copy)


Copy = Callable[[RegionFeatureWriter, BadRows], dict[str, Any]]


def import_records(out: Path, settings: dict[str, Any], bad: BadRows, copy: Copy) -> RegionFeatures:
    """Make the store `out`, or go on with it, unless it is there.

    Args:
        settings: Of the writer.
        bad: Collects what cannot be read.
        copy: Appends every record, and returns what meta.json should tell of the source.
    """
    with _disk_errors_explained(out), exclusive(out.with_name(f".{out.name}.lock")):
        if out.exists():
            print(f"{out}: is there already (delete it to import again)")
            return RegionFeatures.open(out, settings["width"])
        with _one_thread(), RegionFeatureWriter(out, **settings) as writer:
            if len(writer):
                print(f"{out}: going on with {len(writer)} images that an earlier import left")
            told = copy(writer, bad)
            images = len(writer)
            bad.report(out, images + len(bad.rows))
            skipped = [asdict(row) for row in bad.rows]
            return writer.finish(skipped_rows=len(skipped), skipped=skipped, **told)


@contextmanager
def _disk_errors_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{out}: the import stopped ({error}): where the disk is full or read-only make room "
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


def _copy_rows(writer: RegionFeatureWriter, bad: BadRows, limit: int | None, progress: bool) -> int:
    """Append the rows of the TSV that are not in the store yet; returns how many rows it has."""
    done, seen, number = set(writer.ids()), set(), 0
    for number, line in read_rows(bad.source, limit, progress):
        image_id = row_image(line)
        try:
            if image_id in seen:
                raise DataError(f"image {image_id!r}: column 'img_id': an earlier row has it too")
            seen.add(image_id)
            if image_id not in done:
                add_row(writer, line)
        except DataError as error:
            bad.add(number, image_id, error, len(writer))
    return number


def import_npz(
    folder: Path | str,
    out: Path | str,
    width: int = 2048,
    dtype: str = "float16",
    detector: str = NPZ_DETECTOR,
    skip_bad: bool = False,
    progress: bool = True,
) -> RegionFeatures:
    """Import a folder with one `<image id>.npz` per image, in the order of their names.

    Each file has features (`features` or `x`, (R, C)), boxes in pixels (`boxes` or `bbox`,
    (R, 4)), and the size of the image (`width`, `height` or `image_w`, `image_h`). Nothing
    pickled is read. The other arguments are as in `import_tsv`.

    Raises:
        DataError: A file cannot be read or lacks an array: file, image id, column, shape.
    """
    folder = Path(folder)
    if not (paths := sorted(folder.glob("*.npz"))):
        raise DataError(f"{folder}: no .npz files in it")
    settings = {
        "width": width, "dtype": dtype, "detector": detector,
        "box_policy": "as in the NPZ files", "source": f"{folder.name}/*.npz",
    }  # fmt: skip

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        for number, path in enumerate(tqdm(paths, desc=folder.name, disable=not progress), 1):
            try:
                if path.stem not in writer:
                    _add_npz(writer, path)
            except DataError as error:
                bad.add(number, path.stem, error, len(writer))
        return {}

    return import_records(Path(out), settings, BadRows(folder, skip_bad, "file"), copy)


def _add_npz(writer: RegionFeatureWriter, path: Path) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {
                name: file[next(k for k in keys if k in file)] for name, keys in NPZ_KEYS.items()
            }
        size = (int(found["width"]), int(found["height"]))
    except StopIteration:
        wanted = "; ".join(" or ".join(keys) for keys in NPZ_KEYS.values())
        raise DataError(f"{path}: an array is missing; needed are {wanted}") from None
    except (zipfile.BadZipFile, ValueError, TypeError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read as NPZ without pickles ({error})") from None
    try:
        boxes = torch.as_tensor(found["boxes"])
        check_boxes(path.stem, "array 'boxes'", boxes, *size)
        writer.add(path.stem, *size, boxes, found["features"])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Flags of the import; `run_import` obeys them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tsv", type=Path, metavar="FILE", help="an LXMERT *_obj36.tsv")
    source.add_argument("--npz", type=Path, metavar="DIR", help="a folder of <image id>.npz")
    source.add_argument(
        "--json", type=Path, metavar="DIR|ZIP", help="VL-BERT's <image id>.json, in a folder or ZIP"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="the store (default: the name without .tsv, or NAME_features)",
    )  # fmt: skip
    parser.add_argument("--width", type=int, default=2048, help="numbers per feature vector")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument(
        "--detector", metavar="NAME", help="what made the features (default: "
        f"\"{TSV_DETECTOR}\", \"{NPZ_DETECTOR}\", or VL-BERT's); a checkpoint takes features of "
        "the detector that it was trained with, by this name",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="leave out what cannot be read; a report is written to <store>_skipped.txt",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, help="only the first so many images (TSV, JSON)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run_import(args: argparse.Namespace) -> None:
    """Import as the flags say, and say what came of it."""
    if args.tsv:
        out = args.out or args.tsv.with_suffix("")
        store = import_tsv(args.tsv, out, args.width, args.dtype, args.skip_bad, args.limit,
                           args.detector or TSV_DETECTOR, not args.quiet)  # fmt: skip
    elif args.json:
        from common.features.vlbert_json import (
            JSON_DETECTOR,
            import_json,
            json_store,
        )  # needs this module

        out = args.out or json_store(args.json)
        store = import_json(args.json, out, args.width, args.dtype, args.detector or JSON_DETECTOR,
                            args.skip_bad, args.limit, not args.quiet)  # fmt: skip
    else:
        out = args.out or npz_store(args.npz)
        store = import_npz(args.npz, out, args.width, args.dtype, args.detector or NPZ_DETECTOR,
                           args.skip_bad, not args.quiet)  # fmt: skip
    print(f"{store.path}: {len(store)} images, {store.meta['regions']} regions x {store.width}")


def npz_store(folder: Path) -> Path:
    """Where the store of a folder of NPZ files is made."""
    return folder.with_name(f"{folder.name}_features")


def main(argv: list[str] | None = None) -> int:
    """The command line, the same as `python -m common.data import`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m common.feature_import",
        description="Turn the region features of other systems into a memory-mapped store. "
        "A stopped import goes on where it was.",
    )
    add_import_options(parser)
    args = parser.parse_args(argv)
    try:
        run_import(args)
    except AdaptiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
