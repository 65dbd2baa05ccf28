"""A whole command for visual question answering: finetune, with several seeds too, or test.

A backbone gives a `VQAProgram`: how it reads its own flags and how it builds a model. Everything
else that such a command does is here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import nn

from common.data.datasets import Dataset, load_split, open_features, resolve_dataset
from common.data.tokenizer import Tokenizer
from common.data.vqa_dataset import VQADataset
from common.errors import ConfigError
from common.features.sources import FeatureSources
from common.runs.backbones import MakeInputs
from common.runs.strategy_record import StrategyRecord
from common.tasks.command import Command
from common.tasks.evaluation import Evaluation, FinetuneTask
from common.tasks.finetuning import MakeOptimizers, Run, finetune, identity
from common.tasks.options import (
    FinetuneOptions,
    Recipe,
    add_recipe_options,
    finetune_options,
    flag_texts,
    log_options,
    recipe_changes,
    run_options,
)
from common.tasks.predicting import predict
from common.tasks.questions import (
    QuestionOptions,
    add_question_options,
    find_features,
    find_questions,
    with_splits,
)
from common.tasks.seeds import SeedRuns, run_seeds
from common.tasks.starting import LogOptions, RunOptions, Started, join, started
from common.tasks.vqa import VQATask
from common.training.attention_options import add_attention_options, add_layerdrop_options
from common.training.batch_order import Order
from common.training.folder_lock import alone
from common.training.options import (
    add_detector_option,
    add_policy_optimizer_options,
    add_run_options,
    add_seeds_option,
    add_strategy_options,
    check_options,
    earlier_policy_training,
    fill,
)
from common.training.run_folder import SnapshotNames
from common.training.runtime import set_threads
from common.training.tracking import Tracker

Say = Callable[[str], None]
Model = TypeVar("Model")


@dataclass
class Built:
    """An adapted model with what is needed to feed and to identify it.

    Attributes:
        model: adapted, with its weights.
        tokenizer: of the questions.
        record: of its strategy.
        meta: what its checkpoints remember, see `finetuned_meta`; `size` among it.
    """

    model: nn.Module
    tokenizer: Tokenizer
    record: StrategyRecord
    meta: dict[str, Any]

    @property
    def size(self) -> str:
        """Name of the model's size."""
        return self.meta["size"]


@dataclass(frozen=True)
class VQAOptions(Generic[Model]):
    """What the command is told.

    Attributes:
        command: as it was typed.
        run, log: where it writes to and computes, and what it logs.
        data: which questions.
        model: what the backbone is told of its model.
        base: how to finetune, with the recipe of the first size.
        changes: of the recipe.
        name: of the run.
        test: a split to test; None: finetune.
        load: a finetuned model to test.
        seeds: several runs that differ in their seed.
        quiet: show no progress bars.
    """

    command: str
    run: RunOptions
    log: LogOptions
    data: QuestionOptions
    model: Model
    base: FinetuneOptions
    changes: Mapping[str, Any]
    name: str
    test: str | None
    load: str | None
    seeds: SeedRuns | None
    quiet: bool

    @property
    def gpus(self) -> str | None:
        return self.run.gpus


