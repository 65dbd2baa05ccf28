"""Rebuilding a finetuned model from its checkpoint alone, for `common.runs.opened_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.adapt.adapting import adapt
from common.adapt.encoder import AdaptiveOptions
from common.data.tokenizer import Tokenizer
from common.files import text_digest
from common.runs.backbones import OpenedModel
from common.training.checkpoint import check_compatible
from lxrt.building import load_finetuned
from lxrt.inputs import LxmertInputs
from lxrt.modeling import VQAModel
from lxrt.sizes import LxmertConfig


def open_run(checkpoint: Path, meta: dict[str, Any]) -> OpenedModel:
    """The model of a checkpoint, adapted as it was, with the vocabulary beside it.

    Args:
        checkpoint: of a finetuning run, with vocab.txt in the same folder.
        meta: of the checkpoint.

    Raises:
        ConfigError: no vocabulary there.
        CheckpointError: another vocabulary, or weights that do not fit.
    """
    tokenizer = Tokenizer(checkpoint.parent)
    vocabulary = {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())}
    check_compatible(meta, {"vocabulary": vocabulary}, checkpoint)
    model = VQAModel(LxmertConfig.from_dict(meta["config"]))
    flags = meta["strategy_flags"]
    model.bert.policy_layers = tuple(flags["policy_layers"])
    adapt(
        model,
        flags["strategy"],
        flags["policy"],
        trainable_layers=flags["trainable_layers"],
        frozen_layers=flags["frozen_layers"],
        options=AdaptiveOptions(policy_eval=flags["policy_eval"]),
    )
    load_finetuned(model, checkpoint)
    return OpenedModel(model, LxmertInputs(tokenizer), tokenizer)
