"""`python -m common.features extract`: region features of photographs of one's own.

    python -m common.features extract --images DIR --detector FOLDER --out STORE
    python -m common.features extract --images photos.zip --detector FOLDER --boxes 10-100 \\
        --format vlbert-json --out FEATURES
    python -m common.features extract --images DIR --detector pixels --out STORE

FOLDER holds `config.yaml` and `pytorch_model.bin` of unc-nlp/frcnn-vg-finetuned.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common.detector.extracting import ExtractionOptions, extract
from common.detector.faster_rcnn import PRECISIONS, RULES, DetectorOptions
from common.detector.network import CHUNK
from common.detector.opening import open_detector, parse_boxes
from common.detector.outputs import FORMATS
from common.features.store import RegionFeatures
from common.voice import spoken


def extract_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m common.features extract",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--images", type=Path, required=True, metavar="DIR|ZIP", help="pictures, also in subfolders"
    )
    add("--out", type=Path, required=True, help="the store, TSV file or folder to write")
    add_detector_options(parser, required=True)
    add("--format", choices=FORMATS, default=FORMATS[0], help="default store")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of a store's features")
    add("--classes", action="store_true", help="keep class probabilities in the store")
    add(
        "--name",
        help="keep this as the detector's name, for runs that were trained with features under "
        "it; features of two detectors differ even where their networks are alike",
    )
    add("--skip-bad", action="store_true", help="leave out what cannot be read, and report it")
    add("--limit", type=int, help="only the first so many pictures")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def add_detector_options(parser: argparse._ActionsContainer, required: bool) -> None:
    """Flags of the detector and of the processes that it runs in; see `detector_options`."""
    add = parser.add_argument
    add(
        "--detector",
        required=required,
        metavar="FOLDER|pixels",
        help="the folder of config.yaml and pytorch_model.bin; or the pixel regions of easy-VQA, "
        "which are for plain shapes, not for photographs",
    )
    add(
        "--boxes",
        type=parse_boxes,
        metavar="N|MIN-MAX",
        help="a picture (default: as the config says)",
    )
    add(
        "--rule",
        choices=RULES,
        default=RULES[0],
        help="which proposals become regions: the detector's own rule (default), or that of "
        "bottom-up attention, which the TSVs were made by",
    )
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the convolutions; bf16 (and on a GPU fp16) is faster and gives other features",
    )
    add("--chunk", type=int, default=CHUNK, help=f"regions at a time (default {CHUNK}): memory")
    add("--workers", type=int, default=1, help="processes, each with a detector of its own")
    add("--threads", type=int, help="of each process (default: the cores, shared among them)")


def detector_options(args: argparse.Namespace) -> DetectorOptions:
    """What the flags of `add_detector_options` say of the detector."""
    fewest, most = args.boxes or (None, None)
    return DetectorOptions(fewest, most, args.rule, args.device, args.precision, args.chunk)


@spoken
def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status."""
    args = extract_parser().parse_args(arguments)
    extract(
        args.images,
        args.out,
        partial(open_detector, args.detector, detector_options(args)),
        ExtractionOptions(
            args.format,
            args.dtype,
            args.classes,
            args.name,
            args.skip_bad,
            args.limit,
            args.workers,
            args.threads,
            not args.quiet,
        ),
    )
    if args.format == FORMATS[0]:
        store = RegionFeatures.open(args.out)
        counts = f"{len(store)} images, {store.meta['regions']} regions x {store.width}"
        print(f"{args.out}: {counts} of {store.meta['detector']}")
    else:
        print(f"{args.out}: written")
    return 0
