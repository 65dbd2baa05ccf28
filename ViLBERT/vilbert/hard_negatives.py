"""The pool of hard negatives of a file of captions: what make_hard_negatives.py runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from common.errors import ConfigError, DataError
from common.features.sources import open_store
from common.features.store import RegionFeatures
from common.voice import spoken
from vilbert.caption_data import NEIGHBOURS, find_hard_negatives, read_captions
from vilbert.vqa_data import features_path

BATCH = 256  # images that are read at a time


def mean_features(
    store: RegionFeatures, images: Sequence[str], progress: bool = True
) -> torch.Tensor:
    """The mean of the region features of each image, (N, C).

    Raises:
        DataError: an image has no record.
    """
    if missing := store.missing(images):
        raise DataError(
            f"{store.path}: no record of image {missing[0]} and {len(missing) - 1} others: "
            "give the features of these images"
        )
    found = []
    for start in tqdm(range(0, len(images), BATCH), desc="images", disable=not progress):
        found.append(store.read(images[start : start + BATCH]).whole_image())
    return torch.cat(found)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python make_hard_negatives.py",
        description="Find for every image of a file of captions those whose mean region features "
        "are nearest. Retrieval is trained with one of them as a hard negative.",
    )
    add = parser.add_argument
    add("--captions", type=Path, required=True, help="a .jsonline file, one image a line")
    add(
        "--features",
        type=Path,
        required=True,
        help="region features of its images: a store, or an LMDB, which is imported once",
    )
    add("--out", type=Path, default=Path("hard_negative.pkl"), help="default hard_negative.pkl")
    add(
        "--neighbours",
        type=int,
        default=NEIGHBOURS,
        help=f"images in a row, the image itself included (default {NEIGHBOURS})",
    )
    add("--by-id", action="store_true", help="images are known by `id` (COCO), not by their file")
    add("--overwrite", action="store_true", help="replace an earlier file")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = make_parser().parse_args(arguments)
    if args.neighbours < 2:
        raise ConfigError(f"--neighbours {args.neighbours}: give 2 at least: an image and another")
    if args.out.exists() and not args.overwrite:
        raise ConfigError(f"{args.out} exists: add --overwrite, or choose another --out")
    images = [image.image_id for image in read_captions(args.captions, args.by_id)]
    store = open_store(features_path(args.features), progress=not args.quiet)
    found = find_hard_negatives(
        images, mean_features(store, images, not args.quiet), args.neighbours
    )
    found.write(args.out)
    print(f"{args.out}: {len(images)} images with {found.pool.shape[1] - 1} hard negatives each")
    return 0