@dataclass(frozen=True)
class VQAProgram(Generic[Model]):
    """What a backbone adds to the command.

    Attributes:
        home, script: its folder, and the script in it.
        description: for --help.
        add_options: adds the flags of its model and, as it wants, changes defaults; `--load` is
            among them.
        model_options: what the flags say of the model.
        size: name of the model's size, from the options and the name of the data set.
        build: the adapted model for a data set and its features; with `load`, the finetuned one.
        make_inputs: what turns a batch of questions into the model's inputs, from the tokenizer
            and the meta of the model's checkpoints.
        recipes: of every size; the flags change them.
        tiny: what changes in the recipe of small models with --tiny.
        settle: fills in flags that follow from others, before anything reads them.
        dataset: the data set that the flags mean.
        optimizers: see `Run`; None: the shared ones.
        names: of the checkpoints.
        predictions: file name of what --test answers, with a place for the split.
        others: file name of each question's best answers, likewise; None: they are not written.
        split: the split of a data set that --test means.
        epoch_lines: what is logged after an epoch, see `Run`, from the task and the model; None:
            as for all.
        data_help: see `add_question_options`.
    """

    home: Path
    script: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    model_options: Callable[[argparse.Namespace], Model]
    size: Callable[[Model, str], str]
    build: Callable[[VQAOptions[Model], Dataset, FeatureSources, Say], Built]
    make_inputs: Callable[[Tokenizer, dict[str, Any]], MakeInputs]
    recipes: Mapping[str, Recipe]
    tiny: Mapping[str, Any]
    settle: Callable[[argparse.Namespace], None] = lambda args: None
    dataset: Callable[[Model, QuestionOptions], Dataset] = lambda model, data: resolve_dataset(
        data.dataset, data_root=data.data
    )
    optimizers: Callable[[VQAOptions[Model], str], MakeOptimizers] | None = None
    names: SnapshotNames = field(default_factory=SnapshotNames)
    predictions: str = "{}_predict.json"
    others: str | None = None
    split: Callable[[Dataset, str], str] = lambda dataset, name: dataset.split_to_test(name)
    epoch_lines: Callable[[FinetuneTask, Built], Callable[[dict[str, Any]], str]] | None = None
    data_help: Mapping[str, str] = field(default_factory=dict)

    def parser(self) -> argparse.ArgumentParser:
        """The parser of the command."""
        made = argparse.ArgumentParser(prog=f"python {self.script}", description=self.description)
        add_question_options(made, self.data_help)
        add_recipe_options(made)
        adders = (
            add_seeds_option,
            add_strategy_options,
            add_attention_options,
            add_layerdrop_options,
        )
        for add in (*adders, add_policy_optimizer_options):
            add(made)
        add_run_options(made)
        add_detector_option(made)
        made.add_argument(
            "--output", type=Path, default=Path("snap/test"), help="folder of the run"
        )
        made.add_argument("--version", help="name of the run (default: name of the output folder)")
        made.set_defaults(strategy=None, policy=None)
        self.add_options(made)
        return made

    def options(self, args: argparse.Namespace, command: str) -> VQAOptions[Model]:
        """What the flags mean.

        Raises:
            ConfigError: numbers outside their limits, or flags that do not go together.
        """
        self.settle(args)
        # With --load and without --strategy it is that of the checkpoint.
        strategy = {} if args.load else {"strategy": "standard"}
        last = args.output / f"{self.names.last}.safetensors"
        check_options(args, **strategy, **(earlier_policy_training(last) if args.resume else {}))
        name, flags = args.version or args.output.name, flag_texts(args)
        seeds = SeedRuns(
            args.seed, args.seeds, args.output, name, args.resume, args.overwrite, flags
        )
        return VQAOptions(
            command,
            run_options(args, args.output, self.names),
            log_options(args),
            fill(QuestionOptions, args),
            self.model_options(args),
            finetune_options(args, next(iter(self.recipes.values()))),
            recipe_changes(args, Recipe),
            name,
            args.test,
            args.load,
            seeds if args.seeds > 1 else None,
            args.quiet,
        )

    def parse(self, words: Sequence[str]) -> VQAOptions[Model]:
        """The options that a command line means."""
        return self.options(self.parser().parse_args(words), "")

    def finetuning(self, options: VQAOptions[Model], size: str) -> FinetuneOptions:
        """How to finetune a model of this size: its recipe with what the flags change."""
        tiny = self.tiny if options.data.tiny and size == "small" else {}
        return options.base.with_recipe(replace(self.recipes[size], **{**tiny, **options.changes}))

    def main(self) -> Command[VQAOptions[Model]]:
        """The command itself."""
        return Command(self.home, self.script, self.parser, self.options, self._work, self._several)

    def _several(self, options: VQAOptions[Model], words: Sequence[str]) -> int | None:
        """Train with several seeds, if they are wanted."""
        if options.seeds is None:
            return None
        if options.test:
            raise ConfigError(
                "--seeds is for training; test one of them with --load …/seed_<seed>/BEST"
            )
        return run_seeds(options.seeds, words, self.home / self.script)

    def _work(self, options: VQAOptions[Model]) -> None:
        if options.test:
            self.test(options, options.test)
        else:
            self.train(options)

    def train(self, options: VQAOptions[Model]) -> dict[str, Any]:
        """Finetune and write result.json; returns it, or nothing where the run stopped earlier."""
        with started(options.run) as begun:
            with begun.world.main_first():  # which builds embedded data
                dataset = self.dataset(options.model, options.data)
            data = with_splits(options.data, dataset)
            options = replace(options, data=data)
            small = self.size(options.model, dataset.name) == "small"
            config = {**options.log.config, "train": data.train, "valid": data.valid}
            tracker = begun.open_log(options.command, small, replace(options.log, config=config))
            features = find_features(data, dataset, begun.world, options.quiet)
            built = self.build(options, dataset, features, tracker.log)
            begun.seed_processes()
            how = self.how(options, built)
            train, held, val = find_questions(
                data, dataset, features, options.run.seed, tracker.log
            )
            tracker.log(
                f"{dataset.name}: {len(train)} training, {len(held)} held-out and "
                f"{len(val)} validation questions"
            )
            built.model.to(begun.runtime.device)
            task = VQATask(
                train,
                held,
                self.make_inputs(built.tokenizer, built.meta),
                begun.runtime,
                how.evaluation_batches(tracker.log),
                options.run.seed,
                progress=not options.quiet,
            )
            return self.finish(options, begun, tracker, built, how, task, val, dataset.name)

    def finish(
        self,
        options: VQAOptions[Model],
        begun: Started,
        tracker: Tracker,
        built: Built,
        how: FinetuneOptions,
        task: FinetuneTask,
        val: Any,
        dataset: str,
        answers: Sequence[str] | None = None,
        order: Order | None = None,
    ) -> dict[str, Any]:
        """Finetune a model that is built, and write result.json; see `train`.

        Args:
            options: of the command.
            begun, tracker: the run.
            built: the model, on its device.
            how: to finetune it.
            task, val: what it is trained on, and the samples that are reported.
            dataset: name of the data set.
            answers: of the answer head; None: those of `val`.
            order: see `Run`.
        """
        return finetune(
            Run(
                built.model,
                task,
                val,
                built.record.row,
                how,
                begun.folder,
                begun.runtime,
                tracker,
                identity(built.meta, dataset, options.run.seed, options.name),
                built.meta,
                options.command,
                built.tokenizer,
                val.vocabulary.answers if answers is None else answers,
                names=self.names,
                order=order,
                optimizers=self.optimizers and self.optimizers(options, built.size),
                epoch_lines=self.epoch_lines and self.epoch_lines(task, built),
            )
        )

    def how(self, options: VQAOptions[Model], built: Built) -> FinetuneOptions:
        """How to finetune a model that is built: decided as its record says."""
        how = self.finetuning(options, built.size)
        adaptive = replace(how.adaptive, policy_eval=built.record.policy_eval)
        return replace(how, adaptive=adaptive)

    def test(self, options: VQAOptions[Model], name: str) -> Evaluation | None:
        """Write the predictions of a split and, where its answers are public, say the accuracy.

        Args:
            options: of the command.
            name: of the split, as --test gives it.
        """
        if not options.load:
            raise ConfigError("--test needs the finetuned model: give BEST of its run with --load")
        if "test" not in name and "val" not in name:
            raise ConfigError(f"--test {name!r}: use a split with `test` or `val` in its name")
        runtime = join(options.gpus, options.run.precision, options.run.seed)
        world = runtime.world
        with world.main_first():
            dataset = self.dataset(options.model, options.data)
        small = self.size(options.model, dataset.name) == "small"
        set_threads(options.run.threads, small, world.local_size)
        split = self.split(dataset, name)
        with (
            alone(options.run.folder, world),
            Tracker(options.run.folder, tensorboard=False, enabled=world.main) as tracker,
        ):
            with world.main_first():
                features = open_features(
                    dataset, split, skip_bad=options.data.skip_bad, progress=not options.quiet
                )
            built = self.build(options, dataset, features, tracker.log)
            examples = load_split(dataset, split, options.data.image_limit)
            data = VQADataset(examples, features, dataset.vocabulary())
            built.model.to(runtime.device)
            how = self.finetuning(options, built.size)
            task = VQATask(
                data,
                data,
                self.make_inputs(built.tokenizer, built.meta),
                runtime,
                how.evaluation_batches(tracker.log),
                options.run.seed,
                progress=not options.quiet,
            )
            folder, shown = options.run.folder, f"{dataset.name}, {built.record.row.name}"
            return predict(
                built.model,
                task,
                data,
                split,
                folder / self.predictions.format(split),
                shown,
                tracker.log,
                others=folder / self.others.format(split) if self.others else None,
            )
