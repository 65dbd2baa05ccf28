"""The region-feature store: one folder that every backbone reads.

    features.npy     (rows, C) float16 or float32, all regions of all images
    boxes.npy        (rows, 4) float32: x1, y1, x2, y2 in pixels
    object_ids.npy, object_conf.npy, attribute_ids.npy, attribute_conf.npy   optional, (rows,)
    class_probabilities.npy   optional, (rows, K) float16, of the detector's K classes
    image_features.npy        optional, (images, C), of each image as a whole
    index.npz        per image: id, first row, number of regions, width and height in pixels,
                     checksum of its rows in all arrays (crc; older stores lack it)
    meta.json        format version, detector, box policy, counts, SHA-256 of every other file

Arrays are memory-mapped read-only, so the memory of a process depends neither on the size of the
data nor on the number of workers. `common.features.writer` makes such folders,
`common.features.importing` makes them from the formats of other systems.
"""

from __future__ import annotations

import hashlib
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.errors import DataError
from common.files import sha256
from common.reading import npy_header, read_json, read_npz, short

FORMAT = "region-features"
VERSION = 1
OPTIONAL = {
    "object_ids": "int32",
    "object_conf": "float32",
    "attribute_ids": "int32",
    "attribute_conf": "float32",
    "class_probabilities": "float16",
}
CLASSES = "class_probabilities"
IMAGES = "image_features"
BOX_TOLERANCE = 1e-5


# Types of meta.json; the first ones have to be there. Not by `reading.checked`: a machine that only
# measures has no pydantic.
META: dict[str, type | tuple[type, ...]] = {
    "detector": str,
    "width": int,
    "images": int,
    "regions": int,
    "optional": list,
    "checksums": dict,
}
MORE_META: dict[str, type | tuple[type, ...]] = {
    "source": str,
    "extraction": dict,
    "classes": int,
    "image_features": bool,
    "rows": int,
    "limit": (int, type(None)),
    "skipped_rows": int,
    "skipped": list,
}
SKIPPED = {"row": int, "image_id": str, "reason": str}


def whole_image(features: Tensor, mask: Tensor, image_features: Tensor | None) -> Tensor:
    """Features of images as a whole: those that are given, else the mean of their regions.

    Args:
        features: (B, R, C), 0 in the padding.
        mask: (B, R) bool.
        image_features: (B, C) or None.

    Returns:
        (B, C) float32, also of features in float16.
    """
    if image_features is not None:
        return image_features
    precise = features.to(torch.promote_types(features.dtype, torch.float32))
    return precise.sum(1) / mask.sum(1, keepdim=True)


def normalise_boxes(boxes: Tensor, sizes: Tensor, image_ids: Sequence[str]) -> Tensor:
    """Boxes as fractions of the image, checked to lie inside it.

    Args:
        boxes: (B, R, 4) x1, y1, x2, y2 in pixels; padding is all zeros.
        sizes: (B, 2) width and height in pixels.
        image_ids: B ids, for the error.

    Returns:
        (B, R, 4) in 0..1 (as LXMERT does it: never mapped to -1..1).

    Raises:
        DataError: A coordinate lies outside [-1e-5, 1 + 1e-5] or is not a number.
    """
    scaled = boxes / sizes.repeat(1, 2).unsqueeze(1)
    inside = (scaled >= -BOX_TOLERANCE) & (scaled <= 1 + BOX_TOLERANCE)
    if not bool(inside.all()):
        image, region = (int(i) for i in (~inside).any(-1).nonzero()[0])
        width, height = sizes[image].tolist()
        raise DataError(
            f"image {image_ids[image]!r}: box {region} = {boxes[image, region].tolist()} lies "
            f"outside the image of {width:g} x {height:g} pixels: the boxes were made for another "
            "image size; extract or import the features again"
        )
    return scaled


@dataclass
class Regions:
    """The regions of one image; the optional arrays are (R,) or None."""

    image_id: str
    width: int
    height: int
    features: Tensor
    """(R, C) float32."""
    boxes: Tensor
    """(R, 4) float32: x1, y1, x2, y2 in pixels."""
    object_ids: Tensor | None = None
    object_conf: Tensor | None = None
    attribute_ids: Tensor | None = None
    attribute_conf: Tensor | None = None
    class_probabilities: Tensor | None = None
    """(R, K) float32 in 0..1."""
    image_features: Tensor | None = None
    """(C,) float32, of the image as a whole."""

    def normalised_boxes(self) -> Tensor:
        """(R, 4) boxes as fractions of the image; see `normalise_boxes`."""
        sizes = torch.tensor([[self.width, self.height]], dtype=torch.float32)
        return normalise_boxes(self.boxes.unsqueeze(0), sizes, [self.image_id])[0]


