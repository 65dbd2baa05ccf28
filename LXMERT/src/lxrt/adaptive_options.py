"""Flags of train.py: the published ones, a YAML file, and all those of src/tasks/vqa.py.

A setting comes from `--config FILE`, from `--set key=value`, or from a flag; the later ones count.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.reading import parse_yaml, read_text
from common.tasks.options import Recipe
from common.training.checkpoint import check_compatible, load_meta
from common.training.options import fill
from lxrt.adaptive_params import SHAPES, SPAN_LOSS, add_params, given_params
from lxrt.hf_folder import is_hf_folder
from lxrt.loading import finetuned_path
from lxrt.options import DEFAULT_WEIGHTS, ModelOptions, add_model_options, model_options

RUNS = Path("snap/adaptive")
SECTIONS = ("params", "config")  # a YAML file may have its settings in them
LAYERS = ("llayers", "xlayers", "rlayers")

RECIPES: dict[str, Recipe] = {
    # As published. Its LAMB, not the library's: the learning rates were chosen with its floor, see
    # `common.training.lookahead`.
    "base": Recipe(
        batch_size=128,
        epochs=5,
        optim="published_lookahead_lamb",
        lr=5e-5,
        warmup=0.0,
        weight_decay=1.2e-6,
        clip=5.0,
        policy_lr=1e-4,
        eval_batch_size=256,
        cycle_steps=2000,
        lowest_lr=1e-5,
    ),
    # Chosen on held-out images of easy-VQA (2,000 questions of --tiny, three epochs, one seed):
    # 2e-3 and 5e-3 have the same best epoch, 5e-3 falls again with spans and entmax, 2e-2 is far
    # below.
    "small": Recipe(
        batch_size=32,
        epochs=6,
        optim="lookahead_lamb",
        lr=2e-3,
        warmup=0.0,
        weight_decay=1.2e-6,
        clip=5.0,
        policy_lr=1e-3,
        eval_batch_size=256,
        cycle_steps=60,
        lowest_lr=4e-4,
    ),
}


@dataclass(frozen=True)
class AdaptiveModelOptions(ModelOptions):
    """What train.py is told of its model.

    Attributes:
        given: entries of `params` that were given.
        load_model: as given.
        measure_flops: say at the end what is computed for a sample.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    load_model: str | None = None
    measure_flops: bool = False


