"""Predicting an image set with a finetuned VL-BERT: what vqa/test.py runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adapt.encoder import POLICY_EVALUATIONS
from common.errors import CheckpointError, ConfigError
from common.runs.strategy_record import KEY, StrategyRecord
from common.tasks.command import Command
from common.tasks.predicting import predict
from common.tasks.starting import join
from common.training.attention_options import add_prune_option
from common.training.folder_lock import alone
from common.training.options import add_detector_option
from common.training.runtime import PRECISIONS, Runtime, set_threads
from vlbert.building import build_vqa, checkpoint_path, saved_meta, size_name
from vlbert.config import Config
from vlbert.config_adaptive import adaptive_settings
from vlbert.data import VQASource
from vlbert.data_task import VLBertTask
from vlbert.options import TrainOptions, add_config_options, chosen_gpus, load, read_changes
from vlbert.outputs import output_folder
from vlbert.sizes import HOME

SCRIPT = "vqa/test.py"


def parser() -> argparse.ArgumentParser:
    """The parser of this command."""
    found = argparse.ArgumentParser(
        prog=f"python {SCRIPT}",
        description="Predict the answers of an image set with a finetuned VL-BERT, as a file that "
        "EvalAI takes; where the answers are public, print the accuracy too.",
    )
    add_config_options(found)
    group = found.add_argument_group("test")
    group.add_argument(
        "--ckpt",
        type=Path,
        metavar="FILE",
        help="the finetuned model: ours, or a .model of the original (default: "
        "BEST in the output folder of the config)",
    )
    group.add_argument(
        "--split",
        metavar="SETS",
        help="image set, e.g. test2015, test-dev2015, val2014 (default: "
        "TEST_IMAGE_SET of the config)",
    )
    group.add_argument(
        "--bs",
        type=int,
        metavar="N",
        help="questions per batch (default: TEST.BATCH_IMAGES of the config)",
    )
    group.add_argument(
        "--result-path",
        type=Path,
        metavar="FOLDER",
        help="where the predictions go (default: the output folder)",
    )
    group.add_argument(
        "--result-name",
        metavar="NAME",
        help="they are NAME_vqa2_SETS.json (default: name of the config)",
    )
    group.add_argument(
        "--strategy",
        help="strategy of the model (default: the checkpoint's, else "
        "FINETUNE_STRATEGY of the config)",
    )
    group.add_argument("--policy", help="its policy network (default: likewise)")
    group.add_argument(
        "--policy-eval",
        choices=POLICY_EVALUATIONS,
        help="how decisions are made (default: as in the checkpoint, else POLICY.EVALUATION)",
    )
    add_prune_option(group)
    add_detector_option(found)
    group.add_argument(
        "--gpus", nargs="+", metavar="N", help="GPU numbers, or cpu (default: GPUS of the config)"
    )
    group.add_argument("--threads", type=int, help="threads on the CPU")
    group.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    group.add_argument("--cudnn-off", action="store_true", help="do without cuDNN")
    found.set_defaults(dist=False, slurm=False)
    return found


@dataclass(frozen=True)
class TestOptions:
    """What vqa/test.py is told.

    Attributes:
        config: with strategy and policy of the model.
        checkpoint: the finetuned model.
        sets: the image set.
        batch: questions per batch.
        out: file of the predictions.
        gpus, precision, threads: see `make_runtime`.
        quiet: show no progress bars.
        prune: which layers stay, see `common.adapt.layerdrop.kept_layers`; None: all.
        any_detector: features may be of another detector than the model's.
    """

    __test__ = False  # no test of pytest's

    config: Config
    checkpoint: Path
    sets: str
    batch: int
    out: Path
    gpus: str | None
    precision: str
    threads: int | None
    quiet: bool
    prune: str | None = None
    any_detector: bool = False

    @classmethod
    def after_training(cls, train: TrainOptions) -> TestOptions:
        """`--do-test`: TEST_IMAGE_SET with the best epoch of the run that just ended."""
        config, run = train.config, train.run
        sets = config.DATASET.TEST_IMAGE_SET
        return cls(
            config,
            run.folder / f"{run.names.best}.safetensors",
            sets,
            config.TEST.BATCH_IMAGES,
            run.folder / predictions_name(config.name, sets),
            run.gpus,
            run.precision,
            run.threads,
            train.quiet,
        )


def predictions_name(name: str, sets: str) -> str:
    """File name of the predictions of an image set, as in the original."""
    return f"{name}_vqa2_{sets}.json"


def test_options(args: argparse.Namespace, command: str) -> TestOptions:
    """What the flags and their config mean.

    Raises:
        ConfigError: something does not go together, or is not for finetuning.
        CheckpointError: the finetuned model is not there.
    """
    if args.bs is not None and args.bs < 1:
        raise ConfigError(f"--bs {args.bs}: give a number of at least 1")
    config = load(args)
    if config.pretraining:
        raise ConfigError(
            f"{config.path}: key MODULE: {config.MODULE}: this config is for pretraining"
        )
    folder = output_folder(config, args.model_dir, args.name or config.name)
    checkpoint = find_checkpoint(args.ckpt, folder)
    config = load(args, keys_of(checkpoint, args))
    sets = args.split or config.DATASET.TEST_IMAGE_SET
    return TestOptions(
        config,
        checkpoint,
        sets,
        args.bs or config.TEST.BATCH_IMAGES,
        (args.result_path or folder) / predictions_name(args.result_name or config.name, sets),
        chosen_gpus(",".join(args.gpus) if args.gpus else None, config),
        args.precision,
        args.threads,
        args.quiet,
        args.prune,
        args.any_detector,
    )


def keys_of(checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The keys of strategy, policy and evaluation of a checkpoint, unless flags name others."""
    meta = saved_meta(checkpoint)
    if KEY not in meta:
        return {}
    record, keys = StrategyRecord.from_meta(meta), dict[str, Any]()
    if args.strategy is None:
        keys["FINETUNE_STRATEGY"] = record.strategy
    if args.policy is None:
        keys["POLICY.NETWORK"] = record.policy
    evaluation = {"POLICY.EVALUATION", "POLICY_GLOBAL_DECISION"}
    if args.policy_eval is None and evaluation.isdisjoint(read_changes(args.changes)):
        keys["POLICY.EVALUATION"] = record.policy_eval
        keys["POLICY_GLOBAL_DECISION"] = record.policy_eval == "global"
    if record.frozen_layers:
        keys["NETWORK.VLBERT.FROZEN_LAYERS"] = [int(n) - 1 for n in record.frozen_layers]
    return keys


