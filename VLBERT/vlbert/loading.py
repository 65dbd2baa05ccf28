"""Where VL-BERT's weights come from: released models, BERT and RoBERTa folders, ResNet files.

Shape legend: V words, C channels, A answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from common.data.tokenizer import Tokenizer
from common.errors import CheckpointError, ConfigError, DataError
from common.training.bert_folder import bert_names, find_bert_weights
from common.training.weights import load_into, load_weights, resolve_checkpoint, strip_prefix
from vlbert.fast_rcnn import FastRCNN
from vlbert.modeling import VisualLinguisticBert
from vlbert.pretraining_network import (
    ResNetVLBERTForPretraining,
    VisualLinguisticBertForPretraining,
)
from vlbert.vqa_network import ResNetVLBERT

WHERE = (
    "VL-BERT's released weights are vl-bert-{base,large}-{prec,e2e}.model of the original "
    "authors (model/pretrained_model/)"
)
BERT_WAY_OUT = "give a BERT folder of the model's width (NETWORK.BERT_MODEL_NAME)"
MODULE = "module."
LM_HEAD = {
    "lm_head.dense.": "transform.dense.",
    "lm_head.layer_norm.": "transform.LayerNorm.",
    "lm_head.bias": "bias",
}

Say = Callable[[str], None]
Network = ResNetVLBERT | ResNetVLBERTForPretraining


@dataclass
class PartialLoad:
    """What `load_partial` did.

    Attributes:
        loaded: {name in the model: name in the file}.
        dropped: names in the file that have no place in the model.
        missing: names in the model that the file does not have.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def model_path(name: Path | str) -> Path:
    """The file of some weights.

    Raises:
        CheckpointError: it is not there; says where it comes from.
    """
    try:
        return resolve_checkpoint(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {WHERE}") from None


def read_model(name: Path | str) -> dict[str, Tensor]:
    """Weights of a `.model` file or of a checkpoint of ours, in float32, as they are named there.

    Raises:
        CheckpointError: not there, damaged, or not only weights.
    """
    return {
        name: x.float() if x.is_floating_point() else x
        for name, x in load_weights(model_path(name)).items()
    }


def parse_changes(changes: Sequence[str]) -> list[tuple[str, str]]:
    """Entries `old->new` of `PARTIAL_PRETRAIN_PREFIX_CHANGES` as pairs.

    Raises:
        ConfigError: an entry without an arrow.
    """
    pairs = []
    for change in changes:
        old, arrow, new = change.partition("->")
        if not arrow:
            raise ConfigError(
                f"NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES: {change!r} is not of the form old->new"
            )
        pairs.append((old, new))
    return pairs


def change_prefix(name: str, changes: Sequence[tuple[str, str]]) -> str:
    """A name with the first old prefix that it starts with replaced by the new one."""
    for old, new in changes:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def plan_partial(model: nn.Module, names: Sequence[str], changes: Sequence[str]) -> PartialLoad:
    """Which names of a file go where in a model.

    Args:
        model: whose names have no `module.`.
        names: in the file, with or without `module.`.
        changes: `old->new` prefixes, in order.

    Raises:
        CheckpointError: two names of the file go to the same place.
    """
    own, pairs, plan = model.state_dict().keys(), parse_changes(changes), PartialLoad()
    for name in names:
        changed = change_prefix(name, pairs)
        target = changed if changed in own else changed.removeprefix(MODULE)
        if target not in own:
            plan.dropped.append(name)
        elif target in plan.loaded:
            raise CheckpointError(
                f"{name!r} and {plan.loaded[target]!r} both become {target!r} "
                "with these PARTIAL_PRETRAIN_PREFIX_CHANGES"
            )
        else:
            plan.loaded[target] = name
    plan.missing = [name for name in own if name not in plan.loaded]
    return plan


def load_partial(
    model: nn.Module, path: Path | str, changes: Sequence[str] = (), say: Say = print
) -> PartialLoad:
    """`PARTIAL_PRETRAIN`: whatever of a file has a place in the model, after changes of prefixes.

    Raises:
        CheckpointError: nothing fits, or a shape differs.
    """
    weights = read_model(path)
    plan = plan_partial(model, list(weights), changes)
    load_into(
        model,
        {ours: weights[theirs] for ours, theirs in plan.loaded.items()},
        strict=False,
        what=str(path),
    )
    say(
        f"{path}: {len(plan.loaded)} tensors loaded, {len(plan.missing)} of the model not in the "
        f"file{_names(plan.missing)}, {len(plan.dropped)} of the file not in the model"
        f"{_names(plan.dropped)}"
    )
    return plan


def load_strictly(model: nn.Module, path: Path | str) -> None:
    """A file that holds exactly this model: a released one, or one to resume or to test.

    Raises:
        CheckpointError: names or shapes differ.
    """
    load_into(model, strip_prefix(read_model(path), MODULE), what=str(path))


def classifier_rows(words: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Mean word embedding of each answer's pieces (`CLASSIFIER_PRETRAINED`).

    Args:
        words: (V, C) word embeddings.
        pieces: for each of the A answers its word pieces, at least one.

    Returns:
        (A, C).
    """
    return torch.stack([words[list(ids)].mean(0) for ids in pieces])


def answer_pieces(answers: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The word pieces of each answer, by number.

    Raises:
        DataError: an answer without any.
    """
    ids, mask = tokenizer.encode(answers, max_tokens=512)
    found = [
        row[1 : int(present.sum()) - 1].tolist() for row, present in zip(ids, mask, strict=True)
    ]
    empty = next((number for number, row in enumerate(found) if not row), None)
    if empty is not None:
        raise DataError(
            f"answer {empty + 1}, {answers[empty]!r}, has no word pieces, so there is "
            "no word embedding for its row (CLASSIFIER_PRETRAINED)"
        )
    return found


def load_bert(network: Network, folder: Path | str, say: Say = print) -> None:
    """Start the encoder of a network from a BERT or RoBERTa folder, and the heads that it has.

    Args:
        network: its visual parts keep their values.
        folder: with weights of the same width, at least as many layers, the same vocabulary.

    Raises:
        ConfigError: no weights there.
        CheckpointError: they do not fit.
    """
    path = find_bert_weights(folder, BERT_WAY_OUT)
    weights = bert_names(load_weights(path))
    vlbert: VisualLinguisticBert = network.vlbert
    chosen = encoder_weights(vlbert, weights, path)
    load_into(vlbert, chosen, strict=False, what=str(path))
    if vlbert.config.word_embedding_frozen:
        vlbert.copy_special_words()
    heads = load_bert_heads(network, weights, path)
    say(f"{path}: {len(chosen)} tensors of the encoder and {heads} of heads loaded")


def encoder_weights(
    vlbert: VisualLinguisticBert, weights: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """BERT's weights under the names of the encoder.

    Token types go to the first rows of the table; a model with one type (RoBERTa) starts all rows.
    A longer position table is cut.
    """
    state = vlbert.state_dict()
    tables = {
        f"{name}_embeddings.weight": f"embeddings.{name}_embeddings.weight"
        for name in ("word", "position", "token_type")
    }
    names = tables | {
        f"embedding_LayerNorm.{kind}": f"embeddings.LayerNorm.{kind}" for kind in ("weight", "bias")
    }
    names |= {name: name for name in state if name.startswith(("encoder.layer.", "pooler."))}
    missing = [
        theirs
        for ours, theirs in names.items()
        if theirs not in weights and not ours.startswith("pooler.")
    ]
    if missing:
        raise CheckpointError(
            f"{path} is not a BERT that fits the model: {len(missing)} tensors "
            f"are missing, e.g. {missing[0]}; {BERT_WAY_OUT}"
        )
    chosen = {ours: weights[theirs] for ours, theirs in names.items() if theirs in weights}
    rows = len(state["position_embeddings.weight"])
    chosen["position_embeddings.weight"] = chosen["position_embeddings.weight"][:rows]
    types, given = state["token_type_embeddings.weight"], chosen["token_type_embeddings.weight"]
    if given.shape[1] == types.shape[1]:  # another width is refused below
        rest = given.expand(len(types), -1) if len(given) == 1 else types
        chosen["token_type_embeddings.weight"] = torch.cat([given, rest[len(given) :]])
    wrong = {name: tuple(x.shape) for name, x in chosen.items() if x.shape != state[name].shape}
    if wrong:
        name, shape = next(iter(wrong.items()))
        raise CheckpointError(
            f"{path} does not fit the model: {name} is {shape} in the file, "
            f"{tuple(state[name].shape)} in the model (vocab_size, hidden_size, "
            "intermediate_size, max_position_embeddings of NETWORK.VLBERT); "
            f"{BERT_WAY_OUT}"
        )
    return chosen


def load_bert_heads(network: Network, weights: Mapping[str, Tensor], path: Path) -> int:
    """BERT's own heads where the network has such; returns the number of tensors loaded."""
    predictions = {
        name.removeprefix("cls.predictions."): x
        for name, x in weights.items()
        if name.startswith("cls.predictions.")
    }
    for name, x in weights.items():
        for theirs, ours in LM_HEAD.items():
            if name.startswith(theirs):
                predictions[ours + name[len(theirs) :]] = x
    # The decoder is the word embeddings, which are loaded with the encoder.
    predictions = {name: x for name, x in predictions.items() if not name.startswith("decoder.")}
    targets: list[tuple[nn.Module, dict[str, Tensor]]] = []
    if isinstance(network, ResNetVLBERT) and network.config.classifier == "mlm":
        targets.append(
            (
                network.final_mlp[0],
                {
                    name.removeprefix("transform."): x
                    for name, x in predictions.items()
                    if name.startswith("transform.")
                },
            )
        )
    if isinstance(network.vlbert, VisualLinguisticBertForPretraining):
        if hasattr(network.vlbert, "mlm_head"):
            targets.append((network.vlbert.mlm_head["predictions"], predictions))
        if hasattr(network.vlbert, "relationsip_head"):
            prefix = "cls.seq_relationship."
            targets.append(
                (
                    network.vlbert.relationsip_head["caption_image_relationship"],
                    {
                        name.removeprefix(prefix): x
                        for name, x in weights.items()
                        if name.startswith(prefix)
                    },
                )
            )
    for module, found in targets:
        if found:
            load_into(module, found, strict=False, what=str(path))
    return sum(len(found) for _, found in targets)


def load_resnet(images: FastRCNN, path: Path | str) -> None:
    """`IMAGE_PRETRAINED`: a ResNet with torchvision's names, whose last stage is the head.

    Raises:
        CheckpointError: a stage is missing or of another size.
    """
    weights = strip_prefix(read_model(path), MODULE)
    last = {
        name.removeprefix("layer4."): x for name, x in weights.items() if name.startswith("layer4.")
    }
    rest = {name: x for name, x in weights.items() if not name.startswith(("layer4.", "fc."))}
    load_into(images.backbone, rest, what=f"{path}, first stages")
    load_into(images.roi_head_feature_extractor, last, what=f"{path}, layer4")


def _names(names: Sequence[str], shown: int = 3) -> str:
    more = f", … {len(names) - shown} more" if len(names) > shown else ""
    return f" ({', '.join(names[:shown])}{more})" if names else ""
