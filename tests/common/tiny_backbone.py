"""The shortest whole backbone: what a new one has to write, and all that it gets for it.

One stream over words and regions. It is finetuned, resumed, tested, asked, exported and measured
by the pieces that the large backbones use.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data import Tokenizer, VQABatch, VQADataset
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
from common.tasks import (
    Command,
    FinetuneOptions,
    LogOptions,
    QuestionOptions,
    Recipe,
    Run,
    RunOptions,
    VQATask,
    add_question_options,
    find_dataset,
    find_features,
    find_questions,
    finetune,
    finetune_options,
    identity,
    predict,
    run_options,
    started,
    trained_on,
    vqa_loss,
)
from common.training import (
    add_policy_optimizer_options,
    add_run_options,
    add_strategy_options,
    check_options,
    fill,
    load_into,
    load_weights,
)
from tests.common.tiny_models import SingleStreamEncoder

RECIPE = Recipe(8, 1, "adamw", 1e-2, 0.1, 0.01, 5.0, 1e-3, 32)


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
    """What the command is told."""

    command: str
    run: RunOptions
    questions: QuestionOptions
    finetune: FinetuneOptions
    record: StrategyRecord
    words: Path
    test: Path | None

    @property
    def gpus(self) -> str | None:
        return self.run.gpus


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python tiny.py")
    for add in (add_question_options, add_strategy_options, add_policy_optimizer_options):
        add(made)
    add_run_options(made)
    made.add_argument("--words", type=Path, required=True, help="folder of vocab.txt")
    made.add_argument("--epochs", type=int, default=1)
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--output", type=Path, required=True)
    made.add_argument("--load", type=Path)
    made.set_defaults(policy=None)
    return made


def options(args: argparse.Namespace, command: str) -> TinyOptions:
    check_options(args)
    recipe = replace(RECIPE, epochs=args.epochs)
    given = {"policy": args.policy or "small", "policy_eval": args.policy_eval or "argmax"}
    record = fill(StrategyRecord, args, **given)
    return TinyOptions(
        command,
        run_options(args, args.output),
        fill(QuestionOptions, args),
        finetune_options(args, recipe),
        record,
        args.words,
        args.load,
    )


def work(options: TinyOptions) -> None:
    """Finetune, or with --load predict the split that is reported."""
    keep = options.run.resume or options.test is not None
    with started(replace(options.run, resume=keep)) as run:
        dataset, wanted = find_dataset(options.questions, run.world)
        tracker = run.open_log(options.command, True, LogOptions(tensorboard=False))
        features = find_features(wanted, dataset, run.world, quiet=True)
        train, heldout, val = find_questions(wanted, dataset, features, options.run.seed)
        tokenizer, answers = Tokenizer(options.words), dataset.vocabulary().answers
        config = TinyConfig(len(tokenizer), features.width, len(answers))
        sizes, seen = config.to_dict(), features.described()
        meta = finetuned_meta("tiny", options.record, "tiny", sizes, seen, answers, tokenizer)
        model = TinyModel(config).to(run.runtime.device)
        options.record.adapt(model, options.finetune.initial_share, options.finetune.adaptive)
        task = VQATask(train, heldout, TinyInputs(tokenizer), run.runtime, 32, 1, progress=False)
        if options.test is not None:
            load_into(model, load_weights(options.test))
            out = run.folder / "predictions.json"
            predict(model, task, val, str(wanted.valid), out, dataset.name, tracker.log)
            return
        run.seed_processes()
        head = identity(meta, dataset.name, options.run.seed, run.folder.name)
        row = options.record.row
        where = run.folder, run.runtime, tracker
        more = head, meta, options.command, tokenizer
        finetune(Run(model, task, val, row, options.finetune, *where, *more))


main = Command(Path(__file__).parent, "tiny.py", parser, options, work)


def make_model(meta: Mapping[str, Any]) -> nn.Module:
    return TinyModel(TinyConfig(**meta["config"]))


def training_questions(run: OpenedRun, root: Path | None) -> tuple[VQADataset, Path]:
    found = options_of(run, lambda words: options(parser().parse_args(words), ""))
    return trained_on(found.questions, run.dataset, found.run.seed, root or found.questions.data)


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
