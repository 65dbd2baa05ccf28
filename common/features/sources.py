"""Region features of a data set: several stores that read like one, imported where necessary.

A table of data sets names each store by its path without ending, e.g. `…/train2014_obj36`. Any of
these is taken, in this order: the store itself, a folder; `train2014_obj36.tsv`, which is imported
into it once; a folder `train2014_obj36/` of NPZ files or an LMDB `train2014_obj36.lmdb`, which is
imported once into `train2014_obj36_features/`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError
from common.features.importing import report_path
from common.features.lmdb_records import import_lmdb, is_lmdb
from common.features.lxmert_tsv import import_tsv
from common.features.npz import import_npz, npz_store
from common.features.origin import detector_text, is_same_detector, origin_of
from common.features.store import IMAGES, RegionBatch, RegionFeatures

DEFAULT_WIDTH = 2048


class FeatureSources:
    """Several stores that read like one; an image is looked up by its id."""

    def __init__(self, stores: Sequence[RegionFeatures], skip_bad: bool = False) -> None:
        """Join stores.

        Args:
            stores: One at least.
            skip_bad: Questions about images that the import skipped may be left out.

        Raises:
            DataError: None given, or their features differ in width.
        """
        widths = {store.width: store.path for store in stores}
        if len(widths) != 1:
            described = ", ".join(f"{path} has {width}" for width, path in widths.items())
            raise DataError(f"feature stores must have one width: {described or 'no store given'}")
        self.stores = list(stores)
        self.width = stores[0].width
        self.skip_bad = skip_bad

    def described(self) -> dict[str, Any]:
        """Width and detector, for a checkpoint to remember; see `origin_of`.

        Raises:
            ConfigError: The stores come from different detectors.
        """
        origins = {store.path: origin_of(store.width, store.meta) for store in self.stores}
        found = list(origins.values())
        if not all(is_same_detector(*pair) for pair in combinations(found, 2)):
            listed = "; ".join(sorted(f"{detector_text(x)} ({p})" for p, x in origins.items()))
            raise ConfigError(
                f"region features come from different detectors: {listed}; use one detector for "
                "all splits (if it is one and the same, import again with --detector NAME)"
            )
        shared = {k: x for k, x in found[0].items() if all(o.get(k) == x for o in found)}
        return shared | {"detector": found[0]["detector"]}

    def skipped(self) -> dict[str, str]:
        """Images that an import left out, and why; ids as far as they could be read."""
        return {
            bad["image_id"]: f"{store.path}: {bad['reason']}"
            for store in self.stores
            for bad in store.meta.get("skipped", ())
        }

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that no store has, in their order."""
        absent = list(image_ids)
        for store in self.stores:
            absent = store.missing(absent)
        return absent

    def __contains__(self, image_id: object) -> bool:
        return any(image_id in store for store in self.stores)

    @property
    def counts(self) -> tuple[int, int] | None:
        """The fewest and the most regions of an image; None where a store does not know."""
        found = [store.counts for store in self.stores]
        known = [counts for counts in found if counts is not None]
        if len(known) < len(found):
            return None
        return min(low for low, _ in known), max(high for _, high in known)

    def read(
        self,
        image_ids: Sequence[str],
        max_regions: int | None = None,
        classes: bool = False,
        half: bool = False,
    ) -> RegionBatch:
        """Regions of B images, as `RegionFeatures.read`.

        Raises:
            DataError: An image that no store has.
        """
        if len(self.stores) == 1:
            return self.stores[0].read(image_ids, max_regions, classes, half)
        left = list(range(len(image_ids)))
        parts: list[tuple[list[int], RegionBatch]] = []
        for store in self.stores:
            absent = set(store.missing(image_ids[i] for i in left))
            if here := [i for i in left if image_ids[i] not in absent]:
                found = store.read([image_ids[i] for i in here], max_regions, classes, half)
                parts.append((here, found))
            left = [i for i in left if image_ids[i] in absent]
        if left or not parts:
            first = image_ids[left[0]] if left else "(none asked for)"
            raise DataError(
                f"no record of image {first!r} in {', '.join(str(s.path) for s in self.stores)} "
                f"({len(left)} of {len(image_ids)} asked for are missing)"
            )
        return parts[0][1] if len(parts) == 1 else _merge(parts, list(image_ids))


def _merge(parts: list[tuple[list[int], RegionBatch]], image_ids: list[str]) -> RegionBatch:
    """Put batches together; each comes with the places of its images."""
    longest = max(batch.mask.shape[1] for _, batch in parts)
    if any(batch.image_features is not None for _, batch in parts):
        parts = [(places, replace(b, image_features=b.whole_image())) for places, b in parts]
    merged = {}
    for field in fields(RegionBatch):
        values = [getattr(batch, field.name) for _, batch in parts]
        if field.name == "image_ids" or any(value is None for value in values):
            continue
        per_image = field.name in ("sizes", IMAGES)
        tail = values[0].shape[1:] if per_image else (longest, *values[0].shape[2:])
        # Of stores in float16 and float32 nothing is rounded.
        dtype = max((value.dtype for value in values), key=lambda dtype: dtype.itemsize)
        out = values[0].new_zeros((len(image_ids), *tail), dtype=dtype)
        for (places, _), value in zip(parts, values, strict=False):
            if per_image:
                out[places] = value.to(dtype)
            else:
                out[places, : value.shape[1]] = value.to(dtype)
        merged[field.name] = out
    return RegionBatch(image_ids, **merged)


