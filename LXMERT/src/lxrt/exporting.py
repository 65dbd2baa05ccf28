"""What `common.export` needs to know of LXMERT: training questions, snapshots, `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import open_features, resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.runs.backbones import Exporting, OpenedRun
from common.runs.opened_run import check_training_questions, run_arguments
from common.training.checkpoint import check_compatible
from common.training.weights import load_into
from lxrt.hf_folder import VISUAL_LOSSES, save_hf_folder
from lxrt.loading import read_pretrained
from lxrt.modeling import PretrainingModel
from lxrt.sizes import HOME, LxmertConfig


def training_questions(run: OpenedRun, data_root: Path | None = None) -> VQADataset:
    """The questions that a run was finetuned on, found again from its command.

    Args:
        run: finished.
        data_root: folder of VQA v2's files; default: the one in the command.

    Raises:
        DataError: the run has no result yet, or these are not the questions that it was
            finetuned on.
    """
    from lxrt.finetuning import training_examples
    from lxrt.options import parse, vqa_parser  # slow to import

    args = run_arguments(run, lambda words: parse(vqa_parser(), words))
    dataset = resolve_dataset(run.dataset, data_root=data_root or _from_home(args.data))
    args.train, args.valid = dataset.choose_splits(args.train, args.valid)
    features = open_features(dataset, args.train, skip_bad=args.skip_bad)
    check_compatible(run.meta, {"features": features.described()}, run.checkpoint)
    data = VQADataset(training_examples(args, dataset)[0], features, dataset.vocabulary())
    check_training_questions(run, data, dataset.folder)
    return data


def _from_home(path: Path | None) -> Path | None:
    """The run scripts work in LXMERT/, so that is where a relative path starts."""
    return path if path is None or path.is_absolute() or path.exists() else HOME / path


def open_snapshot(path: Path, meta: dict[str, Any]) -> nn.Module:
    """The pretraining model of a snapshot of ours, in float32, with those heads that it has."""
    weights = read_pretrained(path)
    losses = tuple(
        name for name in VISUAL_LOSSES if f"obj_predict_head.decoder_dict.{name}.weight" in weights
    )
    model = PretrainingModel(LxmertConfig.from_dict(meta["config"]), losses)
    load_into(model, weights, what=str(path))
    return model.eval()


EXPORTING = Exporting(
    training_questions=training_questions,
    open_snapshot=open_snapshot,
    save_transformers=save_hf_folder,
    usage="bash run/vqa_test.bash cpu NAME --load {model} --test minival --dataset {dataset}  "
    "(in LXMERT/)",
)
