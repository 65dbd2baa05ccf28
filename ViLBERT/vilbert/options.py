"""Options of ViLBERT's finetuning and evaluation: the original's flags and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.dataset_table import DATASETS
from common.data.datasets import find_kind, is_small
from common.errors import ConfigError
from common.modules.attention import AttentionOptions
from common.tasks.options import Recipe
from common.training.options import fill
from vilbert.sizes import BASE_CONFIG, HOME, SMALL_CONFIG
from vilbert.task_sources import EASY, REPORTED, is_embedded
from vilbert.tasks import DEFAULT, NUMBERS, TASKS_FILE, TaskEntry, chosen_tasks, names
from vilbert.vqa_data import KINDS, embedded_name, is_own

BERT = "bert-base-uncased"
SMALL_PRETRAINED = HOME / "pretrained" / "easy_vqa_small" / "model.safetensors"
TINY = {"epochs": 2}  # of small models on a few hundred images
OPTIMIZERS = {"BertAdam": "bert", "Adam": "adam", "Adamax": "adamax"}
CLASSIFIER_LR = 1e-4
BEST = "BEST"

RECIPES: dict[str, Recipe] = {
    # The original's for VQA; BertAdam clips every tensor for itself.
    "base": Recipe(
        batch_size=256,
        epochs=20,
        optim="bert",
        lr=4e-5,
        warmup=0.1,
        weight_decay=0.01,
        clip=0.0,
        policy_lr=1e-4,
        eval_batch_size=256,
    ),
    # Chosen on held-out questions of easy-VQA, see ViLBERT/README.md.
    "small": Recipe(
        batch_size=32,
        epochs=6,
        optim="adamw",
        lr=5e-4,
        warmup=0.1,
        weight_decay=0.01,
        clip=5.0,
        policy_lr=1e-3,
        eval_batch_size=256,
    ),
}
RECIPES["large"] = RECIPES["base"]


@dataclass(frozen=True)
class ModelOptions:
    """Task, sizes, weights and strategy of a model; None: as in the checkpoint, else the default.

    Attributes:
        tasks: entries of the task file; several are trained together.
        bert_model: folder or name of a BERT, for its vocabulary and, where nothing else is named,
            its weights.
        from_pretrained: weights to start from: a file, or the folder or name of a BERT.
        config_file: sizes.
        load: a finetuned model.
        baseline: the single-stream model.
        freeze: embeddings and text layers up to this one, from 0, are not trained; -1: all are.
        vision_scratch: everything that is not BERT's has the learning rate 1e-4.
        dropout: all rates of the encoder.
        policy_layers: text, connection and image layers of the published policy.
        plateau, train_iter_gap: a task that no longer gets better is trained in one of so many
            turns.
        own_recipe, own_epochs: batch sizes and epochs are those of the task file, for each task.
        strategy, policy, policy_eval, trainable_layers, frozen_layers: see `adapt`.
        attention: how attention modules weigh keys.
        prune: which layers of the loaded model stay, see `common.adapt.layerdrop.kept_layers`.
        any_detector: it may read features of another detector than the loaded weights.
    """

    tasks: tuple[TaskEntry, ...]
    bert_model: str = BERT
    from_pretrained: str | None = None
    config_file: Path | None = None
    load: str | None = None
    baseline: bool = False
    freeze: int = -1
    vision_scratch: bool = False
    dropout: float | None = None
    policy_layers: tuple[int, int, int] | None = None
    plateau: bool = False
    train_iter_gap: int = 4
    own_recipe: bool = False
    own_epochs: bool = False
    strategy: str | None = None
    policy: str | None = None
    policy_eval: str | None = None
    trainable_layers: str | None = None
    frozen_layers: str | None = None
    attention: AttentionOptions | None = None
    prune: str | None = None
    any_detector: bool = False

    @property
    def task(self) -> TaskEntry:
        """The first task."""
        return self.tasks[0]

    @property
    def questions_alone(self) -> bool:
        """Whether a single task that asks questions is meant."""
        return is_of_questions(self.tasks)

    def sizes_file(self, dataset: str) -> Path:
        """Config file: the one that is given, else that of the size that suits the data."""
        if self.config_file is not None:
            return self.config_file
        return SMALL_CONFIG if is_small(dataset) else BASE_CONFIG


DATA_HELP = {
    "--dataset": "vqa, vqa_cp: the files that the task names, in ViLBERT/data; "
    + "; ".join(f"{name}: {kind.summary}" for name, kind in DATASETS.items() if kind.embedded)
    + "; a data set of your own, made by `python -m common.data make`; or one of LXMERT's layout "
    "(default: the task's own if any file of it is there, "
    "else an embedded one)",
    "--data": "folder of questions and annotations instead of the task's dataroot",
    "--train": "training splits (default: those of the task or data set)",
}


def three_numbers(text: str) -> tuple[int, int, int]:
    """`2,1,1` as numbers."""
    parts = tuple(int(part) for part in text.split(","))
    if len(parts) != 3 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give three numbers of layers, such as 2,1,1")
    return parts


def whole_epochs(text: str) -> int:
    """Epochs, which the original writes with a point (`20.0`)."""
    if not (number := float(text)).is_integer():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of epochs")
    return int(number)


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """What training and evaluation have in common."""
    group = parser.add_argument_group("ViLBERT: task, model and weights")
    group.add_argument(
        "--tasks",
        "--task",
        dest="tasks",
        metavar="TASK",
        help="number or name of a task in the task file, or several with - or a comma between, "
        "which are trained together: 6-7 (default: that of --dataset, else 1: VQA)",
    )
    group.add_argument(
        "--task_numbers",
        "--task-numbers",
        choices=NUMBERS,
        default="readme",
        help="whose numbers --tasks has: readme, those of the task file (VQA 1, VCR 6 and 7, "
        "Flickr30k 9, RefCOCO+ 11); beta, the original's last ones (0 to 4); 12in1, those of its "
        "successor",
    )
    group.add_argument(
        "--tasks_file",
        "--tasks-file",
        type=Path,
        default=TASKS_FILE,
        metavar="FILE",
        help="default ViLBERT/vlbert_tasks.yml",
    )
    group.add_argument(
        "--bert_model",
        "--bert-model",
        default=BERT,
        metavar="FOLDER",
        help="BERT whose vocabulary is used where none is beside the weights (default "
        f"{BERT}, looked for in ViLBERT/data)",
    )
    group.add_argument(
        "--config_file",
        "--config-file",
        type=Path,
        metavar="FILE",
        help=f"sizes (default: config/{SMALL_CONFIG.name} for embedded data, else "
        f"config/{BASE_CONFIG.name})",
    )
    group.add_argument(
        "--output_dir",
        "--output-dir",
        type=Path,
        metavar="FOLDER",
        help="holds the folders of runs (default save), or of answers (default results)",
    )
    group.add_argument("--save_name", "--save-name", default="", help="last part of the folder")
    group.add_argument("--baseline", action="store_true", help="the single-stream model")
    group.add_argument(
        "--policy_layers",
        "--policy-layers",
        type=three_numbers,
        metavar="T,C,V",
        help="text, connection and image layers of the published policy (default 2,1,1)",
    )
    alias = hidden_flags(parser)
    alias("--num_workers", dest="workers", type=int)
    alias("--no_cuda", dest="gpus", action="store_const", const="cpu")
    alias("--fp16", dest="precision", action="store_const", const="fp16")
    # Set by `torch.distributed.launch`, which says the same in the environment.
    alias("--local_rank", "--local-rank", type=int)
    for name in ("--do_lower_case", "--in_memory"):
        alias(name, nargs="?")
    alias("--loss_scale", type=float, default=0)
    parser.set_defaults(gpus=None)


def hidden_flags(parser: argparse.ArgumentParser) -> Any:
    """Adds a spelling of the original that --help does not show."""

    def add(*names: str, **settings: Any) -> None:
        settings.setdefault("default", argparse.SUPPRESS)
        parser.add_argument(*names, help=argparse.SUPPRESS, **settings)

    return add


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The flags of train_tasks.py."""
    add_shared_options(parser)
    group = parser.add_argument_group("ViLBERT: training")
    group.add_argument(
        "--from_pretrained",
        "--from-pretrained",
        metavar="FILE",
        help="pretrained ViLBERT (.bin, .safetensors), or a BERT that starts the text half "
        "(default: the committed small model for its config, else --bert_model)",
    )
    group.add_argument(
        "--load", metavar="FILE", help="a finetuned model to go on from, ours or a .bin"
    )
    group.add_argument(
        "--freeze",
        type=int,
        default=-1,
        metavar="N",
        help="do not train the embeddings and the text layers 0 … N (default -1: train all)",
    )
    group.add_argument(
        "--vision_scratch",
        "--vision-scratch",
        action="store_true",
        help=f"learning rate {CLASSIFIER_LR:g} for everything that is not BERT's",
    )
    group.add_argument(
        "--lr_scheduler",
        "--lr-scheduler",
        default="mannul",
        help="mannul (the original's spelling): a tenth from epoch 12 on, and from 16 on; the "
        "recipe of small models, with AdamW, falls linearly to 0",
    )
    group.add_argument(
        "--plateau",
        action="store_true",
        help="several tasks: train one less while its held-out score does not get better, as "
        "12-in-1 does",
    )
    group.add_argument(
        "--train_iter_gap",
        "--train-iter-gap",
        type=int,
        default=4,
        metavar="N",
        help="with --plateau: take one of N steps of such a task (default 4)",
    )
    group.add_argument(
        "--learning_rate", "--learning-rate", dest="lr", type=float, default=argparse.SUPPRESS
    )
    group.add_argument(
        "--num_train_epochs",
        "--num-train-epochs",
        dest="epochs",
        type=whole_epochs,
        default=argparse.SUPPRESS,
    )
    alias = hidden_flags(parser)
    alias("--warmup_proportion", dest="warmup", type=float)
    alias("--gradient_accumulation_steps", dest="accumulate", type=int)
    alias("--optimizer", dest="optim", type=lambda name: OPTIMIZERS.get(name, name))
    for name in ("--use_chunk", "--evaluation_interval"):
        alias(name, type=int)
    alias("--compact", action="store_true")


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """The flags of eval_tasks.py."""
    add_shared_options(parser)
    group = parser.add_argument_group("ViLBERT: evaluation")
    group.add_argument(
        "--from_pretrained",
        "--from-pretrained",
        dest="load",
        metavar="FILE",
        help="the finetuned model: BEST of a run, or a .bin of the original",
    )
    group.add_argument("--split", dest="test", default=argparse.SUPPRESS, help="what is answered")
    group.add_argument(
        "--batch_size", "--batch-size", dest="eval_batch_size", type=int, default=argparse.SUPPRESS
    )


