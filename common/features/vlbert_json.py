"""Region features as VL-BERT has them: one JSON file per image, in a folder or a ZIP archive.

    python -m common.features --json data/coco/vgbua_res101_precomputed/NAME.zip

`<image id>.json` has num_boxes (n), image_w, image_h in pixels, and base64 of little-endian float32
buffers, in which line ends are allowed: boxes (n, 4) x1 y1 x2 y2 in pixels, features (n, C), and
sometimes image_box_feature (C,), of the image as a whole, and classes (n, K), the detector's class
probabilities.

`import_json` turns them into a store; `JsonFeatures` reads them where they are. An image without a
feature of its own gets the mean of its regions, and boxes are cut at the edges of their image, both
as VL-BERT does it on reading.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError
from common.features.archives import Files, open_files
from common.features.importing import (
    HOPELESS_ROWS,
    BadRows,
    Earlier,
    detector_of,
    import_records,
    read_extraction,
)
from common.features.lxmert_tsv import b64decode, encode_base64
from common.features.store import CLASSES, RegionBatch, RegionFeatures
from common.features.writer import LONGEST_SIDE, SHARE_TOLERANCE, Record, RegionFeatureWriter
from common.reading import parse_json, short

JSON_DETECTOR = "Faster R-CNN ResNet-101 bottom-up attention (VL-BERT JSON)"
LARGEST = 65504.0  # of float16, which stores hold
SUFFIX = ".json"


@dataclass
class JsonRecord:
    """The regions of one image, as they are in its file."""

    image_id: str
    width: int
    height: int
    """In pixels; both are 0 where the file does not say."""
    boxes: Tensor
    """(n, 4) float32: x1, y1, x2, y2 in pixels."""
    features: Tensor
    """(n, C) float32."""
    image_feature: Tensor | None
    """(C,) float32."""
    classes: Tensor | None
    """(n, K) float32 in 0..1."""

    def whole_image(self) -> Tensor:
        """(C,) feature of the image as a whole: its own, else the mean of the regions."""
        return self.features.mean(0) if self.image_feature is None else self.image_feature


def read_record(files: Files, name: str, width: int | None = None) -> JsonRecord:
    """Read and check one file.

    Args:
        files: The folder or archive.
        name: Of the file.
        width: C, if it is known.

    Raises:
        DataError: The file is missing or no JSON, or a field is missing or of the wrong size; with
            file, field and value.
    """
    where = files.where(name)
    record = parse_json(files.read(name), where)
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with num_boxes, boxes and features")
    count = _whole(where, record, "num_boxes")
    if count < 1:
        raise DataError(f"{where}: field 'num_boxes': {count}: expected one at least")
    image_w, image_h = (
        _whole(where, record, key) if key in record else 0 for key in ("image_w", "image_h")
    )
    boxes = _numbers(where, record, "boxes", count, 4)
    features = _numbers(where, record, "features", count, width)
    whole = probabilities = None
    if record.get("image_box_feature") is not None:
        whole = _numbers(where, record, "image_box_feature", 1, features.shape[1])[0]
    if record.get("classes") is not None:
        probabilities = _numbers(where, record, "classes", count, None)
        low, high = float(probabilities.min()), float(probabilities.max())
        if low < 0 or high > 1 + SHARE_TOLERANCE:
            raise DataError(
                f"{where}: field 'classes': probabilities from {low:g} to {high:g}: expected 0 to 1"
            )
    return JsonRecord(
        name.removesuffix(SUFFIX), image_w, image_h, boxes, features, whole, probabilities
    )


def encode_record(
    image_id: str,
    width: int,
    height: int,
    boxes: Tensor,
    features: Tensor,
    classes: Tensor | None = None,
    attributes: Tensor | None = None,
) -> bytes:
    """A file as `read_record` reads it.

    Args:
        width, height: Of the image, pixels.
        classes, attributes: (n, K) and (n, L) probabilities, the background and "none" first.
    """
    arrays = {"boxes": boxes, "features": features, "classes": classes, "attrs": attributes}
    record = {"image_id": image_id, "image_w": width, "image_h": height, "num_boxes": len(boxes)}
    texts = {n: encode_base64(x).decode() for n, x in arrays.items() if x is not None}
    return json.dumps(record | texts).encode()


def _whole(where: str, record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    if key not in record:
        raise DataError(f"{where}: field {key!r} is missing (it has {', '.join(record)})")
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise DataError(f"{where}: field {key!r}: {short(value)}: expected a whole number")
    if not 0 <= value <= LONGEST_SIDE:
        raise DataError(f"{where}: field {key!r}: {short(value)}: expected 0 to {LONGEST_SIDE:,}")
    return int(value)


def _numbers(
    where: str, record: dict[str, Any], key: str, rows: int, columns: int | None
) -> Tensor:
    """A base64 field as (rows, columns) float32; None means as many columns as there are."""
    text = record.get(key)
    if not isinstance(text, str):
        problem = "is missing" if key not in record else f"is {short(text)}, expected base64"
        raise DataError(f"{where}: field {key!r} {problem}")
    try:
        data = b64decode(text.replace("\n", "").replace("\r", "").encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise DataError(f"{where}: field {key!r}: not base64 ({error}): {text[:20]!r}...") from None
    numbers = len(data) / 4
    width = numbers / rows if columns is None else columns
    if len(data) != rows * int(width) * 4 or not data:
        expected = f"{rows} x {'equally many' if columns is None else columns}"
        raise DataError(
            f"{where}: field {key!r} holds {numbers:g} numbers, expected {expected} "
            f"({numbers / rows:g} per box)"
        )
    found = torch.frombuffer(bytearray(data), dtype=torch.float32).view(rows, -1)
    wrong = ~(found.abs() <= LARGEST)  # NaN compares as wrong
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise DataError(
            f"{where}: field {key!r}, box {row}, number {column}: {found[row, column].item():g}: "
            f"not finite, or beyond {LARGEST:g}: the file is damaged; fetch it again"
        )
    return found


def cut_boxes(boxes: Tensor, width: int, height: int, where: str) -> tuple[Tensor, bool]:
    """Boxes (n, 4) cut at the edges of their image, and whether any was beyond them.

    Raises:
        DataError: A box lies wholly outside, or its corners are the wrong way round.
    """
    limits = boxes.new_tensor([width, height, width, height])
    inside = boxes.clamp(min=0).minimum(limits)
    bad = (boxes[:, 2:] < boxes[:, :2]) | (boxes[:, :2] > limits[:2]) | (boxes[:, 2:] < 0)
    if bool(bad.any()):
        box = boxes[bad.any(1)][0].tolist()
        raise DataError(
            f"{where}: field 'boxes': {box} lies outside the image of {width} x "
            f"{height} pixels, or its corners are the wrong way round"
        )
    return inside, bool((inside != boxes).any())


def image_names(files: Files) -> list[str]:
    """The `<image id>.json` of a folder or archive, by number.

    Raises:
        DataError: There is none.
    """
    names = [name for name in files.names() if name.endswith(SUFFIX)]
    if not names:
        raise DataError(f"{files.path}: no <image id>{SUFFIX} in it")
    return sorted(names, key=lambda name: (len(name), name))


def json_store(source: Path) -> Path:
    """Where the store of a folder or archive of JSON files is made."""
    return source.with_name(f"{source.name.removesuffix('.zip')}_features")


def import_json(
    source: Path | str,
    out: Path | str,
    width: int | None = 2048,
    dtype: str = "float16",
    detector: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    progress: bool = True,
) -> RegionFeatures:
    """Import a folder or archive of `<image id>.json`, file by file, in the order of the numbers.

    Class probabilities are kept if the first file that can be read has them; then all must.
    The arguments are as in `common.features.importing.import_tsv`; a width of None is that of the
    first file.

    Raises:
        DataError: A file cannot be read or has a wrong field: archive, file, field, value.
    """
    files = open_files(source)
    names = image_names(files)[:limit]
    first = _first_record(files, names, width)
    classes = None if first is None or first.classes is None else first.classes.shape[1]
    width = width or (2048 if first is None else first.features.shape[1])
    settings = {
        "width": width,
        "dtype": dtype,
        "detector": detector_of(files.path, detector, JSON_DETECTOR),
        "box_policy": "as in the JSON files, cut at the edges of the image",
        "optional": [] if classes is None else [CLASSES],
        "classes": classes,
        "image_features": True,
        "source": f"{files.path.name}/*{SUFFIX}" + ("" if limit is None else f", first {limit}"),
    }

    def copy(writer: RegionFeatureWriter, bad: BadRows) -> dict[str, Any]:
        cut, earlier = 0, Earlier(writer, files.path)
        for number, name in enumerate(tqdm(names, desc=files.path.name, disable=not progress), 1):
            image_id = name.removesuffix(SUFFIX)
            try:
                stamp = files.stamp(name)
                if not earlier.has(image_id, stamp):
                    record, was_cut = _read_regions(writer, files, name, classes, stamp)
                    earlier.append(record)
                    cut += was_cut
            except DataError as error:
                bad.add(number, image_id, error, len(writer))
        earlier.check_all_there()
        if cut:
            print(f"{files.path}: boxes of {cut} images went beyond the image, and were cut there")
        return {"files": len(names)}

    return import_records(Path(out), settings, BadRows(files.path, skip_bad, "file"), copy)


def _first_record(files: Files, names: Sequence[str], width: int | None) -> JsonRecord | None:
    """The first file of so many that can be read; the others are reported in their turn."""
    for name in names[:HOPELESS_ROWS]:
        try:
            return read_record(files, name, width)
        except DataError:
            continue
    return None


def _read_regions(
    writer: RegionFeatureWriter, files: Files, name: str, classes: int | None, stamp: int
) -> tuple[Record, bool]:
    """One image for the writer to append, and whether its boxes had to be cut."""
    record = read_record(files, name, writer.width)
    where = files.where(name)
    if not record.width or not record.height:
        raise DataError(f"{where}: fields 'image_w' and 'image_h' are needed for an import")
    boxes, cut = cut_boxes(record.boxes, record.width, record.height, where)
    found = None if record.classes is None else record.classes.shape[1]
    if found != classes:
        raise DataError(
            f"{where}: field 'classes': {found or 'no'} class probabilities per box, "
            f"the first file has {classes or 'none'}: all files must be alike"
        )
    extra = {} if record.classes is None else {CLASSES: record.classes}
    ready = writer.prepare(
        record.image_id,
        record.width,
        record.height,
        boxes,
        record.features,
        image_feature=record.whole_image(),
        stamp=stamp,
        **extra,
    )
    return ready, cut


class JsonFeatures:
    """A folder or archive of JSON files that reads like a store; slower, but nothing is copied."""

    def __init__(self, path: Path | str, expect_width: int | None = None) -> None:
        """Open it.

        Raises:
            DataError: It is not there or empty, or its features have another width.
        """
        self.path, self._expected = Path(path), expect_width
        self._files = open_files(self.path)
        self._names = {name.removesuffix(SUFFIX): name for name in image_names(self._files)}
        first = read_record(self._files, next(iter(self._names.values())))
        self.width = first.features.shape[1]
        if expect_width is not None and self.width != expect_width:
            raise DataError(
                f"{self.path}: features are {self.width} numbers wide, the model expects "
                f"{expect_width}: use features of the detector the model was trained with"
            )
        self.meta: dict[str, Any] = {
            "detector": JSON_DETECTOR,
            **read_extraction(self.path),
            "optional": [] if first.classes is None else [CLASSES],
            "source": self.path.name,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonFeatures, (self.path, self._expected)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._names

    def ids(self) -> list[str]:
        """Image ids, by number."""
        return list(self._names)

    @property
    def counts(self) -> None:
        """The numbers of regions are not known before all files are read."""

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no file here, in their order."""
        return [image_id for image_id in image_ids if image_id not in self._names]

    def read(
        self,
        image_ids: Sequence[str],
        max_regions: int | None = None,
        classes: bool = False,
        half: bool = False,
    ) -> RegionBatch:
        """Regions of B images, as `RegionFeatures.read`; an image asked for twice is read once.

        The files hold float32, which stays.

        Boxes are cut at the edges of their images; where a file does not say the size of its image,
        they are as in the file, and the size is 0.

        Raises:
            DataError: An image has no file, it is damaged, or a box lies beside the image.
        """
        if absent := self.missing(image_ids):
            raise DataError(
                f"{self.path}: no file of image {absent[0]!r} ({len(absent)} of "
                f"{len(image_ids)} asked for are missing)"
            )
        records = {
            i: read_record(self._files, self._names[i], self.width)
            for i in dict.fromkeys(image_ids)
        }
        rows = [records[image_id] for image_id in image_ids]
        counts = [len(r.boxes[:max_regions]) for r in rows]
        batch = RegionBatch(
            image_ids=list(image_ids),
            features=_pad([r.features[:max_regions] for r in rows]),
            boxes=_pad([self._boxes(r)[:max_regions] for r in rows]),
            mask=torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1),
            sizes=torch.tensor([[r.width, r.height] for r in rows], dtype=torch.float32),
            image_features=torch.stack([r.whole_image() for r in rows]),
        )
        if classes:
            known = [r.classes[:max_regions] for r in rows if r.classes is not None]
            if len(known) == len(rows):
                batch.class_probabilities = _pad(known)
        return batch

    def _boxes(self, record: JsonRecord) -> Tensor:
        if not record.width or not record.height:
            return record.boxes
        where = self._files.where(self._names[record.image_id])
        return cut_boxes(record.boxes, record.width, record.height, where)[0]


def _pad(parts: Sequence[Tensor]) -> Tensor:
    """(B, R, …) with zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