def is_store(path: Path) -> bool:
    return (path / "meta.json").is_file()


def is_npz_folder(path: Path) -> bool:
    """Whether there is a folder of one NPZ file per image (and not a store that lacks a file)."""
    damaged = (path / "features.npy").exists()
    return not is_store(path) and not damaged and path.is_dir() and any(path.glob("*.npz"))


def features_there(path: Path) -> bool:
    """Whether there is a store of this name, or something that it can be imported from."""
    return (
        is_store(path)
        or _with_ending(path, ".tsv").is_file()
        or is_npz_folder(path)
        or is_lmdb(_with_ending(path, ".lmdb"))
        or is_store(npz_store(path))
    )


def open_store(
    path: Path, width: int | None = None, skip_bad: bool = False, progress: bool = True
) -> RegionFeatures:
    """Open a store; import it first where only its TSV, NPZ files or LMDB are there.

    Args:
        path: Its name in the table of data sets.
        width: That the model expects.
        skip_bad: For an import: leave out what cannot be read, and report it.
        progress: For an import: show a bar.

    Raises:
        DataError: It is missing, damaged or of another width, or cannot be imported.
    """
    tsv, records, converted = (
        _with_ending(path, ".tsv"),
        _with_ending(path, ".lmdb"),
        npz_store(path),
    )
    if is_store(path):
        return RegionFeatures.open(path, width)
    there = {
        f"{tsv}": tsv.is_file(),
        f"a folder of NPZ files {path}": is_npz_folder(path),
        f"{records}": is_lmdb(records),
    }
    if sum(there.values()) > 1:
        raise DataError(
            f"{' and '.join(name for name, found in there.items() if found)} are both there: move "
            "one of them away, so that it is clear which features are meant"
        )
    if tsv.is_file() and not path.exists():
        _announce(path, tsv.name)
        import_tsv(tsv, path, width or DEFAULT_WIDTH, skip_bad=skip_bad, progress=progress)
        return RegionFeatures.open(path, width)
    if is_npz_folder(path) and not is_store(converted):
        _announce(converted, f"the NPZ files of {path.name}/")
        import_npz(path, converted, width or DEFAULT_WIDTH, skip_bad=skip_bad, progress=progress)
    if is_lmdb(records) and not is_store(converted):
        _announce(converted, records.name)
        import_lmdb(
            records, converted, width or DEFAULT_WIDTH, skip_bad=skip_bad, progress=progress
        )
    return RegionFeatures.open(converted if is_store(converted) else path, width)


def _with_ending(path: Path, ending: str) -> Path:
    """A file beside a store, whose name may have points in it."""
    return path.with_name(f"{path.name}{ending}")


def _announce(store: Path, source: str) -> None:
    print(f"{store}: not there yet: importing {source} (once)")


def source_rows(store: RegionFeatures, needed: int) -> dict[str, int]:
    """Row, from 0, of every image in the TSV that a store was imported from.

    Images whose rows were skipped have their place as well, where their id could be read.

    Args:
        store: The store.
        needed: So many rows have to have been read, if the TSV has them.

    Raises:
        DataError: The store was not imported from a TSV, or from too few of its rows.
    """
    if "rows" not in store.meta:
        raise DataError(
            f"{store.path}: was not imported from a TSV (its source is "
            f"{store.meta.get('source') or 'not known'}), so it has no order of rows"
        )
    rows = store.meta["rows"]
    skipped = {bad["row"] - 1: bad["image_id"] for bad in store.meta["skipped"]}
    if rows == store.meta["limit"] and rows < needed:
        raise DataError(
            f"{store.path}: has only the first {rows} rows of its TSV, {needed} are needed: "
            "import it again without --limit"
        )
    kept = dict(zip(store.ids(), (row for row in range(rows) if row not in skipped), strict=False))
    return {image: row for row, image in reversed(skipped.items())} | kept


def explain_missing(features: FeatureSources, image_id: str) -> str:
    """Why an image has no features, as far as the reports of the imports say; with a way out."""
    reason = features.skipped().get(image_id)
    if reason is None:
        return "use the features of this split, all of them"
    reports = ", ".join(
        str(report_path(store.path)) for store in features.stores if store.meta.get("skipped")
    )
    return (
        f"its record was skipped on import ({reason}; see {reports}); import the whole file, or "
        "leave such questions out with --skip-bad"
    )
