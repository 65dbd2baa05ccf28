"""Command-line options that all backbones share, and what they become."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common.adapt.budget import BudgetOptions
from common.adapt.encoder import POLICY_EVALUATIONS, AdaptiveOptions
from common.adapt.executors import AUTO, TRAINING_EXECUTORS
from common.adapt.policy import POLICIES
from common.adapt.strategies import STRATEGIES, find_strategy
from common.errors import ConfigError
from common.features.origin import ALLOW
from common.training.attention_options import attention_options, layerdrop_options
from common.training.checkpoint import settings_of
from common.training.flags import add_flag, typed
from common.training.loop import LoopOptions
from common.training.policy_lessons import PolicyTraining
from common.training.runtime import GRAPHS


def add_strategy_options(parser: argparse.ArgumentParser) -> None:
    """Strategy, policy network, executors and budget losses."""
    group = parser.add_argument_group("adaptive finetuning")
    rows = "; ".join(f"{row.name}: {row.summary}" for row in STRATEGIES.values())
    add_flag(group, "--strategy", default="standard", help=f"{rows}. Any case (default standard)")
    add_flag(group, "--trainable-layers", metavar="last:K", help="for LastK")
    add_flag(
        group,
        "--frozen-layers",
        metavar="N,N,…",
        help="for FrozenLayers: numbers from 1 in execution order, or names such as lang.3",
    )
    add_flag(
        group,
        "--policy",
        help="small (reads the backbone's embeddings), published (a small model of the "
        "backbone's family), or a control: shared (learns the same odds for all inputs), "
        "random:SHARE (decisions drawn with this probability), oracle:KIND (1 for questions of "
        "this kind and 0 for others) (default small)",
    )
    add_flag(
        group,
        "--policy-eval",
        choices=POLICY_EVALUATIONS,
        help="how decisions are made in evaluation: the likelier one, a draw, or one decision "
        "for the whole data set (default: as in the checkpoint, else argmax)",
    )
    add_flag(
        group,
        "--global-k",
        type=int,
        metavar="K",
        help="with --policy-eval global: the K most used sites instead of the majority at each",
    )
    add_flag(
        group,
        "--policy-init",
        type=float,
        metavar="SHARE",
        help="probability of decision 1 before training (default 0.5)",
    )
    add_flag(
        group,
        "--policy-training",
        choices=POLICY_TRAINING_CHOICES,
        help="published: by its straight-through gradient from the first step; started: taught "
        "first where the pretrained model fails, then held, so that a step computes one branch "
        "for each sample; automatic: started where a policy network chooses between frozen and "
        "finetuned parts without a budget, else published. The flags below change single settings "
        f"(default {AUTOMATIC})",
    )
    add_flag(
        group,
        "--policy-start",
        type=int,
        metavar="PASSES",
        help="before finetuning, teach the policy in so many passes over the training samples to "
        "finetune where the pretrained model fails (skipping strategies: to keep the blocks "
        "without which it is worse); --policy-training started makes as many as 450 updates need, "
        "2 to 16",
    )
    add_flag(
        group,
        "--policy-hold",
        type=float,
        metavar="SHARE",
        help="share of all steps, from the first, in which the policy gets no gradient",
    )
    add_flag(
        group,
        "--policy-review",
        type=int,
        metavar="PASSES",
        help="at the end of every held epoch, teach it in so many passes which branch is better",
    )
    add_flag(
        group,
        "--policy-warmup",
        type=float,
        metavar="SHARE",
        help="share of all steps, from the first, in which every sample takes the frozen branch, "
        "so that a new head knows the task before the policy is taught (default: 0.1 where the "
        "head is new and the policy is taught, else 0)",
    )
    add_flag(
        group, "--temperature", type=float, help="of the Gumbel-softmax at the start (default 5)"
    )
    add_flag(
        group,
        "--temperature-end",
        type=float,
        default=None,
        help="at the end of training; falls geometrically (default: as at the start)",
    )
    add_flag(
        group,
        "--executor",
        choices=TRAINING_EXECUTORS,
        help="how both branches are computed in training; auto: exact on the CPU, grouped (all "
        "samples in one pass; in bf16 its products leave out those that skip a layer) on a GPU; "
        "dense is the readable reference, sampled a cheaper and noisier policy gradient (default "
        f"{AUTO})",
    )
    add_flag(
        group,
        "--sampled-share",
        type=float,
        help="share of samples whose other branch is computed by --executor sampled",
    )
    add_flag(
        group,
        "--policy-precision",
        choices=("high", "low"),
        help="with bf16/fp16: form the policy's gradient from float32 branches, or not",
    )
    add_flag(
        group,
        "--constrain-k",
        type=float,
        metavar="K",
        help="budget loss: (mean number of decisions that are 1 - K)^2",
    )
    add_flag(group, "--constrain-k-scale", type=float, help="its weight (default 1)")
    add_flag(
        group,
        "--deterministic-scale",
        type=float,
        help="budget loss: weight of the entropy of the batch-mean decisions (default 0)",
    )
    add_flag(
        group,
        "--target-rate",
        type=float,
        metavar="SHARE",
        help="budget loss: (mean share of decisions that are 1 - SHARE)^2",
    )
    add_flag(group, "--target-rate-scale", type=float, help="its weight (default 1)")


def add_policy_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """Optimiser of the policy network."""
    group = parser.add_argument_group("optimiser of the policy network")
    add_flag(group, "--policy-optim", help="optimiser of the policy (default adamw)")
    add_flag(group, "--policy-lr", type=float, help="its learning rate (default: by size)")
    add_flag(
        group,
        "--policy-clip",
        type=float,
        help="largest norm of its gradient, 0 = none (default 1)",
    )
    add_flag(
        group,
        "--policy-schedule",
        choices=("linear", "constant"),
        help="its learning-rate schedule: warm-up and decay as the model's, or constant",
    )


class EvalBatchSize(argparse.Action):
    """A number; or `auto`, which sets `eval_auto` and leaves the number to the recipe."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.eval_auto = values == AUTO
        try:
            namespace.eval_batch_size = None if values == AUTO else int(values)
        except ValueError:
            raise argparse.ArgumentError(self, f"{values!r}: give a number or {AUTO}") from None


