"""Retrieval with a finetuned or pretrained model: what eval_retrieval.py runs.

Every caption of a split is scored with every image. Scores are kept in the folder of the run, row
by row, so that a run that was stopped goes on with the captions that are missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common.adapt.adapting import adaptive_part
from common.adapt.merging import merge
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.files import sha256, text_digest, write_json
from common.tasks.vqa_command import VQAOptions
from common.training.options import fill
from common.training.runtime import Runtime, set_threads
from vilbert.building import Needs, build_for, start_of
from vilbert.finetuning import EVALUATE
from vilbert.heads import VILBertForVLTasks
from vilbert.loading import find_vocabulary, load_start, weights_file
from vilbert.options import ModelOptions, add_eval_options, model_options, settle_eval
from vilbert.pair_inputs import PairInputs
from vilbert.retrieval import Alone, PairScorer, blocks_by_length, image_ranks, text_ranks
from vilbert.samples import Pair
from vilbert.score_matrix import ScoreMatrix
from vilbert.sizes import read_config
from vilbert.task_data import RetrievalData
from vilbert.task_program import ViLBertProgram, needs_of, testing
from vilbert.task_sources import OpenedTask
from vilbert.tasks import names

Say = Callable[[str], None]
TASK = "9"
BEST_IMAGES = 20  # that are written for every caption
CAPTION_BLOCK, IMAGE_BLOCK = 16, 64
RANK_BLOCK = 256  # rows of the matrix in memory


@dataclass(frozen=True)
class RetrievalOptions(ModelOptions):
    """With what is retrieved.

    Attributes:
        zero_shot: score pairs by the alignment that pretraining has learned.
        captions_at_once, images_at_once: pairs that are computed together are their product.
        images: so many images of the split; 0: all.
        every_pair: compute everything for every pair.
    """

    zero_shot: bool = False
    captions_at_once: int = CAPTION_BLOCK
    images_at_once: int = IMAGE_BLOCK
    images: int = 0
    every_pair: bool = False


def add_retrieval_options(parser: argparse.ArgumentParser) -> None:
    """The flags of eval_retrieval.py."""
    add_eval_options(parser)
    group = parser.add_argument_group("ViLBERT: retrieval")
    add = group.add_argument
    add(
        "--zero_shot",
        "--zero-shot",
        action="store_true",
        help="score pairs with a pretrained model (--from_pretrained; default: the committed small "
        "one for embedded data) by the alignment that it has learned",
    )
    add(
        "--captions_at_once",
        "--captions-at-once",
        type=int,
        default=CAPTION_BLOCK,
        metavar="N",
        help=f"captions that are scored together (default {CAPTION_BLOCK})",
    )
    add(
        "--images_at_once",
        "--images-at-once",
        type=int,
        default=IMAGE_BLOCK,
        metavar="N",
        help=f"images that they are scored with at a time (default {IMAGE_BLOCK})",
    )
    add(
        "--images",
        type=int,
        default=0,
        metavar="N",
        help="the first N images of the split, and their captions (default: all)",
    )
    add(
        "--every_pair",
        "--every-pair",
        action="store_true",
        help="compute also what could be computed once for each caption and image",
    )
    parser.set_defaults(tasks=TASK)


def settle(args: argparse.Namespace) -> None:
    """What is scored, and the folder of the scores.

    Raises:
        ConfigError: flags that do not go together.
    """
    for name in ("captions_at_once", "images_at_once"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)}: give 1 at least")
    if args.images < 0:
        raise ConfigError(f"--images {args.images}: give a number of images, or 0 for all")
    pretrained = args.load
    if args.zero_shot and not args.load:
        if args.save_name:
            raise ConfigError("--zero_shot --save_name: give the pretrained model")
        args.load = "pretrained"  # settled when it is known which one
        if args.output == Path("snap/test"):
            args.output = (args.output_dir or Path("results")) / "zero_shot"
    settle_eval(args)
    args.load = pretrained or (None if args.zero_shot else args.load)
    if args.eval_batch_size:  # the original's --batch_size, of captions
        args.captions_at_once = args.eval_batch_size


def retrieval_options(args: argparse.Namespace) -> RetrievalOptions:
    """What the flags say of the model and of the scores."""
    return fill(RetrievalOptions, args, tasks=model_options(args).tasks)


@dataclass(frozen=True)
class RetrievalProgram(ViLBertProgram):
    """Scores of all captions with all images."""

    def test(self, options: VQAOptions[ModelOptions], name: str) -> None:
        """Compute what is missing of the matrix, and write ranks and best images."""
        chosen = options.model
        assert isinstance(chosen, RetrievalOptions)
        if len(chosen.tasks) > 1:
            raise ConfigError(f"--tasks {names(chosen.tasks)}: one task of retrieval at a time")
        with testing(options) as begun:
            runtime, tracker, folder = begun.runtime, begun.tracker, options.run.folder
            world, (entry,) = runtime.world, begun.entries
            tracker.log(options.command)
            opened = begun.opener.open_tested(entry, name)
            if not isinstance(opened.val, RetrievalData):
                raise ConfigError(
                    f"--task {entry.name}: no task of retrieval; give RetrievalFlickr30k (9)"
                )
            gallery = Gallery.of(opened.val, chosen.images)
            scored = self._scored(options, chosen, opened, begun.name, tracker.log)
            model = scored.model.to(runtime.device).eval()
            small = model.config.size_name() == "small"
            set_threads(options.run.threads, small, world.local_size)
            scorer = PairScorer(model, chosen.zero_shot, not chosen.every_pair)
            with world.main_first():
                settings = scored.settings | {
                    "split": opened.split,
                    **gallery.digest(),
                    "limits": asdict(opened.limits),
                    "features": [store.meta["checksums"] for store in opened.features.stores],
                    "vocabulary": scored.tokenizer.digest(),
                }
                where = folder / f"{opened.split}_scores"
                shape = len(gallery.texts), len(gallery.images)
                matrix = ScoreMatrix(where, *shape, settings)
            inputs = PairInputs(scored.tokenizer, opened.limits, opened.features)
            feeder = Feeder(gallery, inputs, runtime)
            speed = fill_matrix(
                matrix, scorer, feeder, chosen, runtime, tracker.log, not options.quiet
            )
            world.barrier()
            if world.main:
                shown = scored.settings | {
                    "computed_once": scorer.reuses,
                    "pairs_per_second": speed,
                }
                write_results(folder, opened.split, matrix, gallery, shown, tracker.log)

    def _scored(
        self,
        options: VQAOptions[ModelOptions],
        chosen: RetrievalOptions,
        opened: OpenedTask,
        dataset: str,
        say: Say,
    ) -> Scored:
        """The model, plain where all pairs have the same decisions."""
        needs = needs_of([opened], dataset)
        settings = {"zero_shot": chosen.zero_shot, "precision": options.run.precision}
        if chosen.zero_shot:
            plain, tokenizer, source = pretrained(options, chosen, needs, say)
            return Scored(plain, tokenizer, settings | {"model": sha256(source)})
        built = build_for(options, needs, say)
        assert isinstance(built.model, VILBertForVLTasks)
        part = adaptive_part(built.model)
        settings |= {
            "model": sha256(weights_file(str(options.load))),
            "strategy": built.record.row.name,
            "policy_eval": None if part is None else part.options.policy_eval,
        }
        if part is not None and part.options.policy_eval == "global":
            merge(built.model, part.global_decisions)
            say("all pairs have the same decisions: they are merged")
        return Scored(built.model, built.tokenizer, settings)


@dataclass(frozen=True)
class Scored:
    """What pairs are scored with.

    Attributes:
        model: with its weights.
        tokenizer: of the captions.
        settings: what the scores are of.
    """

    model: VILBertForVLTasks
    tokenizer: Tokenizer
    settings: dict[str, Any]


def pretrained(
    options: VQAOptions[ModelOptions], chosen: ModelOptions, needs: Needs, say: Say
) -> tuple[VILBertForVLTasks, Tokenizer, Path]:
    """A pretrained model with its vocabulary and its file.

    Raises:
        ConfigError: a BERT, which has never seen an image.
    """
    start = options.load or start_of(chosen, needs.dataset)
    path = weights_file(start)
    tokenizer = Tokenizer(find_vocabulary(str(path), chosen.bert_model, say))
    config = read_config(
        chosen.sizes_file(needs.dataset),
        v_feature_size=needs.features["width"],
        vocab_size=len(tokenizer),
        num_labels=1,
    )
    model = VILBertForVLTasks(config)
    fits = {"features": needs.features, "vocabulary": tokenizer.digest()}
    load_start(model, str(path), fits, (), say, any_detector=chosen.any_detector)
    return model, tokenizer, path


@dataclass(frozen=True)
class Gallery:
    """Images and the captions of all of them.

    Attributes:
        images: I ids.
        texts: T different captions.
        right: the places of the images that have a caption, for each.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    right: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, data: RetrievalData, limit: int = 0) -> Gallery:
        """Of a split, or of its first images."""
        shown = data.captioned[: limit or None]
        owners: dict[str, list[int]] = {}
        for place, image in enumerate(shown):
            for caption in dict.fromkeys(image.captions):
                owners.setdefault(caption, []).append(place)
        return cls(
            tuple(image.image_id for image in shown),
            tuple(owners),
            tuple(tuple(places) for places in owners.values()),
        )

    def digest(self) -> dict[str, Any]:
        """What tells it from another one, for JSON."""
        return {
            "images": text_digest("\n".join(self.images)),
            "texts": text_digest("\n".join(self.texts)),
        }


