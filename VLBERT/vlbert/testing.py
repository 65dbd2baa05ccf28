"""Predicting an image set with a finetuned VL-BERT: what vqa/test.py runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.adapt.encoder import POLICY_EVALUATIONS
from common.data.vqa_metric import write_predictions
from common.errors import CheckpointError, ConfigError
from common.training.distributed import one_voice, start_world
from common.training.processes import start_processes, wanted_processes
from common.training.runtime import PRECISIONS, make_runtime, seed_everything, set_threads
from vlbert.building import build_vqa, checkpoint_path, saved_meta, size_name
from vlbert.config import Config
from vlbert.config_adaptive import adaptive_settings
from vlbert.data import VQASource
from vlbert.data_task import VLBertTask
from vlbert.options import add_config_options, chosen_gpus, load, read_changes
from vlbert.outputs import output_folder
from vlbert.sizes import HOME
from vlbert.starting import chosen_precision

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
    group.add_argument(
        "--gpus", nargs="+", metavar="N", help="GPU numbers, or cpu (default: GPUS of the config)"
    )
    group.add_argument("--threads", type=int, help="threads on the CPU")
    group.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    group.add_argument("--cudnn-off", action="store_true", help="do without cuDNN")
    found.set_defaults(dist=False, slurm=False)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_args(arguments)
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> int:
        if args.bs is not None and args.bs < 1:
            raise ConfigError(f"--bs {args.bs}: give a number of at least 1")
        args.gpus = ",".join(args.gpus) if args.gpus else None
        config = load(args)
        if config.pretraining:
            raise ConfigError(
                f"{config.path}: key MODULE: {config.MODULE}: this config is for pretraining"
            )
        config = with_strategy(args, config)
        gpus = chosen_gpus(args, config)
        if (processes := wanted_processes(gpus)) > 1:
            return start_processes(processes, [str(HOME / SCRIPT), *words, "--gpus", gpus])
        predict(args, config, gpus)
        return 0

    return one_voice(run)


def with_strategy(args: argparse.Namespace, config: Config) -> Config:
    """The config with strategy, policy and evaluation of the checkpoint where no flag names any."""
    flags = saved_meta(find_checkpoint(args, config)).get("strategy_flags")
    if flags is None:
        return config
    set_keys = read_changes(args.changes).keys()
    for name, keys in (
        ("strategy", ()),
        ("policy", ()),
        ("policy_eval", ("POLICY.EVALUATION", "POLICY_GLOBAL_DECISION")),
    ):
        if getattr(args, name) is None and set_keys.isdisjoint(keys):
            setattr(args, name, flags[name])
    args.frozen_layers = flags["frozen_layers"] and ",".join(map(str, flags["frozen_layers"]))
    return load(args)


def predict_after_training(args: argparse.Namespace, config: Config) -> None:
    """`--do-test`: predict TEST_IMAGE_SET with the best epoch of the run that just ended."""
    values = dict.fromkeys(("ckpt", "split", "bs", "result_path", "result_name"))
    precision = chosen_precision(args, config)
    predict(
        argparse.Namespace(**vars(args) | values | {"precision": precision}),
        config,
        chosen_gpus(args, config),
    )


def find_checkpoint(args: argparse.Namespace, config: Config) -> Path:
    """The file of --ckpt, else the best one of the output folder.

    Raises:
        CheckpointError: it is not there.
    """
    if args.ckpt is not None:
        return checkpoint_path(args.ckpt)
    path = output_folder(args, config) / "BEST.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: give the finetuned model with --ckpt, or the "
            "folder it was trained into with --model-dir (and --name)"
        )
    return path


def predict(args: argparse.Namespace, config: Config, gpus: str | None) -> Path:
    """Write the predictions of an image set; returns their file."""
    path = find_checkpoint(args, config)
    sets = args.split or config.DATASET.TEST_IMAGE_SET
    world = start_world()
    runtime = make_runtime(gpus, args.precision, world)
    source = VQASource(config, quiet=args.quiet or not world.main)
    seed_everything(config.seed)
    set_threads(args.threads, size_name(config) == "small", world.local_size)

    def say(line: str) -> None:
        if world.main:
            print(line, flush=True)

    with world.main_first():
        data = source.data(source.examples(sets), "TEST")
    settings = adaptive_settings(config)
    built = build_vqa(
        config,
        settings,
        source.tokenizer,
        source.vocabulary.answers,
        data.features.described(),
        data.transform,
        path,
        say,
    )
    built.model.to(runtime.device)
    task = VLBertTask(
        data,
        data,
        runtime,
        args.bs or config.TEST.BATCH_IMAGES,
        config.seed,
        progress=not args.quiet,
    )
    found = task.evaluate(built.model, data, sets)
    folder = args.result_path or output_folder(args, config)
    out = folder / f"{args.result_name or config.name}_vqa2_{sets}.json"
    if world.main:
        write_predictions(out, found.predictions)
    say(f"{len(found.predictions)} predictions of {path} in {out}")
    if found.scores is not None:
        scores = ", ".join(
            f"{kind} {value:.2f}" for kind, value in found.scores.items() if value is not None
        )
        say(f"{sets} of {source.name}, {built.strategy.name}: {scores}")
    return out
