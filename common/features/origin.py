"""Which detector region features are of: what stores and checkpoints say of it, compared.

Two origins are one detector where the checksums of its files agree, whatever name was kept with
the features; where one of them has no checksum (imported features, stores of earlier versions)
where their names agree. How many boxes there are is no question of the detector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.features.npz import NPZ_DETECTOR

Origin = Mapping[str, Any]
ALLOW = "--allow-other-detector"
RECORDED: dict[str, type] = {"digest": str, "boxes": list, "rule": str, "precision": str}
NAMELESS = (None, "unknown", NPZ_DETECTOR)


def origin_of(width: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint remembers of features.

    Args:
        width: numbers per region.
        meta: of a store: `detector`, and where they were extracted `extraction`.

    Returns:
        `width`, `detector`; of extracted features also `digest`, the checksum of the detector's
        files, and how it was run: `boxes` (fewest, most), `rule`, `precision`.
    """
    found = {"width": width, "detector": meta["detector"]}
    record = meta.get("extraction") or {}
    known = [(key, kind) for key, kind in RECORDED.items() if isinstance(record.get(key), kind)]
    return found | {key: record[key] for key, _ in known if "digest" in record}


def is_same_detector(one: Origin, other: Origin) -> bool:
    """Whether two origins are of one detector, as far as they say it."""
    digests = one.get("digest"), other.get("digest")
    if None not in digests:
        return digests[0] == digests[1]
    names = one.get("detector"), other.get("detector")
    return None in names or names[0] == names[1]


def origin_differences(have: Origin, want: Origin, any_detector: bool = False) -> Iterator[str]:
    """What keeps features from being read by the model of a file.

    Args:
        have: remembered by the file.
        want: of the features in use.
        any_detector: those of another one may be read, if they are as wide.
    """
    if have.get("width") != want["width"]:
        yield f"features.width is {have.get('width')} in the file, this run has {want['width']}"
    if not any_detector and not is_same_detector(have, want):
        mine, its = detector_text(have), detector_text(want)
        yield (
            f"features.detector is {mine} in the file, this run has {its} ({ALLOW} takes its "
            "features all the same)"
        )


def origin_notes(have: Origin, want: Origin) -> Iterator[str]:
    """What is worth knowing of features that a file's model reads; arguments as above."""
    if not is_same_detector(have, want):
        yield (
            f"it was trained with features of {detector_text(have)}, these are of "
            f"{detector_text(want)} ({ALLOW}): they may mean little to it"
        )
    elif "digest" not in have and (have.get("detector") in NAMELESS):
        yield (
            "warning: it does not say which detector its features are of, so whether these "
            f"({detector_text(want)}) are the same is not known"
        )
    elif changed := [k for k in RECORDED if k in have and k in want and have[k] != want[k]]:
        said = "; ".join(f"{key} {have[key]} then, {want[key]} now" for key in changed)
        yield f"the same detector as it was trained with, run otherwise: {said}"


def nothing_known(path: Path, want: Origin) -> str:
    """What is said of a file that remembers no features."""
    return (
        f"note: {path} does not say of which detector its features were; these are of "
        f"{detector_text(want)}"
    )


def detector_text(origin: Origin) -> str:
    """`'name'`, with the checksum of the files where the name does not hold it."""
    name, digest = origin.get("detector"), origin.get("digest")
    hidden = digest is not None and str(digest) not in str(name)
    return f"{name!r}" + (f" (files {digest})" if hidden else "")


def origin_text(origin: Origin) -> str:
    """`'name', 2048 numbers wide`."""
    return f"{detector_text(origin)}, {origin['width']} numbers wide"
