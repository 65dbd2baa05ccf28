"""What `common.export` needs to know of VL-BERT: the training questions of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common.data.annotations import AnswerVocabulary
from common.data.datasets import TINY_IMAGES
from common.errors import ConfigError
from common.runs.backbones import Exporting, OpenedRun
from common.runs.opened_run import options_of
from vlbert.config import load_config
from vlbert.data import VQASource
from vlbert.vqa_dataset import VLBertData


def training_questions(run: OpenedRun, data_root: Path | None) -> tuple[VLBertData, Path]:
    """The questions of a run's config, see `common.runs.opened_run.training_questions`."""
    from vlbert.finetuning import parser  # slow to import

    args = options_of(run, parser().parse_args)
    changes = {} if data_root is None else {"DATASET.DATASET_PATH": str(data_root)}
    config = load_config(run.folder / f"{args.cfg.stem}.yaml", changes)
    source = VQASource(config, run.tokenizer)
    source.vocabulary = AnswerVocabulary(run.answers)  # the file may be elsewhere now
    data = source.splits(TINY_IMAGES if args.tiny else None, args.questions).train
    return data, source.folder


def open_snapshot(path: Path, meta: dict[str, Any]) -> nn.Module:
    """A pretraining snapshot has nothing to export.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        f"{path} is a plain model already, with the names of the released ones: give "
        "it as NETWORK.PARTIAL_PRETRAIN; pretrain/train_end2end.py --export writes "
        "it in half precision"
    )


EXPORTING = Exporting(
    training_questions=training_questions,
    open_snapshot=open_snapshot,
    usage="python vqa/test.py --cfg CONFIG --ckpt {model}.safetensors --result-path . --split SET"
    "  (in VLBERT/, CONFIG of the run, on {dataset})",
)
