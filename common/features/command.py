"""`python -m common.features`: import region features of other systems into a store.

Its other command, `extract`, is in `common.detector`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.features.lmdb_records import import_lmdb, lmdb_store
from common.features.lxmert_tsv import TSV_DETECTOR, import_tsv
from common.features.npz import NPZ_DETECTOR, import_npz, npz_store
from common.features.store import RegionFeatures
from common.features.vlbert_json import import_json, json_store
from common.voice import spoken

EXTRACT = "extract"


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
        help="what made the features (default: what extracted them here, if that did, else "
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


@dataclass(frozen=True)
class Importer:
    """One format: what reads it, and where its store is made."""

    read: Callable[..., RegionFeatures]
    store: Callable[[Path], Path]


IMPORTERS = {
    "tsv": Importer(import_tsv, lambda path: path.with_suffix("")),
    "npz": Importer(import_npz, npz_store),
    "json": Importer(import_json, json_store),
    "lmdb": Importer(import_lmdb, lmdb_store),
}


def run_import(args: argparse.Namespace) -> None:
    """Import as the flags say, and say what came of it.

    Raises:
        ConfigError: --limit with files that have no order.
    """
    name = next(name for name in IMPORTERS if getattr(args, name))
    source, importer = getattr(args, name), IMPORTERS[name]
    limit: dict[str, int | None] = {"limit": args.limit}
    if name == "npz":
        if args.limit is not None:
            raise ConfigError(f"--limit {args.limit}: NPZ files are imported all; leave it out")
        limit = {}
    store = importer.read(
        source,
        args.out or importer.store(source),
        args.width,
        args.dtype,
        detector=args.detector,
        skip_bad=args.skip_bad,
        progress=not args.quiet,
        **limit,
    )
    print(f"{store.path}: {len(store)} images, {store.meta['regions']} regions x {store.width}")


@spoken
def main(argv: Sequence[str]) -> int:
    """The command line, the same as `python -m common.data import`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m common.features",
        description="Turn the region features of other systems into a memory-mapped store. "
        "A stopped import goes on where it was. Features of pictures of your own: "
        f"python -m common.features {EXTRACT} --help.",
    )
    add_import_options(parser)
    args = parser.parse_args(argv)
    run_import(args)
    return 0
