"""What `common.export` needs to know of LXMERT: training questions, snapshots, `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import resolve_dataset
from common.data.vqa_dataset import VQADataset
from common.runs.backbones import Exporting, OpenedRun
from common.runs.opened_run import options_of
from common.tasks.questions import trained_on
from common.tasks.vqa_command import VQAOptions
from common.training.weights import load_into
from lxrt.hf_folder import VISUAL_LOSSES, save_hf_folder
from lxrt.loading import SNAPSHOT_SUFFIXES, read_pretrained
from lxrt.modeling import PretrainingModel
from lxrt.sizes import HOME, LxmertConfig


def training_questions(run: OpenedRun, data_root: Path | None) -> tuple[VQADataset, Path]:
    """The questions of a run's command, see `common.runs.opened_run.training_questions`."""
    # They need this package's table.
    from lxrt.adaptive import PROGRAM as ADAPTIVE
    from lxrt.finetuning import PROGRAM

    parse: Callable[[Sequence[str]], VQAOptions[Any]] = PROGRAM.parse
    if "params" in run.meta:
        parse = ADAPTIVE.parse
    options = options_of(run, parse)
    root = data_root or _from_home(options.data.data)
    dataset = resolve_dataset(run.dataset, data_root=root)
    return trained_on(options.data, dataset, options.run.seed)


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
    snapshot_suffixes=SNAPSHOT_SUFFIXES,
    open_snapshot=open_snapshot,
    save_transformers=save_hf_folder,
    usage="bash run/vqa_test.bash cpu NAME --load {model} --test minival --dataset {dataset}  "
    "(in LXMERT/)",
)
