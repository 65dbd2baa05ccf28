"""LXMERT folders as `transformers` saves them (`save_pretrained`): read as weights, and written.

A folder holds config.json, model.safetensors (or pytorch_model.bin, or several shards with an
index) and, where a tokenizer was saved too, vocab.txt or tokenizer.json. Parameter names of
`transformers` differ from upstream's only in their prefixes. `transformers` itself is imported
when a folder is written; reading needs json and the weights only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.data.tokenizer import MAX_TOKENS, has_vocabulary
from common.errors import CheckpointError, ConfigError
from common.modules.attention import has_mechanism
from common.reading import short
from common.training.checkpoint import check_compatible
from common.training.weights import load_weights
from lxrt.modeling import PretrainingModel, VQAModel
from lxrt.sizes import LxmertConfig

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
RECORD = "adaptive_finetuning"  # our own entry in config.json, which `transformers` keeps
# Ours → theirs, where they differ.
THEIR_NAMES = {
    "num_answers": "num_qa_labels",
    "obj_id_num": "num_object_labels",
    "attr_id_num": "num_attr_labels",
}
THEIR_DEFAULTS = {"num_answers": 9500}
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
VISUAL_LOSSES = ("obj", "attr", "feat")
VISUAL_LOSS_NORMALIZER = 1 / 0.15


def is_hf_folder(name: Path | str) -> bool:
    """Whether a name given as weights is a folder that `transformers` saved."""
    return (Path(name) / CONFIG).is_file()


@dataclass(frozen=True)
class HFFolder:
    """A LXMERT model saved by `transformers`.

    Attributes:
        path: of the folder.
        config: sizes and dropout rates.
        answers: of its answer head, in order; None where config.json does not name them.
        record: what this package wrote into config.json; empty for folders of others.
    """

    path: Path
    config: LxmertConfig
    answers: tuple[str, ...] | None
    record: Mapping[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Weights under the names of upstream's pretraining snapshots (`bert.…`).

        Raises:
            CheckpointError: no weights, or damaged ones.
        """
        theirs: dict[str, Tensor] = {}
        for file in self._weight_files():
            theirs |= load_weights(file)
        bare = not any(name.startswith("lxmert.") for name in theirs)  # of a `LxmertModel`
        return {_our_name(name, bare): tensor for name, tensor in theirs.items()}

    def finetuned_weights(self) -> dict[str, Tensor]:
        """Weights of a `LxmertForQuestionAnswering` under the names of `VQAModel`.

        Raises:
            CheckpointError: another kind of model; says which flag takes it.
        """
        weights = self.weights()
        if any(name.startswith("cls.") for name in weights):
            raise CheckpointError(
                f"{self.path} holds a pretraining model, not a finetuned one; "
                "load it with --loadLXMERTQA or --loadLXMERT"
            )
        if not any(name.startswith("answer_head.") for name in weights):
            raise CheckpointError(
                f"{self.path} has no answer head (answer_head.*), so it is not "
                "finetuned; load it with --loadLXMERT"
            )
        return {
            re.sub(r"^bert\.", "lxrt_encoder.model.bert.", name).removeprefix(
                "answer_head."
            ): tensor
            for name, tensor in weights.items()
        }

    def check_fits(self, fits: Mapping[str, Any], any_detector: bool = False) -> list[str]:
        """Compare the folder with what it is to be used with, as far as it tells.

        Args:
            fits: entries `features` (width, detector) and `vocabulary` (count, sha256).
            any_detector: the features may be of another detector.

        Returns:
            What is worth saying of the features, see `check_compatible`.

        Raises:
            CheckpointError: they differ; names what, and the way out.
        """
        known = self.described()
        wanted = {
            key: {name: value for name, value in fits[key].items() if name in known[key]}
            for key in known
            if key in fits
        }
        wanted |= {key: fits[key] for key in ("features",) if key in fits}
        words = wanted.get("vocabulary", {}).get("count")
        if words not in (None, self.config.vocab_size) and not has_vocabulary(self.path):
            raise CheckpointError(
                f"{self.path}: the model knows {self.config.vocab_size} word pieces, the "
                f"vocabulary in use has {words}, and the folder has none of its own; put the "
                "vocab.txt that the model was trained with into the folder"
            )
        return check_compatible(known, wanted, self.path / CONFIG, any_detector)

    def check_answers(self, answers: Sequence[str]) -> None:
        """Make sure that the rows of the answer head mean the answers of a data set.

        Where config.json names no answers, as many in the data set's own order are assumed.

        Raises:
            CheckpointError: more or fewer answers, or others; names the first that differs.
        """
        names = self.answers
        if self.config.num_answers != len(answers):
            raise CheckpointError(
                f"{self.path}: its head has {self.config.num_answers} answers "
                f"(num_qa_labels), the data set {len(answers)}; --loadLXMERTQA "
                "takes the encoder and those answers that both know"
            )
        for number, answer in enumerate(answers):
            if names is not None and names[number] != answer:
                raise CheckpointError(
                    f"{self.path / CONFIG}: answer {number} is {names[number]!r} (id2label), in "
                    f"the data set it is {short(answer)}; use the data set that the model was "
                    "finetuned on, or --loadLXMERTQA, which finds answers by their names"
                )

    def described(self) -> dict[str, dict[str, Any]]:
        """What is known of features and vocabulary, in the form of a checkpoint's meta."""
        found = {
            "features": {"width": self.config.visual_feat_dim},
            "vocabulary": {"count": self.config.vocab_size},
        }
        return {key: self.record.get(key, {}) | value for key, value in found.items()}

    def _weight_files(self) -> list[Path]:
        for name in WEIGHTS:
            if (self.path / name).is_file():
                return [self.path / name]
            index = self.path / f"{name}.index.json"
            if index.is_file():
                table = _read_json(index).get("weight_map", {})
                return [self.path / shard for shard in dict.fromkeys(table.values())]
        raise CheckpointError(
            f"{self.path}: no weights beside {CONFIG}: neither {' nor '.join(WEIGHTS)}"
        )


