"""Which runs the evidence consists of.

Settings were chosen with seeds 9595 to 9597; what is reported has the seeds of `SEEDS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from common.data.datasets import resolve_dataset
from common.errors import ConfigError
from common.runs.backbones import backbones
from common.runs.run_script import RunScript

SEEDS = (101, 102, 103, 104, 105)
COMMON_FLAGS = ("--threads", "1", "--quiet", "--no-plots", "--no-tensorboard")
QUICK = ("--tiny", "--questions", "128", "--epochs", "1")
LEARNED, STARTED = ("--policy-training", "published"), ("--policy-training", "started")
# How long a run takes in comparison to plain finetuning, for the time that is left.
SLOWER = {"Frozen": 0.8, "SpotTune_Block": 1.3, "SpotTune": 1.6, "BlockDrop": 1.2}


@dataclass(frozen=True)
class Pruned:
    """The model of a row without some of its layers; it is not trained again.

    Attributes:
        name, title: as of an `EvidenceRow`.
        rule: see `common.adapt.layerdrop.kept_layers`.
        kept: share of the layers that stay.
    """

    name: str
    title: str
    rule: str
    kept: float


@dataclass(frozen=True)
class EvidenceRow:
    """A run of a study, once for each seed.

    Attributes:
        name: of its folder.
        title: in tables and the figure.
        strategy, flags: of the run script.
        share_of: name of the row before it whose share of decision 1, with the same seed, a
            random policy takes over; empty: it is not such a control.
        permuted: it stands for two rows, the second of them with its decisions permuted among the
            questions.
        kept: share of the layers that it has, where no policy says it.
        pruned: what is taken out of it after its training, rows of their own.
    """

    name: str
    title: str
    strategy: str
    flags: tuple[str, ...] = ()
    share_of: str = ""
    permuted: bool = False
    kept: float | None = None
    pruned: tuple[Pruned, ...] = ()


@dataclass(frozen=True)
class Study:
    """Rows on one backbone and one data set.

    Attributes:
        name, title: in paths and on the command line; for people.
        backbone: whose run script is used.
        dataset: an embedded one.
        flags: amount of data and epochs.
        seeds: of the runs of every row.
        minutes: of a run of plain finetuning on one core.
        rows: of the table, the first one is what others are compared with.
        group: studies of one group share a table's legend and a panel of the figure.
    """

    name: str
    title: str
    backbone: str
    dataset: str
    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float
    rows: tuple[EvidenceRow, ...]
    group: str

    @property
    def script(self) -> RunScript:
        return backbones()[self.backbone].script

    @property
    def backbone_title(self) -> str:
        """For people."""
        return backbones()[self.backbone].title

    @property
    def skips(self) -> bool:
        """Its rows are compared by the share of layers that they keep."""
        return self.group == "blocks"


@dataclass(frozen=True)
class EvidenceRun:
    """One row with one seed."""

    study: Study
    row: EvidenceRow
    seed: int
    root: str

    @property
    def name(self) -> str:
        """NAME of the run script."""
        return f"{self.root}/{self.study.name}/{self.row.name}/seed_{self.seed}"

    @property
    def script(self) -> RunScript:
        return self.study.script

    @property
    def folder(self) -> Path:
        return self.script.run_folder(self.name)

    @property
    def cost(self) -> float:
        """Expected minutes."""
        return self.study.minutes * SLOWER.get(self.row.strategy, 1.0)

    def published(self, out: Path, name: str = "") -> Path:
        """Its result among those that are kept, or that of a row made of it."""
        return out / self.study.name / (name or self.row.name) / f"seed_{self.seed}.json"

    def flags(self, share: float | None = None) -> list[str]:
        """What the run script is given.

        Args:
            share: of the random policy of a control.
        """
        control = [] if share is None else ["--policy", f"random:{share:.3f}"]
        return [
            *self.study.script.data(self.study.dataset),
            "--strategy",
            self.row.strategy,
            *control,
            *self.row.flags,
            *self.study.flags,
            "--seed",
            str(self.seed),
            *COMMON_FLAGS,
        ]

    def __str__(self) -> str:
        return f"{self.study.name}, {self.row.name}, seed {self.seed}"


def permuted_name(row: EvidenceRow) -> str:
    """Name of the row with the decisions of another one, permuted."""
    return f"{row.name}_permuted"


def shown_rows(study: Study) -> list[tuple[str, str]]:
    """Name and title of every row of the table."""
    rows = []
    for row in study.rows:
        rows.append((row.name, row.title))
        if row.permuted:
            rows.append((permuted_name(row), f"{row.title}, permuted"))
        rows += [(pruned.name, pruned.title) for pruned in row.pruned]
    return rows


def _policy(name: str, title: str, *flags: str, **more: str | bool) -> EvidenceRow:
    return EvidenceRow(name, title, "SpotTune_Block", flags, **more)  # type: ignore[arg-type]


STANDARD = EvidenceRow("standard", "plain finetuning", "standard")
FROZEN = EvidenceRow("frozen", "Frozen", "Frozen")
PUBLISHED = _policy("published", "policy, published training", *LEARNED)
STARTED_ROW = _policy("started", "policy, started", *STARTED, permuted=True)
RANDOM = _policy("random", "random, same share as started", share_of="started")
SHARED = _policy("shared", "one decision for all questions", *LEARNED, "--policy", "shared")


def _oracle(kind: str) -> EvidenceRow:
    return _policy("oracle", f"oracle ({kind} → finetuned)", "--policy", f"oracle:{kind}")


DIALECT = (
    STANDARD,
    FROZEN,
    EvidenceRow("last_2", "last 2 layers", "last_2"),
    PUBLISHED,
    SHARED,
    STARTED_ROW,
    RANDOM,
    _oracle("learned"),
)
# With one backbone and fewer seeds: other sites, and the published gradient after a start.
SITES = (
    EvidenceRow("SpotTune", "SpotTune, published training", "SpotTune", LEARNED),
    EvidenceRow("SpotTune_started", "SpotTune, started", "SpotTune", STARTED),
    EvidenceRow("SpotTune_Res", "SpotTune_Res, published training", "SpotTune_Res", LEARNED),
    EvidenceRow("SpotTune_Res_started", "SpotTune_Res, started", "SpotTune_Res", STARTED),
    _policy("learning", "started, then learned", *STARTED, "--policy-hold", "0.25"),
    _policy("reviewed", "started and reviewed", *STARTED, "--policy-review", "2"),
)
PLAIN = (
    STANDARD,
    FROZEN,
    PUBLISHED,
    _policy("random_published", "random, same share as published", share_of="published"),
    STARTED_ROW,
    RANDOM,
)
# Layers that stay, of two language, two vision and two cross layers.
LAYERS = 6
DEPTHS = {4: "lang.1,vision.1,cross.1,cross.2", 3: "every_other", 2: "cross.1,cross.2"}
HOLD = ("--target-rate-scale", "10")  # the weight of a budget that keeps it


def _of_blocks(kept: int, rule: str) -> tuple[EvidenceRow, ...]:
    share, shown = f"{kept / LAYERS:.3g}", f"{kept} of {LAYERS}"
    budget = ("--target-rate", share, *HOLD, *LEARNED)
    name = f"blockdrop_{kept}"
    static = ("--prune", rule)
    return (
        EvidenceRow(name, f"BlockDrop, {shown}", "BlockDrop", budget, permuted=True),
        EvidenceRow(
            f"static_{kept}", f"finetuned without, {shown}", "standard", static, kept=kept / LAYERS
        ),
        EvidenceRow(
            f"random_{kept}", f"random, share of BlockDrop {shown}", "BlockDrop", share_of=name
        ),
    )


SKIPPING = (
    replace(STANDARD, kept=1.0),
    *itertools.chain.from_iterable(itertools.starmap(_of_blocks, DEPTHS.items())),
    EvidenceRow(
        "layerdrop",
        "LayerDrop 0.2",
        "standard",
        ("--layerdrop", "0.2"),
        kept=1.0,
        pruned=tuple(
            Pruned(
                f"layerdrop_{kept}", f"LayerDrop, pruned, {kept} of {LAYERS}", rule, kept / LAYERS
            )
            for kept, rule in DEPTHS.items()
        ),
    ),
)
VARIANTS = {
    "image": "cue in the image",
    "kept02": "2 % of the images keep the old words",
    "kept30": "30 % of the images keep the old words",
    "unseen": "with questions behind an unknown cue",
}
DIALECT_FLAGS = ("--questions", "1000", "--epochs", "8")


def _studies() -> list[Study]:
    first = next(iter(backbones()))
    few = SEEDS[:3]
    found = [
        Study(
            f"dialect_{name}",
            f"{backbone.title}, a dialect of easy-VQA, 1,000 finetuning questions",
            name,
            "easy_vqa_dialect",
            DIALECT_FLAGS,
            SEEDS,
            0.7,
            DIALECT,
            "dialect",
        )
        for name, backbone in backbones().items()
    ]
    title = backbones()[first].title
    found.append(
        Study(
            "dialect_sites",
            f"{title}, other sites and ways to go on",
            first,
            "easy_vqa_dialect",
            DIALECT_FLAGS,
            few,
            0.7,
            (STANDARD, *SITES),
            "sites",
        )
    )
    for variant, what in VARIANTS.items():
        rows = (STANDARD, FROZEN, PUBLISHED, STARTED_ROW, *SITES[-1:], _oracle("learned"))
        found.append(
            Study(
                f"dialect_{variant}",
                f"{title}, dialect, {what}",
                first,
                f"easy_vqa_dialect_{variant}",
                DIALECT_FLAGS,
                few,
                0.7,
                rows,
                "variants",
            )
        )
    for name, title_of, dataset, flags, minutes in (
        ("plain_500", "easy-VQA, 500 questions", "easy_vqa", ("500", "20"), 1.0),
        ("plain_2000", "easy-VQA, 2,000 questions", "easy_vqa", ("2000", "15"), 1.4),
        ("priors", "changing priors, 2,000 questions", "easy_vqa_cp", ("2000", "15"), 1.4),
    ):
        given = ("--questions", flags[0], "--epochs", flags[1])
        shown = f"{title}, {title_of}"
        found.append(Study(name, shown, first, dataset, given, few, minutes, PLAIN, "plain"))
    found.append(
        Study(
            "blocks",
            f"{title}, easy-VQA, 1,000 questions, with fewer layers",
            first,
            "easy_vqa",
            DIALECT_FLAGS,
            few,
            0.7,
            SKIPPING,
            "blocks",
        )
    )
    return found


def studies() -> dict[str, Study]:
    """All studies by name."""
    return {study.name: study for study in _studies()}


def plan(names: Iterable[str] | None, quick: bool) -> list[EvidenceRun]:
    """The runs of some studies in the order in which they are done.

    Raises:
        ConfigError: there is no such study.
    """
    known = studies()
    names = list(known if names is None else names)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown study {name!r}; there are {', '.join(known)}")
    chosen = [study for study in known.values() if study.name in names]
    if quick:
        chosen = [
            replace(study, flags=(*study.flags, *QUICK), seeds=study.seeds[:1], minutes=0.1)
            for study in chosen
            if study.group == "dialect"
        ]
    root = "evidence_quick" if quick else "evidence"
    # Seed by seed: stopped early, every row has been run as often as the others.
    return [
        EvidenceRun(study, row, seed, root)
        for study in chosen
        for seed, row in itertools.product(study.seeds, study.rows)
    ]


def embedded(run: EvidenceRun) -> None:
    """Build the data of a run where it is missing, once, before several runs want it."""
    resolve_dataset(run.study.dataset)
