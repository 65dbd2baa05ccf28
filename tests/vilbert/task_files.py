"""Small files of ViLBERT's other tasks, in the form of the real ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

NAMES = ["Casey", "Riley", "Jessie"]
LINE: dict[str, Any] = {
    "annot_id": "val-7-3",
    "img_id": "val-7",
    "img_fn": "movie/1.jpg",
    "metadata_fn": "movie/1.json",
    "question": ["What", "does", [0], "give", [2, 1], "?"],
    "answer_choices": [[[0], "gives", f"gift{n}"] for n in range(4)],
    "rationale_choices": [["because", f"{n}"] for n in range(4)],
    "answer_label": 2,
    "rationale_label": 1,
}


def write_vcr(folder: Path, **changes: Any) -> Path:
    """One line, and what is known of its image."""
    (folder / "movie").mkdir(exist_ok=True)
    (folder / "movie" / "1.json").write_text(json.dumps({"names": ["person", "person", "cup"]}))
    line = {k: v for k, v in (LINE | changes).items() if v is not None}
    (folder / "val.jsonl").write_text(json.dumps(line) + "\n")
    return folder / "val.jsonl"


def references() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """References of two splits, and the objects that they mean."""
    refs = [
        {
            "ref_id": n,
            "ann_id": 10 + n,
            "image_id": 581 + n,
            "category_id": 1,
            "file_name": "COCO_train2014_000000000581_10.jpg",
            "split": ("train", "testA")[n],
            "sent_ids": [2 * n, 2 * n + 1],
            "sentences": [
                {"sent_id": 2 * n + k, "raw": f"man {k}", "sent": f"man {k}", "tokens": ["man"]}
                for k in range(2)
            ],
        }
        for n in range(2)
    ]
    images = [{"id": 581 + n, "width": 640, "height": 480, "file_name": "x"} for n in range(2)]
    annotations = [
        {"id": 10 + n, "image_id": 581 + n, "category_id": 1, "bbox": [1.5, 2, 30, 40]}
        for n in range(2)
    ]
    return refs, {"images": images, "annotations": annotations, "categories": []}


def write_references(folder: Path, refs: Any, instances: Any, protocol: int = 0) -> Path:
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder


def write_captions(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
