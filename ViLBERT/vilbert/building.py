"""Putting a ViLBERT model together from flags: sizes, vocabulary, weights, strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from common.data.datasets import Dataset
from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError, named
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
from common.tasks.vqa_command import Built, VQAOptions
from common.training.checkpoint import load_meta
from vilbert.baseline import BaseBertForVLTasks, baseline_sizes
from vilbert.heads import VILBertForVLTasks, VILBertForVQA
from vilbert.inputs import Limits, ViLBertInputs
from vilbert.loading import find_vocabulary, freeze_text, load_finetuned, load_start, weights_file
from vilbert.modeling import POLICY_LAYERS
from vilbert.options import SMALL_PRETRAINED, ModelOptions
from vilbert.sizes import RATES, SMALL_CONFIG, ViLBertConfig, read_config

Say = Callable[[str], None]
SMALL_LIMITS = Limits()  # of plain shapes, whose images have few regions


def chosen_size(options: ModelOptions, dataset: str) -> str:
    """The name of the model's size: that of the checkpoint, else of its config."""
    if options.load:
        path = weights_file(options.load)
        found = load_meta(path) if path.suffix == ".safetensors" else {}
        if "size" in found:
            return str(found["size"])
    return read_config(options.sizes_file(dataset), not options.baseline).size_name()


@dataclass(frozen=True)
class Needs:
    """What data ask of a model.

    Attributes:
        dataset: name of the data set.
        features: of the region features, see `origin_of`.
        answers: of the answer head.
        limits: of texts and regions; for tasks beside questions one for each.
        task: `vqa`, or the names of tasks.
        heads: that are read; empty: answers alone.
    """

    dataset: str
    features: Mapping[str, Any]
    answers: Sequence[str]
    limits: Mapping[str, Any]
    task: str = "vqa"
    heads: Sequence[str] = ()


def build(
    options: VQAOptions[ModelOptions], dataset: Dataset, features: FeatureSources, say: Say
) -> Built:
    """The adapted model for questions, with its weights."""
    needs = Needs(
        dataset.name,
        features.described(),
        dataset.vocabulary().answers,
        asdict(_limits(options.model, dataset)),
    )
    return build_for(options, needs, say)


def build_for(options: VQAOptions[ModelOptions], needs: Needs, say: Say) -> Built:
    """The adapted model that some data ask for, with its weights."""
    chosen = options.model
    path = weights_file(chosen.load) if chosen.load else None
    found = load_meta(path) if path and path.suffix == ".safetensors" else {}
    if found and path is not None:
        needs = _of_checkpoint(needs, found, path, training=options.test is None)
        if chosen.config_file is not None:
            say(f"{path} knows its sizes: {chosen.config_file} is not read")
    start = None if path else start_of(chosen, needs.dataset)
    weights = str(path) if path else start
    tokenizer = Tokenizer(find_vocabulary(weights, chosen.bert_model, say))
    say(f"vocabulary of {len(tokenizer)} word pieces: {tokenizer.vocabulary_file}")
    config = _config(chosen, needs, found, len(tokenizer))
    saved = StrategyRecord.from_meta(found) if KEY in found else None
    meta = finetuned_meta(
        "vilbert",
        _record(chosen, saved),
        found.get("size") or config.size_name(),
        config.to_dict(),
        needs.features,
        needs.answers,
        tokenizer,
        limits=needs.limits,
        baseline=chosen.baseline or bool(found.get("baseline")),
        freeze=chosen.freeze,
        vision_scratch=chosen.vision_scratch,
        **({"task": needs.task, "heads": list(needs.heads)} if needs.heads else {}),
    )
    if found and not needs.answers:  # the tasks have none; the file's head may have been trained
        meta["answers"] = found["answers"]
    record = StrategyRecord.from_meta(meta)
    adapted_file = bool(found) and has_own_names(found)
    if found and path is not None:
        for note in check_finetuned(found, meta, path, adapted_file, chosen.any_detector):
            say(note)
    elif path is not None:
        say(nothing_known(path, meta["features"]))
    model = make_model(meta)
    freeze_text(model, chosen.freeze)
    if chosen.freeze >= 0 and record.row.other == "twin":
        say(
            f"--freeze {chosen.freeze}: layers that do not learn stay equal to their frozen twins, "
            "so decisions of the first text layers say nothing"
        )

    def load() -> None:
        if path is not None:
            load_finetuned(model, path)
        elif start is not None:
            fits = {key: meta[key] for key in ("features", "vocabulary")}
            allowed = chosen.any_detector
            load_start(model, start, fits, needs.answers, say, any_detector=allowed)

    def adapt_model() -> None:
        record.adapt(model, options.base.initial_share, options.base.adaptive)

    load_and_adapt(model, load, adapt_model, adapted_file, chosen.prune, meta, say)
    return Built(model, tokenizer, record, meta)