def settle_train(args: argparse.Namespace) -> None:
    """The folder of a run, and the recipe of its task where the data are the task's own.

    Raises:
        ConfigError: a flag that does not go with others.
    """
    tasks = _checked(args)
    if args.load and args.from_pretrained:
        raise ConfigError(
            f"--load {args.load} --from_pretrained {args.from_pretrained}: give one: a finetuned "
            "model to go on from, or a pretrained one"
        )
    if args.lr_scheduler != "mannul":
        raise ConfigError(
            f"--lr_scheduler {args.lr_scheduler}: only mannul is supported: a rate that follows "
            "the score on questions would choose by the questions that are reported"
        )
    if args.train_iter_gap < 1:
        raise ConfigError(f"--train_iter_gap {args.train_iter_gap}: give 1 at least")
    own_epochs = args.epochs is None
    # Several tasks have batches of their own sizes.
    sizes = {"batch_size": tasks[0].batch_size} if len(tasks) == 1 else {}
    _fill_in(
        args,
        tasks,
        eval_batch_size=min(task.eval_batch_size for task in tasks),
        lr=min(task.lr for task in tasks),
        epochs=max(task.num_epoch for task in tasks),
        **sizes,
    )
    args.own_epochs = own_epochs and args.own_recipe
    if args.output == Path("snap/test"):
        args.output = (args.output_dir or Path("save")) / run_name(args, tasks)
    args.version = args.version or args.save_name or args.output.name