def read_hf_folder(path: Path | str) -> HFFolder:
    """Read the config.json of a folder.

    Raises:
        CheckpointError: damaged, or not of a LXMERT that this package can run.
    """
    path = Path(path)
    file = path / CONFIG
    values = _read_json(file)
    for key, wanted in (("model_type", "lxmert"), ("hidden_act", "gelu")):
        if values.get(key, wanted) != wanted:
            raise CheckpointError(f"{file}: {key} is {values[key]!r}, only {wanted!r} is supported")
    sizes: dict[str, Any] = {}
    for field in fields(LxmertConfig):
        theirs = THEIR_NAMES.get(field.name, field.name)
        value = values.get(theirs, THEIR_DEFAULTS.get(field.name, field.default))
        if not isinstance(value, (int, float) if field.name in RATES else int):
            raise CheckpointError(f"{file}: {theirs} is {short(value)}, not a number")
        sizes[field.name] = value
    return HFFolder(
        path,
        LxmertConfig(**sizes),
        _answers(values, sizes["num_answers"], file),
        values.get(RECORD, {}),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); save or copy it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: not a table of settings")
    return values


def _answers(values: Mapping[str, Any], count: int, file: Path) -> tuple[str, ...] | None:
    """The names of the answers; `LABEL_0` … and the two default labels are none."""
    names = values.get("id2label") or {}
    if all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names.values()):
        return None
    if {str(number) for number in range(count)} != set(names):
        raise CheckpointError(
            f"{file}: id2label names {len(names)} answers, the answer head has "
            f"{count} (num_qa_labels); name each of them, or remove id2label"
        )
    return tuple(names[str(number)] for number in range(count))


def _our_name(name: str, bare: bool) -> str:
    return f"bert.{name}" if bare else re.sub(r"^lxmert\.", "bert.", name)