@dataclass
class RegionBatch:
    """The regions of B images, padded with zeros to the largest number of regions R."""

    image_ids: list[str]
    features: Tensor
    """(B, R, C) float32; float16 where that is asked for and how they are kept."""
    boxes: Tensor
    """(B, R, 4) float32: x1, y1, x2, y2 in pixels."""
    mask: Tensor
    """(B, R) bool; False is padding."""
    sizes: Tensor
    """(B, 2) float32: width and height in pixels."""
    object_ids: Tensor | None = None
    """(B, R) int64, 0 in the padding; None where the store has none. Likewise below."""
    object_conf: Tensor | None = None
    """(B, R) float32 in 0..1, 0 in the padding."""
    attribute_ids: Tensor | None = None
    attribute_conf: Tensor | None = None
    class_probabilities: Tensor | None = None
    """(B, R, K) float32 in 0..1, 0 in the padding; only where it was asked for."""
    image_features: Tensor | None = None
    """(B, C) float32, of the images as a whole."""

    def whole_image(self) -> Tensor:
        """(B, C) features of the images as a whole: the store's, else the mean of the regions."""
        return whole_image(self.features, self.mask, self.image_features)

    def normalised_boxes(self) -> Tensor:
        """(B, R, 4) boxes as fractions of their images; see `normalise_boxes`."""
        return normalise_boxes(self.boxes, self.sizes, self.image_ids)


