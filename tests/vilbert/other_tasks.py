"""How the tests run ViLBERT's tasks beside questions: small files in the real formats, commands."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.data.tokenizer import Tokenizer, small_vocabulary
from tests.common.lmdb_files import arrays, write_lmdb
from tests.vilbert.runs import SIDES, SIZES, WIDTH, TaskFiles, write_pretrained
from tests.vilbert.task_files import NAMES, write_captions
from vilbert.caption_data import HardNegatives
from vilbert.tasks import TASKS_FILE

IMAGES = {"train": range(20), "val": range(100, 108)}
THINGS = ("ball", "box", "cone", "ring")
SIZE = (64, 48)


@dataclass(frozen=True)
class OtherFiles(TaskFiles):
    """Files of VCR, retrieval and referring expressions under one folder."""

    def tiny_model(self) -> list[str]:
        return self.model()

    def train(self, tasks: str, out: Path | str, *more: str) -> list[str]:
        """Flags of a run of few steps, without plots."""
        return [
            *self.model(),
            *("--tasks", tasks, "--gpus", "cpu", "--quiet", "--no-plots", "--no-tensorboard"),
            *("--batchSize", "8", "--epochs", "2", "--lr", "1e-3", "--output", str(out), *more),
        ]

    def eval(self, tasks: str, load: Path | str, out: Path | str, *more: str) -> list[str]:
        """Flags of eval_tasks.py and eval_retrieval.py."""
        return [*self.test(load, out), "--tasks", tasks, *more]


def record(image: int, count: int, offset: int = 0) -> dict[str, Any]:
    """Regions whose features tell image and place; the boxes of `box_of`."""
    draw = np.random.default_rng(1000 * offset + image)
    features = (draw.normal(size=(count, WIDTH)) * 0.5).astype(np.float32)
    boxes = np.array([box_of(image, n + offset) for n in range(count)], np.float32)
    changes = {"features": features, "boxes": boxes, "image_w": SIZE[0], "image_h": SIZE[1]}
    return arrays(str(image), count) | changes


def box_of(image: int, place: int) -> tuple[float, float, float, float]:
    """Boxes that overlap little."""
    x, y = 4.0 + 14 * (place % 4), 2.0 + 11 * (place // 4)
    return x, y, x + 10 + image % 3, y + 9


def vcr_line(part: str, number: int, kind: int) -> dict[str, Any]:
    right, why = (number + kind) % 4, (number // 2 + kind) % 4
    return {
        "annot_id": f"{part}-{number}-{kind}",
        "img_id": f"{part}-{number}",
        "img_fn": f"{number}.jpg",
        "metadata_fn": "all.json",
        "question": ["what", "is", SIDES[kind], "of", [0], "?"],
        "answer_choices": [[thing] for thing in THINGS[-right:] + THINGS[:-right]],
        "rationale_choices": [["it", "is", "a", thing] for thing in THINGS],
        "answer_label": right,
        "rationale_label": why,
    }


def write_vcr_files(folder: Path) -> None:
    (folder / "vcr1images").mkdir(parents=True)
    (folder / "vcr1images" / "all.json").write_text(json.dumps({"names": ["person", "cup"]}))
    table = "".join(f"{n},{name}\n" for n, name in enumerate(NAMES))
    (folder / "unisex_names_table.csv").write_text(f",name\n{table}")
    for part in ("train", "val", "test"):
        numbers = IMAGES["val" if part == "test" else part]
        lines = [vcr_line(part, number, kind) for number in numbers for kind in range(2)]
        if part == "test":
            for line in lines:
                del line["answer_label"], line["rationale_label"]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def captions_of(image: int) -> list[str]:
    return [f"a {THINGS[image % 4]} {SIDES[image // 4 % 4]}", f"it is {image}"]


def write_retrieval_files(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, numbers in IMAGES.items():
        lines = [{"img_path": f"{n}.jpg", "sentences": captions_of(n)} for n in numbers]
        write_captions(folder / f"{part}.jsonline", *lines)
    images = tuple(str(n) for n in IMAGES["train"])
    rows = [[n, *((n + k) % len(images) for k in range(1, 4))] for n in range(len(images))]
    HardNegatives(images, np.array(rows)).write(folder / "hard_negative.pkl")


def write_referring_files(folder: Path) -> None:
    """Two texts about each image; the third annotated region is meant by the second one."""
    folder.mkdir(parents=True)
    refs, objects, images = [], [], []
    for part, numbers in IMAGES.items():
        for number in numbers:
            images.append({"id": number, "width": SIZE[0], "height": SIZE[1]})
            for k in range(2):
                x1, y1, x2, y2 = box_of(number, 2 * k)
                ann = 10 * number + k
                box = [x1, y1, x2 - x1, y2 - y1]
                objects.append({"id": ann, "image_id": number, "bbox": box})
                sentences = [{"sent_id": ann, "raw": f"the {THINGS[k]} {SIDES[number % 4]}"}]
                refs.append(
                    {
                        "ref_id": ann,
                        "ann_id": ann,
                        "image_id": number,
                        "split": part,
                        "sentences": sentences,
                    }
                )
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    content = {"images": images, "annotations": objects}
    (folder / "instances.json").write_text(json.dumps(content))


def write_lmdbs(folder: Path) -> None:
    """Features of a detector and of annotations, for VCR (whose val has other numbers) as well."""
    numbers = [*IMAGES["train"], *IMAGES["val"]]
    vcr = [
        *IMAGES["train"],
        *(1_000_000 + n for n in IMAGES["val"]),
        *(2_000_000 + n for n in IMAGES["val"]),
    ]
    for name, images in (("coco", numbers), ("vcr", vcr)):
        detected = {str(n): record(n, 3 + n % 3) for n in images}
        annotated = {str(n): record(n, 1 + n % 2, offset=5) for n in images}
        write_lmdb(folder / f"{name}.lmdb", detected)
        write_lmdb(folder / f"{name}_gt.lmdb", annotated)


def sections(other: TaskFiles, questions: TaskFiles | None = None) -> dict[str, Any]:
    """The shipped sections about some files; those of questions may be in another folder."""
    found = yaml.safe_load(TASKS_FILE.read_text())
    folder, asked = other.folder, questions or other
    places: dict[str, dict[str, str]] = {
        "TASK6": {"dataroot": "VCR", "features_h5path1": "vcr", "features_h5path2": "vcr_gt"},
        "TASK9": {"dataroot": "retrieval", "features_h5path1": "coco"},
        "TASK11": {"dataroot": "refer", "features_h5path1": "coco", "features_h5path2": "coco_gt"},
    }
    places["TASK7"] = places["TASK6"]
    for name, keys in places.items():
        section = found[name] | {"max_region_num": 6, "max_seq_length": 20}
        for key, value in keys.items():
            path = folder / value
            section[key] = f"{path}.lmdb" if "features" in key else str(path)
        if section["train_annotations_jsonpath"]:
            ending = "jsonl" if "VCR" in keys["dataroot"] else "jsonline"
            for part in ("train", "val"):
                path = folder / keys["dataroot"] / f"{part}.{ending}"
                section[f"{part}_annotations_jsonpath"] = str(path)
        found[name] = section
    found["TASK1"] |= {"dataroot": str(asked.questions), "features_h5path1": str(asked.features)}
    return found


def write_sections(
    files: TaskFiles,
    changes: dict[str, dict[str, Any]] | None = None,
    other: TaskFiles | None = None,
    questions: TaskFiles | None = None,
) -> None:
    """The task file of some files, whose data may be those of others."""
    found = sections(other or files, questions)
    for name, keys in (changes or {}).items():
        found[name] = found[name] | keys
    files.tasks.write_text(yaml.safe_dump(found))


def words(texts: Sequence[str] = ()) -> list[str]:
    said = [*THINGS, *SIDES, *NAMES, "what is of a it the cup", *texts]
    return small_vocabulary(said)


def write_other_files(folder: Path) -> OtherFiles:
    """All files of all tasks, vocabulary, sizes, weights and the task file."""
    files = OtherFiles(folder)
    write_vcr_files(folder / "VCR")
    write_retrieval_files(folder / "retrieval")
    write_referring_files(folder / "refer" / "refcoco+")
    write_lmdbs(folder)
    files.bert.mkdir()
    (files.bert / "vocab.txt").write_text("\n".join(words()) + "\n")
    files.config.write_text(json.dumps(SIZES | {"max_position_embeddings": 32}))
    write_pretrained(files.pretrained, files.config, len(Tokenizer(files.bert)))
    write_sections(files)
    return files