def find_checkpoint(named: Path | None, folder: Path) -> Path:
    """The file of --ckpt, else the best one of the output folder.

    Raises:
        CheckpointError: it is not there.
    """
    if named is not None:
        return checkpoint_path(named)
    path = folder / "BEST.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: give the finetuned model with --ckpt, or the "
            "folder it was trained into with --model-dir (and --name)"
        )
    return path


def test(options: TestOptions) -> None:
    """Write the predictions of an image set and, where its answers are public, say the accuracy."""
    config = options.config
    runtime = join(options.gpus, options.precision, config.seed)
    world = runtime.world
    source = VQASource(config, quiet=options.quiet or not world.main)
    set_threads(options.threads, size_name(config) == "small", world.local_size)

    def say(line: str) -> None:
        if world.main:
            print(line, flush=True)

    with alone(options.out.parent, world):
        _answer(options, source, runtime, say)


def _answer(
    options: TestOptions, source: VQASource, runtime: Runtime, say: Callable[[str], None]
) -> None:
    config = options.config
    with runtime.world.main_first():
        data = source.data(source.examples(options.sets), "TEST")
    if (said := data.cut_questions()) is not None:
        say(f"note: {said}")
    built = build_vqa(
        config,
        adaptive_settings(config),
        source.tokenizer,
        source.vocabulary.answers,
        data.features.described(),
        data.transform,
        options.checkpoint,
        say,
        options.prune,
        options.any_detector,
    )
    built.model.to(runtime.device)
    task = VLBertTask(data, data, runtime, options.batch, config.seed, progress=not options.quiet)
    predict(
        built.model,
        task,
        data,
        options.sets,
        options.out,
        f"{source.name}, {built.record.row.name}",
        say,
        str(options.checkpoint),
    )


main = Command(HOME, SCRIPT, parser, test_options, test)