def _of_checkpoint(needs: Needs, found: Mapping[str, Any], path: Path, training: bool) -> Needs:
    """What is needed of a model that was finetuned on these tasks, among others perhaps.

    It is evaluated as it is; in training the heads of other tasks have nothing to do.
    """
    _check_kind(found, path)
    trained = str(found["task"])
    if needs.task == trained:
        return needs
    missing = set(_tasks_of(needs.task)) - set(_tasks_of(trained))
    if missing:
        raise CheckpointError(
            f"{path} was finetuned on {trained}, not on {', '.join(sorted(missing))}; give it to "
            "train_tasks.py with --from_pretrained to start from it"
        )
    return needs if training else replace(needs, task=trained, heads=found.get("heads", ()))


def _tasks_of(task: str) -> list[str]:
    return task.split(",")


def start_of(options: ModelOptions, dataset: str) -> str:
    """What a model starts from: what is named, else the small pretrained model or a BERT."""
    if options.from_pretrained:
        return options.from_pretrained
    small = options.sizes_file(dataset).resolve() == SMALL_CONFIG.resolve()
    return str(SMALL_PRETRAINED) if small and not options.baseline else options.bert_model


def make_model(meta: Mapping[str, Any]) -> nn.Module:
    """The finetuned model of a checkpoint, with random weights and not adapted."""
    config = ViLBertConfig.from_dict(meta["config"])
    if meta.get("baseline"):
        return BaseBertForVLTasks(config)
    layers = tuple(meta[KEY].get("policy_layers", POLICY_LAYERS))
    if not meta.get("heads"):
        return VILBertForVQA(config, layers)
    model = VILBertForVLTasks(config, layers)
    model.use(meta["heads"])
    return model


def make_inputs(tokenizer: Tokenizer, meta: Mapping[str, Any]) -> ViLBertInputs:
    """What turns a batch of questions into the model's inputs."""
    limits = meta.get("limits", {})
    if meta.get("heads"):  # with limits for each task
        limits = limits.get("VQA", {})
    return ViLBertInputs(tokenizer, Limits(**limits))


def _limits(options: ModelOptions, dataset: Dataset) -> Limits:
    if dataset.kind.small:
        return SMALL_LIMITS
    return Limits(options.task.max_seq_length, options.task.max_region_num)


def _config(
    options: ModelOptions, needs: Needs, found: Mapping[str, Any], words: int
) -> ViLBertConfig:
    """The sizes of the checkpoint, else those of the config file, with what the data decide."""
    data: dict[str, Any] = {"v_feature_size": needs.features["width"], "vocab_size": words}
    if needs.answers or not found:
        data["num_labels"] = max(1, len(needs.answers))
    if options.dropout is not None:
        data |= dict.fromkeys(RATES, options.dropout)
    if found:
        return replace(ViLBertConfig.from_dict(found["config"]), **data)
    return _of_file(options, options.sizes_file(needs.dataset), data)


def _of_file(options: ModelOptions, path: Path, data: Mapping[str, Any]) -> ViLBertConfig:
    config = read_config(path, connected=not options.baseline, **data)
    if config.in_batch_pairs:
        raise ConfigError(
            f"{path}: key in_batch_pairs: questions are asked about their own images; set it to "
            "false"
        )
    if not options.baseline:
        return config
    with named(path):
        return baseline_sizes(config)


def _record(options: ModelOptions, saved: StrategyRecord | None) -> StrategyRecord:
    same = saved if saved is not None and saved.is_named(options.strategy) else None
    before = (same.policy_sizes if same else {}).get("policy_layers", POLICY_LAYERS)
    sizes = {"policy_layers": list(options.policy_layers or before)}
    return StrategyRecord.chosen(vars(options), saved, sizes)


def _check_kind(found: Mapping[str, Any], path: Path) -> None:
    if found.get("backbone") != "vilbert" or found.get("task") in (None, "pretraining"):
        raise CheckpointError(
            f"{path} is not a finetuned ViLBERT (backbone {found.get('backbone')!r}, task "
            f"{found.get('task')!r}); a pretrained one is loaded with --from_pretrained of "
            "train_tasks.py"
        )
    checked_meta(dict(found), path)
