"""The data of a config: questions, regions, images and answers, for training and for testing.

source = VQASource(load_config("cfgs/easy_vqa/base.yaml"))
splits = source.splits()
splits.train.read([0, 1, 2], epoch=0)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from common.data import datasets as tables
from common.data.annotations import AnswerVocabulary, Example
from common.data.dataset_table import DATASETS, DatasetKind
from common.data.tokenizer import Tokenizer, has_vocabulary
from common.data.vqa_dataset import PARTS, check_answers
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources
from common.training.weights import SUFFIXES
from vlbert.config import Config, Section, locate
from vlbert.data_answers import AnswerFile
from vlbert.data_coco import (
    COCO,
    FEATURES,
    NOT_TRAINED_ON,
    SETS,
    WEIGHTS,
    check_files,
    find_set,
    read_examples,
    split_sets,
)
from vlbert.data_features import joined, open_features
from vlbert.images import ImageFiles, part_of
from vlbert.vqa_dataset import Size, Transform, VLBertData, longest_question

__all__ = ["COCO", "Splits", "VQASource", "overlap", "read_examples"]

EMBEDDED = tuple(name for name, kind in DATASETS.items() if kind.embedded)
OWN = "a data set of your own, made by `python -m common.data make`"


@dataclass
class Splits:
    """What a training run needs, and what there is to say about it."""

    train: VLBertData
    heldout: VLBertData
    """Questions about other images of the training part: the best epoch is chosen on them."""
    valid: VLBertData
    """Reported, and used for nothing else."""
    remarks: list[str] = field(default_factory=list)
    planned: int = 0
    """Training questions of the config without what shortens a run; see `VQASource.splits`."""


class VQASource:
    """Opens the data that a config names."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer | None = None, quiet: bool = False
    ) -> None:
        """Look at the config; files are opened when they are needed.

        Args:
            config: Of VQA, not of pretraining.
            tokenizer: Of the questions; default: that of NETWORK.BERT_MODEL_NAME.
            quiet: Show no progress bars.

        Raises:
            ConfigError: An unknown data set, or a kind of file that is not read.
        """
        self.config, self.settings, self.quiet = config, config.DATASET, quiet
        if not isinstance(self.settings, Section):
            raise ConfigError(
                f"{config.path}: key DATASET: a list of data sets is for pretraining; VQA has one"
            )
        for part in ("TRAIN", "VAL", "TEST"):
            if isinstance(images := config.values[part].BATCH_IMAGES, tuple):
                raise ConfigError(
                    f"{config.path}: key {part}.BATCH_IMAGES: {list(images)}: a list "
                    "is for pretraining; VQA has one number"
                )
        self.name: str = self.settings.DATASET
        self.kind = None if self.name in SETS else self._kind()
        if self.name in SETS and self.settings.USE_IMDB:
            raise ConfigError(
                f"{config.path}: key DATASET.USE_IMDB: true (the default): those "
                ".npy files are pickled and could run code; set false to read the "
                "official JSON files"
            )
        self._tokenizer = tokenizer

    def _kind(self) -> DatasetKind:
        """A data set with files of its own, which is embedded or the user's."""
        where, name = f"{self.config.path}: key DATASET.DATASET", self.name
        if not name:
            raise ConfigError(f"{where}: is empty: name {OWN}, with --dataset NAME")
        if name in EMBEDDED or name not in DATASETS:
            with suppress(ConfigError):
                return tables.find_kind(name)
        valid = ", ".join([*SETS, *EMBEDDED, *tables.own_datasets()])
        raise ConfigError(f"{where}: {name!r}; valid: {valid}; or {OWN}")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of NETWORK.BERT_MODEL_NAME."""
        if self._tokenizer is None:
            name = self.config.NETWORK.BERT_MODEL_NAME
            if not name or not has_vocabulary(locate(name)):
                raise ConfigError(
                    f"{self.config.path}: key NETWORK.BERT_MODEL_NAME: {name!r}: "
                    f"{locate(name) / 'vocab.txt'} is missing: give the folder with "
                    "the vocabulary (that of BERT-base-uncased for the released "
                    "models)"
                )
            self._tokenizer = Tokenizer(locate(name))
        return self._tokenizer

    @cached_property
    def folder(self) -> Path:
        """DATASET_PATH; of a data set that is embedded or the user's, its own folder."""
        if self.kind is not None:
            return self._table.folder
        return locate(self.settings.DATASET_PATH)

    @cached_property
    def _table(self) -> tables.Dataset:
        return tables.resolve_dataset(self.name)

    @cached_property
    def vocabulary(self) -> AnswerVocabulary:
        """The answers: ANSWER_VOCAB_FILE, or those of a data set that is embedded or the user's."""
        path, size = self.settings.ANSWER_VOCAB_FILE, self.settings.ANSWER_VOCAB_SIZE
        if path:
            verbatim = self.settings.ANSWER_SPELLING == "verbatim"
            return AnswerFile(locate(path), size, verbatim)
        if self.kind is None:
            raise ConfigError(
                f"{self.config.path}: key DATASET.ANSWER_VOCAB_FILE: is empty: give "
                "the file with one answer per line (answers_vqa.txt)"
            )
        vocabulary = self._table.vocabulary()
        if size and len(vocabulary) != size:
            raise ConfigError(
                f"{self.config.path}: key DATASET.ANSWER_VOCAB_SIZE: {size}: "
                f"{self.name} has {len(vocabulary)} answers; 0 takes as many as there are"
            )
        return vocabulary

    def examples(self, sets: str, test_mode: bool = False, whole: bool = False) -> list[Example]:
        """Questions of an image set, or of several joined with +.

        Args:
            sets: As TRAIN_IMAGE_SET.
            test_mode: Leave the answers away.
            whole: All of them, also with TOY.

        Raises:
            ConfigError: An unknown set.
            DataError: Files are missing or damaged.
        """
        names = split_sets(sets)
        if not names:
            raise ConfigError(f"{self.config.path}: no image set is given for {self.name}")
        if self.kind is not None:
            examples = tables.load_split(self._table, ",".join(names))
        else:
            verbatim = self.settings.ANSWER_SPELLING == "verbatim"
            examples = read_examples(self.folder, names, verbatim, self.name)
        if self.settings.TOY and not whole:
            examples = examples[: self.settings.TOY_SAMPLES]
        return [replace(e, answers=None) for e in examples] if test_mode else examples

    def features(self, examples: Sequence[Example]) -> FeatureSources:
        """Region features of the images of some questions.

        Raises:
            DataError: They are missing or damaged.
        """
        if self.kind is not None:
            store = tables.open_features(self._table, self.kind.valid)
            return FeatureSources(store.stores)
        paths = COCO.of(examples).features(self.settings.BOXES, self.folder)
        try:
            return joined(
                [
                    open_features(
                        self.folder / path, parts, self.settings.IMPORT_FEATURES, not self.quiet
                    )
                    for path, parts in paths.items()
                ]
            )
        except DataError:
            absent = [path for path in paths if not (self.folder / path).parent.is_dir()]
            check_files(self.folder, (f"{path}.zip" for path in absent))
            raise

    def images(self, examples: Sequence[Example]) -> ImageFiles | None:
        """Image files, or None with precomputed features.

        Raises:
            ConfigError: A data set with images of its own beside those of easy_vqa.
            DataError: They are missing.
        """
        if self.config.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            return None
        if self.kind is not None:
            if not self.kind.embedded:
                raise ConfigError(
                    f"{self.config.path}: key NETWORK.IMAGE_FEAT_PRECOMPUTED: false: of "
                    f"{self.name} only region features are read, no pictures; set true"
                )
            folder = tables.resolve_dataset("easy_vqa").folder / "images"
            if self.folder != folder.parent and (self.folder / "images").is_dir():
                raise ConfigError(
                    f"{self.config.path}: key NETWORK.IMAGE_FEAT_PRECOMPUTED: false: images of "
                    f"{self.name} are in two folders, which is not read; set true"
                )
            parts = dict.fromkeys(part_of(example.image_id) for example in examples)
            return ImageFiles({part: folder / part for part in parts}, ".png")
        return COCO.of(examples).images(self.folder, self.settings.ZIP_MODE)

    def sizes(self, examples: Sequence[Example]) -> dict[str, Size] | None:
        """Sizes of the images from COCO's files; None where the features have to know them."""
        if self.kind is not None:
            return None
        return COCO.of(examples).sizes(self.folder, examples)

    def transform(self, part: str = "TRAIN") -> Transform:
        """How images and boxes are prepared; FLIP_PROB is that of a section of the config."""
        network = self.config.NETWORK
        return Transform(
            self.config.SCALES,
            network.PIXEL_MEANS,
            network.PIXEL_STDS,
            self.settings.ADD_IMAGE_AS_A_BOX,
            self.config.values[part].FLIP_PROB,
            self.config.seed,
        )

    def data(self, examples: Sequence[Example], part: str = "TEST") -> VLBertData:
        """Questions with everything that belongs to them.

        Args:
            examples: From `examples`.
            part: Section of the config whose FLIP_PROB holds: TRAIN, VAL or TEST.

        Raises:
            DataError: Files are missing or damaged.
        """
        return VLBertData(
            examples,
            self.features(examples),
            self.vocabulary,
            self.tokenizer,
            self.transform(part),
            self.images(examples),
            self.sizes(examples),
            self._longest(),
        )

    def _longest(self) -> int:
        """Word pieces of a question that model and published policy have positions for."""
        return min(
            longest_question(part.max_position_embeddings, part.position_padding_idx)
            for part in (self.config.NETWORK.VLBERT, self.config.POLICY.VLBERT)
        )

    def check_files(self) -> None:
        """Make sure that the files which training begins with are there; names all that are not.

        These are questions, annotations, answers, vocabulary and pretrained weights. Features and
        images are looked for when it is known which ones are needed.

        Raises:
            ConfigError: An unknown image set.
            DataError: Some files are missing.
        """
        if self.kind is not None and self.kind.embedded:
            return
        settings, network = self.settings, self.config.NETWORK
        keys = () if self.kind is not None else ("TRAIN_IMAGE_SET", "VAL_IMAGE_SET")
        sets = [find_set(self.name, name) for key in keys for name in split_sets(settings[key])]
        wanted = dict.fromkeys(
            path for found in sets for path in (found.questions, found.annotations) if path
        )
        more = [(locate(settings.ANSWER_VOCAB_FILE), FEATURES)]
        bert, start = locate(network.BERT_MODEL_NAME), locate(network.PARTIAL_PRETRAIN)
        if network.BERT_MODEL_NAME and not has_vocabulary(bert):
            more.append((bert / "vocab.txt", "BERT (bert-base-uncased or bert-large-uncased)"))
        if start.suffix in SUFFIXES:
            more.append((start, WEIGHTS))
        check_files(self.folder, wanted, more if settings.ANSWER_VOCAB_FILE else more[1:])

    def splits(self, images: int | None = None, questions: int | None = None) -> Splits:
        """Training, held-out and reported questions; what is held out is not trained on.

        Args:
            images: Use only so many images of each image set.
            questions: Train only on so many questions, chosen by RNG_SEED.

        Raises:
            ConfigError: Training on a set that is there to be reported, or too many questions.
            DataError: Files are missing or damaged.
        """
        settings = self.settings
        self._check_training_set()
        everything = self.examples(settings.TRAIN_IMAGE_SET, whole=True)
        train = everything[: settings.TOY_SAMPLES] if settings.TOY else everything
        valid = self.examples(settings.VAL_IMAGE_SET)
        for sets, examples in ((settings.TRAIN_IMAGE_SET, train), (settings.VAL_IMAGE_SET, valid)):
            if any(example.answers is None for example in examples):
                raise ConfigError(
                    f"{self.config.path}: image set {sets} of {self.name} has "
                    "questions without answers: it can be tested, not trained or "
                    "validated on"
                )
        remarks = self._remarks(train, valid)
        kept, heldout = tables.split_holdout(everything, self.config.HOLDOUT)
        planned = len(kept)
        if images is not None:
            train = tables.subset_by_images(train, images)
            valid = tables.subset_by_images(valid, images)
        if len(train) < len(everything):
            kept, heldout = tables.split_holdout(train, self.config.HOLDOUT)
        if questions is not None:
            if not 0 < questions <= len(kept):
                raise ConfigError(
                    f"--questions {questions}: there are {len(kept)} training "
                    f"questions in {settings.TRAIN_IMAGE_SET} of {self.name}"
                )
            kept = random.Random(self.config.seed).sample(kept, questions)
        parts = self.data(kept, "TRAIN"), self.data(heldout, "VAL"), self.data(valid, "VAL")
        remarks += check_answers(dict(zip(PARTS, parts, strict=True)))
        remarks += [said for part in parts if (said := part.cut_questions()) is not None]
        return Splits(*parts, remarks, planned)

    def _check_training_set(self) -> None:
        sets = self.settings.TRAIN_IMAGE_SET
        reported_only: tuple[str, ...] = NOT_TRAINED_ON.get(self.name, ())
        if self.kind is not None:
            reported_only = self.kind.reported_only
        for name in split_sets(sets):
            if name in reported_only:
                raise ConfigError(
                    f"{self.config.path}: key DATASET.TRAIN_IMAGE_SET: {name}: this "
                    f"set of {self.name} is there to report on; its answers must not "
                    "be known to training"
                )

    def _remarks(self, train: Sequence[Example], valid: Sequence[Example]) -> list[str]:
        """What the user should know of these settings."""
        settings, train_part = self.settings, self.config.TRAIN
        remarks = []
        if said := overlap(settings.TRAIN_IMAGE_SET, train, settings.VAL_IMAGE_SET, valid):
            remarks.append(said)
        if train_part.FLIP_PROB and self.config.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            remarks.append(
                f"TRAIN.FLIP_PROB {train_part.FLIP_PROB} mirrors boxes and words "
                "of precomputed features, not the features themselves (as published)"
            )
        return remarks


def overlap(
    train_sets: str, train: Sequence[Example], valid_sets: str, valid: Sequence[Example]
) -> str | None:
    """In words, how many reported questions are trained on as well; None if none is."""
    known = {example.question_id for example in train}
    common = sum(example.question_id in known for example in valid)
    if not common:
        return None
    return (
        f"{common} of {len(valid)} questions of {valid_sets} are in the training set "
        f"{train_sets} as well: the accuracy on {valid_sets} says how well answers are "
        "remembered, not how well new questions are answered; for that set "
        "DATASET.TRAIN_IMAGE_SET to train2014 alone"
    )
