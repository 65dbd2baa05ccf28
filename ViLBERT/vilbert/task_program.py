"""Finetuning and evaluating on any tasks of the task file, one or several together.

Questions alone are the business of `common.tasks.vqa_command`; here is everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import ConfigError
from common.features.sources import FeatureSources
from common.files import write_json
from common.tasks.evaluation import Evaluation, FinetuneTask
from common.tasks.options import Recipe
from common.tasks.starting import join, started
from common.tasks.vqa_command import VQAOptions, VQAProgram
from common.training.checkpoint import load_meta
from common.training.folder_lock import alone
from common.training.runtime import Runtime, set_threads
from common.training.tracking import Tracker
from vilbert.building import Needs, build_for
from vilbert.joint_task import JointData, JointOrder, JointTask, Plateau, Share
from vilbert.loading import weights_file
from vilbert.options import ModelOptions
from vilbert.task_sources import EASY, OpenedTask, TaskOpener, settle_entries
from vilbert.tasks import TaskEntry, names

Say = Callable[[str], None]
VQA = "vqa"  # in the meta of a checkpoint: questions alone


@dataclass(frozen=True)
class ViLBertProgram(VQAProgram[ModelOptions]):
    """The same for questions; for other tasks, and several, their own way."""

    def train(self, options: VQAOptions[ModelOptions]) -> dict[str, Any]:
        """Finetune and write result.json."""
        if options.model.questions_alone:
            return super().train(options)
        chosen = options.model
        entries, embedded = settle_entries(chosen.tasks, options.data.dataset, options.data.data)
        name = EASY if embedded else names(chosen.tasks)
        with started(options.run) as begun:
            small = self.size(chosen, name) == "small"
            tracker = begun.open_log(options.command, small, options.log)
            opener = TaskOpener(
                embedded, options.data, begun.world, options.run.seed, options.quiet, tracker.log
            )
            opened = [opener.open(entry) for entry in entries]
            built = build_for(options, needs_of(opened, name), tracker.log)
            begun.seed_processes()
            how = self.how(options, built)
            for source in opened:
                tracker.log(
                    f"{source.entry.name}: {len(source.train)} training, {len(source.heldout)} "
                    f"held-out and {len(source.val)} validation samples"
                )
            built.model.to(begun.runtime.device)
            tasks = {
                source.entry.name: source.make(
                    built.tokenizer,
                    begun.runtime,
                    how.evaluation_batches(tracker.log),
                    options.run.seed,
                    not options.quiet,
                )
                for source in opened
            }
            task, val, order = together(opened, tasks, options, how.recipe)
            answers = next((source.answers for source in opened if source.answers), ())
            return self.finish(options, begun, tracker, built, how, task, val, name, answers, order)

    def test(self, options: VQAOptions[ModelOptions], name: str) -> None:
        """Write the answers of a split and, where they are public, say the score."""
        if not options.load:
            raise ConfigError("--from_pretrained is missing: give the finetuned model")
        chosen = options.model
        if chosen.questions_alone and _trained_on(options.load) == VQA:
            super().test(options, name)
            return
        with testing(options) as begun:
            world, say = begun.runtime.world, begun.tracker.log
            small = self.size(chosen, begun.name) == "small"
            set_threads(options.run.threads, small, world.local_size)
            opened = [begun.opener.open_tested(entry, name) for entry in begun.entries]
            built = build_for(options, needs_of(opened, begun.name), say)
            built.model.to(begun.runtime.device)
            how = self.finetuning(options, built.size)
            for source in opened:
                task = source.make(
                    built.tokenizer,
                    begun.runtime,
                    how.evaluation_batches(say),
                    options.run.seed,
                    not options.quiet,
                )
                found = task.evaluate(built.model, source.val, source.split)
                own = f"{source.entry.name}_" if "," in built.meta["task"] else ""
                path = options.run.folder / f"{own}{self.predictions.format(source.split)}"
                if world.main:
                    write_json(path, rows_of(found))
                say(f"{len(found.predictions)} samples of {source.entry.name} in {path}")
                if found.scores is not None:
                    say(score_line(source, built.record.row.name, found))


@dataclass(frozen=True)
class Testing:
    """A test that has begun.

    Attributes:
        runtime: device, precision and processes.
        tracker: its log.
        entries: of the chosen tasks.
        name: of their data.
        opener: of the data.
    """

    runtime: Runtime
    tracker: Tracker
    entries: Sequence[TaskEntry]
    name: str
    opener: TaskOpener


@contextmanager
def testing(options: VQAOptions[ModelOptions]) -> Iterator[Testing]:
    """Settle what is tested and where, in a folder that no other command uses meanwhile."""
    chosen, data = options.model.tasks, options.data
    entries, embedded = settle_entries(chosen, data.dataset, data.data)
    runtime = join(options.gpus, options.run.precision, options.run.seed)
    world, folder = runtime.world, options.run.folder
    with alone(folder, world), Tracker(folder, tensorboard=False, enabled=world.main) as tracker:
        opener = TaskOpener(embedded, data, world, options.run.seed, options.quiet, tracker.log)
        yield Testing(runtime, tracker, entries, EASY if embedded else names(chosen), opener)


def score_line(source: OpenedTask, strategy: str, found: Evaluation) -> str:
    """The scores of a split, and that of a random choice."""
    scores = found.known_scores.items()
    shown = ", ".join(f"{kind} {value:.2f}" for kind, value in scores if value is not None)
    level = "" if found.chance is None else f" (chance {found.chance:.2f})"
    return f"{source.split} of {source.entry.name}, {strategy}: {shown}{level}"


def rows_of(found: Evaluation) -> list[dict[str, Any]]:
    """The rows of a file of answers."""
    return [
        row if isinstance(row, dict) else {"question_id": sample, "answer": row}
        for sample, row in found.predictions.items()
    ]


def _trained_on(load: str) -> str:
    """The task of a finetuned file; a file of the original is about questions."""
    path = weights_file(load)
    return str(load_meta(path).get("task", VQA)) if path.suffix == ".safetensors" else VQA


def needs_of(opened: Sequence[OpenedTask], name: str) -> Needs:
    """What the data of some tasks ask of a model.

    Raises:
        ConfigError: tasks with different answers, or features of different detectors.
    """
    answered = [source for source in opened if source.answers]
    lists = {tuple(source.answers) for source in answered}
    if len(lists) > 1:
        raise ConfigError(
            f"tasks {', '.join(source.entry.name for source in answered)} have different answers: "
            "one model has one answer head; train them one by one"
        )
    stores = [store for source in opened for store in source.features.stores]
    return Needs(
        name,
        FeatureSources(stores).described(),
        list(next(iter(lists), ())),
        {source.entry.name: asdict(source.limits) for source in opened},
        ",".join(source.entry.name for source in opened),
        list(dict.fromkeys(source.head for source in opened)),
    )


def together(
    opened: Sequence[OpenedTask],
    tasks: dict[str, FinetuneTask],
    options: VQAOptions[ModelOptions],
    recipe: Recipe,
) -> tuple[FinetuneTask, Any, JointOrder | None]:
    """What is trained, the samples that are reported, and the order of batches."""
    if len(opened) == 1:
        (task,) = tasks.values()
        return task, opened[0].val, None
    own = options.model.own_recipe and options.changes.get("batch_size") is None
    rate = min(source.entry.lr for source in opened)
    shares = {
        source.entry.name: Share(
            len(source.train),
            source.entry.batch_size if own else recipe.batch_size,
            source.entry.num_epoch if options.model.own_epochs else recipe.epochs,
            source.entry.lr / rate,
        )
        for source in opened
    }
    plateau = Plateau(every=options.model.train_iter_gap) if options.model.plateau else None
    order = JointOrder(shares, recipe.epochs, options.run.seed, plateau)
    val = JointData({source.entry.name: source.val for source in opened})
    return JointTask(tasks, order), val, order
