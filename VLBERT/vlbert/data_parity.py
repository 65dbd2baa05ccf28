"""Runs the golden case of the data: raw files in, the batches of the original out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from common.data.tokenizer import Tokenizer
from common.errors import DataError
from vlbert.data_answers import AnswerFile
from vlbert.data_coco import COCO, read_examples
from vlbert.data_features import joined, open_features
from vlbert.vqa_dataset import Transform, VLBertData


def run_vqa_data(
    config: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor], wanted: list[str]
) -> dict[str, Tensor]:
    """Batches of every variant of the case (kind `vqa_data`), one batch each.

    Args:
        config: Of the case; `folder` is where it is.
        weights, inputs: Not used: the inputs are the files in `raw`.
        wanted: Names of tensors, `<variant>::<tensor>`; empty means all.

    Raises:
        DataError: `folder` is missing, or the raw files are damaged.
    """
    if "folder" not in config:
        raise DataError(
            "kind vqa_data reads the files in raw/ of its folder: config needs the key 'folder'"
        )
    raw = Path(config["folder"]) / "raw"
    found: dict[str, Tensor] = {}
    for name, variant in config["variants"].items():
        batch = _variant(raw, config, variant)
        tensors = {
            "boxes": batch.boxes,
            "im_info": batch.im_info,
            "question": batch.question,
            "label": batch.target,
            "image": batch.image,
        }
        found |= {f"{name}::{key}": tensor for key, tensor in tensors.items() if tensor is not None}
    return {name: tensor for name, tensor in found.items() if not wanted or name in wanted}


def open_case(raw: Path, config: dict[str, Any], variant: dict[str, Any]) -> VLBertData:
    """The data set of one variant, as the original reads it: answers verbatim, from the files."""
    coco = raw / "coco"
    parts = variant["image_set"].split("+")
    examples = read_examples(coco, parts, verbatim=True)
    if variant["test_mode"]:
        examples = [replace(example, answers=None) for example in examples]
    layout = COCO.of(examples)
    stores = [
        open_features(coco / name, of, wanted=False)
        for name, of in layout.features("10-100ada").items()
    ]
    transform = Transform(
        config["scales"],
        whole_image=variant["add_image_as_a_box"],
        flip=float(variant["flip"]),
        seed=config.get("seed", 0),
    )
    return VLBertData(
        examples,
        joined(stores),
        AnswerFile(coco / "vqa/answers_vqa.txt", verbatim=True),
        Tokenizer(raw),
        transform,
        sizes=layout.sizes(coco, examples),
    )


def _variant(raw: Path, config: dict[str, Any], variant: dict[str, Any]) -> Any:
    data = open_case(raw, config, variant)
    return data.read(range(len(data)), epoch=0)
