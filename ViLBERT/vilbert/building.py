"""Putting a ViLBERT model together from flags: sizes, vocabulary, weights, strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from common.adapt.strategies import find_strategy
from common.data.datasets import Dataset
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError
from common.features.sources import FeatureSources
from common.runs.strategy_record import KEY, StrategyRecord, checked_meta, finetuned_meta
from common.tasks.vqa_command import Built, VQAOptions
from common.training.checkpoint import check_compatible, load_meta
from vilbert.baseline import BaseBertForVLTasks, baseline_sizes
from vilbert.heads import VILBertForVQA
from vilbert.inputs import Limits, ViLBertInputs
from vilbert.loading import find_vocabulary, freeze_text, load_finetuned, load_start, weights_file
from vilbert.modeling import POLICY_LAYERS
from vilbert.options import SMALL_PRETRAINED, ModelOptions
from vilbert.sizes import RATES, SMALL_CONFIG, ViLBertConfig, read_config

Say = Callable[[str], None]
SMALL_LIMITS = Limits()  # of embedded data, whose images have few regions


def chosen_size(options: ModelOptions, dataset: str) -> str:
    """The name of the model's size: that of the checkpoint, else of its config."""
    if options.load:
        path = weights_file(options.load)
        found = load_meta(path) if path.suffix == ".safetensors" else {}
        if "size" in found:
            return str(found["size"])
    return read_config(options.sizes_file(dataset), not options.baseline).size_name()


def build(
    options: VQAOptions[ModelOptions], dataset: Dataset, features: FeatureSources, say: Say
) -> Built:
    """The adapted model for a data set, with its weights."""
    chosen = options.model
    path = weights_file(chosen.load) if chosen.load else None
    found = load_meta(path) if path and path.suffix == ".safetensors" else {}
    if found and path is not None:
        _check_kind(found, path)
        if chosen.config_file is not None:
            say(f"{path} knows its sizes: {chosen.config_file} is not read")
    start = None if path else start_of(chosen, dataset.name)
    weights = str(path) if path else start
    tokenizer = Tokenizer(find_vocabulary(weights, chosen.bert_model, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    answers = list(dataset.vocabulary().answers)
    config = _config(chosen, dataset.name, found, features.width, len(tokenizer), len(answers))
    saved = StrategyRecord.from_meta(found) if KEY in found else None
    meta = finetuned_meta(
        "vilbert",
        _record(chosen, saved),
        found.get("size") or config.size_name(),
        config.to_dict(),
        features.described(),
        answers,
        tokenizer,
        limits=asdict(_limits(chosen, dataset)),
        baseline=chosen.baseline or bool(found.get("baseline")),
        freeze=chosen.freeze,
        vision_scratch=chosen.vision_scratch,
    )
    record = StrategyRecord.from_meta(meta)
    adapted_file = found and find_strategy(found["strategy"])[0].adaptive
    if found and path is not None:
        _check_settings(found, meta, path, bool(adapted_file))
    model = make_model(meta)
    if path is not None and not adapted_file:
        load_finetuned(model, path)
    elif start is not None:
        fits = {key: meta[key] for key in ("features", "vocabulary")}
        load_start(model, start, fits, answers, say)
    freeze_text(model, chosen.freeze)
    if chosen.freeze >= 0 and record.row.other == "twin":
        say(
            f"--freeze {chosen.freeze}: layers that do not learn stay equal to their frozen twins, "
            "so decisions of the first text layers say nothing"
        )
    record.adapt(model, options.base.initial_share, options.base.adaptive)
    if path is not None and adapted_file:
        load_finetuned(model, path)
    return Built(model, tokenizer, record, meta)


def start_of(options: ModelOptions, dataset: str) -> str:
    """What a model starts from: what is named, else the small pretrained model or a BERT."""
    if options.from_pretrained:
        return options.from_pretrained
    small = options.sizes_file(dataset).resolve() == SMALL_CONFIG.resolve()
    return str(SMALL_PRETRAINED) if small and not options.baseline else options.bert_model


def make_model(meta: Mapping[str, Any]) -> nn.Module:
    """The finetuned VQA model of a checkpoint, with random weights and not adapted."""
    config = ViLBertConfig.from_dict(meta["config"])
    if meta.get("baseline"):
        return BaseBertForVLTasks(config)
    layers = tuple(meta[KEY].get("policy_layers", POLICY_LAYERS))
    return VILBertForVQA(config, layers)


def make_inputs(tokenizer: Tokenizer, meta: Mapping[str, Any]) -> ViLBertInputs:
    """What turns a batch of questions into the model's inputs."""
    limits = meta.get("limits", {})
    return ViLBertInputs(tokenizer, Limits(**limits))


def _limits(options: ModelOptions, dataset: Dataset) -> Limits:
    if dataset.kind.embedded:
        return SMALL_LIMITS
    return Limits(options.task.max_seq_length, options.task.max_region_num)


def _config(
    options: ModelOptions,
    dataset: str,
    found: Mapping[str, Any],
    width: int,
    words: int,
    answers: int,
) -> ViLBertConfig:
    """The sizes of the checkpoint, else those of the config file, with what the data decide."""
    data: dict[str, Any] = {"v_feature_size": width, "vocab_size": words, "num_labels": answers}
    if options.dropout is not None:
        data |= dict.fromkeys(RATES, options.dropout)
    if found:
        return replace(ViLBertConfig.from_dict(found["config"]), **data)
    return _of_file(options, options.sizes_file(dataset), data)


def _of_file(options: ModelOptions, path: Path, data: Mapping[str, Any]) -> ViLBertConfig:
    config = read_config(path, connected=not options.baseline, **data)
    if config.in_batch_pairs:
        raise ConfigError(
            f"{path}: key in_batch_pairs: questions are asked about their own images; set it to "
            "false"
        )
    if not options.baseline:
        return config
    try:
        return baseline_sizes(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _record(options: ModelOptions, saved: StrategyRecord | None) -> StrategyRecord:
    same = saved if saved is not None and saved.is_named(options.strategy) else None
    before = (same.policy_sizes if same else {}).get("policy_layers", POLICY_LAYERS)
    sizes = {"policy_layers": list(options.policy_layers or before)}
    return StrategyRecord.chosen(vars(options), saved, sizes)


def _check_kind(found: dict[str, Any], path: Path) -> None:
    if found.get("task") != "vqa" or found.get("backbone") != "vilbert":
        raise CheckpointError(
            f"{path} is not a finetuned ViLBERT of visual question answering (backbone "
            f"{found.get('backbone')!r}, task {found.get('task')!r}); a pretrained one is loaded "
            "with --from_pretrained of train_tasks.py"
        )
    checked_meta(found, path)


def _check_settings(found: dict[str, Any], meta: dict[str, Any], path: Path, adapted: bool) -> None:
    """Refuse a checkpoint of another model before that model is built."""
    keys = ["backbone", "task", "size", "answers", "vocabulary", "features"]
    keys += ["strategy", "policy"] if adapted else []
    check_compatible(found, {key: meta[key] for key in keys}, path)
