"""Pictures of a folder or ZIP archive to region features, by one process or several.

Pictures are looked at in the order of their names. What is written so far stays when the process is
killed; the same command goes on behind it, if the pictures and the settings are the same.
"""

from __future__ import annotations

import io
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.detector.outputs import Output, Picture, open_output
from common.detector.regions import Detector, FoundRegions
from common.errors import ConfigError, DataError, named
from common.features.archives import Files, open_files
from common.features.importing import BadRows, Earlier, write_records
from common.features.pictures import decode_picture

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".avif"),
)
FIRST_LOOK = 10  # pictures, after which a doubt is said
DOUBTFUL = 0.25  # share of pictures
AHEAD = 2  # pictures per process that are being looked at or wait for their turn


@dataclass(frozen=True)
class ExtractionOptions:
    """What is written, and how.

    Attributes:
        form: of `common.detector.outputs.FORMATS`.
        dtype: of a store's features.
        classes: a store keeps class probabilities.
        name: of the detector, kept with the features instead of its own.
        skip_bad: leave out what cannot be read, and report it.
        limit: only the first so many pictures.
        workers: processes that look at pictures.
        threads: of each of them; None: all cores, shared among them.
        progress: show a bar.
    """

    form: str = "store"
    dtype: str = "float16"
    classes: bool = False
    name: str | None = None
    skip_bad: bool = False
    limit: int | None = None
    workers: int = 1
    threads: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("limit", "workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value}: give at least 1")
        if self.classes and self.form != "store":
            raise ConfigError(f"--classes is for a store; --format {self.form} knows by itself")

    @property
    def threads_each(self) -> int:
        if self.threads is not None:
            return self.threads
        return torch.get_num_threads() if self.workers == 1 else _cores() // self.workers or 1


@dataclass
class Looked:
    """What came of looking at a picture; arrays, which any process can be sent.

    Attributes:
        width, height: of the picture, pixels.
        arrays: the fields of `FoundRegions` that there are.
        doubts: see `Detector.doubts`.
        error: why it cannot be used, instead of all that.
    """

    width: int = 0
    height: int = 0
    arrays: dict[str, np.ndarray] | None = None
    doubts: dict[str, float] | None = None
    error: str | None = None

    def found(self) -> FoundRegions:
        arrays = self.arrays or {}
        return FoundRegions(**{name: torch.from_numpy(x) for name, x in arrays.items()})


def picture_names(files: Files) -> tuple[list[str], int]:
    """Pictures of a folder or archive by name, and how many files are no pictures by their ending.

    Raises:
        DataError: none, or two whose names differ in folder or ending alone.
    """
    names = sorted(files.names())
    chosen = [name for name in names if is_picture(name)]
    if not chosen:
        raise DataError(f"{files.path}: no pictures in it (endings {', '.join(ENDINGS)})")
    check_ids(files, chosen)
    return chosen, len(names) - len(chosen)


def check_ids(files: Files, names: Iterable[str]) -> None:
    """Raise DataError if two pictures would be the same image."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(image_id(name), name)) != name:
            raise DataError(
                f"{files.path}: {other} and {name} would both be image {image_id(name)!r}: "
                "rename one"
            )


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its ending; not so hidden ones, and what macOS puts beside
    them."""
    *folders, last = name.split("/")
    hidden = any(part.startswith(".") and part != "." for part in (*folders, last))
    return not hidden and "__MACOSX" not in folders and last.lower().endswith(ENDINGS)


