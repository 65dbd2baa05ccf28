"""Backbones are found through package entry points; `common` imports none of them by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from common.adapt.encoder import RoutedEncoder
from common.errors import ConfigError

if TYPE_CHECKING:  # the core runs without the data
    from common.bench.cases import BenchModel, BenchSettings
    from common.runs.opened_run import OpenedRun
    from common.data.tokenizer import Tokenizer
    from common.data.vqa_dataset import VQABatch, VQADataset

GROUP = "adaptive_finetuning.backbones"


@dataclass(frozen=True)
class OpenedModel:
    """A finetuned VQA model that was rebuilt from its checkpoint.

    Attributes:
        model: `model(**make_inputs(batch))` gives the logits (B, A) of its answers.
        make_inputs: turns a batch of a VQA data set into the model's inputs.
        tokenizer: of the questions.
    """

    model: nn.Module
    make_inputs: Callable[[VQABatch], dict[str, Tensor | None]]
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Exporting:
    """What `common.export` needs of a backbone, whose models keep their sizes in `config`.

    Attributes:
        training_questions: those that a run was finetuned on: `training_questions(run, folder of
            VQA v2's files or None)`.
        open_snapshot: the model of a pretraining snapshot: `open_snapshot(file, its meta)`.
        usage: the command that tests an exported `{model}` on a `{dataset}`.
        save_transformers: writes a plain model as a folder of `transformers`: `save(model, folder,
            content of vocab.txt, answers, record)`; None where that library has no such model.
    """

    training_questions: Callable[[OpenedRun, Path | None], VQADataset]
    open_snapshot: Callable[[Path, dict[str, Any]], nn.Module]
    usage: str
    save_transformers: Callable[[nn.Module, Path, str, Sequence[str], Mapping[str, Any]],
                                None] | None = None


@dataclass(frozen=True)
class Backbone:
    """What a backbone's package offers to the core.

    Attributes:
        name: `lxmert`, `vlbert`, `vilbert`.
        wrap: turns a model of another library into a routed one in place and returns its encoder,
            or None if the model is not of this backbone; None where no library has such models.
        open_run: rebuilds a finetuned VQA model: `open_run(checkpoint file, its meta)`; None where
            there are no runs yet.
        exporting: what is needed to export its runs as plain models; None where there are none.
        parity: {kind of golden case: `run(config, weights, inputs, wanted) -> tensors`}.
        bench: what `common.bench` measures, or None.
    """

    name: str
    wrap: Callable[[nn.Module], RoutedEncoder | None] | None = None
    open_run: Callable[[Path, dict[str, Any]], OpenedModel] | None = None
    exporting: Exporting | None = None
    parity: Mapping[str, Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor],
                                   list[str]], dict[str, Tensor]]] = field(default_factory=dict)
    bench: Callable[[BenchSettings], BenchModel] | None = None


@cache
def backbones() -> dict[str, Backbone]:
    """All installed backbones by name."""
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name; an unknown one lists the installed ones."""
    if name not in backbones():
        raise ConfigError(f"unknown backbone {name!r}; installed: "
                          f"{', '.join(sorted(backbones())) or 'none'}")
    return backbones()[name]


def find_encoder(model: nn.Module) -> RoutedEncoder:
    """The one routed encoder in a model, made from a `transformers` model where needed."""
    encoders = [m for m in model.modules() if isinstance(m, RoutedEncoder)]
    policies = [e for outer in encoders if outer.adaptive is not None
                for e in outer.adaptive.modules()]
    encoders = [e for e in encoders if not any(e is p for p in policies)]
    if not encoders:
        wrapped = (backbone.wrap(model) for backbone in backbones().values() if backbone.wrap)
        encoders = [encoder for encoder in wrapped if encoder is not None]
    if len(encoders) != 1:
        raise ConfigError(f"{type(model).__name__} has {len(encoders)} encoders that can be "
                          f"adapted, needs exactly one; backbones: {', '.join(backbones())}")
    return encoders[0]
