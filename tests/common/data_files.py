"""Small files in the formats that data is downloaded in: TSVs, NPZ folders, official JSON."""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.features.lxmert_tsv import COLUMNS
from common.features.store import RegionFeatures


def encode(array: np.ndarray) -> bytes:
    return base64.b64encode(array.tobytes())


def tsv_row(
    image_id: str, boxes: torch.Tensor, features: torch.Tensor, width: int = 64, height: int = 48
) -> dict[str, bytes]:
    """One row of an LXMERT TSV, by column."""
    count = len(boxes)
    return {
        "img_id": image_id.encode(),
        "img_h": b"%d" % height,
        "img_w": b"%d" % width,
        "objects_id": encode(np.arange(count)),
        "objects_conf": encode(np.ones(count, "f4")),
        "attrs_id": encode(np.arange(count)),
        "attrs_conf": encode(np.ones(count, "f4")),
        "num_boxes": b"%d" % count,
        "boxes": encode(boxes.float().numpy()),
        "features": encode(features.float().numpy()),
    }


def plain_row(
    image_id: str, width: int = 2048, count: int = 1, **changes: bytes
) -> dict[str, bytes]:
    """A row whose content does not matter; `changes` put other bytes into some columns."""
    boxes = torch.tensor([[1.0, 2.0, 8.0, 10.0]]).expand(count, 4)
    return tsv_row(image_id, boxes, torch.ones(count, width)) | changes


def write_tsv(path: Path, rows: Iterable[dict[str, bytes]]) -> Path:
    """A TSV with the line ends of Python's csv module, as the released files have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.writelines(b"\t".join(row[c] for c in COLUMNS) + b"\r\n" for row in rows)
    return path


def tsv_of(store: RegionFeatures, keys: dict[str, str], path: Path) -> Path:
    """The TSV that a store could be from; `keys` gives id in the TSV -> id in the store."""

    def row(key: str, of: str) -> dict[str, bytes]:
        regions = store.get(of)
        return tsv_row(key, regions.boxes, regions.features, regions.width, regions.height)

    return write_tsv(path, (row(key, of) for key, of in keys.items()))


def npz_of(store: RegionFeatures, keys: dict[str, str], folder: Path) -> Path:
    """A folder of NPZ files with the arrays of bottom-up-attention extractors."""
    folder.mkdir(parents=True)
    for key, of in keys.items():
        regions = store.get(of)
        np.savez(
            folder / f"{key}.npz",
            x=regions.features.numpy(),
            bbox=regions.boxes.numpy(),
            num_bbox=len(regions.boxes),
            image_w=regions.width,
            image_h=regions.height,
        )
    return folder


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def question(number: int, image: int, **changes: Any) -> dict[str, Any]:
    return {"image_id": image, "question_id": number, "question": f"What is {number}?"} | changes


def annotation(number: int, image: int, answer: str = "red", **changes: Any) -> dict[str, Any]:
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    return {
        "image_id": image,
        "question_id": number,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": answer,
        "answers": answers,
    } | changes


def write_official(
    folder: Path,
    part: str,
    questions: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]] | None,
) -> None:
    """The files of one part of VQA v2 under the names they are downloaded with."""
    head = {"info": {"version": "2.0"}, "license": {}, "data_type": "mscoco", "data_subtype": part}
    write_json(
        folder / f"v2_OpenEnded_mscoco_{part}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": list(questions)},
    )
    if annotations is not None:
        write_json(
            folder / f"v2_mscoco_{part}_annotations.json",
            {**head, "annotations": list(annotations)},
        )