def image_id(name: str) -> str:
    """Name of a file without folder and ending."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def look(detector: Detector, files: Files, name: str) -> Looked:
    """Read a picture and find its regions."""
    try:
        picture = decode_picture(io.BytesIO(files.read(name)), files.where(name))
        with named(files.where(name), DataError):
            found = detector.detect(picture)
    except DataError as error:
        return Looked(error=str(error))
    arrays = {f.name: getattr(found, f.name) for f in fields(found)}
    return Looked(
        *picture.size,
        {key: x.numpy() for key, x in arrays.items() if x is not None},
        detector.doubts(found, picture),
    )


Open = Callable[[], Detector]
Todo = tuple[int, str, int]  # number of a picture from 1, its name, its stamp


class Doubts:
    """Counts pictures whose features are outside the range of real ones."""

    def __init__(self) -> None:
        self.seen = 0
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, float] = {}

    def add(self, doubts: dict[str, float]) -> None:
        self.seen += 1
        self.counts.update(doubts.keys())
        self._examples |= doubts

    def text(self) -> str | None:
        """A warning, where it is so of more than a quarter of the pictures."""
        said = [
            f"{what} is {self._examples[what]:.3g} in one and outside in {count} of {self.seen}"
            for what, count in self.counts.items()
            if count > DOUBTFUL * self.seen
        ]
        if not said:
            return None
        return (
            f"warning: these are no usual features: {'; '.join(said)} pictures; are these the "
            "weights of this config, and photographs?"
        )


def extract(
    source: Path,
    out: Path,
    open_detector: Open,
    options: ExtractionOptions,
    names: Sequence[str] | None = None,
) -> None:
    """Find the regions of all pictures, and write them to `out`, unless it is there.

    Args:
        source: a folder or a ZIP archive.
        out: the finished store, file or folder.
        open_detector: makes the detector; with several workers it is called in each of them.
        options: what is written, and how.
        names: of the pictures; None: all of them.

    Raises:
        DataError: no pictures, or one that cannot be used (unless those are skipped); the disk
            is full; or `out` was begun with other pictures or settings.
    """
    files = open_files(source, deep=True)
    if names is None:
        chosen, others = picture_names(files)
        if others:
            print(f"{source}: {others} files that are no pictures by their ending are left out")
    else:
        chosen = sorted(names)
        check_ids(files, chosen)
    names = chosen[: options.limit]
    detector = open_detector()
    spec = {
        "detector": options.name or detector.name,
        "box_policy": f"{detector.box_policy} {detector.record.get('digest', '')}".strip(),
        "source": source.name if options.limit is None else f"{source.name}, {len(names)} pictures",
    }
    bad = BadRows(source, options.skip_bad, "picture", "no pictures that can be read")
    made: list[Output] = []

    def open_writer() -> Any:
        made.append(open_output(options.form, out, detector, spec, options.dtype, options.classes))
        return made[0].writer

    def copy(writer: Any, bad: BadRows) -> dict[str, Any]:
        looker = (detector, open_detector)
        _copy(made[0], writer, bad, files, names, looker, options)
        record = detector.record | {"own_name": detector.name}
        return {"extraction": record, "pictures": len(names)}

    write_records(out, open_writer, bad, copy, "extract")


def _copy(
    output: Output,
    writer: Any,
    bad: BadRows,
    files: Files,
    names: Sequence[str],
    looker: tuple[Detector, Open],
    options: ExtractionOptions,
) -> None:
    """Append every picture that is not there yet."""
    earlier, doubts = Earlier(writer, files.path), Doubts()
    with tqdm(total=len(names), unit="picture", disable=not options.progress) as bar:

        def todo() -> Iterator[Todo]:
            for number, name in enumerate(names, 1):
                stamp = files.stamp(name)
                if earlier.has(image_id(name), stamp):
                    bar.update()
                else:
                    yield number, name, stamp

        for (number, name, stamp), seen in _looked(todo(), files, looker, options):
            try:
                if seen.error is not None:
                    raise DataError(seen.error)
                size = (seen.width, seen.height)
                earlier.append(output.add(Picture(image_id(name), *size, stamp, seen.found())))
                doubts.add(seen.doubts or {})
            except DataError as error:
                bad.add(number, image_id(name), error, len(writer))
            bar.update()
            if doubts.seen == FIRST_LOOK < len(names) and (said := doubts.text()):
                bar.write(said)
    earlier.check_all_there()
    if said := doubts.text():
        print(said)


def _looked(
    todo: Iterable[Todo], files: Files, looker: tuple[Detector, Open], options: ExtractionOptions
) -> Iterator[tuple[Todo, Looked]]:
    """Pictures with what came of them, in order."""
    detector, open_detector = looker
    if options.workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(options.threads_each)
        try:
            for each in todo:
                yield each, look(detector, files, each[1])
        finally:
            torch.set_num_threads(before)
        return
    context = get_context("spawn")
    setting = (open_detector, files.path, options.threads_each)
    with ProcessPoolExecutor(options.workers, context, _start, setting) as pool:
        waiting: deque[tuple[Todo, Future[Looked]]] = deque()
        try:
            for each in todo:
                waiting.append((each, pool.submit(_look, each[1])))
                if len(waiting) >= AHEAD * options.workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool:
            raise DataError(
                f"{files.path}: a process that looks at pictures ended by itself, perhaps for lack "
                f"of memory: give the same command with fewer than --workers {options.workers}"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[Detector, Files] | None = None


def _start(open_detector: Open, source: Path, threads: int) -> None:
    """Make a worker ready; it ends when the process that started it is gone."""
    global _worker
    torch.set_num_threads(threads)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _worker = open_detector(), open_files(source)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _look(name: str) -> Looked:
    if _worker is None:
        raise RuntimeError("a worker that was not started")
    return look(*_worker, name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
