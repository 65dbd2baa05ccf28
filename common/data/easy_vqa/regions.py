"""Regions from pixels alone, for images of plain shapes on a plain background.

There is no learned detector here. Boxes are proposed as classical detectors do, and a feature
vector is what one sees in the box; it is NOT comparable with Faster R-CNN features, and says
nothing on photographs.

Boxes (about seven per image, 36 at most): the tight box of each connected region of foreground,
four overlapping corner windows, a centre window of another scale, the whole image. Foreground is
what differs from the most frequent colour. Boxes are sorted by descending confidence, which is
the overlap (IoU) with the nearest tight box.

Features (2048 numbers, the rest zeros; `LAYOUT` has the places, and the factors give the groups
about equal lengths, as a linear layer reads them all):
    colours     16 x 16 x 3  the box's pixels minus the background colour, / 256
    mask        16 x 16      how much of each cell is foreground, 0..1
    histogram   27           share of the foreground pixels per colour class, x 16
    mean        3            mean foreground colour, / 32
    geometry    11           x1, y1, x2, y2, width, height and area as shares of the image; share
                             of the box that is foreground; share of all foreground that is in
                             the box; fill and log2 of the aspect (see below); all x 4
Object class: the most frequent colour class of the foreground in the box; a colour class is red,
green and blue in three levels each (split at 64 and 192), 9 r + 3 g + b; 27 is "no foreground".
Attribute class: with w x h the bounding rectangle of the foreground in the box, 3 x (fill class:
foreground pixels / (w h), split at .25, .65, .9) + (aspect class: w / h, split at .8, 1.25); 12
is "no foreground".
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

FOREGROUND_DIFFERENCE = 40
MIN_AREA = 8
MAX_BOXES = 36
SIDE = 16
WIDTH = 2048
NO_OBJECT, NO_ATTRIBUTE = 27, 12
OBJECT_CLASSES, ATTRIBUTE_CLASSES = 28, 13
FILL_SPLITS, ASPECT_SPLITS = (0.25, 0.65, 0.9), (0.8, 1.25)
# x1, y1, x2, y2 as shares of the image
WINDOWS = (
    (0.0, 0.0, 0.625, 0.625),
    (0.375, 0.0, 1.0, 0.625),
    (0.0, 0.375, 0.625, 1.0),
    (0.375, 0.375, 1.0, 1.0),
    (0.25, 0.25, 0.75, 0.75),
    (0.0, 0.0, 1.0, 1.0),
)
_SIZES = {"colours": 768, "mask": 256, "histogram": 27, "mean": 3, "geometry": 11}
_ENDS = np.cumsum(list(_SIZES.values())).tolist()
LAYOUT = {
    name: slice(end - size, end) for (name, size), end in zip(_SIZES.items(), _ENDS, strict=False)
}


@dataclass
class PixelRegions:
    """Regions of one image, by descending confidence."""

    boxes: np.ndarray
    """(R, 4) float32: x1, y1, x2, y2 in pixels; x2 and y2 are the first column and row outside."""
    features: np.ndarray
    """(R, 2048) float32."""
    object_ids: np.ndarray
    """(R,) int32 in 0..27; `attribute_ids` likewise in 0..12."""
    attribute_ids: np.ndarray
    confidence: np.ndarray
    """(R,) float32 in 0..1, of both classes."""


def background_colour(pixels: np.ndarray) -> np.ndarray:
    """Most frequent colour (3,) of an image (H, W, 3) uint8; of equals the darkest red first."""
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    values, counts = np.unique(codes, return_counts=True)
    code = int(values[counts.argmax()])
    return np.array([code >> 16, (code >> 8) & 255, code & 255], dtype=np.int32)


def connected_regions(mask: np.ndarray, min_area: int = MIN_AREA) -> list[list[int]]:
    """Tight boxes of the 8-connected regions of a mask, largest region first.

    Horizontal runs of set pixels are joined with those they touch in the row above (union-find).

    Args:
        mask: (H, W) bool.
        min_area: Smaller regions, in pixels, are left out.

    Returns:
        (x1, y1, x2, y2) each, in pixels, x2 and y2 exclusive.
    """
    parent: list[int] = []
    runs: list[tuple[int, int, int]] = []

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above: list[int] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0)).tolist()
        here = []
        for start, stop in zip(edges[::2], edges[1::2], strict=False):
            here.append(len(runs))
            parent.append(len(runs))
            runs.append((y, start, stop))
            for i in above:
                if runs[i][1] <= stop and start <= runs[i][2]:
                    parent[root(i)] = root(here[-1])
        above = here
    regions: dict[int, list[tuple[int, int, int]]] = {}
    for i, run in enumerate(runs):
        regions.setdefault(root(i), []).append(run)
    found = []
    for members in regions.values():
        ys, starts, stops = zip(*members, strict=False)
        if (area := sum(stops) - sum(starts)) >= min_area:
            found.append((-area, min(starts), min(ys), max(stops), max(ys) + 1))
    return [box for _, *box in sorted(found)]


def _overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def propose_boxes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (R, 4) in pixels and their confidences (R,), from a foreground mask (H, W)."""
    height, width = mask.shape
    windows = [
        (int(x1 * width), int(y1 * height), int(x2 * width), int(y2 * height))
        for x1, y1, x2, y2 in WINDOWS
    ]
    tight = [tuple(box) for box in connected_regions(mask)[: MAX_BOXES - len(windows)]]
    boxes = list(dict.fromkeys([*tight, *windows]))
    scores = [max((_overlap(box, t) for t in tight), default=0.0) for box in boxes]
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    return (
        np.array([boxes[i] for i in order], dtype=np.float32),
        np.array([scores[i] for i in order], dtype=np.float32),
    )


