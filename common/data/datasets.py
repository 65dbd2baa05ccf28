"""Data sets: find their files, read their questions, open their region features.

`resolve_dataset` finds a data set of the table (`common.data.dataset_table`) or makes an embedded
one, `load_split` reads questions, `open_features` region features; `common.data.vqa_dataset` puts
the two together into batches.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.data.annotations import AnswerVocabulary, Example, QuestionId
from common.data.answer_lists import answer_list
from common.data.dataset_table import DATASETS, DatasetKind, Split
from common.data.easy_vqa.build import build_easy_vqa, is_whole
from common.data.easy_vqa.changing_priors import build_easy_vqa_cp
from common.data.easy_vqa.dialect import VARIANTS, build_easy_vqa_dialect
from common.data.own import MAKE, own_kind, own_names
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources, features_there, open_store, source_rows
from common.files import repository_root
from common.reading import read_json

TINY_IMAGES, FAST_IMAGES = 512, 5000
BUILDERS: dict[str, Callable[..., bool]] = {
    "easy_vqa": build_easy_vqa,
    "easy_vqa_cp": build_easy_vqa_cp,
    **{name: partial(build_easy_vqa_dialect, name=name) for name in VARIANTS},
}


@dataclass(frozen=True)
class Dataset:
    """A data set whose files are there."""

    name: str
    folder: Path
    kind: DatasetKind

    def vocabulary(self) -> AnswerVocabulary:
        """Its answers; see `common.data.answer_lists` for lists that are made of annotations."""
        folder = self.folder / self.kind.vocabulary
        if self.kind.answers_of:
            return answer_list(folder, [self.folder / path for path in self.kind.answer_files()])
        return AnswerVocabulary.read(folder)

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

    def choose_splits(self, train: str | None, valid: str | None) -> tuple[str, str]:
        """The splits to train on and to report: those asked for, else the data set's own.

        Raises:
            ConfigError: An unknown split, or training on one that is, or must only be, reported.
        """
        train = self.kind.train if train is None else train
        valid = self.kind.valid if valid is None else valid
        reported = self.split_names(valid)
        for name in self.split_names(train):
            if name in self.kind.reported_only:
                raise ConfigError(
                    f"--train {train}: split {name} of {self.name} is there to report on, its "
                    "answers must not be known to training or to the choice of the best epoch; "
                    f"train on {self.kind.train}"
                )
            if name in reported:
                raise ConfigError(
                    f"--train {train} --valid {valid}: split {name} would be trained on and "
                    "reported; report another one"
                )
        return train, valid

    def split_to_test(self, name: str) -> str:
        """The split that `--test NAME` means: the one of this name, else, as upstream has it for
        names with `val` in them, the one that is reported."""
        return name if name in self.kind.splits or "val" not in name else self.kind.valid


def is_there(kind: DatasetKind, folder: Path, path: str) -> bool:
    """Whether a file of a data set, or something its features can be imported from, is there."""
    where = folder / path
    return features_there(where) if kind.is_features(path) else where.is_file()


def missing_files(kind: DatasetKind, folder: Path) -> list[str]:
    """Files of a data set that training needs and that are not there."""
    return [path for path in kind.files() if not is_there(kind, folder, path)]


def _listing(kind: DatasetKind, folder: Path, paths: Iterable[str]) -> str:
    """Lines that name files and where they come from."""
    return "\n".join(
        f"  {(folder / path).absolute()}{'.tsv' if path.endswith('_obj36') else ''}  "
        f"from {kind.source(path)}"
        for path in paths
    )


def own_datasets(root: Path | str | None = None) -> list[str]:
    """Names of one's own data sets; `root` as in `find_kind`."""
    return own_names(Path(root) if root is not None else repository_root())


