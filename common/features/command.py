"""`python -m common.features`: import region features of other systems into a store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.features.lmdb_records import LMDB_DETECTOR, import_lmdb, lmdb_store
from common.features.lxmert_tsv import TSV_DETECTOR, import_tsv
from common.features.npz import NPZ_DETECTOR, import_npz, npz_store
from common.features.vlbert_json import JSON_DETECTOR, import_json, json_store
from common.voice import spoken


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Flags of the import; `run_import` obeys them."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tsv", type=Path, metavar="FILE", help="an LXMERT *_obj36.tsv")
    source.add_argument("--npz", type=Path, metavar="DIR", help="a folder of <image id>.npz")
    source.add_argument(
        "--json", type=Path, metavar="DIR|ZIP", help="VL-BERT's <image id>.json, in a folder or ZIP"
    )
    source.add_argument(
        "--lmdb",
        type=Path,
        metavar="DIR|FILE",
        help="ViLBERT's LMDB of pickled records (nothing in them is executed)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="the store (default: the name without .tsv, or NAME_features)",
    )
    parser.add_argument("--width", type=int, default=2048, help="numbers per feature vector")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument(
        "--detector",
        metavar="NAME",
        help="what made the features (default: "
        f'"{TSV_DETECTOR}", "{NPZ_DETECTOR}", VL-BERT\'s or ViLBERT\'s); a checkpoint takes '
        "features of the detector that it was trained with, by this name",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out what cannot be read; a report is written to <store>_skipped.txt",
    )
    parser.add_argument("--limit", type=int, help="only the first so many images (not NPZ)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run_import(args: argparse.Namespace) -> None:
    """Import as the flags say, and say what came of it."""
    if args.tsv:
        out = args.out or args.tsv.with_suffix("")
        store = import_tsv(
            args.tsv,
            out,
            args.width,
            args.dtype,
            args.skip_bad,
            args.limit,
            args.detector or TSV_DETECTOR,
            not args.quiet,
        )
    elif args.json:
        out = args.out or json_store(args.json)
        store = import_json(
            args.json,
            out,
            args.width,
            args.dtype,
            args.detector or JSON_DETECTOR,
            args.skip_bad,
            args.limit,
            not args.quiet,
        )
    elif args.lmdb:
        out = args.out or lmdb_store(args.lmdb)
        store = import_lmdb(
            args.lmdb,
            out,
            args.width,
            args.dtype,
            args.detector or LMDB_DETECTOR,
            args.skip_bad,
            args.limit,
            not args.quiet,
        )
    else:
        out = args.out or npz_store(args.npz)
        store = import_npz(
            args.npz,
            out,
            args.width,
            args.dtype,
            args.detector or NPZ_DETECTOR,
            args.skip_bad,
            not args.quiet,
        )
    print(f"{store.path}: {len(store)} images, {store.meta['regions']} regions x {store.width}")


@spoken
def main(argv: Sequence[str]) -> int:
    """The command line, the same as `python -m common.data import`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m common.features",
        description="Turn the region features of other systems into a memory-mapped store. "
        "A stopped import goes on where it was.",
    )
    add_import_options(parser)
    args = parser.parse_args(argv)
    run_import(args)
    return 0