@dataclass(frozen=True)
class Feeder:
    """Reads texts and images of a gallery in blocks."""

    gallery: Gallery
    inputs: PairInputs
    runtime: Runtime

    def lengths(self) -> list[int]:
        """Word pieces of every caption."""
        found: list[int] = []
        for start in range(0, len(self.gallery.texts), RANK_BLOCK):
            mask = self.texts(range(start, min(start + RANK_BLOCK, len(self.gallery.texts))))
            attention = mask["attention_mask"]
            assert attention is not None
            found += attention.sum(1).tolist()
        return found

    def texts(self, places: Iterable[int]) -> dict[str, Tensor | None]:
        pairs = [Pair(self.gallery.texts[place], "") for place in places]
        return self.runtime.move(self.inputs.texts(pairs))

    def images(self, places: Iterable[int]) -> dict[str, Tensor | None]:
        shown = self.inputs.regions([self.gallery.images[place] for place in places])
        return dict(self.runtime.move(shown.inputs))


def fill_matrix(
    matrix: ScoreMatrix,
    scorer: PairScorer,
    feeder: Feeder,
    options: RetrievalOptions,
    runtime: Runtime,
    say: Say,
    progress: bool = True,
) -> float | None:
    """Compute the rows that are missing; returns pairs per second, None where nothing was missing.

    Images are kept as far as they are read alone, captions are read block by block.
    """
    lengths = feeder.lengths()
    missing = runtime.world.gather(matrix.missing())[0]  # one list for all processes
    if len(missing) < matrix.texts:
        say(f"{matrix.folder}: goes on with {len(missing)} of {matrix.texts} captions")
    blocks = [
        [missing[n] for n in block]
        for block in blocks_by_length([lengths[n] for n in missing], options.captions_at_once)
    ]
    blocks = list(runtime.world.share(blocks))
    if not blocks:
        return None
    places = [
        range(start, min(start + options.images_at_once, matrix.images))
        for start in range(0, matrix.images, options.images_at_once)
    ]
    start = time.perf_counter()
    with runtime.autocast():
        alone = [scorer.images(feeder.images(block)) for block in places]
        bar = tqdm(
            blocks,
            desc="captions",
            unit=f"block of {options.captions_at_once}",
            dynamic_ncols=True,
            disable=not (progress and runtime.world.main),
        )
        for block in bar:
            scores = score_block(scorer, scorer.texts(feeder.texts(block)), alone, block, matrix)
            matrix.write(block, scores)
    count = sum(map(len, blocks)) * matrix.images
    return count / (time.perf_counter() - start)


