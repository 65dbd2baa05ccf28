"""Small Conceptual Captions in the form of the real files: tensorpack's LMDB, captions in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from tests.common.lmdb_files import write_values

CLASSES, WIDTH = 7, 2048
SIZE = (64, 48)
WORDS = ("left", "right", "above", "below")


def pack(value: Any) -> bytes:
    """As tensorpack does with the package msgpack-numpy, byte by byte."""
    return msgpack.packb(value, default=_array, use_bin_type=True)


def _array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"nd": True,
            b"type": value.dtype.str,
            b"kind": b"",
            b"shape": value.shape,
            b"data": value.tobytes(),
        }
    return {b"nd": False, b"type": value.dtype.str, b"data": value.data.tobytes()}


def caption(number: int) -> str:
    return f"{WORDS[number % 4]} of {WORDS[number // 4 % 4]}"


def record(number: int, count: int | None = None, width: int = WIDTH) -> list[Any]:
    """A record whose features tell its caption."""
    draw = np.random.default_rng(number)
    count = count or 2 + number % 3
    corners = np.sort(draw.random((count, 2, 2)), 1) * (SIZE[0] - 1, SIZE[1] - 1)
    scores = draw.random((count, CLASSES))
    features = np.random.default_rng(number % 16).normal(size=(count, width)) * 0.5
    return [
        features.astype(np.float32),
        (scores / scores.sum(1, keepdims=True)).astype(np.float32),
        corners.reshape(count, 4).astype(np.float32),
        count,
        SIZE[1],
        SIZE[0],
        str(1000 + number),
        caption(number),
    ]


def write_records(path: Path, records: Sequence[Any], finished: bool = True) -> Path:
    """One LMDB; bytes are written as they are."""
    values: dict[bytes, bytes] = {
        b"%08d" % n: value if isinstance(value, bytes) else pack(value)
        for n, value in enumerate(records)
    }
    if finished:
        values[b"__keys__"] = pack(list(values))
    return write_values(path, values, subdir=False)


def write_concap(folder: Path, train: int = 32, held: int = 8, parts: int = 0) -> Path:
    """Both parts with their captions; `parts`: training in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"training": range(train), "validation": range(100, 100 + held)}
    for part, name in (("training", "caption_train.json"), ("validation", "caption_val.json")):
        captions: Mapping[str, str] = {str(1000 + n): caption(n) for n in numbers[part]}
        (folder / name).write_text(json.dumps(captions))
    records = [record(n) for n in numbers["training"]]
    for n in range(parts):
        path = folder / f"training_feat_part_{n}.lmdb"
        write_records(path, records[n * train // parts : (n + 1) * train // parts])
    if not parts:
        write_records(folder / "training_feat_all.lmdb", records)
    held_out = [record(n) for n in numbers["validation"]]
    write_records(folder / "validation_feat_all.lmdb", held_out)
    return folder