def find_kind(name: str, root: Path | str | None = None) -> DatasetKind:
    """The data set of a name: a row of the table, or one of one's own.

    Args:
        name: of `DATASETS`, or one that `python -m common.data make` was given.
        root: the repository; default: the checkout of this code.

    Raises:
        ConfigError: an unknown name.
        DataError: it is one's own, and not finished or damaged.
    """
    root = Path(root) if root is not None else repository_root()
    kind = DATASETS.get(name) or own_kind(name, root)
    if kind is None:
        own = own_datasets(root)
        raise ConfigError(
            f"unknown data set {name!r}; there are: {', '.join(DATASETS)}"
            f"{'; of your own: ' + ', '.join(own) if own else ''}; `{MAKE} NAME` makes one of a "
            "table and pictures"
        )
    return kind


def is_small(name: str) -> bool:
    """Whether a data set is one of plain shapes, see `DatasetKind.small`; not so an unknown one."""
    kind = DATASETS.get(name) or own_kind(name, repository_root())
    return kind is not None and kind.small


def resolve_dataset(
    name: str | None = None, root: Path | str | None = None, data_root: Path | str | None = None
) -> Dataset:
    """Find a data set; build the embedded ones where they are missing.

    Args:
        name: See `find_kind`. None takes VQA v2 (in either layout) if its files are there, and
            easy-VQA, with a line that says so, if none of them is.
        root: The repository; default: the checkout of this code.
        data_root: Folder of official files; default: LXMERT/data in the repository. Data sets that
            are embedded or one's own are in its folder data.

    Raises:
        ConfigError: An unknown name.
        DataError: Only some of the files are there; they are listed with their sources.
    """
    root = Path(root) if root is not None else repository_root()
    folder = Path(data_root) if data_root is not None else root / DATASETS["vqa"].base
    if name is None:
        name = _default_name(folder)
    kind = find_kind(name, root)
    if kind.place:
        folder = root / kind.place
    if kind.embedded:
        _build_embedded(kind, root)
    elif missing := missing_files(kind, folder):
        if kind.place:
            raise DataError(
                f"data set {name}: {len(missing)} files are missing:\n"
                f"{_listing(kind, folder, missing)}\n"
                f"bring them back, or delete {folder} and make it again"
            )
        whole = [f"--dataset {other}" for other in _whole(folder)]
        there = f"; {' and '.join(whole)} would find all its files there" if whole else ""
        raise DataError(
            f"data set {name}: {len(missing)} files are missing:\n"
            f"{_listing(kind, folder, missing)}\n"
            f"fetch them, or use the embedded data with --dataset {kind.instead}{there}"
        )
    return Dataset(name, folder, kind)


def _whole(folder: Path) -> list[str]:
    """Data sets that are not embedded and have all their files in a folder."""
    return [
        name
        for name, kind in DATASETS.items()
        if not kind.embedded and not missing_files(kind, folder)
    ]


def _default_name(folder: Path) -> str:
    """VQA v2, in the layout that lacks the fewest files, unless none of its files is there."""
    layouts = {name: missing_files(DATASETS[name], folder) for name in ("vqa", "vqa_official")}
    if any(len(missing) < len(DATASETS[name].files()) for name, missing in layouts.items()):
        return min(layouts, key=lambda name: len(layouts[name]))
    kind = DATASETS["vqa"]
    print(
        f"No --dataset given and no VQA v2 files in {folder}: using easy_vqa. VQA v2 needs there: "
        f"{', '.join(kind.files())} ({kind.source('vqa/').removesuffix('vqa/')})"
    )
    return "easy_vqa"


def _build_embedded(kind: DatasetKind, root: Path) -> None:
    """Build the embedded data where it is missing; a quick look is enough where it is there."""
    for part in kind.embedded:
        folder = root / DATASETS[part].base
        limit = _built_limit(folder)
        if not is_whole(folder, limit, content=False):
            print(f"{folder}: data set {part} is not there, or not whole: building it")
            BUILDERS[part](folder)


def _built_limit(folder: Path) -> int | None:
    """The image limit a folder was built with, if it was built."""
    try:
        return read_json(folder / "meta.json").get("limit")
    except (DataError, AttributeError):
        return None