def colour_classes(pixels: np.ndarray) -> np.ndarray:
    """Colour class 0..26 of every pixel (..., 3)."""
    levels = (pixels >= 64).astype(np.int32) + (pixels >= 192)
    return levels @ np.array([9, 3, 1], dtype=np.int32)


def _shape_of(mask: np.ndarray) -> tuple[float, float]:
    """Fill and aspect (w / h) of the foreground's bounding rectangle; mask (h, w) has some."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = ys[-1] - ys[0] + 1, xs[-1] - xs[0] + 1
    return float(mask.sum() / (height * width)), float(width / height)


def extract_regions(image: Image.Image) -> PixelRegions:
    """Propose and describe the regions of an image; see the top of this file."""
    pixels = np.asarray(image.convert("RGB"))
    background = background_colour(pixels)
    mask = np.abs(pixels.astype(np.int32) - background).max(-1) > FOREGROUND_DIFFERENCE
    boxes, confidence = propose_boxes(mask)
    classes = colour_classes(pixels)
    colour_image, mask_image = Image.fromarray(pixels), Image.fromarray(mask.astype(np.uint8) * 255)
    features = np.zeros((len(boxes), WIDTH), dtype=np.float32)
    object_ids = np.full(len(boxes), NO_OBJECT, dtype=np.int32)
    attribute_ids = np.full(len(boxes), NO_ATTRIBUTE, dtype=np.int32)
    for i, box in enumerate(boxes):
        x1, y1, x2, y2 = (int(v) for v in box)
        row, inside = features[i], mask[y1:y2, x1:x2]
        row[LAYOUT["colours"]] = ((_crop(colour_image, box) - background) / 256).ravel()
        row[LAYOUT["mask"]] = _crop(mask_image, box).ravel() / 255
        fill, aspect = 0.0, 1.0
        if inside.any():
            histogram = np.bincount(classes[y1:y2, x1:x2][inside], minlength=27)
            row[LAYOUT["histogram"]] = 16 * histogram / histogram.sum()
            row[LAYOUT["mean"]] = pixels[y1:y2, x1:x2][inside].mean(0) / 32
            fill, aspect = _shape_of(inside)
            object_ids[i] = histogram.argmax()
            attribute_ids[i] = 3 * np.searchsorted(FILL_SPLITS, fill) + np.searchsorted(
                ASPECT_SPLITS, aspect
            )
        row[LAYOUT["geometry"]] = 4 * _geometry(box, mask, inside, fill, aspect)
    return PixelRegions(boxes, features, object_ids, attribute_ids, confidence)


def _crop(image: Image.Image, box: np.ndarray) -> np.ndarray:
    """The pixels in a box, resampled to 16 x 16 (x 3) float32 in 0..255."""
    x1, y1, x2, y2 = (int(v) for v in box)
    crop = image.crop((x1, y1, x2, y2))
    return np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)


def _geometry(
    box: np.ndarray, mask: np.ndarray, inside: np.ndarray, fill: float, aspect: float
) -> np.ndarray:
    """The 11 geometry numbers, before their factor."""
    height, width = mask.shape
    x1, y1, x2, y2 = (box / (width, height, width, height)).tolist()
    return np.array(
        [
            x1,
            y1,
            x2,
            y2,
            x2 - x1,
            y2 - y1,
            (x2 - x1) * (y2 - y1),
            inside.mean(),
            inside.sum() / max(1, mask.sum()),
            fill,
            np.log2(aspect),
        ],
        dtype=np.float32,
    )
