"""Which runs `make experiments` consists of, and what is there of each already."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import ConfigError, DataError
from common.experiments.adaptive_attention import ADAPTIVE_ATTENTION
from common.experiments.rows import Experiment, Row
from common.runs.backbones import backbones
from common.runs.planned_runs import finished
from common.runs.run_script import RunScript

STRATEGIES = ("Frozen", "standard", "SpotTune_Block", "SpotTune", "BlockDrop")
# What policies learn by themselves; other ways to train them are compared by `make evidence`.
PUBLISHED = ("--policy-training", "published")
_BLOCK, _SPOTTUNE = (Row(name, PUBLISHED) for name in ("SpotTune_Block", "SpotTune"))
_ROWS = (Row("Frozen"), Row("standard"), _BLOCK, _SPOTTUNE, Row("BlockDrop"))
SEED = 9595
LAST_EPOCH = "last_epoch.json"
COMMON_FLAGS = ("--holdout", "0.05", "--quiet", "--no-plots", "--no-tensorboard")


def run_script() -> RunScript:
    """The script of the first backbone, which the experiments are made with."""
    return next(iter(backbones().values())).script


_DATA = ("--dataset", "easy_vqa")
_2000 = ("--questions", "2000", "--epochs", "15")
EXPERIMENTS = {
    row.name: row
    for row in (
        Experiment(
            "questions_2000",
            "easy-VQA, 2,000 finetuning questions",
            (*_DATA, *_2000),
            3,
            1.4,
            _ROWS,
        ),
        Experiment(
            "questions_500",
            "easy-VQA, 500 finetuning questions",
            (*_DATA, "--questions", "500", "--epochs", "20"),
            3,
            1.0,
            _ROWS,
        ),
        Experiment(
            "random_share",
            "easy-VQA, 2,000 finetuning questions, random decisions",
            (*_DATA, *_2000),
            3,
            1.4,
            (_BLOCK, _SPOTTUNE),
            "questions_2000",
        ),
        Experiment(
            "changing_priors",
            "easy-VQA with changing priors, 2,000 finetuning questions",
            ("--dataset", "easy_vqa_cp", *_2000),
            3,
            1.4,
            _ROWS,
        ),
        Experiment(
            "all_questions",
            "easy-VQA, all finetuning questions",
            (*_DATA, "--epochs", "6"),
            1,
            4.0,
            _ROWS,
        ),
        ADAPTIVE_ATTENTION,
    )
}
QUICK = ("--tiny", "--questions", "128", "--epochs", "1")


@dataclass(frozen=True)
class PlannedRun:
    """One run: an experiment's row with one seed."""

    experiment: Experiment
    trained: Row
    seed: int
    root: str

    @property
    def strategy(self) -> str:
        return self.trained.strategy

    @property
    def row(self) -> str:
        """The row's folder; a random policy has one of its own."""
        return self.trained.name + ("_random" if self.experiment.control_of else "")

    @property
    def name(self) -> str:
        """NAME of the run script."""
        return f"{self.root}/{self.experiment.name}/{self.row}/seed_{self.seed}"

    @property
    def script(self) -> RunScript:
        return run_script()

    @property
    def folder(self) -> Path:
        return self.script.run_folder(self.name)

    @property
    def cost(self) -> float:
        """Expected minutes."""
        return self.experiment.minutes * self.trained.cost

    def __str__(self) -> str:
        return f"{self.experiment.name}, {self.row}, seed {self.seed}"


def plan(names: Iterable[str], quick: bool) -> list[PlannedRun]:
    """The runs of some experiments in the order in which they are done.

    Raises:
        ConfigError: there is no such experiment.
    """
    names = list(names)
    for name in names:
        if name not in EXPERIMENTS:
            raise ConfigError(f"unknown experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    chosen = [row for row in EXPERIMENTS.values() if row.name in names]
    if quick:
        chosen = [
            replace(row, flags=(*row.flags, *QUICK), seeds=min(row.seeds, 2), minutes=0.2)
            for row in chosen
        ]
    root = "experiments_quick" if quick else "experiments"
    # Seed by seed: stopped early, every row has been run as often as the others.
    return [
        PlannedRun(experiment, row, SEED + i, root)
        for experiment in chosen
        for i, row in itertools.product(range(experiment.seeds), experiment.rows)
    ]


def learned_share(run: PlannedRun) -> float:
    """Mean share of live decisions that the learned policies of a control's experiment finetuned.

    Raises:
        DataError: a result of these policies is missing, or they leave nothing to chance.
    """
    assert run.experiment.control_of is not None  # controls alone are given such a share
    source = EXPERIMENTS[run.experiment.control_of]
    seeds = [SEED + i for i in range(run.experiment.seeds)]
    learned = [PlannedRun(source, run.trained, seed, run.root) for seed in seeds]
    results = {str(one): finished(one) for one in learned}
    missing = [name for name, result in results.items() if result is None]
    if missing:
        raise DataError(
            f"the share of {run.row} comes from learned policies whose results are "
            f"missing: {'; '.join(missing)}; run {source.name} first"
        )
    found = [result for result in results.values() if result is not None]
    share = statistics.fmean(result["decisions"]["mean_live"] for result in found)
    if not 0.0005 <= share <= 0.9995:
        raise DataError(
            f"the learned policies of {source.name}, {run.strategy} chose the same "
            f"everywhere (share {share:g}), which no random policy does"
        )
    return share


def flags_of(run: PlannedRun) -> list[str]:
    """What the run script is given after the run's name."""
    policy = ["--policy", f"random:{learned_share(run):.3f}"] if run.experiment.control_of else []
    return [
        "--strategy",
        run.strategy,
        *policy,
        *run.trained.flags,
        *run.experiment.flags,
        "--seed",
        str(run.seed),
        *COMMON_FLAGS,
    ]
