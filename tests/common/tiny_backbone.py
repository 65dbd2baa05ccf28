"""The shortest whole backbone: what a new one has to write, and all that it gets for it.

One stream over words and regions. It is finetuned, resumed, tested, asked, exported and measured
by the pieces that the large backbones use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data import Dataset, Tokenizer, VQABatch, VQADataset, resolve_dataset
from common.features import FeatureSources
from common.modules import additive_mask
from common.projects import Project
from common.runs import (
    Backbone,
    BenchModel,
    BenchSettings,
    Exporting,
    OpenedRun,
    RunScript,
    StrategyRecord,
    finetuned_meta,
    options_of,
)
from common.tasks import Built, Recipe, VQAOptions, VQAProgram, trained_on, vqa_loss
from common.training import load_into, load_weights, resolve_checkpoint
from tests.common.tiny_models import SingleStreamEncoder


@dataclass(frozen=True)
class TinyConfig:
    """Sizes."""

    words: int
    width: int
    answers: int
    layers: int = 2
    channels: int = 12

    def to_dict(self) -> dict[str, int]:
        return dict(vars(self))


class TinyModel(nn.Module):
    """Words and regions in, logits of answers out."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self._config = config
        self.words = nn.Embedding(config.words, config.channels)
        self.regions = nn.Linear(config.width, config.channels)
        self.encoder = SingleStreamEncoder(config.layers, config.channels, 3)
        self.head = nn.Linear(config.channels, config.answers)

    @property
    def config(self) -> TinyConfig:
        return replace(self._config, layers=len(self.encoder.layer))

    def forward(self, ids: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """ids (B, T), features (B, R, F), mask (B, T + R) -> (B, A)."""
        hidden = torch.cat([self.words(ids), self.regions(features)], 1)
        state = {"hidden": hidden, "hidden.mask": additive_mask(mask, hidden.dtype)}
        return self.head(self.encoder.run_layers(state)["hidden"][:, 0])


@dataclass(frozen=True)
class TinyInputs:
    """From a batch of questions to the model's inputs."""

    tokenizer: Tokenizer

    def __call__(self, batch: VQABatch) -> dict[str, Tensor | None]:
        ids, mask = self.tokenizer.encode(batch.questions)
        both = torch.cat([mask, batch.region_mask.long()], 1)
        return {"ids": ids, "features": batch.features, "mask": both}


@dataclass(frozen=True)
class TinyOptions:
    """What the command is told of the model."""

    words: Path
    strategy: str
    policy: str
    policy_eval: str


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--words", type=Path, required=True, help="folder of vocab.txt")
    parser.add_argument("--load", help="a finetuned model")


def tiny_options(args: argparse.Namespace) -> TinyOptions:
    chosen = (args.strategy or "standard", args.policy or "small", args.policy_eval or "argmax")
    return TinyOptions(args.words, *chosen)


def build(
    options: VQAOptions[TinyOptions],
    dataset: Dataset,
    features: FeatureSources,
    say: Callable[[str], None],
) -> Built:
    tokenizer, answers = Tokenizer(options.model.words), dataset.vocabulary().answers
    chosen = options.model
    record = StrategyRecord(chosen.strategy, chosen.policy, chosen.policy_eval)
    config = TinyConfig(len(tokenizer), features.width, len(answers)).to_dict()
    seen = features.described()
    meta = finetuned_meta("tiny", record, "tiny", config, seen, answers, tokenizer)
    model = make_model(meta)
    record.adapt(model, options.base.initial_share, options.base.adaptive)
    if options.load:
        load_into(model, load_weights(resolve_checkpoint(options.load)))
    return Built(model, tokenizer, record, meta)


def make_model(meta: Mapping[str, Any]) -> nn.Module:
    return TinyModel(TinyConfig(**meta["config"]))


PROGRAM = VQAProgram[TinyOptions](
    home=Path(__file__).parent,
    script="tiny.py",
    description="Finetune and test a tiny model.",
    add_options=add_options,
    model_options=tiny_options,
    size=lambda options, dataset: "tiny",
    build=build,
    make_inputs=lambda tokenizer, meta: TinyInputs(tokenizer),
    recipes={"tiny": Recipe(8, 2, "adamw", 1e-2, 0.1, 0.01, 5.0, 1e-3, 32)},
    tiny={},
)
main = PROGRAM.main()


def training_questions(run: OpenedRun, root: Path | None) -> tuple[VQADataset, Path]:
    options = options_of(run, PROGRAM.parse)
    dataset = resolve_dataset(run.dataset, data_root=root)
    return trained_on(options.data, dataset, options.run.seed)


def bench_model(settings: BenchSettings) -> BenchModel:
    config = TinyConfig(30, 8, 5, settings.layers or 3)
    ids = torch.arange(settings.batch)[:, None] % 30 + torch.zeros(1, 4, dtype=torch.long)
    inputs = {"ids": ids, "features": torch.ones(settings.batch, 3, 8)}
    inputs["mask"] = torch.ones(settings.batch, 7, dtype=torch.long)
    target = torch.eye(5)[torch.arange(settings.batch) % 5]
    return BenchModel("tiny", lambda: TinyModel(config), inputs, lambda x: vqa_loss(x, target))


class TinyScript(RunScript):
    def train(self, gpu: str, name: str, flags: Sequence[str]) -> list[str]:
        return ["python", "tiny.py", "--output", name, "--gpus", gpu, *flags]

    def test(self, gpu: str, name: str, snapshot: str, flags: Sequence[str]) -> list[str]:
        return self.train(gpu, name, ["--load", snapshot, *flags])


PROJECT = Project("Tiny", "TINY")
TINY = Backbone(
    name="tiny",
    project=PROJECT,
    script=TinyScript(PROJECT.folder, "runs"),
    make_model=make_model,
    make_inputs=lambda tokenizer, meta: TinyInputs(tokenizer),
    exporting=Exporting(training_questions, lambda path, meta: make_model(meta), "--load {model}"),
    bench=bench_model,
)