class RegionFeatures:
    """A store, opened for reading. Safe to share between threads, forked and spawned workers."""

    def __init__(self, path: Path | str, expect_width: int | None = None) -> None:
        """Open a store; see `open`."""
        self.path = Path(path)
        self.meta = _read_meta(self.path)
        self.width: int = self.meta["width"]
        if expect_width is not None and self.width != expect_width:
            raise DataError(
                f"{self.path}: features are {self.width} numbers wide ({self.meta['detector']}), "
                f"the model expects {expect_width}: use features of the detector the model was "
                "trained with, or set the model's feature width"
            )
        index = _read_index(self.path / "index.npz", self.meta)
        self._ids, self._first, self._count, self._sizes, self._crc = index
        self._unseen = np.ones(len(self._ids), dtype=bool)  # whose checksum was not looked at
        self._order = np.argsort(self._ids, kind="stable")
        self._sorted = self._ids[self._order]
        tails = {"features": (self.width,), "boxes": (4,)} | dict.fromkeys(
            self.meta["optional"], ()
        )
        if CLASSES in tails:
            tails[CLASSES] = (self.meta["classes"],)
        self._arrays = {
            name: _map_array(self.path / f"{name}.npy", (self.meta["regions"], *tail))
            for name, tail in tails.items()
        }
        if self.meta.get(IMAGES):
            shape = (self.meta["images"], self.width)
            self._arrays[IMAGES] = _map_array(self.path / f"{IMAGES}.npy", shape)

    @classmethod
    def open(cls, path: Path | str, expect_width: int | None = None) -> RegionFeatures:
        """Open the store in folder `path`.

        Args:
            path: The folder.
            expect_width: Width of the features that the model was made for.

        Raises:
            DataError: No such store, another format version, a file that is missing or shorter
                or longer than the index says, or features of another width.
        """
        return cls(path, expect_width)

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionFeatures, (self.path,)

    @property
    def has_checksums(self) -> bool:
        """Whether every record has one, compared when it is read; not so in older stores."""
        return self._crc is not None

    @property
    def counts(self) -> tuple[int, int]:
        """The fewest and the most regions of an image."""
        return int(self._count.min()), int(self._count.max())

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ids)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and not self.missing([image_id])

    def ids(self) -> list[str]:
        """Image ids in the order of the rows."""
        return [image_id.decode() for image_id in self._ids.tolist()]

    def _find(self, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the index (B,) and whether each id is there at all (B,)."""
        wanted = np.array([image_id.encode() for image_id in image_ids], dtype=np.bytes_)
        places = np.searchsorted(self._sorted, wanted).clip(max=len(self._ids) - 1)
        return self._order[places], self._sorted[places] == wanted

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that have no record here, in their order."""
        asked = list(image_ids)
        if not asked:
            return []
        return [asked[i] for i in np.flatnonzero(~self._find(asked)[1])]

    def _rows(self, image_ids: Sequence[str]) -> np.ndarray:
        positions, found = self._find(image_ids)
        if not found.all():
            absent = [image_ids[i] for i in np.flatnonzero(~found).tolist()]
            raise DataError(
                f"{self.path}: no record of image {absent[0]!r} ({len(absent)} of "
                f"{len(image_ids)} asked for are missing; the store has {len(self)} images): "
                "extract or import its features"
            )
        return positions

    def get(self, image_id: str) -> Regions:
        """All regions of one image.

        Raises:
            DataError: The store has no record of the image.
        """
        batch = self.read([image_id], classes=True)
        width, height = batch.sizes[0].tolist()
        extra = {n: getattr(batch, n)[0] for n in self._arrays if n not in ("features", "boxes")}
        return Regions(
            image_id, int(width), int(height), batch.features[0], batch.boxes[0], **extra
        )

    def read(
        self,
        image_ids: Sequence[str],
        max_regions: int | None = None,
        classes: bool = False,
        half: bool = False,
    ) -> RegionBatch:
        """Regions of B images.

        Args:
            image_ids: B ids; repetitions are fine.
            max_regions: Keep only the first so many regions of each image.
            classes: Read the class probabilities too, if the store has them.
            half: Leave features that are kept in float16 so; see `common.features.carried`.

        Raises:
            DataError: An image has no record, or its record holds values that are not finite.
        """
        if not len(image_ids) or (max_regions is not None and max_regions < 1):
            raise DataError(
                f"{self.path}: asked for {len(image_ids)} images with at most {max_regions} "
                "regions each: ask for one at least"
            )
        rows = self._rows(image_ids)
        self._check_records(rows)
        firsts, counts = self._first[rows].tolist(), self._count[rows].tolist()
        if max_regions is not None:
            counts = [min(count, max_regions) for count in counts]
        spans = [(first, first + count) for first, count in zip(firsts, counts, strict=False)]
        regions = torch.arange(max(counts))
        batch = RegionBatch(
            image_ids=list(image_ids),
            features=self._gather(
                "features", spans, self._arrays["features"].dtype if half else torch.float32
            ),
            boxes=self._gather("boxes", spans, torch.float32),
            mask=regions < torch.tensor(counts).unsqueeze(1),
            sizes=torch.from_numpy(self._sizes[rows]).float(),
        )
        if IMAGES in self._arrays:
            batch.image_features = self._arrays[IMAGES][torch.from_numpy(rows)].float()
        for name in self.meta["optional"]:
            if name == CLASSES and not classes:
                continue
            dtype = torch.int64 if OPTIONAL[name].startswith("int") else torch.float32
            setattr(batch, name, self._gather(name, spans, dtype))
        self._check_finite(batch)
        return batch

    def _check_records(self, rows: np.ndarray) -> None:
        """Compare records with their checksums, each once in a process: 0.03 ms an image."""
        if self._crc is None or not self._unseen[rows].any():
            return
        for row in rows[self._unseen[rows]].tolist():
            start = int(self._first[row])
            stop = start + int(self._count[row])
            parts = [
                array[row : row + 1] if name == IMAGES else array[start:stop]
                for name, array in self._arrays.items()
            ]
            if record_checksum(parts) != int(self._crc[row]):
                raise DataError(
                    f"{self.path}: the record of image {self._ids[row].decode()!r} is not what was "
                    "written (its checksum differs): the file is damaged; extract or import the "
                    "features again"
                )
            self._unseen[row] = False

    def _gather(self, name: str, spans: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
        """(B, R, ...) rows of one array, cast by torch (20 times faster than numpy's cast)."""
        source = self._arrays[name]
        longest = max(stop - start for start, stop in spans)
        out = torch.empty((len(spans), longest, *source.shape[1:]), dtype=dtype)
        for row, (start, stop) in zip(out, spans, strict=False):
            row[: stop - start].copy_(source[start:stop])
            row[stop - start :].zero_()
        return out

    def _check_finite(self, batch: RegionBatch) -> None:
        if bool(torch.isfinite(batch.features.sum(dtype=torch.float32) + batch.boxes.sum())):
            return
        for image_id, features, boxes in zip(
            batch.image_ids, batch.features, batch.boxes, strict=False
        ):
            if not bool(torch.isfinite(features).all() & torch.isfinite(boxes).all()):
                raise DataError(
                    f"{self.path}: the record of image {image_id!r} holds values that are not "
                    "finite: it is corrupt; extract or import the features again"
                )

    def verify(self, progress: bool = True) -> None:
        """Compare every file with the checksums in meta.json (reads everything once).

        Args:
            progress: Show a bar.

        Raises:
            DataError: A file differs.
        """
        checksums: dict[str, str] = self.meta["checksums"]
        paths = [self.path / name for name in checksums]
        total = sum(path.stat().st_size for path in paths if path.is_file())
        with tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc=f"verify {self.path.name}",
            disable=not progress,
        ) as bar:
            for name, expected in checksums.items():
                if not (self.path / name).is_file():
                    raise DataError(f"{self.path / name}: no such file; import the features again")
                found = sha256(self.path / name, bar)
                if found != expected:
                    raise DataError(
                        f"{self.path / name}: SHA-256 is {found}, meta.json says {expected}: the "
                        "file is corrupt; extract or import the features again"
                    )


def record_checksum(parts: Iterable[Tensor]) -> int:
    """CRC-32 of an image's rows in all arrays of a store, in their order."""
    found = 0
    for rows in parts:
        found = zlib.crc32(rows.contiguous().numpy().data, found)
    return found


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    meta = read_json(path, "a region-feature store is a folder with features.npy and meta.json")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f'{path}: not a region-feature store: no "format": "{FORMAT}" in it')
    if meta.get("version") != VERSION:
        raise DataError(
            f"{path}: format version {short(meta.get('version'))}, this code reads {VERSION}: "
            "import the features again"
        )
    for key, kind in (META | MORE_META).items():
        if (key in META or key in meta) and not _is(meta.get(key), kind):
            raise DataError(
                f"{path}: {key!r} is {short(meta.get(key, 'missing'))}: it is damaged; import the "
                "features again"
            )
    texts = [*meta["optional"], *meta["checksums"].values()]
    skipped = all(
        isinstance(row, dict) and all(_is(row.get(k), kind) for k, kind in SKIPPED.items())
        for row in meta.get("skipped", ())
    )
    if not skipped or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}: it is damaged; import the features again")
    if unknown := sorted(set(meta["optional"]) - set(OPTIONAL)):
        raise DataError(
            f"{path}: unknown optional arrays {short(unknown)}; known: {sorted(OPTIONAL)}"
        )
    if (CLASSES in meta["optional"]) != ("classes" in meta):
        raise DataError(f"{path}: 'classes' belongs to the array {CLASSES}: import again")
    for key in ("width", "images", "regions", "classes"):
        if meta.get(key, 1) < 1:
            raise DataError(f"{path}: {key} is {meta[key]}: expected one at least; import again")
    return meta


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