def save_hf_folder(
    model: nn.Module,
    folder: Path,
    vocabulary: str,
    answers: Sequence[str] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as `transformers` would, with the tokenizer that belongs to it.

    A `VQAModel` becomes a `LxmertForQuestionAnswering`, a `PretrainingModel` a
    `LxmertForPreTraining`.

    Args:
        model: without an adaptive part.
        folder: is made; files of the same names are replaced.
        vocabulary: the content of vocab.txt.
        answers: names of the rows of the answer head.
        record: put into config.json, read back as `HFFolder.record`.

    Raises:
        ConfigError: the model still decides something, or `transformers` cannot run its layers.
    """
    import transformers

    model = _savable(model)
    theirs: dict[str, Any] = {
        THEIR_NAMES.get(name, name): value for name, value in model.config.to_dict().items()
    }
    if answers is not None:
        theirs |= {
            "id2label": dict(enumerate(answers)),
            "label2id": {answer: number for number, answer in enumerate(answers)},
        }
    kind: type[transformers.PreTrainedModel] = transformers.LxmertForQuestionAnswering
    if isinstance(model, PretrainingModel):
        kind = transformers.LxmertForPreTraining
        heads = () if model.obj_predict_head is None else model.obj_predict_head.decoder_dict
        theirs |= {f"visual_{name}_loss": name in heads for name in VISUAL_LOSSES}
        theirs |= {
            "visual_loss_normalizer": VISUAL_LOSS_NORMALIZER,
            "task_qa": model.answer_head is not None,
            "task_obj_predict": len(heads) > 0,
        }
    theirs[RECORD] = dict(record or {})
    weights = {their_name(name): tensor for name, tensor in model.state_dict().items()}
    dtype = next(model.parameters()).dtype
    with torch.device("meta"):
        twin = kind(transformers.LxmertConfig(**theirs, dtype=dtype))
    twin.load_state_dict(weights, strict=True, assign=True)
    folder.mkdir(parents=True, exist_ok=True)
    with _no_progress_bar():
        twin.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # the library makes them 0600
        os.chmod(file, folder.stat().st_mode & 0o666)
    _save_tokenizer(folder, vocabulary)


def their_name(name: str) -> str:
    """A parameter of `VQAModel` or `PretrainingModel` under its name in `transformers`."""
    if name.startswith("logit_fc."):
        return f"answer_head.{name}"
    return re.sub(r"^(?:lxrt_encoder\.model\.)?bert\.", "lxmert.", name)


def _savable(model: nn.Module) -> VQAModel | PretrainingModel:
    """The model, which `transformers` can be given."""
    part = adaptive_part(model)
    if part is not None:
        raise ConfigError(
            f"a {part.strategy.name} model has two branches, transformers knows one; "
            "`python -m common.export` makes a plain model of it"
        )
    if has_mechanism(model):
        raise ConfigError(
            "the model has a mechanism of attention of its own (entmax, a span); transformers "
            "knows softmax over all keys alone"
        )
    if not isinstance(model, (VQAModel, PretrainingModel)):
        raise ConfigError(f"a {type(model).__name__} is no model of transformers")
    config = model.config
    layers = {"language": config.l_layers, "vision": config.r_layers}
    for stream, count in layers.items():
        if count + config.x_layers == 0:
            raise ConfigError(
                f"transformers cannot run a LXMERT whose {stream} stream has no "
                "layer at all; save it in our format only (--format ours), or keep "
                "more layers (--global-k)"
            )
    return model


def _save_tokenizer(folder: Path, vocabulary: str) -> None:
    """vocab.txt, and the tokenizer files that `AutoTokenizer` reads."""
    from transformers import BertTokenizer

    with TemporaryDirectory() as source:  # alone, so that nothing else in the folder is read
        (Path(source) / "vocab.txt").write_text(vocabulary, encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(source)
    tokenizer.model_max_length = MAX_TOKENS
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the bar that `transformers` shows for a file that takes a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
