"""Backbones are found through package entry points; `common` imports none of them by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.adapt.adapting import adaptive_part
from common.adapt.encoder import Adaptive
from common.adapt.strategies import Strategy, find_strategy
from common.data.datasets import Dataset, resolve_dataset
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQABatch, VQADataset
from common.errors import CheckpointError, ConfigError
from common.installed import offered
from common.projects import Project
from common.runs.places import Places
from common.runs.run_script import RunScript

MakeInputs = Callable[[VQABatch], dict[str, Tensor | None]]
GROUP = "adaptive_finetuning.backbones"


@dataclass(frozen=True)
class Exporting:
    """What `common.export` needs of a backbone, whose models keep their sizes in `config`.

    Attributes:
        training_questions: those that a run was finetuned on, with the folder where they are:
            `training_questions(run, folder of VQA v2's files or None)`.
        training_task: the task of a run on other tasks than questions, to evaluate decisions on
            what it was finetuned on: `training_task(run, folder of its data or None, runtime,
            samples per batch, whether to show progress)`; None where there are only questions.
        open_snapshot: the model of a pretraining snapshot: `open_snapshot(file, its meta)`.
        snapshot_suffixes: what the names of its pretraining snapshots may leave out.
        usage: the command that tests an exported `{model}` on a `{dataset}`.
        usage_of_tasks: the same for another `{task}`.
        save_transformers: writes a plain model as a folder of `transformers`: `save(model, folder,
            content of vocab.txt, answers, record)`; None where that library has no such model.
    """

    training_questions: Callable[[OpenedRun, Path | None], tuple[VQADataset, Path]]
    open_snapshot: Callable[[Path, dict[str, Any]], nn.Module]
    usage: str
    usage_of_tasks: str = ""
    training_task: Callable[[OpenedRun, Path | None, Any, int, bool], Any] | None = None
    snapshot_suffixes: tuple[str, ...] = ()
    save_transformers: (
        Callable[[nn.Module, Path, str, Sequence[str], Mapping[str, Any]], None] | None
    ) = None


@dataclass(frozen=True)
class Backbone:
    """What a backbone's package offers to the core.

    Attributes:
        name: `lxmert`, `vlbert`, `vilbert`.
        project: its title and its folder.
        script: how its scripts start finetuning runs.
        make_model: the finetuned VQA model of a checkpoint, not adapted and without weights, from
            the checkpoint's meta; ConfigError where this model cannot be opened.
        make_inputs: what turns a batch of a VQA data set into the model's inputs, from the
            tokenizer of the questions and the checkpoint's meta.
        reads_pictures: whether the model of a checkpoint's meta reads the pixels of the pictures
            (`VQABatch.pictures`) and of the regions only their boxes; by itself none does.
        places: what stands at the places of its streams, `places(run, inputs of a batch)`, one
            entry for each sample; None where its attention is not shown.
        dataset: the data set of a run, `dataset(run, folder of its files or None)`; by itself that
            of the table by its name.
        exporting: what is needed to export its runs as plain models; None where there are none.
        parity: {kind of golden case: `run(config, weights, inputs, wanted) -> tensors`}.
        bench: what `common.bench` measures, or None.
        bench_sizes: how much of it.
    """

    name: str
    project: Project
    script: RunScript
    make_model: Callable[[dict[str, Any]], nn.Module]
    make_inputs: Callable[[Tokenizer, dict[str, Any]], MakeInputs]
    reads_pictures: Callable[[Mapping[str, Any]], bool] = lambda meta: False
    places: Callable[[OpenedRun, Mapping[str, Tensor | None]], list[Places]] | None = None
    dataset: Callable[[OpenedRun, Path | None], Dataset] = lambda run, data_root: resolve_dataset(
        run.dataset, data_root=data_root
    )
    exporting: Exporting | None = None
    parity: Mapping[
        str,
        Callable[
            [dict[str, Any], dict[str, Tensor], dict[str, Tensor], list[str]], dict[str, Tensor]
        ],
    ] = field(default_factory=dict)
    bench: Callable[[BenchSettings], BenchModel] | None = None
    bench_sizes: BenchSizes = field(default_factory=lambda: BenchSizes())

    @property
    def title(self) -> str:
        """Its name as its paper writes it."""
        return self.project.title


@cache
def backbones() -> dict[str, Backbone]:
    """All installed backbones by name."""
    return {point.name: point.load() for point in offered(GROUP)}


def find_backbone(name: str) -> Backbone:
    """The backbone of that name; an unknown one lists the installed ones."""
    if name not in backbones():
        raise ConfigError(
            f"unknown backbone {name!r}; installed: {', '.join(sorted(backbones())) or 'none'}"
        )
    return backbones()[name]


@dataclass
class OpenedRun:
    """A finetuned model and what its run folder says about it.

    Attributes:
        folder: of the run.
        checkpoint: the file that the weights are from.
        meta: of the checkpoint: backbone, strategy, policy, size, config, features, ….
        result: content of result.json; None where the run did not come to its end.
        model: in evaluation mode, on the CPU.
        make_inputs: turns a batch of a VQA data set into the model's inputs.
        tokenizer: of the questions.
        answers: A texts, in the order of the answer head.
    """

    folder: Path
    checkpoint: Path
    meta: dict[str, Any]
    result: dict[str, Any] | None
    model: nn.Module
    make_inputs: MakeInputs
    tokenizer: Tokenizer
    answers: list[str]

    @property
    def strategy(self) -> Strategy:
        return find_strategy(self.meta["strategy"])[0]

    @property
    def reads_pictures(self) -> bool:
        """Whether it reads pixels, see `Backbone`."""
        return find_backbone(self.meta["backbone"]).reads_pictures(self.meta)

    @property
    def adaptive(self) -> Adaptive | None:
        """The part of the model that decides; None where nothing is decided."""
        return adaptive_part(self.model)

    @property
    def dataset(self) -> str:
        """Name of the data set that the run was finetuned on."""
        return dataset_name(self.meta, self.checkpoint)


def dataset_name(meta: dict[str, Any], where: Path) -> str:
    """Name of the data set of a finetuned checkpoint.

    Raises:
        CheckpointError: the checkpoint does not say it.
    """
    try:
        return meta["training"]["dataset"]
    except KeyError:
        raise CheckpointError(f"{where}: does not say on which data set it was finetuned") from None


@dataclass(frozen=True)
class BenchSizes:
    """With how much a backbone is measured unless the command line says it.

    Attributes:
        layers, quick_layers: in every stack; None: all.
        quick_reference_layers: the same for the comparison with another library.
        quick_batch: pairs in a step.
        folder: of the figures within those of all backbones; None: the backbone's name.
    """

    layers: int | None = 2
    quick_layers: int | None = 1
    quick_reference_layers: int | None = 1
    quick_batch: int = 16
    folder: str | None = None


@dataclass(frozen=True)
class BenchSettings:
    """What all cases of a run have in common.

    Attributes:
        backbone: name.
        device: cpu or cuda.
        precisions: fp32, and bf16 (autocast) beside it.
        layers: at most so many layers in every stack of the encoder; None = all.
        reference_layers: the same for the comparison with the reference implementation, and for
            the cases in which blocks are dropped from the whole model.
        batch: pairs in a step.
        shares: of decisions that are 1.
        rounds: how often every case runs.
        threads: of torch on the CPU.
        seed: of weights, inputs and decisions.
        dropout: that of the recipe; else none.
    """

    backbone: str
    device: str = "cpu"
    precisions: tuple[str, ...] = ("fp32",)
    layers: int | None = 2
    reference_layers: int | None = None
    batch: int = 16
    shares: tuple[float, ...] = (0.1, 0.5, 0.9)
    rounds: int = 5
    threads: int = 1
    seed: int = 9595
    dropout: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "reference_layers", "batch", "rounds", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', ' ')} {value}: give at least 1")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise ConfigError(f"shares {self.shares}: give numbers from 0 to 1")

    def of_reference(self) -> BenchSettings:
        """The settings of the comparisons with `reference` and `whole`."""
        return replace(self, layers=self.reference_layers)

    def digest(self) -> str:
        """Checksum of everything that a measured number depends on, 12 hexadecimal digits.

        Not the shares: they are part of the cases' names.
        """
        values = {k: v for k, v in asdict(self).items() if k not in ("shares", "precisions")}
        if values.pop("dropout") is False:
            values["dropout"] = False
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


QUESTIONS = 5.4  # about an image of VQA v2


@dataclass(frozen=True)
class BenchModel:
    """What a backbone supplies to be measured.

    Attributes:
        description: of the model and its inputs, for the table.
        build: makes the model with random weights; `model(**inputs)` gives logits.
        inputs: one batch for it.
        loss: scalar from logits.
        reference: makes the same model of another library, or None; its name is
            `reference_name`, and it reads `reference_inputs` of the same pairs.
        kept: shares of blocks at which evaluation with dropped blocks is measured in the whole
            model; empty where it is not.
        questions: about one image, at which evaluation is measured in which they share what depends
            on it alone; None where no layer does.
    """

    description: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, Tensor | None]
    loss: Callable[[Tensor], Tensor]
    reference: Callable[[], nn.Module] | None = None
    reference_name: str = ""
    reference_inputs: Mapping[str, Tensor | None] | None = None
    kept: tuple[float, ...] = ()
    questions: float | None = None