def _fill_in(args: argparse.Namespace, tasks: Sequence[TaskEntry], **values: float) -> None:
    """Flags that are not given, where the data are the tasks' own."""
    args.own_recipe = _stand_in(args, tasks) is None
    if not args.own_recipe:
        return
    for flag, value in values.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)


def is_of_questions(tasks: Sequence[TaskEntry]) -> bool:
    """Whether there is one task, which asks questions."""
    return len(tasks) == 1 and tasks[0].name in KINDS


def _stand_in(args: argparse.Namespace, tasks: Sequence[TaskEntry]) -> str | None:
    """The data set that is used instead of the tasks' own; None: their own is."""
    if not is_of_questions(tasks):
        return EASY if is_embedded(tasks, args.dataset, args.data) else None
    own = is_own(tasks[0], args.dataset, args.data)
    return None if own else embedded_name(tasks[0], args.dataset)


def run_name(args: argparse.Namespace, tasks: Sequence[TaskEntry]) -> str:
    """`VQA_bert_base_6layer_6conect-pretrained`."""
    options = model_options(args)
    config = options.sizes_file(_stand_in(args, tasks) or "")
    return f"{names(tasks)}_{config.stem}{'-' if args.save_name else ''}{args.save_name}"


def settle_eval(args: argparse.Namespace) -> None:
    """What is tested, and the folder of the answers.

    Raises:
        ConfigError: no finetuned model is named.
    """
    tasks = _checked(args)
    made_in = None
    if not args.load:
        if not args.save_name:
            raise ConfigError(
                "--from_pretrained is missing: give the finetuned model, or the --save_name of its "
                "run"
            )
        name = run_name(args, tasks)
        roots = [root for root in (args.output_dir, Path("save")) if root is not None]
        made_in = next((r / name for r in roots if (r / name).is_dir()), roots[0] / name)
        args.load = str(made_in / BEST)
    other = _stand_in(args, tasks)
    if not is_of_questions(tasks):
        reported = REPORTED
    else:
        reported = tasks[0].val_split if other is None else find_kind(other).valid
    args.test = args.test or reported
    if "train" in args.test:
        raise ConfigError(
            f"--split {args.test}: these samples are trained on; give {tasks[0].val_split} or test"
        )
    _fill_in(args, tasks, eval_batch_size=min(task.eval_batch_size for task in tasks))
    if args.output == Path("snap/test"):
        suffix = f"-{args.save_name}" if args.save_name and made_in is None else ""
        name = f"{Path(args.load).resolve().parent.name}{suffix}"
        args.output = (args.output_dir or Path("results")) / name


def _checked(args: argparse.Namespace) -> list[TaskEntry]:
    if args.loss_scale:
        raise ConfigError(f"--loss_scale {args.loss_scale:g}: only 0, dynamic scaling, is there")
    of_data = {own: name for name, (own, _) in KINDS.items()}
    args.tasks = args.tasks or of_data.get(args.dataset, DEFAULT)
    tasks = chosen_tasks(args.tasks, args.tasks_file, args.task_numbers)
    asked = of_data.get(args.dataset)
    if asked is not None and [asked] != [task.name for task in tasks]:
        raise ConfigError(
            f"--dataset {args.dataset}: those are the data of task {asked}, not of "
            f"{', '.join(task.name for task in tasks)}; leave --tasks out"
        )
    if args.baseline and not is_of_questions(tasks):
        raise ConfigError("--baseline: the single-stream model answers questions only: --tasks 1")
    return tasks


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What the flags say of the model."""
    tasks = chosen_tasks(args.tasks, args.tasks_file, args.task_numbers)
    return fill(ModelOptions, args, tasks=tuple(tasks))
