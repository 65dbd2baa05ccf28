"""The data of a pretraining config: captions with images, texts beside them, a vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from common.data.datasets import load_split, open_features, resolve_dataset
from common.data.easy_vqa.captions import COLOURS, SHAPES
from common.data.easy_vqa.regions import ATTRIBUTE_CLASSES
from common.data.tokenizer import Tokenizer, small_vocabulary
from common.errors import ConfigError, DataError
from common.features.sources import FeatureSources
from common.files import write_bytes
from vlbert.config import Config, Section, locate
from vlbert.data_coco import split_sets
from vlbert.data_features import find_features
from vlbert.images import ImageFiles, part_of
from vlbert.pretraining_captions import CaptionImages, Captions, EmbeddedCaptions
from vlbert.pretraining_conceptual import ConceptualCaptions, ImagesByPath, open_caption_features
from vlbert.pretraining_corpus import Corpus, Texts
from vlbert.pretraining_masking import Rates
from vlbert.pretraining_samples import CaptionSamples
from vlbert.sizes import PretrainingConfig
from vlbert.vqa_dataset import Transform

EitherCaptions = EmbeddedCaptions | ConceptualCaptions
EMBEDDED, CAPTIONS, CORPUS = "easy_vqa_captions", "conceptual_captions", "general_corpus"
SOURCES = {
    CAPTIONS: "https://ai.google.com/research/ConceptualCaptions, with region features as "
    "in https://github.com/jackroos/VL-BERT (data/PREPARE_DATA.md)",
    CORPUS: "BookCorpus and Wikipedia, one sentence a line (https://github.com/jackroos/"
    "VL-BERT, data/PREPARE_DATA.md)",
}
WAY_OUT = (
    "fetch them, or pretrain on the embedded data: ./scripts/nondist_run.sh "
    "pretrain/train_end2end.py cfgs/pretrain/easy_vqa_small.yaml output"
)
# Of the embedded data; the other sets are there to finetune on and to report on.
EMBEDDED_SETS = {"TRAIN_IMAGE_SET": "pretrain", "VAL_IMAGE_SET": "nominival"}


@dataclass(frozen=True)
class Part:
    """Captions and, beside them, texts."""

    captions: CaptionSamples
    texts: Texts | None = None


@dataclass(frozen=True)
class PretrainingData:
    """What is trained and validated on.

    Attributes:
        train, heldout: the two parts of the data.
        tokenizer: of captions and texts.
        features: of all captions.
        rates: of masking.
        word_kinds: numbers of words whose accuracy is reported for itself, by their kind.
    """

    train: Part
    heldout: Part
    tokenizer: Tokenizer
    features: FeatureSources
    rates: Rates = field(default_factory=Rates)
    word_kinds: Mapping[str, Tensor] = field(default_factory=dict)


MODULES = ("ResNetVLBERTForPretraining", "ResNetVLBERTForPretrainingMultitask")


class PretrainingSource:
    """Opens the data that a config names."""

    def __init__(self, config: Config, quiet: bool = False) -> None:
        """Look at the config; files are opened when they are needed.

        Args:
            config: of pretraining.
            quiet: show no progress bars.

        Raises:
            ConfigError: an unknown data set, or data that do not go with the network.
        """
        self.config, self.quiet = config, quiet
        self.settings: Section = config.datasets[0]
        self.texts: Section | None = config.datasets[1] if len(config.datasets) == 2 else None
        names = [part.DATASET for part in config.datasets]
        if names not in ([EMBEDDED], [CAPTIONS], [EMBEDDED, CORPUS], [CAPTIONS, CORPUS]):
            raise self._wrong(
                "DATASET.DATASET",
                names,
                f"give {CAPTIONS} or {EMBEDDED}, and "
                f"behind it, if texts without an image are wanted, {CORPUS}",
            )
        for key, wanted in EMBEDDED_SETS.items() if self.embedded else ():
            if self.settings[key] != wanted:
                raise self._wrong(
                    f"DATASET.{key}",
                    repr(self.settings[key]),
                    f"must be {wanted}: "
                    "the other sets of these data are there to finetune on and to "
                    "report on",
                )
        for key in ("TRAIN_IMAGE_SET", "VAL_IMAGE_SET"):
            if len(split_sets(self.settings[key])) != 1 and not self.embedded:
                raise self._wrong(
                    f"DATASET.{key}",
                    repr(self.settings[key]),
                    "give one set, such as train or val: captions are in NAME_frcnn.json",
                )
        if config.MODULE not in MODULES:
            raise self._wrong("MODULE", config.MODULE, f"valid: {', '.join(MODULES)}")
        self.multitask = config.MODULE.endswith("Multitask")
        if self.multitask != (self.texts is not None):
            raise self._wrong(
                "MODULE",
                config.MODULE,
                f"{len(names)} data sets: a network for "
                "captions and texts is ResNetVLBERTForPretrainingMultitask, with "
                "two data sets; one for captions alone is "
                "ResNetVLBERTForPretraining, with one",
            )
        self.train_batch, self.heldout_batch = (self._batch(name) for name in ("TRAIN", "VAL"))
        if self.texts is not None and self.texts.SEQ_LEN < 1:
            raise self._wrong(
                "DATASET[1].SEQ_LEN",
                self.texts.SEQ_LEN,
                "must be positive: word pieces that a text is cut to",
            )
        if not 0 <= self.settings.ANSWER_MASK_RATE <= 1:
            raise self._wrong(
                "DATASET.ANSWER_MASK_RATE",
                self.settings.ANSWER_MASK_RATE,
                "must lie between 0 and 1",
            )
        if not self.settings.MASK_QUESTIONS and self.settings.ANSWER_MASK_RATE < 1:
            raise self._wrong(
                "DATASET.MASK_QUESTIONS",
                self.settings.MASK_QUESTIONS,
                "a question that is read whole with its answer shown teaches nothing: set "
                f"ANSWER_MASK_RATE to 1 (it is {self.settings.ANSWER_MASK_RATE:g})",
            )

    def _wrong(self, key: str, value: object, why: str) -> ConfigError:
        return ConfigError(f"{self.config.path}: key {key}: {value}: {why}")

    def _batch(self, section: str) -> tuple[int, int]:
        """Captions and texts of a batch."""
        images = self.config.values[section].BATCH_IMAGES
        found = images if isinstance(images, tuple) else (images,)
        if len(found) != len(self.config.datasets):
            raise self._wrong(
                f"{section}.BATCH_IMAGES",
                list(found),
                f"give one number for each data set, there are {len(self.config.datasets)}",
            )
        return found[0], found[1] if len(found) == 2 else 0

    @property
    def name(self) -> str:
        return self.settings.DATASET

    @property
    def embedded(self) -> bool:
        return self.name == EMBEDDED

    @property
    def folder(self) -> Path:
        return locate(self.settings.DATASET_PATH)

    @cached_property
    def rates(self) -> Rates:
        settings = self.settings
        return Rates(replies=settings.ANSWER_MASK_RATE, questions=settings.MASK_QUESTIONS)

    @cached_property
    def captions(self) -> tuple[EitherCaptions, EitherCaptions]:
        """For training and for validation.

        Raises:
            DataError: files are missing or damaged.
        """
        sets = self.settings.TRAIN_IMAGE_SET, self.settings.VAL_IMAGE_SET
        if self.embedded:
            return self._embedded(sets[0]), self._embedded(sets[1])
        self.check_files()
        train, heldout = (
            ConceptualCaptions(self.folder / f"{name}_frcnn.json", not self.quiet) for name in sets
        )
        return train, heldout

    def _embedded(self, sets: str) -> EmbeddedCaptions:
        examples = load_split(resolve_dataset("easy_vqa"), sets)
        return EmbeddedCaptions(examples, self.settings.WITH_ANSWERS)

    def check_files(self) -> None:
        """Make sure that files which the config names are there.

        Raises:
            DataError: some are not; all of them are listed, with where they come from.
        """
        missing = []
        for name in dict.fromkeys((self.settings.TRAIN_IMAGE_SET, self.settings.VAL_IMAGE_SET)):
            if not self.embedded and not (self.folder / f"{name}_frcnn.json").is_file():
                missing.append((self.folder / f"{name}_frcnn.json", CAPTIONS))
                if find_features(self.folder / f"{name}_frcnn") is None:
                    missing.append((self.folder / f"{name}_frcnn.zip", CAPTIONS))
        for path in dict.fromkeys(p for key in ("TRAIN", "VAL") for p in self._text_files(key)):
            if not path.is_file():
                missing.append((path, CORPUS))
        if missing:
            lines = "\n".join(f"  {path}  from {SOURCES[kind]}" for path, kind in missing)
            raise DataError(
                f"{self.config.path}: {len(missing)} files are missing:\n{lines}\n{WAY_OUT}"
            )

    def _text_files(self, part: str) -> list[Path]:
        if self.texts is None:
            return []
        key = f"{part}_ANNOTATION_FILE"
        names = split_sets(self.texts[key])
        if not names:
            raise self._wrong(
                f"DATASET[1].{key}",
                repr(self.texts[key]),
                "give the files of the texts, with + between",
            )
        return [locate(name) for name in names]

    def tokenizer(self, folder: Path) -> Tokenizer:
        """That of BERT_MODEL_NAME; for the embedded data one of the words in captions.

        Args:
            folder: where a vocabulary is written to that is made here.

        Raises:
            ConfigError: there is none, or it is not of the size of the network's word table.
        """
        network = self.config.NETWORK
        if self.embedded and not network.BERT_MODEL_NAME:
            words = "\n".join(small_vocabulary(self._all_texts())) + "\n"
            write_bytes(folder / "vocab.txt", words.encode())
            tokenizer = Tokenizer(folder)
        else:
            tokenizer = Tokenizer(locate(network.BERT_MODEL_NAME))
        if len(tokenizer) != network.VLBERT.vocab_size:
            raise self._wrong(
                "NETWORK.VLBERT.vocab_size",
                network.VLBERT.vocab_size,
                f"{tokenizer.vocabulary_file} has {len(tokenizer)} word pieces",
            )
        return tokenizer

    def _all_texts(self) -> list[str]:
        """What a vocabulary is made of: captions, questions and answers of the training part."""
        examples = load_split(resolve_dataset("easy_vqa"), self.settings.TRAIN_IMAGE_SET)
        return EmbeddedCaptions(examples, True).texts()

    def load(self, tokenizer: Tokenizer, config: PretrainingConfig) -> PretrainingData:
        """Everything that is trained and validated on.

        Args:
            tokenizer: of captions and texts.
            config: of the network.

        Raises:
            DataError: files are missing or damaged, or an image has no regions.
        """
        features = self.features()
        train, heldout = self.captions
        images = self._images(train), self._images(heldout)
        for captions, files in zip((train, heldout), images, strict=True):
            if isinstance(captions, ConceptualCaptions):
                assert files is None or isinstance(files, ImagesByPath)
                captions.check(features, files)
        kinds = {"colour": COLOURS, "shape": SHAPES, "yes/no": ("yes", "no")}
        return PretrainingData(
            self._part("TRAIN", train, features, tokenizer, config, images[0]),
            self._part("VAL", heldout, features, tokenizer, config, images[1]),
            tokenizer,
            features,
            self.rates,
            {kind: torch.tensor(tokenizer.numbers(words)) for kind, words in kinds.items()}
            if self.embedded
            else {},
        )

    @cached_property
    def _features(self) -> FeatureSources:
        if self.embedded:
            return open_features(resolve_dataset("easy_vqa"), ",".join(EMBEDDED_SETS.values()))
        folders = dict.fromkeys(
            folder
            for captions in self.captions
            if isinstance(captions, ConceptualCaptions)
            for folder in captions.feature_folders
        )
        return open_caption_features(
            self.folder, list(folders), self.settings.IMPORT_FEATURES, not self.quiet
        )

    def features(self) -> FeatureSources:
        """Region features of all captions; imported first where they are JSON files.

        Raises:
            DataError: they are missing or damaged.
        """
        return self._features

    def _images(self, captions: EitherCaptions) -> CaptionImages | None:
        if self.config.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            return None
        if isinstance(captions, EmbeddedCaptions):
            folder = resolve_dataset("easy_vqa").folder / "images"
            parts = dict.fromkeys(part_of(image_id) for image_id in captions.image_ids())
            return ImageFiles({part: folder / part for part in parts}, ".png")
        return ImagesByPath(self.folder, captions.image_folders, self.settings.ZIP_MODE)

    def _part(
        self,
        section: str,
        captions: Captions,
        features: FeatureSources,
        tokenizer: Tokenizer,
        config: PretrainingConfig,
        images: CaptionImages | None,
    ) -> Part:
        network, batch = self.config.NETWORK, self._batch(section)
        transform = Transform(
            self.config.SCALES,
            network.PIXEL_MEANS,
            network.PIXEL_STDS,
            self.settings.ADD_IMAGE_AS_A_BOX,
            self.config.values[section].FLIP_PROB,
            self.config.seed,
        )
        pairs = self.embedded and self.settings.REGION_CLASSES == "object_attribute"
        samples = CaptionSamples(
            captions,
            features,
            tokenizer,
            transform,
            config,
            self.rates,
            images,
            ATTRIBUTE_CLASSES if pairs else 1,
        )
        if self.texts is None:
            return Part(samples)
        corpus = Corpus(
            self._text_files(section),
            tokenizer,
            self.texts.SEQ_LEN,
            self.texts.MIN_SEQ_LEN,
            not self.quiet,
        )
        return Part(samples, Texts(corpus, *batch))
