"""How fast region features are imported and read, on made-up features.

Rates are images in a second of CPU time of the process, as other figures of `make bench` are: what
a disk makes of it is not measured, all files are in the system's cache.
"""

from __future__ import annotations

import base64
import tempfile
import time
from pathlib import Path

import numpy as np

from common.features.lxmert_tsv import COLUMNS, import_tsv
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
    generator = np.random.default_rng(0)

    def encoded(values: np.ndarray) -> bytes:
        return base64.b64encode(values.tobytes())

    with open(path, "wb") as file:
        for image in range(images):
            corners = np.sort(generator.random((REGIONS, 2, 2), dtype="f4") * SIDE, 1)
            ids = encoded(generator.integers(0, 400, REGIONS))
            sure = encoded(generator.random(REGIONS, dtype="f4"))
            row = {
                "img_id": b"%d" % image,
                "img_h": b"%d" % SIDE,
                "img_w": b"%d" % SIDE,
                "objects_id": ids,
                "objects_conf": sure,
                "attrs_id": ids,
                "attrs_conf": sure,
                "num_boxes": b"%d" % REGIONS,
                "boxes": encoded(corners.reshape(REGIONS, 4)),
                "features": encoded(generator.random((REGIONS, WIDTH), dtype="f4")),
            }
            file.write(b"\t".join(row[column] for column in COLUMNS) + b"\n")


def anonymous_bytes() -> int | None:
    """Memory of this process that no file stands behind; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n")
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("RssAnon:")), None)
