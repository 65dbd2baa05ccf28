"""Keys of a config that are known and have no effect: a run says so where they are given."""

from __future__ import annotations

from vlbert.config import Config
from vlbert.config_defaults import ADDED, defaults

# Keys that a config may have and that nothing reads: in the original neither, or not here.
WITHOUT_EFFECT = (
    "VAL_FREQUENT",
    "NETWORK.ANS_LOSS_WEIGHT",
    "NETWORK.CLASSIFIER_SIGMOID",
    "NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT",
    "NETWORK.NO_OBJ_ATTENTION",
    "NETWORK.CNN_LOSS_WEIGHT",
    "NETWORK.REPLACE_OBJECT_CHANGE_LABEL",
    "TRAIN.VISUAL_SCALE_TEXT_LR_MULT",
    "TRAIN.VISUAL_SCALE_OBJECT_LR_MULT",
    "TRAIN.VISUAL_SCALE_CLIP_GRAD_NORM",
    "POLICY.GRAD_ACCUMULATE_STEPS",
    "POLICY.FP16",
)


def idle_keys(config: Config) -> list[str]:
    """In words, which keys have another value than their default although nothing reads them."""
    known, found = defaults(config.pretraining), []
    of_finetuning = [path for path in ADDED if path.startswith(("ATTENTION.", "LAYERDROP."))]
    for path in (*WITHOUT_EFFECT, *(of_finetuning if config.pretraining else [])):
        *sections, key = path.split(".")
        value, default = config.values, known
        for section in sections:
            value, default = value[section], default[section]
        if path in config.given and value[key] != default[key]:
            found.append(f"{path} {value[key]} has no effect")
    if "TRAIN.ASPECT_GROUPING" in config.given and config.TRAIN.ASPECT_GROUPING:
        found.append(
            "TRAIN.ASPECT_GROUPING true has no effect: batches are drawn at random, and "
            "images are padded to the largest of each batch"
        )
    if (
        config.TRAIN.FP16
        and "TRAIN.FP16_LOSS_SCALE" in config.given
        and config.TRAIN.FP16_LOSS_SCALE != "dynamic"
    ):
        found.append(
            f"TRAIN.FP16_LOSS_SCALE {config.TRAIN.FP16_LOSS_SCALE} has no effect: the "
            "scale of the loss is dynamic"
        )
    return found
