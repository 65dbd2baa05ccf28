"""What a finetuning run is told: frozen options, made from the command line or in code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from common.adapt.encoder import AdaptiveOptions
from common.errors import ConfigError
from common.tasks.evaluation_batches import EvaluationBatches
from common.tasks.shared_images import SharedImages
from common.tasks.starting import LogOptions, RunOptions
from common.training.flags import add_flag
from common.training.loop import LoopOptions
from common.training.options import adaptive_options, loop_options
from common.training.run_folder import SnapshotNames


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of a finetuning run.

    Attributes:
        batch_size, epochs, optim, lr, warmup, weight_decay, clip: of the model; `warmup` is a share
            of all steps, `clip` the largest gradient norm.
        policy_lr: of the policy network.
        eval_batch_size: samples per batch in evaluation.
        cycle_steps: steps from the lowest learning rate up to `lr`, and back down, over and over;
            None or 0: warm-up, then linearly to 0.
        lowest_lr: of the cycles; None: a fifth of `lr`.
    """

    batch_size: int
    epochs: int
    optim: str
    lr: float
    warmup: float
    weight_decay: float
    clip: float
    policy_lr: float
    eval_batch_size: int
    cycle_steps: int | None = None
    lowest_lr: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} {getattr(self, name)}: give a whole number of at least 1"
                )
        if not self.clip >= 0:
            raise ConfigError(f"clip {self.clip}: give a number of at least 0 (0 = none)")
        if self.lowest_lr is not None and self.cycle_steps is None:
            raise ConfigError(f"--lowest-lr {self.lowest_lr:g} needs --cycle-steps")

    @property
    def schedule(self) -> dict[str, Any]:
        """That of the learning rate, for `make_optimizer`."""
        if not self.cycle_steps:
            return {"warmup": self.warmup}
        return {
            "warmup": self.warmup,
            "schedule": "cyclic",
            "cycle_up": self.cycle_steps,
            "lowest_lr": self.lowest_lr,
        }


@dataclass(frozen=True)
class FinetuneOptions:
    """Everything that a finetuning run is told beside its model and its data.

    Attributes:
        recipe: hyper-parameters.
        loop: of the training loop, which are those of the recipe and more; `loop.budget` are the
            budget losses.
        adaptive: how decisions are made and executed.
        initial_share: probability of decision 1 before training.
        policy_optim, policy_schedule: of the policy network, see `make_optimizers`.
        holdout: share of the training images that the best epoch is chosen with.
        global_k: with `adaptive.policy_eval` global, the K most used sites; None: the majority.
        plots: draw plots and write the report.
        resume, overwrite: go on with the run in the folder, or start again in its place.
        eval_auto: on a GPU, evaluation takes as many samples at once as there is memory for.
        every_sample: evaluation computes what depends on an image alone for every sample.
    """

    recipe: Recipe
    loop: LoopOptions
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    initial_share: float = 0.5
    policy_optim: str = "adamw"
    policy_schedule: str = "linear"
    holdout: float = 0.1
    global_k: int | None = None
    plots: bool = True
    resume: bool = False
    overwrite: bool = False
    eval_auto: bool = False
    every_sample: bool = False

    def evaluation_batches(self, say: Callable[[str], None]) -> EvaluationBatches:
        """How many samples an evaluation of a task takes at once; `say` is told what was found."""
        training = self.recipe.batch_size if self.eval_auto else None
        images = SharedImages(not self.every_sample, say)
        return EvaluationBatches(self.recipe.eval_batch_size, training, say, images)

    def with_recipe(self, recipe: Recipe) -> FinetuneOptions:
        """The same with another recipe, in the loop as well."""
        loop = replace(
            self.loop, epochs=recipe.epochs, batch_size=recipe.batch_size, clip=recipe.clip
        )
        return replace(self, recipe=recipe, loop=loop)


def finetune_options(args: argparse.Namespace, recipe: Recipe) -> FinetuneOptions:
    """From the flags that all backbones share; see `common.training.options`."""
    return FinetuneOptions(
        recipe,
        loop_options(args, recipe.epochs, recipe.batch_size, recipe.clip, args.workers),
        adaptive_options(args),
        args.policy_init,
        args.policy_optim,
        args.policy_schedule,
        args.holdout,
        args.global_k,
        not args.no_plots,
        args.resume,
        args.overwrite,
        args.eval_batch_size is None if args.eval_auto is None else args.eval_auto,
        args.every_sample,
    )


def run_options(
    args: argparse.Namespace, folder: Path, names: SnapshotNames | None = None
) -> RunOptions:
    """Where a run writes to and computes, from its flags."""
    return RunOptions(
        folder,
        args.resume,
        args.overwrite,
        args.gpus,
        args.precision,
        args.seed,
        args.threads,
        names or SnapshotNames(),
        args.graph,
    )


def log_options(args: argparse.Namespace) -> LogOptions:
    """Log and curves of a run, from its flags."""
    return LogOptions(not args.no_tensorboard, args.wandb, flag_texts(args))


def flag_texts(args: argparse.Namespace) -> dict[str, str]:
    """All flags as text, to be shown or compared."""
    return {name: str(value) for name, value in vars(args).items()}


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Optimisation; defaults come from the recipe of the size."""
    group = parser.add_argument_group("optimisation (defaults: the recipe of the size)")
    group.add_argument("--batchSize", dest="batch_size", type=int)
    group.add_argument("--epochs", type=int)
    group.add_argument(
        "--optim",
        help="bert (BertAdam), adamw, adam, adamax, sgd, rms, lamb, lookahead_lamb; as the "
        "adaptive transformer has them: published_lamb, published_lookahead_lamb",
    )
    group.add_argument("--lr", type=float)
    group.add_argument("--warmup", type=float, help="share of the steps that warms up")
    add_flag(
        group,
        "--cycle-steps",
        type=int,
        metavar="N",
        help="instead of one warm-up and decay: N steps up to --lr, N back down, over and over "
        "(with --warmup 0); 0: not",
    )
    add_flag(group, "--lowest-lr", type=float, help="of the cycles (default: a fifth of --lr)")
    group.add_argument("--clip", type=float, help="largest gradient norm, 0 = none")
    group.add_argument(
        "--dropout",
        type=float,
        help="hidden and attention dropout (default: 0.1 for base, 0 for small)",
    )
    group.add_argument("--seed", type=int, default=9595)


def recipe_changes(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """What the flags change of a recipe: its fields that are given."""
    return {
        field.name: value
        for field in fields(kind)
        if (value := getattr(args, field.name, None)) is not None
    }
