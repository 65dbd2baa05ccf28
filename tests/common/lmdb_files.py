"""Small LMDBs of pickled region features, in the two forms that there are."""

from __future__ import annotations

import base64
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

WIDTH = 6
SIZE = (64, 48)


def arrays(image: str, count: int = 3, classes: int = 0, **changes: Any) -> dict[str, Any]:
    """A record with arrays and numbers; `changes` put other values into some fields."""
    draw = np.random.default_rng(sum(image.encode()))
    corners = np.sort(draw.random((count, 2, 2)), 1) * (SIZE[0] - 1, SIZE[1] - 1)
    record: dict[str, Any] = {
        "image_id": image,
        "image_h": SIZE[1],
        "image_w": SIZE[0],
        "num_boxes": count,
        "boxes": corners.reshape(count, 4).astype(np.float32),
        "features": draw.normal(size=(count, WIDTH)).astype(np.float32),
    }
    if classes:
        scores = draw.random((count, classes))
        record["cls_prob"] = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
    return record | changes


def texts(image: str, count: int = 3, classes: int = 0, **changes: Any) -> OrderedDict[str, Any]:
    """The same record as a row of texts."""
    row = OrderedDict(
        (key, base64.b64encode(value.tobytes()).decode() if hasattr(value, "tobytes") else value)
        for key, value in arrays(image, count, classes).items()
    )
    row.update({key: str(row[key]) for key in ("image_h", "image_w", "num_boxes")})
    row.update(changes)
    return row


def write_values(path: Path, values: Mapping[bytes, bytes], subdir: bool = True) -> Path:
    """An LMDB of these entries, as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), subdir=subdir, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    return path


def write_lmdb(
    path: Path, records: Mapping[str, Any], keys: Any = None, protocol: int = 3, subdir: bool = True
) -> Path:
    """An LMDB of records by image id; bytes are written as they are.

    `keys` is the list of keys, by default all of them in their order; False: there is none.
    """
    values = {
        name.encode(): value if isinstance(value, bytes) else pickle.dumps(value, protocol)
        for name, value in records.items()
    }
    listed = list(values) if keys is None else keys
    if listed is not False:
        values[b"keys"] = listed if isinstance(listed, bytes) else pickle.dumps(listed, protocol)
    return write_values(path, values, subdir)
