"""Where a run of VL-BERT writes to: the folders and names of the original.

<model-dir>/<OUTPUT_PATH>/<name>/<TRAIN_IMAGE_SET>_train/
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.files import write_bytes
from common.tasks.starting import LogOptions
from common.training.run_folder import SnapshotNames
from vlbert.config import Config
from vlbert.config_defaults import defaults

KEPT = 3
CURVES = "tensorboard_logs"
# What may differ when a run goes on: it changes no result. (Of BATCH_IMAGES only the share of a
# process may: a checkpoint remembers the samples of an update elsewhere.)
FREE = (
    "BASE",
    "GPUS",
    "LOG_FREQUENT",
    "VAL_FREQUENT",
    "CHECKPOINT_FREQUENT",
    "MODEL_PREFIX",
    "NUM_WORKERS_PER_GPU",
    "VERSION",
    "OUTPUT_PATH",
    "VAL",
    "TEST",
)
# Where files are; digests of questions, answers and vocabulary say whether they are the same.
FREE_IN_DATASET = (
    "DATASET_PATH",
    "ROOT_PATH",
    "ANSWER_VOCAB_FILE",
    "TEST_IMAGE_SET",
    "ZIP_MODE",
    "IMPORT_FEATURES",
    "CACHE_MODE",
    "IGNORE_DB_CACHE",
    "TRAIN_ANNOTATION_FILE",
    "VAL_ANNOTATION_FILE",
    "TEST_ANNOTATION_FILE",
)
FREE_IN_TRAIN = ("RESUME", "AUTO_RESUME", "BEGIN_EPOCH", "LOSS_LOGGERS", "BATCH_IMAGES")


def output_folder(config: Config, model_dir: Path, name: str) -> Path:
    """The folder of the run of this name.

    Raises:
        ConfigError: the config has no training set to name it after.
    """
    sets = [part.TRAIN_IMAGE_SET for part in config.datasets if part.TRAIN_IMAGE_SET]
    if not sets:
        raise ConfigError(f"{config.path}: key DATASET.TRAIN_IMAGE_SET: is empty")
    return model_dir / config.OUTPUT_PATH / name / f"{sets[0]}_train"


def snapshot_names(config: Config) -> SnapshotNames:
    """BEST, LAST, and MODEL_PREFIX-0000 for every CHECKPOINT_FREQUENT-th epoch."""
    if config.CHECKPOINT_FREQUENT < 1:
        raise ConfigError(
            f"{config.path}: key CHECKPOINT_FREQUENT: {config.CHECKPOINT_FREQUENT}: "
            "must be positive"
        )
    prefix = config.MODEL_PREFIX or config.name
    if any(letter in prefix for letter in "/{}"):
        raise ConfigError(
            f"{config.path}: key MODEL_PREFIX: {prefix!r}: is the beginning of file "
            "names, without / and braces"
        )
    return SnapshotNames(
        epoch=prefix + "-{:04d}", first=0, every=config.CHECKPOINT_FREQUENT, keep=KEPT
    )


def wants_resume(config: Config, folder: Path, resume: bool, overwrite: bool) -> bool:
    """Whether to go on with an earlier run: --resume, TRAIN.RESUME, or TRAIN.AUTO_RESUME.

    AUTO_RESUME goes on where there is something to go on with, --overwrite starts again.

    Raises:
        ConfigError: --resume and --overwrite.
    """
    if overwrite and resume:
        raise ConfigError("--resume and --overwrite: give one of them")
    if overwrite:
        return False
    there = (folder / f"{SnapshotNames().last}.safetensors").exists()
    return resume or config.TRAIN.RESUME or (config.TRAIN.AUTO_RESUME and there)


# Keys of POLICY that follow from TRAINING where they are not given.
TRAINED_AS = ("START", "HOLD", "REVIEW", "HEAD_WARMUP", "TEMPERATURE")


def log_options(
    config: Config, name: str, log_dir: Path | None, tensorboard: bool, wandb: str
) -> LogOptions:
    """Log `<config>_<date and time>.log` and curves of a run.

    Args:
        config: of the run.
        name: of the run.
        log_dir: folder of the curves of all runs; None: in the folder of the run.
        tensorboard, wandb: see `Tracker`.
    """
    curves = Path(CURVES) if log_dir is None else (log_dir / config.OUTPUT_PATH / name).absolute()
    return LogOptions(
        tensorboard,
        wandb,
        config.to_dict(),
        time.strftime(f"{config.name}_%Y-%m-%d-%H-%M.log"),
        curves,
        config.VERSION if "VERSION" in config.given else name,
    )


def keep_config(config: Config, folder: Path) -> None:
    """Write the config of a run into its folder, whole: without BASE, with all changes.

    What follows from POLICY.TRAINING where it is not given stays out.
    """
    values = {key: value for key, value in config.to_dict().items() if key != "BASE"}
    values["POLICY"] = {
        key: value
        for key, value in values["POLICY"].items()
        if key not in TRAINED_AS or f"POLICY.{key}" in config.given
    }
    text = f"# {config.path} as it was used, with every key.\n" + yaml.safe_dump(
        values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
    write_bytes(folder / f"{config.name}.yaml", text.encode())


def lasting(config: Config) -> dict[str, Any]:
    """The keys of a config that a checkpoint remembers and a run that goes on must share."""

    def without(values: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in free}

    values = without(config.to_dict(), FREE)
    for part in ("ATTENTION", "LAYERDROP"):  # which runs of earlier versions did not know
        if values[part] == defaults(config.pretraining)[part]:
            del values[part]
    for part in ("TRAIN", "POLICY"):
        if not values[part]["WARMUP_SHARE"]:
            values[part] = without(values[part], ("WARMUP_SHARE",))
    # The settings of training have what these mean.
    settled = ("EXECUTOR", "TRAINING", *TRAINED_AS[:-1])
    values["POLICY"] = without(values["POLICY"], settled)
    datasets = [without(part.copy(), FREE_IN_DATASET) for part in config.datasets]
    for dataset in datasets:
        if dataset.get("MASK_QUESTIONS", False):  # as earlier versions did without the key
            del dataset["MASK_QUESTIONS"]
    return values | {"DATASET": datasets, "TRAIN": without(values["TRAIN"], FREE_IN_TRAIN)}