def score_block(
    scorer: PairScorer,
    texts: Alone,
    images: Sequence[Alone],
    places: Sequence[int],
    matrix: ScoreMatrix,
) -> Tensor:
    """(t, I) scores of a block of texts."""
    found = []
    first = 0
    for block in images:
        columns = range(first, first + block.size)
        keys = [text * matrix.images + image for text in places for image in columns]
        found.append(scorer.scores(texts, block, keys).float())
        first += block.size
    return torch.cat(found, 1)


def write_results(
    folder: Path, split: str, matrix: ScoreMatrix, gallery: Gallery, shown: dict[str, Any], say: Say
) -> None:
    """Ranks in both directions, and the best images of every caption."""

    def blocks() -> Iterator[tuple[list[int], Tensor]]:
        return matrix.blocks(RANK_BLOCK)

    directions = {
        "text_to_image": text_ranks(blocks(), gallery.right).figures(),
        "image_to_text": image_ranks(blocks, gallery.right, matrix.images).figures(),
    }
    best = []
    for places, scores in blocks():
        top = scores.topk(min(BEST_IMAGES, matrix.images), 1).indices.tolist()
        best += [
            {"caption": gallery.texts[place], "images": [gallery.images[n] for n in row]}
            for place, row in zip(places, top, strict=True)
        ]
    several = sum(len(own) > 1 for own in gallery.right)
    result = shown | {
        "captions": matrix.texts,
        "images": matrix.images,
        "captions_of_several_images": several,
        **directions,
    }
    write_json(folder / f"{split}_retrieval.json", result, indent=1)
    write_json(folder / f"{split}_best_images.json", best)
    if shown["pairs_per_second"]:
        once = "layers before the first connection once" if shown["computed_once"] else "every pair"
        say(f"{shown['pairs_per_second']:,.0f} pairs per second ({once})")
    say(f"{matrix.texts:,} captions, {matrix.images:,} images: {folder / split}_retrieval.json")
    for name, figures in directions.items():
        title = name.replace("_", " ").replace(" to ", " → ")
        say(f"{title}: " + ", ".join(f"{key} {value:.2f}" for key, value in figures.items()))


RETRIEVE = RetrievalProgram(
    **{
        field: getattr(EVALUATE, field)
        for field in EVALUATE.__dataclass_fields__
        if field not in ("script", "description", "add_options", "settle", "model_options")
    },
    script="eval_retrieval.py",
    description="Score every caption of a split with every image, with a finetuned model, or with "
    "a pretrained one (--zero_shot); writes R@1, R@5, R@10, median and mean rank in both "
    "directions, and the best images of every caption. What was stopped goes on.",
    add_options=add_retrieval_options,
    settle=settle,
    model_options=retrieval_options,
)
main = RETRIEVE.main()
