"""Rebuilding a finetuned model from its checkpoint alone, for `common.runs.opened_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.adapt.adapting import adapt
from common.adapt.encoder import AdaptiveOptions
from common.adapt.strategies import find_strategy
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.files import text_digest
from common.runs.backbones import OpenedModel
from common.training.checkpoint import check_compatible
from common.training.weights import load_into, load_weights
from vlbert.sizes import EncoderConfig, NetworkConfig
from vlbert.vqa_dataset import Transform, VLBertInputs
from vlbert.vqa_network import ResNetVLBERT


def open_run(checkpoint: Path, meta: dict[str, Any]) -> OpenedModel:
    """The model of a checkpoint, adapted as it was, with the vocabulary beside it.

    Args:
        checkpoint: of a finetuning run on precomputed features, with vocab.txt in its folder.
        meta: of the checkpoint.

    Raises:
        ConfigError: no vocabulary there, or a model that reads images.
        CheckpointError: another vocabulary, or weights that do not fit.
    """
    config = NetworkConfig.from_dict(meta["config"])
    if not config.image.precomputed:
        raise ConfigError(
            f"{checkpoint}: this model reads images with a CNN; only models on "
            "precomputed features are opened (vqa/test.py tests it)"
        )
    tokenizer = Tokenizer(checkpoint.parent)
    vocabulary = {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())}
    check_compatible(meta, {"vocabulary": vocabulary}, checkpoint)
    model, flags = ResNetVLBERT(config), meta["strategy_flags"]
    if flags["policy_encoder"] is not None:
        model.policy_encoder = EncoderConfig(**flags["policy_encoder"])
    strategy = find_strategy(flags["strategy"])[0]
    adapt(
        model,
        strategy.name,
        flags["policy"],
        trainable_layers=flags["trainable_layers"],
        frozen_layers=flags["frozen_layers"],
        options=AdaptiveOptions(policy_eval=flags["policy_eval"]),
    )
    load_into(model, load_weights(checkpoint), what=str(checkpoint))
    transform = Transform(
        scales=tuple(meta["transform"]["scales"]), whole_image=meta["transform"]["whole_image"]
    )
    return OpenedModel(model, VLBertInputs(tokenizer, transform), tokenizer)
