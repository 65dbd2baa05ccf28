"""The pictures that a table names: found in a folder, a ZIP archive, or a store of features."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Protocol

from common.data.own import TEST, TRAIN, VALID
from common.detector.extracting import image_id, is_picture
from common.errors import ConfigError, DataError
from common.features.archives import open_files
from common.features.store import RegionFeatures
from common.reading import short

MOST_COMPARED, MOST_EXPLAINED = 5000, 20  # names, to find the nearest one of; wrong names


class Images(Protocol):
    """Where the images of a table are."""

    def find(self, name: str) -> str:
        """The id of an image in the features.

        Raises:
            DataError: there is none of that name; with the way out.
        """

    def content(self, found: str) -> str:
        """A text that images of the same content share."""


class Pictures:
    """Pictures of a folder or ZIP archive, by the names in the table."""

    def __init__(self, path: Path) -> None:
        """Look at the names.

        Raises:
            DataError: neither a folder nor a ZIP archive.
        """
        self.files = open_files(path, deep=True)
        names = sorted(self.files.names())
        self._names = {composed(name): name for name in names} | {name: name for name in names}
        self._nearest = Nearest(names)
        self._of_id: dict[str, list[str]] = {}
        for name in names:
            if is_picture(name):
                self._of_id.setdefault(composed(image_id(name)), []).append(name)
        self.chosen: dict[str, str] = {}
        """Image id to the name of its picture, of those that were found."""

    def find(self, name: str) -> str:
        """See `Images`; `name` is the path of a file in the folder, or its plain name without
        ending."""
        picture = self._picture(name)
        found = image_id(picture)
        if (other := self.chosen.setdefault(found, picture)) != picture:
            raise DataError(
                f"'image' {short(name)}: {other} and {picture} would both be image {found!r}: "
                "rename one"
            )
        return found

    def _picture(self, name: str) -> str:
        outside = ".." in PurePosixPath(name).parts or ".." in PureWindowsPath(name).parts
        if outside or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
            raise DataError(
                f"'image' {short(name)} leads out of {self.files.path}: give the name that the "
                "picture has in there"
            )
        plain = name.removeprefix("./")
        if known := self._names.get(plain) or self._names.get(composed(plain)):
            if not is_picture(known):
                raise DataError(f"'image' {short(name)}: is no picture by its ending")
            return known
        named = self._of_id.get(composed(plain), [])
        if len(named) > 1:
            raise DataError(f"'image' {short(name)} can be {' or '.join(named)}: give the ending")
        if not named:
            raise DataError(self._unknown(plain))
        return named[0]

    def _unknown(self, name: str) -> str:
        near = self._nearest.text(name)
        return f"'image' {short(name)} is not in {self.files.path}{near}"

    def content(self, found: str) -> str:
        return str(self.files.stamp(self.chosen[found]))


class StoredImages:
    """Images whose features are there."""

    def __init__(self, store: RegionFeatures) -> None:
        self.store = store
        ids = store.ids()
        self._ids = {composed(known): known for known in ids} | {known: known for known in ids}
        self._nearest = Nearest(ids)

    def find(self, name: str) -> str:
        """See `Images`; the id itself, or the name of the file that it is made of."""
        for meant in (name, image_id(name)):
            if known := self._ids.get(meant) or self._ids.get(composed(meant)):
                return known
        raise DataError(
            f"'image' {short(name)} has no features in {self.store.path}{self._nearest.text(name)}"
        )

    def content(self, found: str) -> str:
        return found


def composed(name: str) -> str:
    """A name with each letter and its marks as one sign (NFC): some systems write them apart."""
    return unicodedata.normalize("NFC", name)


class Nearest:
    """Says which of some names a wrong one is like; of the first wrong ones, as it takes time."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._left = MOST_EXPLAINED if len(self._names) <= MOST_COMPARED else 0

    def text(self, name: str) -> str:
        """` (nearest: …)`, or nothing."""
        if not self._left:
            return ""
        self._left -= 1
        near = get_close_matches(name, self._names, n=1, cutoff=0.7)
        return f" (nearest: {near[0]})" if near else ""


def split_images(
    contents: Mapping[str, str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for each image; images of the same content are in the same one.

    The order in which contents are dealt out is that of a hash of seed and content, so it does not
    depend on the table. (The hash differs from that of `split_holdout`, which chooses among the
    training images later: the same one would find nothing left to choose.)

    Args:
        contents: image id to what its content is told by.
        shares: of `valid` and `test`; the rest is `train`. A share above 0 gets one content at
            least.
        seed: another one gives other splits.

    Raises:
        ConfigError: a share that is none, or shares that leave nothing to train on.
        DataError: fewer contents than splits.
    """
    held = {name: shares.get(name, 0.0) for name in (VALID, TEST)}
    for name, share in held.items():
        if not 0 <= share < 1:
            raise ConfigError(f"--{name} {share:g}: give a share of the images, 0 up to below 1")
    if held[VALID] == 0 or sum(held.values()) >= 1:
        raise ConfigError(
            f"--valid {held[VALID]:g} --test {held[TEST]:g}: --valid has to be above 0, and "
            "together they have to leave images to train on"
        )

    def drawn(content: str) -> bytes:
        return hashlib.sha256(f"split of the data set:{seed}:{content}".encode()).digest()

    order = sorted(set(contents.values()), key=drawn)
    needed = 1 + sum(share > 0 for share in held.values())
    if len(order) < needed:
        raise DataError(
            f"{len(order)} different images: {needed} splits need one each at least; add pictures"
        )
    split_of: dict[str, str] = {}
    start = 0
    for name, share in held.items():
        count = max(1, round(share * len(order))) if share else 0
        split_of.update(dict.fromkeys(order[start : start + count], name))
        start += count
    if start >= len(order):
        raise ConfigError(
            f"--valid {held[VALID]:g} --test {held[TEST]:g} of {len(order)} different images leave "
            "none to train on: give smaller shares"
        )
    return {image: split_of.get(content, TRAIN) for image, content in contents.items()}
