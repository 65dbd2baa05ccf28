"""What an experiment compares: rows that are trained, rows that are taken out of trained models."""

from __future__ import annotations

from dataclasses import dataclass

# How long a run takes in comparison to plain finetuning, for the time that is left.
COST = {"Frozen": 0.8, "standard": 1.0, "SpotTune_Block": 1.3, "SpotTune": 1.6, "BlockDrop": 1.1}


@dataclass(frozen=True)
class Row:
    """A run of an experiment, once for each seed.

    Attributes:
        strategy: its name.
        flags: of the run script, beside those of the experiment.
        called: name of its folder; empty: the strategy's.
        title: in tables; empty: as the folder.
        slower: times that a step takes in comparison to the strategy's without the flags.
        budget: share of the blocks that it is given, where it is compared by that.
    """

    strategy: str
    flags: tuple[str, ...] = ()
    called: str = ""
    title: str = ""
    slower: float = 1.0
    budget: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.called or self.strategy

    @property
    def shown(self) -> str:
        """In tables."""
        return self.title or self.name

    @property
    def cost(self) -> float:
        """How long it takes in comparison to plain finetuning."""
        return self.slower * COST.get(self.strategy, 1.5)


@dataclass(frozen=True)
class PrunedRow:
    """The model of a trained row without some of its layers; it is not trained again.

    Attributes:
        source: name of the row.
        rule: see `common.adapt.layerdrop.kept_layers`.
        name, title, budget: as of a `Row`.
    """

    source: str
    rule: str
    name: str
    title: str
    budget: float

    @property
    def shown(self) -> str:
        """In tables."""
        return self.title


@dataclass(frozen=True)
class Experiment:
    """Rows on one amount of data.

    Attributes:
        name, title: in paths and on the command line; for people.
        flags: of the run script: data and epochs.
        seeds: runs of every row.
        minutes: of a run of plain finetuning, measured on one core.
        rows: what is trained.
        control_of: name of the experiment whose learned policies this one replaces by random
            ones that finetune the same share.
        pruned: what is evaluated beside it.
        measured: the models of all rows are compared in one process after training, see
            `common.experiments.measuring`, and have a table of their own.
    """

    name: str
    title: str
    flags: tuple[str, ...]
    seeds: int
    minutes: float
    rows: tuple[Row, ...]
    control_of: str | None = None
    pruned: tuple[PrunedRow, ...] = ()
    measured: bool = False

    @property
    def shown_rows(self) -> tuple[Row | PrunedRow, ...]:
        """All rows in the order of the table: what is taken out of a model stands behind it."""
        shown: list[Row | PrunedRow] = []
        for row in self.rows:
            shown += [row, *(pruned for pruned in self.pruned if pruned.source == row.name)]
        return tuple(shown)
