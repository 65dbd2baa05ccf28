"""The sentences, answers and region features that LXMERT is pretrained on.

Two data sets: `lxmert`, in the files of the original system (MS COCO captions, Visual Genome,
VQA v2, GQA and Visual7W, https://github.com/airsplay/lxmert), and the embedded `easy_vqa`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.annotations import Example
from common.data.datasets import (
    FAST_IMAGES,
    TINY_IMAGES,
    Dataset,
    load_split,
    open_features,
    resolve_dataset,
    split_holdout,
)
from common.data.easy_vqa.captions import caption_examples
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources, features_there, open_store, source_rows
from common.features.store import RegionFeatures
from common.files import repository_root
from lxrt.answers import read_answers
from lxrt.pretraining_sentences import Sentences, SentencesBuilder
from lxrt.pretraining_upstream import read_upstream

UPSTREAM, EMBEDDED = "lxmert", "easy_vqa"
# Split of the original data to its region features; its sentences are in lxmert/<split>.json.
UPSTREAM_SPLITS = {
    "mscoco_train": "mscoco_imgfeat/train2014_obj36",
    "mscoco_nominival": "mscoco_imgfeat/val2014_obj36",
    "mscoco_minival": "mscoco_imgfeat/val2014_obj36",
    "vgnococo": "vg_gqa_imgfeat/vg_gqa_obj36",
}
UPSTREAM_ANSWERS = "lxmert/all_ans.json"
UPSTREAM_TINY, UPSTREAM_VALIDATION = 500, 5000  # images of each feature file
SOURCE = "https://nlp.cs.unc.edu/data/lxmert_data"
DEFAULT_SPLITS = {
    UPSTREAM: ("mscoco_train,mscoco_nominival,vgnococo", "mscoco_minival"),
    EMBEDDED: ("pretrain", ""),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class DataOptions:
    """Which part of the data is used, and how.

    Attributes:
        train, valid: splits with commas between; without `valid`, some images of `train` are
            held out.
        tiny, fast: only so many images of each split.
        holdout: share of the images that is held out.
        qa_sets: data sets whose answers can be given; None = all.
        captions: with captions made of answers (embedded data).
        skip_bad: leave out feature records that cannot be read, and sentences about images
            without features, instead of an error.
        progress: show progress bars.
    """

    train: str
    valid: str
    tiny: bool = False
    fast: bool = False
    holdout: float = 0.05
    qa_sets: tuple[str, ...] | None = None
    captions: bool = True
    skip_bad: bool = False
    progress: bool = True


@dataclass(frozen=True)
class PretrainingSource:
    """Where the data are; `dataset` is None for the files of the original system."""

    name: str
    folder: Path
    dataset: Dataset | None = None


@dataclass(frozen=True)
class PretrainingData:
    """Sentences to train and to validate on, what images look like, and the answers."""

    train: Sentences
    heldout: Sentences
    features: FeatureSources
    answers: Sequence[str]


def resolve_pretraining(
    name: str | None, data: Path | None, train: str | None
) -> PretrainingSource:
    """Find a data set to pretrain on; the embedded one is made where it is missing.

    Args:
        name: `lxmert` or `easy_vqa`. None takes the former if its splits are named or any of its
            own files is there, and otherwise the latter, with a line that says so.
        data: folder of `lxmert`; default LXMERT/data in the repository.
        train: the training splits, if they are named.
    """
    folder = data or repository_root() / "LXMERT" / "data"
    if name is None:
        # Not the list of answers, which finetuning needs as well.
        there = any((folder / "lxmert" / f"{split}.json").exists() for split in UPSTREAM_SPLITS)
        named = train is not None and bool(set(train.split(",")) & set(UPSTREAM_SPLITS))
        name = UPSTREAM if named or there else EMBEDDED
        if name == EMBEDDED:
            print(
                f"No --dataset given and none of LXMERT's pretraining data in "
                f"{folder / 'lxmert'}: using {EMBEDDED}"
            )
    if name == UPSTREAM:
        return PretrainingSource(UPSTREAM, folder)
    dataset = resolve_dataset(name)
    return PretrainingSource(name, dataset.folder, dataset)


def load_pretraining_data(
    source: PretrainingSource, options: DataOptions, say: Say = print
) -> PretrainingData:
    """Read sentences, answers and features.

    Raises:
        DataError: a file is missing or damaged, or an image has no features.
        ConfigError: unknown splits or answer sets.
    """
    splits = options.train + (f",{options.valid}" if options.valid else "")
    if source.dataset is None:
        loaded = _load_upstream(source, options, splits, say)
    else:
        loaded = _load_embedded(source.dataset, options, splits, say)
    train, heldout, features, answers = loaded
    if heldout is None:
        held = _held_images(train.used_images(), options.holdout)
        train, heldout = train.keep(~train.about(held)), train.keep(train.about(held))
    return PretrainingData(train, heldout, features, answers)


Loaded = tuple[Sentences, Sentences | None, FeatureSources, Sequence[str]]


def _load_embedded(dataset: Dataset, options: DataOptions, splits: str, say: Say) -> Loaded:
    if options.qa_sets is not None:
        raise ConfigError(
            f"--qaSets belongs to the data set {UPSTREAM}; {dataset.name} has one set of questions"
        )
    features, vocabulary = open_features(dataset, splits), dataset.vocabulary()
    images = TINY_IMAGES if options.tiny else FAST_IMAGES if options.fast else None

    def sentences(names: str) -> Sentences:
        examples = load_split(dataset, names, images)
        if options.captions:
            examples += caption_examples(examples)
        builder = SentencesBuilder()
        for example in examples:
            labels = None if example.answers is None else vocabulary.encode(example)
            builder.add(
                example.image_id,
                dataset.name if labels is not None else "caption",
                example.question,
                labels,
            )
        return with_features(builder.build(), features, options.skip_bad, names, say)

    heldout = sentences(options.valid) if options.valid else None
    return sentences(options.train), heldout, features, vocabulary.answers


def _load_upstream(
    source: PretrainingSource, options: DataOptions, splits: str, say: Say
) -> Loaded:
    check_upstream_files(source.folder, upstream_splits(splits))
    answers = read_answers(
        source.folder / UPSTREAM_ANSWERS,
        "the answers of pretraining",
        f"use --dataset {EMBEDDED}",
        options.qa_sets,
    )
    stores = {
        path: open_store(source.folder / path, skip_bad=options.skip_bad, progress=options.progress)
        for path in dict.fromkeys(UPSTREAM_SPLITS[name] for name in upstream_splits(splits))
    }
    features = FeatureSources(list(stores.values()))
    limit = UPSTREAM_TINY if options.tiny else FAST_IMAGES if options.fast else None

    def sentences(names: str, images: int | None) -> Sentences:
        found = read_upstream(
            [source.folder / "lxmert" / f"{name}.json" for name in upstream_splits(names)],
            answers,
            say,
            options.progress,
        )
        if images is not None:
            used = {UPSTREAM_SPLITS[name] for name in upstream_splits(names)}
            found = found.keep(
                found.about({i for path in used for i in first_images(stores[path], images)})
            )
        return with_features(found, features, options.skip_bad, names, say)

    heldout = None
    if options.valid:
        heldout = sentences(options.valid, min(limit or UPSTREAM_VALIDATION, UPSTREAM_VALIDATION))
    return sentences(options.train, limit), heldout, features, answers


def upstream_splits(splits: str) -> list[str]:
    """`mscoco_train,vgnococo` as a list.

    Raises:
        ConfigError: a split that the data do not have, or one that is named twice.
    """
    names = [name.strip() for name in splits.split(",") if name.strip()]
    unknown = [name for name in names if name not in UPSTREAM_SPLITS]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"split {', '.join(unknown or names) or 'none'} of {UPSTREAM}: it has "
            f"{', '.join(UPSTREAM_SPLITS)}; give one, or several with commas "
            "between, each once, either to train or to validate on"
        )
    return names


def check_upstream_files(folder: Path, splits: Sequence[str]) -> None:
    """Raise DataError, with a list, if a file that some splits need is missing."""
    missing = [
        path
        for path in (UPSTREAM_ANSWERS, *(f"lxmert/{name}.json" for name in splits))
        if not (folder / path).is_file()
    ]
    missing += [
        f"{path}.tsv"
        for path in dict.fromkeys(UPSTREAM_SPLITS[n] for n in splits)
        if not features_there(folder / path)
    ]
    if missing:
        lines = [
            f"  {folder / path}  from {SOURCE}/{path.split('/')[0]}/"
            + (" (the *_obj36.zip, unpacked)" if path.endswith(".tsv") else "")
            for path in missing
        ]
        raise DataError(
            f"data set {UPSTREAM}: {len(missing)} files are missing:\n"
            + "\n".join(lines)
            + f"\nfetch them, or use the embedded data with --dataset {EMBEDDED}"
        )


def first_images(store: RegionFeatures, count: int) -> list[str]:
    """The images in the first rows of a feature file, as upstream takes a part of the data."""
    if "rows" not in store.meta:
        return store.ids()[:count]
    return [image for image, row in source_rows(store, count).items() if row < count]


def with_features(
    sentences: Sentences, features: FeatureSources, skip: bool, splits: str, say: Say
) -> Sentences:
    """The sentences whose images have features.

    Raises:
        DataError: there is none; or an image has no features, and `skip` is not set.
    """
    images = sentences.used_images()
    missing = features.missing(images)
    if missing and not skip:
        raise DataError(
            f"{splits}: {len(missing)} of {len(images)} images have no region "
            f"features, e.g. {missing[0]!r}: use the features of these splits, all of "
            "them, or leave the sentences about such images out with --skip-bad"
        )
    if missing:
        lost = sentences.about(set(missing))
        sentences = sentences.keep(~lost)
        say(
            f"{splits}: {len(missing)} of {len(images)} images have no region features: "
            f"{int(lost.sum())} sentences are left out"
        )
    if not len(sentences):
        raise DataError(
            f"{splits}: no sentence is about an image with region features: the "
            "sentences and the features belong to different images"
        )
    return sentences


def _held_images(image_ids: Sequence[str], share: float) -> set[str]:
    """The images that `split_holdout` sets aside, whatever is said about them."""
    images = [Example(number, image_id, image_id) for number, image_id in enumerate(image_ids)]
    return {example.image_id for example in split_holdout(images, share)[1]}


def region_classes(
    source: PretrainingSource, features: FeatureSources, losses: Sequence[str]
) -> dict[str, int]:
    """Numbers of object and attribute classes that the chosen visual losses need.

    Those of the original detector for `lxmert`; else one more than the largest in the stores.

    Raises:
        ConfigError: a store has no such classes.
    """
    needed = {
        f"{name}_id_num": array
        for name, array in (("obj", "object"), ("attr", "attribute"))
        if name in losses
    }
    for store in features.stores:
        for key, array in needed.items():
            if absent := {f"{array}_ids", f"{array}_conf"} - set(store.meta["optional"]):
                raise ConfigError(
                    f"{store.path} has no {min(absent)}: leave {key.split('_')[0]} "
                    "out of --visualLosses"
                )
    if source.dataset is None:
        return {}
    classes = dict.fromkeys(needed, 1)
    for store in features.stores if needed else ():
        ids = store.ids()
        for start in range(0, len(ids), 512):
            batch = store.read(ids[start : start + 512])
            for key, array in needed.items():
                largest = int(getattr(batch, f"{array}_ids").max())
                classes[key] = max(classes[key], largest + 1)
    return classes