def add_detector_option(parser: argparse._ActionsContainer) -> None:
    """Features of another detector than a checkpoint's, which are refused without it."""
    parser.add_argument(
        ALLOW,
        dest="any_detector",
        action="store_true",
        help="use region features of another detector than those that the loaded weights were "
        "trained with; they have to be as wide",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Device, precision, saving, resuming and logging."""
    group = parser.add_argument_group("running")
    add_flag(
        group,
        "--gpus",
        default="0",
        help="GPU number; several (0,1) train together, one process each; or cpu (default 0; "
        "the CPU if there is no GPU)",
    )
    add_flag(
        group,
        "--threads",
        type=int,
        help="threads on the CPU (default: 1 for the small model, where more are slower; "
        "otherwise one per core)",
    )
    add_flag(group, "--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    add_flag(
        group,
        "--graph",
        default="auto",
        choices=GRAPHS,
        help="on a GPU, record every kind of pass once as a CUDA graph and repeat it: the same "
        "results without the time of launches. What cannot be recorded is run as it is, and the "
        "log says why (default auto: wherever there is a GPU)",
    )
    add_flag(
        group,
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="gradient accumulation: divide every batch into N parts to need less memory; the "
        "batch size stays that of the whole (default 1)",
    )
    add_flag(
        group,
        "--resume",
        action="store_true",
        help="go on from LAST in the output folder, bit for bit on CPU",
    )
    add_flag(
        group,
        "--overwrite",
        action="store_true",
        help="start again where the output folder holds a run already",
    )
    add_flag(
        group,
        "--save-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="save LAST every so many steps (default: after every epoch)",
    )
    add_flag(
        group, "--max-steps", type=int, default=0, help="stop after so many steps (default: all)"
    )
    add_flag(
        group,
        "--eval-batch-size",
        action=EvalBatchSize,
        default=None,
        metavar="N",
        help="samples per evaluation batch, or auto: on a GPU, in finetuning and testing, a power "
        "of two times the training batch, as large as there is memory for; elsewhere by size "
        "(default auto)",
    )
    group.set_defaults(eval_auto=None)
    add_flag(
        group,
        "--every-sample",
        action="store_true",
        help="evaluation in finetuning and testing computes what depends on an image alone for "
        "every sample, not once for all of a batch that are about the image: the same results, "
        "slower",
    )
    add_flag(
        group,
        "--holdout",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the training images held out to select the best epoch (default 0.1)",
    )
    add_flag(group, "--wandb", default="off", choices=("off", "offline", "online"))
    add_flag(group, "--no-tensorboard", action="store_true", help="write no tensorboard events")
    add_flag(group, "--no-plots", action="store_true", help="write no plots and no HTML report")
    add_flag(group, "--quiet", action="store_true", help="no progress bars")


Options = TypeVar("Options")
# What holds where a flag of decisions is not given. They are set by `check_options`, since a flag
# that is given where nothing is decided is a mistake.
DECISION_DEFAULTS: dict[str, Any] = {
    "policy_init": 0.5,
    "policy_review": 0,
    "executor": AUTO,
    "sampled_share": 0.25,
    "policy_precision": "high",
    "constrain_k_scale": 1.0,
    "deterministic_scale": 0.0,
    "target_rate_scale": 1.0,
    "policy_optim": "adamw",
    "policy_clip": 1.0,
    "policy_schedule": "linear",
}
# What the choice of --policy-training means where single flags do not say it.
POLICY_TRAININGS: dict[str, dict[str, Any]] = {
    "published": {"policy_start": 0, "policy_hold": 0.0, "temperature": 5.0},
    "started": {"policy_start": None, "policy_hold": 1.0, "temperature": 1.0},
}
AUTOMATIC = "automatic"
POLICY_TRAINING_CHOICES = (AUTOMATIC, *POLICY_TRAININGS)
BUDGETS = ("constrain_k", "target_rate", "deterministic_scale")
HOLD_WITH_BUDGET = 0.25
OF_DECISIONS = (
    *("policy_training", "policy_warmup", *POLICY_TRAININGS["published"]),
    *("policy", "policy_eval", "global_k", "temperature_end", "constrain_k", "target_rate"),
    *("policy_lr", *DECISION_DEFAULTS),
)
# Flag → the flag that it belongs to.
PARTS = {"constrain_k_scale": "constrain_k", "target_rate_scale": "target_rate"}


def fill(kind: type[Options], args: argparse.Namespace, **given: Any) -> Options:
    """A dataclass whose fields are the flags of the same names; `given` come before the flags."""
    flags = {
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in given and hasattr(args, field.name)
    }
    return kind(**flags, **given)


def add_seeds_option(parser: argparse.ArgumentParser) -> None:
    """Several runs that differ in their seed; see `common.tasks.seeds`."""
    add_flag(
        parser,
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train with N seeds, --seed and the following ones, one after the other, each in "
        "OUTPUT/seed_<seed>/; reports mean and standard deviation (default 1)",
    )


# Flag → lowest and highest value, and whether these two are allowed themselves.
LIMITS: dict[str, tuple[float, float, bool]] = {
    "temperature": (0, math.inf, False),
    "temperature_end": (0, math.inf, False),
    "policy_init": (0, 1, False),
    "policy_start": (0, math.inf, True),
    "policy_hold": (0, 1, True),
    "policy_review": (0, math.inf, True),
    "policy_warmup": (0, 1, True),
    "policy_lr": (0, math.inf, True),
    "span_loss": (0, math.inf, True),
    "attention_lr": (0, math.inf, True),
    "policy_clip": (0, math.inf, True),
    "constrain_k": (0, math.inf, True),
    "constrain_k_scale": (0, math.inf, True),
    "deterministic_scale": (0, math.inf, True),
    "target_rate_scale": (0, math.inf, True),
    "target_rate": (0, 1, True),
    "dropout": (0, 1, True),
    "workers": (0, math.inf, True),
    "save_every": (0, math.inf, True),
    "max_steps": (0, math.inf, True),
    "accumulate": (1, math.inf, True),
    "seeds": (1, math.inf, True),
    "batch_size": (1, math.inf, True),
    "eval_batch_size": (1, math.inf, True),
    "epochs": (1, math.inf, True),
    "threads": (1, math.inf, True),
    "lr": (0, math.inf, True),
    "warmup": (0, 1, True),
    "clip": (0, math.inf, True),
    "holdout": (0, 1, False),
    "word_mask_rate": (0, 1, True),
    "obj_mask_rate": (0, 1, True),
}


def check_options(args: argparse.Namespace, **resolved: Any) -> None:
    """Call it first; it also sets the defaults of the flags about decisions.

    Args:
        args: the flags.
        resolved: what holds for some flags where they are not given, e.g. `strategy`, `executor`,
            `policy`, `policy_eval` of a config, `policy_training` of a run that goes on.

    Raises:
        ConfigError: a number outside its limits, or a flag that has no effect.
    """
    for name, (low, high, allowed) in LIMITS.items():
        value = getattr(args, name, None)
        if value is None or (
            math.isfinite(value) and (low <= value <= high if allowed else low < value < high)
        ):
            continue
        if high == math.inf:
            wanted = f"of at least {low}" if allowed else f"above {low}"
        else:
            wanted = f"from {low} to {high}" if allowed else f"between {low} and {high}"
        raise ConfigError(f"{typed(name, value)}: give a number {wanted}")
    values = {**resolved, **{k: v for k, v in vars(args).items() if v is not None}}
    _check_effects(values, args)
    args.attention = attention_options(args, resolved)
    earlier = resolved.get("policy_training", AUTOMATIC)
    training = POLICY_TRAININGS[_policy_training_of(args, values, earlier)]
    if any(getattr(args, flag, None) for flag in BUDGETS):
        training = training | {"policy_hold": min(training["policy_hold"], HOLD_WITH_BUDGET)}
        _check_budget_is_learned(args)
    for name, default in (DECISION_DEFAULTS | training).items():
        if getattr(args, name, default) is None:
            setattr(args, name, default)


def earlier_policy_training(last: Path) -> dict[str, str]:
    """How the policy of a run that goes on was trained, for `check_options`.

    Where the flags leave it open, it is trained so to the end, whatever is automatic by then.

    Args:
        last: checkpoint to go on from.

    Raises:
        CheckpointError: truncated or damaged.
    """
    if not last.is_file():
        return {}
    policy = settings_of(last).get("policy")
    starts = isinstance(policy, dict) and policy.get("start") != 0
    return {} if starts else {"policy_training": "published"}


def _policy_training_of(
    args: argparse.Namespace, values: Mapping[str, Any], chosen: str = AUTOMATIC
) -> str:
    """How the policy is trained, with what `automatic` means.

    A policy that is loaded with its strategy is not taught anew; one with a budget has to learn it.
    """
    flag = getattr(args, "policy_training", None) or AUTOMATIC
    chosen = chosen if flag == AUTOMATIC else flag
    if chosen != AUTOMATIC:
        return chosen
    strategy = values.get("strategy")
    taught = (
        strategy is not None
        and find_strategy(strategy)[0].other == "twin"
        and values.get("policy", POLICIES[0]) in POLICIES
        and not any(values.get(flag) for flag in BUDGETS)
    )
    return "started" if taught else "published"


def _check_budget_is_learned(args: argparse.Namespace) -> None:
    """A policy that is held to the end follows no budget loss."""
    if (hold := getattr(args, "policy_hold", None)) is not None and hold >= 1:
        budget = next(flag for flag in BUDGETS if getattr(args, flag, None))
        raise ConfigError(
            f"{typed('policy_hold', hold)}: the policy learns nothing, so that "
            f"{typed(budget, getattr(args, budget))} would have no effect; hold it for a part of "
            f"the steps, e.g. --policy-hold {HOLD_WITH_BUDGET}"
        )


def _check_effects(values: dict[str, Any], args: argparse.Namespace) -> None:
    """Refuse flags that would change nothing; `values` also hold what was not given as a flag."""
    share, strategy = values.get("sampled_share", 1.0), values.get("strategy")
    if not 0 < share <= 1:
        raise ConfigError(f"--sampled-share {share}: give a number above 0 and at most 1")
    if strategy is not None and not find_strategy(strategy)[0].adaptive:
        for flag in OF_DECISIONS:
            if (given := getattr(args, flag, None)) is not None:
                raise ConfigError(f"{typed(flag, given)}: strategy {strategy} decides nothing")
    if "sampled_share" in values and values.get("executor") != "sampled":
        raise ConfigError(f"--sampled-share {share} needs --executor sampled")
    for flag, whole in PARTS.items():
        if getattr(args, flag, None) is not None and whole not in values:
            raise ConfigError(f"{typed(flag, values[flag])} needs {typed(whole, '…')}")
    if "global_k" in values and values.get("policy_eval") != "global":
        raise ConfigError(f"--global-k {values['global_k']} needs --policy-eval global")


def budget_options(args: argparse.Namespace) -> BudgetOptions:
    return BudgetOptions(
        args.constrain_k,
        args.constrain_k_scale,
        args.deterministic_scale,
        args.target_rate,
        args.target_rate_scale,
    )


def policy_training(args: argparse.Namespace) -> PolicyTraining:
    return PolicyTraining(
        args.policy_warmup, args.policy_start, args.policy_hold, args.policy_review
    )


def adaptive_options(args: argparse.Namespace) -> AdaptiveOptions:
    return AdaptiveOptions(
        executor=args.executor,
        sampled_share=args.sampled_share,
        policy_eval=args.policy_eval or "argmax",
        temperature=args.temperature,
        full_precision=args.policy_precision == "high",
    )


def loop_options(
    args: argparse.Namespace, epochs: int, batch_size: int, clip: float, workers: int = 0
) -> LoopOptions:
    """Options of the training loop; epochs and batch size come from the backbone's recipe."""
    end = args.temperature if args.temperature_end is None else args.temperature_end
    return LoopOptions(
        epochs=epochs,
        batch_size=batch_size,
        seed=args.seed,
        clip=clip,
        policy_clip=args.policy_clip,
        temperature=args.temperature,
        temperature_end=end,
        policy=policy_training(args),
        budget=budget_options(args),
        accumulate=args.accumulate,
        span_loss=getattr(args, "span_loss", None),
        attention_lr=getattr(args, "attention_lr", None),
        layerdrop=layerdrop_options(args),
        workers=workers,
        save_every=args.save_every,
        max_steps=args.max_steps,
        progress=not args.quiet,
    )


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command as one would type it again."""
    return f"{program} {shlex.join(arguments)}"
