"""How fast region features are imported and read, on made-up features.

Rates are images in a second of CPU time of the process, as other figures of `make bench` are: what
a disk makes of it is not measured, all files are in the system's cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.features.lxmert_tsv import encode_row, import_tsv
from common.features.store import RegionFeatures

REGIONS, WIDTH, BATCH = 36, 2048, 32
SIDE = 640


def measure_features(images: int, batches: int) -> dict[str, float]:
    """Write a TSV in LXMERT's format, import it, and read random batches of the store.

    Args:
        images: in the TSV, of 36 regions of width 2048 (0.4 MB each).
        batches: of 32 images.

    Returns:
        `import_per_s` and `read_per_s`, and `anonymous_bytes`: by how much the process grew while
        reading, without the file's pages (absent where the system does not say it).
    """
    with tempfile.TemporaryDirectory() as folder:
        tsv = Path(folder) / "made_obj36.tsv"
        write_tsv(tsv, images)
        start = time.process_time()
        store = import_tsv(tsv, Path(folder) / "store", WIDTH, progress=False)
        found = {"import_per_s": images / (time.process_time() - start)}
        return found | read_batches(store, batches)


def read_batches(store: RegionFeatures, batches: int) -> dict[str, float]:
    """Rate of reading, and growth of the process, over random batches."""
    generator = np.random.default_rng(0)
    ids = np.array(store.ids())
    chosen = [generator.choice(ids, BATCH).tolist() for _ in range(batches)]
    for first in range(0, len(ids), BATCH):  # into the cache
        store.read(ids[first : first + BATCH].tolist())
    before = anonymous_bytes()
    start = time.process_time()
    for wanted in chosen:
        store.read(wanted)
    found = {"read_per_s": len(chosen) * BATCH / (time.process_time() - start)}
    after = anonymous_bytes()
    if before is None or after is None:
        return found
    return found | {"anonymous_bytes": max(0, after - before)}


def write_tsv(path: Path, images: int) -> None:
    """Rows of LXMERT's format with random boxes and features."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    with open(path, "wb") as file:
        for image in range(images):
            corners = (some(REGIONS, 2, 2) * SIDE).sort(1).values.flatten(1)
            ids, sure = (some(REGIONS) * 400).long(), some(REGIONS)
            row = encode_row(
                f"{image}",
                SIDE,
                SIDE,
                corners,
                some(REGIONS, WIDTH),
                object_ids=ids,
                object_conf=sure,
                attribute_ids=ids,
                attribute_conf=sure,
            )
            file.write(row)


def anonymous_bytes() -> int | None:
    """Memory of this process that no file stands behind; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon:")), None)
