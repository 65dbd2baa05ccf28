"""Which data sets there are, where their files are, and how to get their questions and features.

`resolve_dataset` finds a data set (or makes an embedded one), `load_split` reads questions,
`open_features` region features; `common.vqa_data` puts the two together into batches.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.annotations import (
    ANSWER_TO_LABEL,
    LABEL_TO_ANSWER,
    AnswerVocabulary,
    Example,
    read_lxmert_json,
)
from common.changing_priors import build_easy_vqa_cp
from common.easy_vqa import build_easy_vqa, is_whole
from common.errors import ConfigError, DataError
from common.feature_import import import_tsv
from common.features import RegionBatch, RegionFeatures
from common.files import read_json, repository_root

TINY_IMAGES, FAST_IMAGES = 512, 5000


@dataclass(frozen=True)
class DatasetKind:
    """One row of the table of data sets; paths are relative to the folder that `base` names."""

    summary: str
    base: str
    """Folder, relative to the repository."""
    splits: dict[str, str]
    """Split to its questions, in the form of LXMERT."""
    features: dict[str, str]
    """Split to its region-feature store; a TSV of the same name is imported where needed."""
    vocabulary: str
    """Folder of the two answer lists."""
    sources: dict[str, str]
    """Start of a path to where those files come from."""
    optional: tuple[str, ...] = ()
    """Splits that training and validation do without."""
    subset_by_rows: bool = False
    """A subset of N images is the first N rows of each store (as upstream LXMERT has it), and not
    the first N images of each split."""


NLP_UNC = "https://nlp.cs.unc.edu/data/lxmert_data"
DATASETS: dict[str, DatasetKind] = {
    "vqa": DatasetKind(
        summary="VQA v2 with Faster R-CNN features, in the layout of LXMERT",
        base="LXMERT/data",
        splits={s: f"vqa/{s}.json" for s in ("train", "nominival", "minival", "test")},
        features={
            "train": "mscoco_imgfeat/train2014_obj36",
            "nominival": "mscoco_imgfeat/val2014_obj36",
            "minival": "mscoco_imgfeat/val2014_obj36",
            "test": "mscoco_imgfeat/test2015_obj36",
        },
        vocabulary="vqa",
        sources={
            "vqa/": f"{NLP_UNC}/vqa/",
            "mscoco_imgfeat/": f"{NLP_UNC}/mscoco_imgfeat/ (the *_obj36.zip, unpacked)",
        },
        optional=("test",),
        subset_by_rows=True,
    ),
    "easy_vqa": DatasetKind(
        summary="images of coloured shapes from the package easy-vqa, with features from pixels",
        base="data/easy_vqa",
        splits={s: f"{s}.json" for s in ("pretrain", "train", "nominival", "minival")},
        features=dict.fromkeys(("pretrain", "train", "nominival", "minival"), "features"),
        vocabulary=".",
        sources={"": "made by `python -m common.data easy_vqa`"},
    ),
    "easy_vqa_cp": DatasetKind(
        summary="easy_vqa with changing priors, in the manner of VQA-CP",
        base="data/easy_vqa_cp",
        splits={s: f"{s}.json" for s in ("train", "nominival", "minival")},
        features=dict.fromkeys(("train", "nominival", "minival"), "../easy_vqa/features"),
        vocabulary=".",
        sources={
            "../": "made by `python -m common.data easy_vqa`",
            "": "made by `python -m common.data easy_vqa_cp`",
        },
    ),
}


@dataclass(frozen=True)
class Dataset:
    """A data set whose files are there."""

    name: str
    folder: Path
    kind: DatasetKind

    def vocabulary(self) -> AnswerVocabulary:
        """Its answers."""
        return AnswerVocabulary.read(self.folder / self.kind.vocabulary)

    def split_names(self, splits: str) -> list[str]:
        """`train,nominival` as a list.

        Raises:
            ConfigError: A split that the data set does not have.
        """
        names = [name.strip() for name in splits.split(",") if name.strip()]
        unknown = [name for name in names if name not in self.kind.splits]
        if unknown or not names or len(set(names)) < len(names):
            raise ConfigError(
                f"split {', '.join(unknown or names) or 'none'} of {self.name}: it has "
                f"{', '.join(self.kind.splits)}; give one, or several with commas between, "
                "each once"
            )
        return names


def is_there(path: Path) -> bool:
    """Whether a file, a store, or the TSV that a store is imported from is there."""
    return path.is_file() or (path / "meta.json").is_file() or path.with_suffix(".tsv").is_file()


def dataset_files(kind: DatasetKind, optional: bool = False) -> dict[str, str]:
    """Paths of a data set, relative to its folder, and where each comes from.

    Args:
        kind: The data set.
        optional: With those of the splits that training does without.
    """
    wanted = [name for name in kind.splits if optional or name not in kind.optional]
    paths = [kind.splits[name] for name in wanted]
    paths += [f"{kind.vocabulary}/{name}" for name in (ANSWER_TO_LABEL, LABEL_TO_ANSWER)]
    paths += [kind.features[name] for name in wanted]
    return {
        path.removeprefix("./"): next(s for p, s in kind.sources.items() if path.startswith(p))
        for path in dict.fromkeys(paths)
    }


def _listing(kind: DatasetKind, folder: Path, paths: Iterable[str]) -> str:
    """Lines that name files and where they come from."""
    sources = dataset_files(kind, optional=True)
    return "\n".join(
        f"  {folder / path}{'.tsv' if path.endswith('_obj36') else ''}  from {sources[path]}"
        for path in paths
    )


def resolve_dataset(
    name: str | None = None, root: Path | str | None = None, data_root: Path | str | None = None
) -> Dataset:
    """Find a data set; build the embedded ones where they are missing.

    Args:
        name: One of `DATASETS`. None takes VQA v2 if its files are there, and easy-VQA, with a
            line that says so, if none of them is.
        root: The repository; default: the checkout of this code.
        data_root: Folder of VQA v2's files; default: LXMERT/data in the repository.

    Raises:
        ConfigError: An unknown name.
        DataError: Only some of the files are there; they are listed with their sources.
    """
    root = Path(root) if root is not None else repository_root()
    folder = Path(data_root) if data_root is not None else root / DATASETS["vqa"].base
    if name is None:
        name = _default_name(folder)
    if name not in DATASETS:
        raise ConfigError(f"unknown data set {name!r}; there are: {', '.join(DATASETS)}")
    kind = DATASETS[name]
    if name == "vqa":
        if missing := [p for p in dataset_files(kind) if not is_there(folder / p)]:
            raise DataError(
                f"data set vqa: {len(missing)} files are missing:\n"
                f"{_listing(kind, folder, missing)}\n"
                "fetch them, or use the embedded data with --dataset easy_vqa"
            )
        return Dataset(name, folder, kind)
    _build_embedded(name, root)
    return Dataset(name, root / kind.base, kind)


def _default_name(folder: Path) -> str:
    """VQA v2 unless none of its files is there."""
    kind = DATASETS["vqa"]
    files = dataset_files(kind)
    if any(is_there(folder / path) for path in files):
        return "vqa"
    print(
        f"No --dataset given and no VQA v2 files in {folder}: using easy_vqa. "
        f"VQA v2 needs there: {', '.join(files)} ({NLP_UNC}/)"
    )
    return "easy_vqa"


def _build_embedded(name: str, root: Path) -> None:
    """Build the embedded data where it is missing; a quick look is enough where it is there."""
    builders = {"easy_vqa": build_easy_vqa, "easy_vqa_cp": build_easy_vqa_cp}
    for part in ("easy_vqa", "easy_vqa_cp") if name == "easy_vqa_cp" else ("easy_vqa",):
        folder = root / DATASETS[part].base
        limit = _built_limit(folder)
        if not is_whole(folder, limit, content=False):
            print(f"{folder}: data set {part} is not there, or not whole: building it")
            builders[part](folder)


def _built_limit(folder: Path) -> int | None:
    """The image limit a folder was built with, if it was built."""
    try:
        return read_json(folder / "meta.json").get("limit")
    except (DataError, AttributeError):
        return None


class FeatureSources:
    """Several stores that read like one; an image is looked up by its id."""

    def __init__(self, stores: Sequence[RegionFeatures]) -> None:
        """Join stores.

        Raises:
            DataError: None given, or their features differ in width.
        """
        widths = {store.width: store.path for store in stores}
        if len(widths) != 1:
            described = ", ".join(f"{path} has {width}" for width, path in widths.items())
            raise DataError(f"feature stores must have one width: {described or 'no store given'}")
        self.stores = list(stores)
        self.width = stores[0].width

    def described(self) -> dict[str, Any]:
        """Width and detector, for a checkpoint to remember.

        Raises:
            ConfigError: The stores come from different detectors.
        """
        detectors = sorted({store.meta["detector"] for store in self.stores})
        if len(detectors) > 1:
            raise ConfigError(
                f"region features come from different detectors: {'; '.join(detectors)}; "
                "use one detector for all splits"
            )
        return {"width": self.width, "detector": detectors[0]}

    def missing(self, image_ids: Iterable[str]) -> list[str]:
        """Those of the ids that no store has, in their order."""
        absent = list(image_ids)
        for store in self.stores:
            absent = store.missing(absent)
        return absent

    def __contains__(self, image_id: object) -> bool:
        return any(image_id in store for store in self.stores)

    def read(self, image_ids: Sequence[str], max_regions: int | None = None) -> RegionBatch:
        """Regions of B images, as `RegionFeatures.read`.

        Raises:
            DataError: An image that no store has.
        """
        if len(self.stores) == 1:
            return self.stores[0].read(image_ids, max_regions)
        left = list(range(len(image_ids)))
        parts: list[tuple[list[int], RegionBatch]] = []
        for store in self.stores:
            absent = set(store.missing(image_ids[i] for i in left))
            if here := [i for i in left if image_ids[i] not in absent]:
                parts.append((here, store.read([image_ids[i] for i in here], max_regions)))
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
    merged = {}
    for field in fields(RegionBatch):
        values = [getattr(batch, field.name) for _, batch in parts]
        if field.name == "image_ids" or any(value is None for value in values):
            continue
        tail = values[0].shape[1:] if field.name == "sizes" else (longest, *values[0].shape[2:])
        out = values[0].new_zeros((len(image_ids), *tail))
        for (places, _), value in zip(parts, values):
            if field.name == "sizes":
                out[places] = value
            else:
                out[places, : value.shape[1]] = value
        merged[field.name] = out
    return RegionBatch(image_ids, **merged)


def _open_store(path: Path, width: int | None) -> RegionFeatures:
    """Open a store; import it first where only the TSV is there."""
    tsv = path.with_suffix(".tsv")
    if not path.exists() and tsv.is_file():
        print(f"{path}: not there yet: importing {tsv.name} (once)")
        import_tsv(tsv, path, width or 2048)
    return RegionFeatures.open(path, width)


def open_features(
    dataset: Dataset, splits: str, expect_width: int | None = None
) -> FeatureSources:
    """The region features that some splits need, imported where necessary.

    Raises:
        DataError: A store is missing, damaged or of another width.
    """
    paths = dict.fromkeys(dataset.kind.features[name] for name in dataset.split_names(splits))
    for path in paths:
        if not is_there(dataset.folder / path):
            listing = _listing(dataset.kind, dataset.folder, [path])
            raise DataError(f"data set {dataset.name}: region features are missing:\n{listing}")
    return FeatureSources([_open_store(dataset.folder / path, expect_width) for path in paths])


def load_split(dataset: Dataset, splits: str, images: int | None = None) -> list[Example]:
    """Questions of one or several splits, e.g. `train,nominival`.

    Args:
        dataset: From `resolve_dataset`.
        splits: Names with commas between.
        images: Keep only the questions about so many images (512 for --tiny, 5000 for --fast);
            which ones is `DatasetKind.subset_by_rows`.

    Raises:
        DataError: A file is missing or damaged (see `read_lxmert_json`).
    """
    examples = []
    for name in dataset.split_names(splits):
        path = dataset.folder / dataset.kind.splits[name]
        if not path.is_file():
            listing = _listing(dataset.kind, dataset.folder, [dataset.kind.splits[name]])
            raise DataError(f"data set {dataset.name}: questions are missing:\n{listing}")
        found = read_lxmert_json(path)
        if images is not None:
            chosen = None
            if dataset.kind.subset_by_rows:
                chosen = [i for s in open_features(dataset, name).stores for i in s.ids()[:images]]
            found = subset_by_images(found, images, chosen)
        examples += found
    return examples


def subset_by_images(
    examples: Sequence[Example], images: int, chosen: Iterable[str] | None = None
) -> list[Example]:
    """The examples about the first `images` different images, or about the `chosen` ones."""
    if chosen is None:
        chosen = list(dict.fromkeys(example.image_id for example in examples))[:images]
    keep = set(chosen)
    return [example for example in examples if example.image_id in keep]


def split_holdout(
    examples: Sequence[Example], fraction: float, seed: int = 0
) -> tuple[list[Example], list[Example]]:
    """Set aside the questions about a share of the images, for choosing the best epoch.

    Which images is decided by a hash of seed and image id, so it does not depend on the order or
    on the other examples; at least one image is set aside.

    Args:
        examples: Training examples about two images at least.
        fraction: Share of the images, between 0 and 1.
        seed: Another seed sets other images aside.

    Returns:
        Training examples and held-out examples, in their order; they share no image.

    Raises:
        ConfigError: A fraction outside (0, 1).
        DataError: Examples about a single image cannot be split.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"held-out fraction is {fraction}: must lie between 0 and 1")
    values = {
        image_id: int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big")
        for image_id in {example.image_id for example in examples}
    }
    if len(values) < 2:
        raise DataError(f"{len(examples)} examples about {len(values)} images cannot be split")
    first, last = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    held = {i for i, value in values.items() if value < fraction * 2**64} - {last} | {first}
    return (
        [example for example in examples if example.image_id not in held],
        [example for example in examples if example.image_id in held],
    )