Index = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
INDEX_KINDS = {"ids": "S", "first": "iu", "count": "iu", "sizes": "iu", "crc": "u"}


def _read_index(path: Path, meta: dict[str, Any]) -> Index:
    """Ids (N,) bytes, first rows (N,), counts (N,), sizes (N, 2) as width, height in pixels, and
    checksums (N,), which older stores lack."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: the store is incomplete; import it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    expected = meta["checksums"].get(path.name)
    if hashlib.sha256(content).hexdigest() != expected:
        raise DataError(
            f"{path}: corrupt index: its SHA-256 is not the one in meta.json; import the features "
            "again"
        )
    found = read_npz(content, str(path), INDEX_KINDS)
    arrays = []
    for name, kinds in INDEX_KINDS.items():
        array = found.get(name)
        if array is None and name == "crc":
            continue
        shape = (meta["images"], 2) if name == "sizes" else (meta["images"],)
        if array is None or array.dtype.kind not in kinds or array.shape != shape:
            what = "nothing" if array is None else f"{array.shape} of {array.dtype}"
            raise DataError(
                f"{path}: corrupt index: {name!r} is {what}, meta.json says {meta['images']} "
                "images: files of two stores are mixed; import the features again"
            )
        arrays.append(array)
    ids, first, count, sizes, *rest = arrays
    if not np.array_equal(first, np.cumsum(count) - count) or (count < 1).any():
        raise DataError(f"{path}: corrupt index: regions overlap; import the features again")
    if int(count.sum()) != meta["regions"] or (sizes < 1).any():
        raise DataError(
            f"{path}: {len(ids)} images with {int(count.sum())} regions, meta.json says "
            f"{meta['regions']}: files of two stores are mixed; import the features again"
        )
    return ids, first, count, sizes, rest[0] if rest else None


def _map_array(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Map a .npy file read-only after checking it against the shape the index calls for."""
    try:
        with open(path, "rb") as file:
            found, fortran, dtype = npy_header(file, str(path))
            offset = file.tell()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: the store is incomplete; import it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if found != shape or fortran or dtype.str not in ("<f2", "<f4", "<i4"):
        raise DataError(
            f"{path}: array {found} of {dtype}, the index calls for {shape}: files of two stores "
            "are mixed; import the features again"
        )
    expected = offset + int(np.prod(shape)) * dtype.itemsize
    if (size := path.stat().st_size) != expected:
        raise DataError(
            f"{path}: {size} bytes, the index calls for {expected}: the file is truncated or "
            "corrupt; import the features again"
        )
    array = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