def open_features(
    dataset: Dataset,
    splits: str,
    expect_width: int | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> FeatureSources:
    """The region features that some splits need, imported where necessary.

    Args:
        dataset: From `resolve_dataset`.
        splits: Names with commas between.
        expect_width: Width of the features that the model was made for.
        skip_bad: Leave out records that an import cannot read, with a report, and let questions
            about such images be left out.
        progress: Show a bar while importing.

    Raises:
        DataError: A store is missing, damaged or of another width, or cannot be imported.
    """
    names = dataset.split_names(splits)
    paths = list(dict.fromkeys(p for name in names for p in dataset.kind.splits[name].features))
    missing = [path for path in paths if not features_there(dataset.folder / path)]
    if missing:
        listing = _listing(dataset.kind, dataset.folder, missing)
        raise DataError(f"data set {dataset.name}: region features are missing:\n{listing}")
    stores = [open_store(dataset.folder / p, expect_width, skip_bad, progress) for p in paths]
    return FeatureSources(stores, skip_bad)


def load_split(dataset: Dataset, splits: str, images: int | None = None) -> list[Example]:
    """Questions of one or several splits, e.g. `train,nominival`.

    Args:
        dataset: From `resolve_dataset`.
        splits: Names with commas between.
        images: Keep only the questions about so many images (512 for --tiny, 5000 for --fast);
            which ones is `DatasetKind.subset_by_rows`.

    Raises:
        DataError: A file is missing or damaged, or two splits have a question in common.
    """
    examples: list[Example] = []
    split_of: dict[QuestionId, str] = {}
    for name in dataset.split_names(splits):
        split = dataset.kind.splits[name]
        files = [path for path in (split.questions, split.annotations) if path is not None]
        if missing := [path for path in files if not (dataset.folder / path).is_file()]:
            listing = _listing(dataset.kind, dataset.folder, missing)
            raise DataError(f"data set {dataset.name}: questions are missing:\n{listing}")
        found = dataset.kind.read(dataset.folder, split)
        found = _in_rows(dataset, name, split, found, images)
        for example in found:
            if (other := split_of.setdefault(example.question_id, name)) != name:
                raise DataError(
                    f"data set {dataset.name}: question {example.question_id} is in split {other} "
                    f"and in split {name}: use splits that have no question in common"
                )
        examples += found
    return examples


def _in_rows(
    dataset: Dataset, name: str, split: Split, examples: list[Example], images: int | None
) -> list[Example]:
    """The questions whose images are in the rows of a split, and in the subset asked for."""
    if images is not None and not dataset.kind.subset_by_rows:
        return subset_by_images(examples, images)
    start, stop = split.rows
    if (start, stop) != (0, None):
        first = _first_images(dataset, name, stop if stop is not None else start)
        examples = [e for e in examples if (e.image_id in first) == (stop is not None)]
    if images is not None:
        stores = open_features(dataset, name).stores
        return subset_by_images(examples, images, (i for s in stores for i in s.ids()[:images]))
    return examples


def _first_images(dataset: Dataset, name: str, rows: int) -> set[str]:
    """Images in the first rows of the TSV that the features of a split come from."""
    try:
        (store,) = open_features(dataset, name).stores
        return {image for image, row in source_rows(store, rows).items() if row < rows}
    except DataError as error:
        raise DataError(
            f"split {name} of {dataset.name} is cut at row {rows} of a feature TSV, as LXMERT has "
            f"it: {error}; import the TSV, or take splits that are not cut: --train train --valid "
            "val"
        ) from None


def subset_by_images(
    examples: Sequence[Example], images: int, chosen: Iterable[str] | None = None
) -> list[Example]:
    """The examples about the first `images` different images, or about the `chosen` ones."""
    if chosen is None:
        chosen = list(dict.fromkeys(example.image_id for example in examples))[:images]
    keep = set(chosen)
    return [example for example in examples if example.image_id in keep]


def check_disjoint(train: Iterable[Example], reported: Iterable[Example]) -> None:
    """Make sure that no question is both trained on and reported.

    Raises:
        DataError: One is.
    """
    known = {example.question_id for example in train}
    common = [example for example in reported if example.question_id in known]
    if common:
        raise DataError(
            f"question {common[0].question_id} ({common[0].question!r}) and {len(common) - 1} more "
            "are both trained on and reported: choose splits that have no question in common"
        )


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
