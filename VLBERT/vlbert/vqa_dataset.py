"""VQA in the batches that VL-BERT reads, with precomputed features or from images.

Shape legend: B batch, K objects (the image as a whole is the first), T word pieces, C channels,
A answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from common.data.annotations import AnswerVocabulary, Example, QuestionId
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQABatch, VQADataset
from common.errors import DataError
from common.features.carried import carried, first_part
from common.features.sources import FeatureSources
from common.features.store import RegionBatch, whole_image
from common.features.vlbert_json import cut_boxes
from common.modules.pixels import pad_images
from common.training.padding import Range, padded, region_lengths, text_lengths
from vlbert.boxes import box_mask
from vlbert.images import ImageFiles
from vlbert.transforms import (
    PADDING,
    image_info,
    is_flipped,
    mirror_answers,
    mirror_words,
    transform_boxes,
    transform_image,
)

Size = tuple[int, int]


@dataclass
class VLBertBatch:
    """B questions as VL-BERT reads them."""

    question_ids: list[QuestionId]
    image_ids: list[str]
    questions: list[str]
    answer_types: list[str | None]
    kinds: list[str | None]
    image: Tensor | None
    """(B, 3, H, W) float32, blue-green-red, normalised, zeros behind smaller images; None with
    precomputed features."""
    boxes: Tensor
    """(B, K, 4 + C) float32: box in pixels of the scaled image, then its feature; (B, K, 4) from
    images. Rows of padding are all -2."""
    im_info: Tensor
    """(B, 4) float32: width and height after scaling, factors of both directions."""
    question: Tensor
    """(B, T) int64 word pieces without special tokens; padding is 0."""
    target: Tensor | None
    """(B, A) float32 soft scores; None where there are no answers."""

    def __len__(self) -> int:
        return len(self.question_ids)

    def inputs(self) -> dict[str, Tensor | None]:
        """Arguments of the network, by the names and in the order of the original."""
        return {
            "image": self.image,
            "boxes": self.boxes,
            "im_info": self.im_info,
            "question": self.question,
        }


@dataclass(frozen=True)
class Transform:
    """How images and boxes are prepared.

    Attributes:
        scales: shorter and longer side in pixels; empty keeps the size.
        means, deviations: of blue, green and red, in 0..255; read with images only.
        whole_image: the image as a whole is the first box.
        flip: probability that a sample is mirrored while training.
        seed: of that.
    """

    scales: Sequence[int] = ()
    means: Sequence[float] = (0.0, 0.0, 0.0)
    deviations: Sequence[float] = (1.0, 1.0, 1.0)
    whole_image: bool = True
    flip: float = 0.0
    seed: int = 0


class VLBertData(VQADataset):
    """Questions with regions, and images or features; read in batches."""

    def __init__(
        self,
        examples: Sequence[Example],
        features: FeatureSources,
        vocabulary: AnswerVocabulary,
        tokenizer: Tokenizer,
        transform: Transform,
        images: ImageFiles | None = None,
        sizes: Mapping[str, Size] | None = None,
        longest: int | None = None,
    ) -> None:
        """Put everything together.

        Args:
            examples: One at least.
            features: Boxes and features of every image.
            vocabulary: The A answers.
            tokenizer: Of the questions.
            transform: Of images and boxes.
            images: Where images are read from, and only the boxes of `features` are used; None
                takes the features.
            sizes: Width and height in pixels by image, where they are known from elsewhere; the
                others are those of `features`.
            longest: Word pieces that a question is cut to, see `longest_question`; None cuts none.

        Raises:
            DataError: No examples, or images without regions, file or size.
        """
        super().__init__(examples, features, vocabulary)
        for example in self.examples:
            if not example.question.strip():
                raise DataError(f"question {example.question_id} is empty: remove it")
        self.tokenizer, self.transform = tokenizer, transform
        self.images, self.sizes, self.longest = images, sizes, longest
        if images is not None and (missing := images.missing({e.image_id for e in self.examples})):
            raise DataError(
                f"no image file of {missing[0]}{images.suffix} ({len(missing)} images "
                "have none): fetch all images of this part"
            )

    def read(  # type: ignore[override]  # a batch of another kind
        self, indices: Sequence[int], epoch: int | None = None, half: bool = False
    ) -> VLBertBatch:
        """The examples at some places as one batch.

        Args:
            indices: B places.
            half: Leave features that are kept in float16 so, on the way to a GPU.
            epoch: Of training, in which samples may be mirrored; None mirrors none.

        Raises:
            DataError: A damaged record or image, a size that is not known or contradicts the
                features, boxes beside their image, or a question without word pieces.
        """
        chosen = [self.examples[i] for i in indices]
        flips = [self._is_flipped(example, epoch) for example in chosen]
        half = half and self.images is None
        regions = self.features.read([e.image_id for e in chosen], half=half)
        sizes = self._sizes(regions)
        cut_to_images(regions, sizes)
        info = torch.stack([image_info(*size, self.transform.scales) for size in sizes])
        image = None
        if self.images is not None:
            pictures = (self.images.read(example.image_id) for example in chosen)
            image = network_images(pictures, info, flips, self.transform)
        return VLBertBatch(
            question_ids=[e.question_id for e in chosen],
            image_ids=regions.image_ids,
            questions=[e.question for e in chosen],
            answer_types=[e.answer_type for e in chosen],
            kinds=[e.kind for e in chosen],
            image=image,
            boxes=self._boxes(regions, sizes, info, torch.tensor(flips)),
            im_info=info,
            question=self._questions(chosen, flips),
            target=self._flipped_targets(indices, flips),
        )

    def _is_flipped(self, example: Example, epoch: int | None) -> bool:
        return epoch is not None and is_flipped(
            self.transform.seed, epoch, example.question_id, self.transform.flip
        )

    def _sizes(self, regions: RegionBatch) -> list[Size]:
        """Width and height of each image."""
        known = self.sizes or {}
        found = [
            known.get(image_id, (int(width), int(height)))
            for image_id, (width, height) in zip(
                regions.image_ids, regions.sizes.tolist(), strict=False
            )
        ]
        for image_id, size, own in zip(
            regions.image_ids, found, regions.sizes.tolist(), strict=True
        ):
            if min(own) >= 1 and size != (int(own[0]), int(own[1])):
                raise DataError(
                    f"image {image_id!r}: COCO's file (annotations/) says {size[0]} x {size[1]} "
                    f"pixels, its features were made of {own[0]:g} x {own[1]:g}: they are of "
                    "another image or size; take both from the same place"
                )
            if min(size) < 1:
                raise DataError(
                    f"image {image_id!r}: its size is not known: neither the COCO JSON "
                    "(annotations/) nor the features have it"
                )
        return found

    def _boxes(
        self, regions: RegionBatch, sizes: Sequence[Size], info: Tensor, flip: Tensor
    ) -> Tensor:
        """(B, K, 4 + C), or (B, K, 4) where images are read."""
        features = None if self.images is not None else regions.features
        return object_boxes(
            regions.boxes,
            regions.mask,
            features,
            regions.image_features,
            sizes,
            info,
            flip,
            self.transform.whole_image,
        )

    def _questions(self, examples: Sequence[Example], flips: Sequence[bool]) -> Tensor:
        named = [(f"question {e.question_id} ({e.question!r})", e.question) for e in examples]
        return question_pieces(self.tokenizer, named, flips, self.longest)

    def cut_questions(self) -> str | None:
        """In words, which questions are longer than the model reads; None if none is."""
        if self.longest is None:
            return None
        long = []
        for example in self.examples:
            if len(example.question) > self.longest:  # a piece has one sign at least
                pieces = len(self.tokenizer.pieces(example.question))
                long += [(example.question_id, pieces)] if pieces > self.longest else []
        if not long:
            return None
        number, pieces = long[0]
        return (
            f"of {len(long)} questions only the first {self.longest} word pieces are read, as many "
            f"as the model has positions for: question {number} has {pieces}"
        )

    def _flipped_targets(self, indices: Sequence[int], flips: Sequence[bool]) -> Tensor | None:
        """(B, A) soft scores; None if no example of the batch has answers."""
        target = self._targets(indices)
        for row, (i, flip) in enumerate(zip(indices, flips, strict=True)):
            if flip and (answers := self.examples[i].answers):
                assert target is not None
                mirrored = replace(self.examples[i], answers=mirror_answers(answers))
                target[row] = 0.0
                for label, value in self.vocabulary.encode(mirrored).items():
                    target[row, label] = value
        return target


def network_images(
    pictures: Iterable[Image.Image], info: Tensor, flips: Sequence[bool], transform: Transform
) -> Tensor:
    """Pictures as the network reads them.

    Args:
        pictures: B images in RGB.
        info: (B, 4), see `image_info`.
        flips: those that are mirrored.
        transform: means and deviations of the colours.

    Returns:
        (B, 3, H, W) float32: blue-green-red, normalised, zeros behind smaller images.
    """
    sizes = info[:, :2].int().tolist()
    return pad_images(
        [
            transform_image(picture, size, flip, transform.means, transform.deviations)
            for picture, size, flip in zip(pictures, sizes, flips, strict=True)
        ]
    )


def object_boxes(
    boxes: Tensor,
    mask: Tensor,
    features: Tensor | None,
    image_features: Tensor | None,
    sizes: Sequence[Size],
    info: Tensor,
    flip: Tensor,
    with_image: bool,
) -> Tensor:
    """Boxes of the scaled images with their features, as the network reads them.

    Args:
        boxes, mask: (B, R, 4) in pixels of the original images, (B, R) bool.
        features: (B, R, C), or None where images are read.
        image_features: (B, C) of the images as a whole; None: the mean of their regions.
        sizes: B widths and heights in pixels of the original images.
        info: (B, 4), see `image_info`.
        flip: (B,) bool, images that are mirrored.
        with_image: the image as a whole becomes the first box.

    Returns:
        (B, K, 4 + C), or (B, K, 4) without features; -2 in the padding.
    """
    padding = ~mask[..., None]
    if features is not None:
        whole = whole_image(features, mask, image_features)[:, None] if with_image else None
        features = features.masked_fill(padding, PADDING)
        features = features if whole is None else carried([whole, features], 1)
    if with_image:
        last = torch.tensor(sizes, dtype=torch.float32) - 1
        edges = torch.cat([torch.zeros_like(last), last], 1)
        boxes = torch.cat([edges[:, None], boxes], 1)
        mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
    boxes = transform_boxes(boxes, info, flip).masked_fill_(~mask[..., None], PADDING)
    return boxes if features is None else carried([boxes, features], -1)


def cut_to_images(regions: RegionBatch, sizes: Sequence[Size]) -> None:
    """Cut boxes at the edges of their images, in place.

    Raises:
        DataError: A box lies wholly outside, or its corners are the wrong way round.
    """
    for row, (image_id, (width, height)) in enumerate(zip(regions.image_ids, sizes, strict=True)):
        boxes = regions.boxes[row][regions.mask[row]]
        regions.boxes[row][regions.mask[row]] = cut_boxes(
            boxes, width, height, f"image {image_id!r}"
        )[0]


def longest_question(positions: int, padding_index: int = -1) -> int:
    """Word pieces of a question for which a table of so many positions has room.

    They stand between [CLS] and [SEP] [MASK] [SEP]; the objects and the end have a position each.
    """
    return positions - len(("[CLS]", "[SEP]", "[MASK]", "[SEP]")) - 3 - padding_index


def question_pieces(
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, str]],
    flips: Sequence[bool],
    longest: int | None = None,
) -> Tensor:
    """Word pieces (B, T) of questions without special tokens; padding is 0.

    Args:
        tokenizer: of the vocabulary.
        questions: B pairs of what to call a question in an error, and its text.
        flips: those in which left and right change places.
        longest: pieces that are read; None: all.

    Raises:
        DataError: a question without word pieces.
    """
    rows = []
    for (name, text), flip in zip(questions, flips, strict=True):
        pieces = tokenizer.pieces(text)[:longest]
        if not pieces:
            raise DataError(f"{name} has no word pieces: remove it")
        rows.append(torch.tensor(tokenizer.numbers(mirror_words(pieces) if flip else pieces)))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@dataclass(frozen=True)
class VLBertInputs:
    """Turns a batch of questions into the arguments of the network.

    A `VLBertBatch` has them; those of the common VQA data are made here, from features or from
    pictures.

    Attributes:
        tokenizer: of the questions.
        transform: of boxes and pictures.
        longest: word pieces of a question that are read; None: all.
        pictures: these are read, and of the regions only the boxes.
    """

    tokenizer: Tokenizer
    transform: Transform
    longest: int | None = None
    pictures: bool = False

    def __call__(self, batch: VLBertBatch | VQABatch) -> dict[str, Tensor | None]:
        """Image, boxes, im_info and question of a batch.

        Raises:
            DataError: a batch without pictures, where they are read.
        """
        if isinstance(batch, VLBertBatch):
            return batch.inputs()
        sizes = [(int(width), int(height)) for width, height in batch.sizes.tolist()]
        info = torch.stack([image_info(*size, self.transform.scales) for size in sizes])
        flips = [False] * len(batch)
        boxes = object_boxes(
            batch.boxes_px,
            batch.region_mask,
            None if self.pictures else batch.features,
            batch.image_features,
            sizes,
            info,
            torch.tensor(flips),
            self.transform.whole_image,
        )
        named = [(f"question {text!r}", text) for text in batch.questions]
        return {
            "image": self._images(batch, info, flips) if self.pictures else None,
            "boxes": boxes,
            "im_info": info,
            "question": question_pieces(self.tokenizer, named, flips, self.longest),
        }

    def _images(self, batch: VQABatch, info: Tensor, flips: Sequence[bool]) -> Tensor:
        if batch.pictures is None:
            raise DataError(
                f"image {batch.image_ids[0]!r}: the model reads the pixels of pictures "
                "(IMAGE_FEAT_PRECOMPUTED: false), and here are regions alone: ask it about a "
                "picture (python -m common.ask --image FILE), or test it with vqa/test.py"
            )
        return network_images(batch.pictures, info, flips, self.transform)

    def padded(
        self, inputs: Mapping[str, Tensor | None], regions: Range | None
    ) -> dict[str, Tensor | None]:
        """See `common.tasks.vqa.MakesGpuInputs`; the network is told which boxes there are, and so
        cuts nothing to what this batch holds."""
        found = padded(inputs, {"question": 0}, text_lengths(self.longest))
        lengths = region_lengths(regions, more=int(self.transform.whole_image))
        found = padded(found, {"boxes": PADDING}, lengths)
        boxes = found["boxes"]
        assert boxes is not None
        return {**found, "present": box_mask(first_part(boxes))}