class SettingsParser(argparse.ArgumentParser):
    """Puts what `--config` and `--set` say in front of the flags."""

    def parse_known_args(  # type: ignore[override]  # argparse's overloads
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The flags with the settings before them."""
        words = list(args or ())
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        own.add_argument("--config", type=Path)
        own.add_argument("--set", action="append", default=[])
        found, rest = own.parse_known_args(words)
        settings = read_settings(found.config) if found.config else {}
        settings |= dict(_pair(text) for text in found.set)
        return super().parse_known_args([*setting_words(self, settings), *rest], namespace)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, whether in its sections or beside them.

    Raises:
        DataError: no such file, or no YAML.
        ConfigError: it holds no table.
    """
    values = parse_yaml(read_text(path), str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: give a table of settings, `key: value`")
    settings = {key: value for key, value in values.items() if key not in SECTIONS}
    for section in SECTIONS:
        inner = values.get(section) or {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{path}: {section} is {inner!r}: give a table, `key: value`")
        for key, value in inner.items():
            if key in settings:
                raise ConfigError(f"{path}: {key} occurs twice")
            settings[key] = value
    return settings


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: give key=value")
    return key.strip(), parse_yaml(value, f"--set {text}")


def setting_words(parser: argparse.ArgumentParser, settings: Mapping[str, Any]) -> Iterator[str]:
    """The flags that settings mean.

    Args:
        parser: knows the flags.
        settings: name of a flag, with `_` for `-`, → its value; None: as if it were not there.

    Raises:
        ConfigError: no such flag, or no value for it.
    """
    known = _flags(parser)
    for key, value in settings.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else "see --help"
            raise ConfigError(f"unknown setting {key!r}: {hint}")
        flag, takes = known[key]
        if value is None:
            continue
        if takes != "value" and isinstance(value, bool):
            yield from [flag] if value else []
        elif takes == "nothing":
            raise ConfigError(f"setting {key} is {value!r}: give true or false")
        else:
            yield f"{flag}={_written(value)}"


def _flags(parser: argparse.ArgumentParser) -> dict[str, tuple[str, str]]:
    """{key: (flag, whether it takes a value, nothing, or either)}."""
    found: dict[str, tuple[str, str]] = {}
    for action in parser._actions:  # argparse has no public list of them
        if not action.option_strings or action.dest == "help":
            continue
        takes = {0: "nothing", "?": "either"}.get(action.nargs, "value")
        for spelling in action.option_strings:
            found[spelling.lstrip("-").replace("-", "_")] = spelling, takes
        found.setdefault(action.dest, (action.option_strings[0], takes))
    return {key: flag for key, flag in found.items() if key not in ("config", "set")}


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={part}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def adaptive_parser(shared: argparse.ArgumentParser) -> SettingsParser:
    """The parser of train.py.

    Args:
        shared: with the flags of src/tasks/vqa.py.
    """
    parser = SettingsParser(
        prog=shared.prog,
        description=shared.description,
        parents=[shared],
        add_help=False,
        conflict_handler="resolve",
    )
    group = parser.add_argument_group("flags of the adaptive LXMERT")
    group.add_argument("--bs", dest="batch_size", type=int, help="batch size, as --batchSize")
    for flag, dest, told in (
        ("--adaptive", "adapt_span_enabled", "every head learns a span, as --span-over distance"),
        ("--sparse", "sparse_enabled", "entmax with learned α, as --attention entmax"),
    ):
        group.add_argument(flag, dest=dest, action="store_const", const=True, help=told)
    group.add_argument(
        "--layerdrop",
        nargs="?",
        type=float,
        const=True,
        metavar="RATE",
        help="training leaves out layerdrop_num_layers of each stack, or each layer with "
        "probability RATE",
    )
    group.add_argument(
        "--load_model",
        "--load-model",
        metavar="NAME",
        help=f"a finetuned model, to test or to train on: name of a run in {RUNS}, its folder, or "
        "a file",
    )
    group.add_argument(
        "--test",
        nargs="?",
        const="test",
        metavar="SPLIT",
        help="only predict, in the form of EvalAI: the split `test`, where a data set has none the "
        "one that is reported, or SPLIT",
    )
    group.add_argument(
        "--measure-flops",
        "--measure_flops",
        action="store_true",
        help="say what is computed for a sample",
    )
    group.add_argument(
        "--name", help=f"of the run, in {RUNS} (default: made of the flags, e.g. adaptive_sparse)"
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML with settings: names of flags and values"
    )
    group.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="a setting, before those of the flags"
    )
    add_params(parser)
    parser.set_defaults(output=None)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the model; training starts from the pretrained one."""
    add_model_options(parser)
    parser.set_defaults(load_lxmert_qa=DEFAULT_WEIGHTS)


def settle(args: argparse.Namespace) -> None:
    """Fill in what the published flags mean in terms of the shared ones.

    Raises:
        CheckpointError: the model to load has other params than those that are given.
        ConfigError: flags that contradict each other.
    """
    if args.load_model is not None:
        if args.load is not None:
            raise ConfigError("--load_model and --load: give one of them")
        args.load = find_model(args.load_model)
    args.stored_params = stored_params(args.load) if args.load else None
    args.given_params = given_params(args)
    if args.stored_params is not None:
        asked = {key: args.given_params[key] for key in SHAPES if key in args.given_params}
        check_compatible({"params": args.stored_params}, {"params": asked}, args.load)
    _settle_attention(args)
    _settle_layers(args)
    if args.output is None:
        args.output = _folder(args)


def find_model(name: str) -> str:
    """The file of a finetuned model: of a run in `RUNS`, of a run's folder, or itself."""
    for folder in (RUNS / name, Path(name)):
        best = folder / "BEST.safetensors"
        if best.is_file():
            return str(best)
    return name if is_hf_folder(name) else str(finetuned_path(name))


def stored_params(path: str) -> dict[str, Any] | None:
    """`params` of a checkpoint; None where it was not made by train.py."""
    file = Path(path) if is_hf_folder(path) else finetuned_path(path)
    if file.suffix != ".safetensors":
        return None
    found: dict[str, Any] | None = load_meta(file).get("params")
    return found


def _settle_attention(args: argparse.Namespace) -> None:
    """Spans and entmax; a checkpoint of train.py brings its own."""
    stored = args.stored_params
    spans = args.adapt_span_enabled or (args.adapt_span_enabled is None and args.span is not None)
    if stored is None:
        if args.adapt_span_enabled and args.span is None:
            args.span = "distance"
        if args.sparse_enabled and args.normaliser is None:
            args.normaliser = "entmax"
        if spans:
            args.span_ramp = args.adapt_span_ramp if args.span_ramp is None else args.span_ramp
            args.span_init = args.adapt_span_init if args.span_init is None else args.span_init
    else:
        spans = stored["adapt_span_enabled"]
    if args.span == "published":  # which has its own loss, and a size of its batches
        args.span_batch = args.batch_size if args.span_batch is None else args.span_batch
    elif spans and args.span_loss is None:
        given = args.adapt_span_loss_coeff
        args.span_loss = SPAN_LOSS if given is None else given


def _settle_layers(args: argparse.Namespace) -> None:
    """LayerDrop and numbers of layers."""
    if args.layerdrop is None and args.layerdrop_enabled and args.layerdrop_count is None:
        args.layerdrop = True
    if args.layerdrop is True:
        args.layerdrop = None
        if args.layerdrop_count is None:
            args.layerdrop_count = args.layerdrop_num_layers or 1
    sizes = (args.layer_sizes or {}).values()
    for name, count in zip(LAYERS, sizes, strict=False):
        if getattr(args, name) is None:
            setattr(args, name, count)


def _folder(args: argparse.Namespace) -> Path:
    if args.name is not None:
        return RUNS / args.name
    if args.test and args.load and not is_hf_folder(args.load):
        return finetuned_path(args.load).parent
    return RUNS / default_name(args)


def default_name(args: argparse.Namespace) -> str:
    """The name of a run that has none, from what sets it apart."""
    parts = {
        "adaptive": args.span not in (None, "none"),
        "sparse": args.normaliser == "entmax",
        args.normaliser: args.normaliser not in (None, "softmax", "entmax"),
        "layerdrop": bool(args.layerdrop or args.layerdrop_count),
        args.strategy: args.strategy is not None,
    }
    name = "_".join(part for part, there in parts.items() if there) or "softmax"
    return f"{name}_tiny" if args.tiny else name


def adaptive_model_options(args: argparse.Namespace) -> AdaptiveModelOptions:
    """What the flags say of the model."""
    return fill(AdaptiveModelOptions, args, **vars(model_options(args)), given=args.given_params)
